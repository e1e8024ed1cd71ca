"""Keys that several recipes share: base model, adapter, data, optimizer, checkpoints, machine.

Keys are those of TRL and transformers wherever they exist there, so that people can paste what they have.
"""

import math
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct

from .attention import check_attention
from .stages import Split, Stage

LORA = "https://thinkingmachines.ai/blog/lora"
"""Source of the rule for LoRA's learning rates."""
ALL_LINEAR = "all-linear"
"""PEFT's name for every matrix of the layers, in `lora_target_modules`."""
AtLeastOne = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, lt=1)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
BasePrecision = Literal["auto", "dtype", "bf16", "int8", "nf4", "fp4"]
BatchSize = AtLeastOne | Literal["auto"]
AUTO_BATCH = 4
"""Default micro-batch size, and the one that `auto` regroups."""
AUTO_HELP = (
    f"`auto`: the largest that fits, from the estimate at launch, with as much accumulation as keeps {AUTO_BATCH} × "
    "`gradient_accumulation_steps` per optimizer step."
)
COLUMN_NAMES = ("prompt", "chosen", "rejected", "completion", "messages")
"""Names of `dataset_columns`; TRL's."""
Steps = Annotated[int, Meta(ge=0)] | Share
"""Number of steps, or below 1 a share of all steps; see :func:`steps_of`."""
Scheduler = Literal[
    "linear",
    "cosine",
    "constant",
    "constant_with_warmup",
    "cosine_with_restarts",
    "polynomial",
    "cosine_with_min_lr",
    "inverse_sqrt",
]
Optim = Literal[
    "adamw_torch_fused",
    "adamw_torch",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "adafactor",
]
OPTIM_HELP = (
    "Optimizer, by transformers' name. 8-bit states take a quarter of the memory of float32 ones (arXiv:2110.02861); "
    "paged ones move to host memory when the GPU is full; `adafactor` stores row and column sums of the second moment "
    "(arXiv:1804.04235)."
)

CHECKPOINTING_HELP = (
    "Recompute activations in the backward pass: less memory, about a third slower; `auto`: where the memory estimate "
    "needs it, decided at launch."
)
PRECISION_HELP = (
    "Precision of the frozen base: `dtype`: not quantised, as `dtype` says; `bf16`: the same in bfloat16; `int8`: "
    "LLM.int8() (arXiv:2208.07339); `nf4`, `fp4`: 4 bits (arXiv:2305.14314); `auto`: the most precise of bf16, int8 "
    "and nf4 that fits the GPU, decided at launch; on the CPU `dtype`."
)
TRAIN_SAMPLES_HELP = "Maximum number of training examples, taken from the start; empty: all."
EVAL_SAMPLES_HELP = "Maximum number of evaluation examples, taken from the start; empty: all."
SPLIT_HELP = "Split to train on."
LEARNING_RATE_HELP = f"Peak learning rate; LoRA needs about ten times that of full fine-tuning ({LORA})."
ACCUMULATION_HELP = "Micro-batches accumulated per optimizer step."
DROPOUT_HELP = "Dropout probability on the adapter's input."
DTYPE_HELP = "Dtype of the weights that are not quantised; `auto` keeps the checkpoint's."
WEIGHT_DECAY_HELP = "Decoupled weight decay."
EVAL_HELP = "Evaluate every N optimizer steps; below 1: a share of all steps; 0: only at the end."
WARMUP_HELP = "Number of linear warm-up steps; below 1: a share of all steps."


def about(text: str, **bounds: Any) -> Meta:
    """Return a key's help, with the source of its formula or value, and its bounds (:class:`msgspec.Meta`)."""
    return Meta(description=text, **bounds)


def micro_batch_of(size: BatchSize) -> int:
    """Return a micro-batch size as a number; `auto` counts as what it regroups until a launch resolves it."""
    return AUTO_BATCH if size == "auto" else size


def check_one_limit(size: BatchSize, tokens: int | None) -> None:
    """Refuse `auto` beside a limit in tokens.

    Raises:
        ValueError: both are given.
    """
    if size == "auto" and tokens is not None:
        raise ValueError(
            f"`per_device_train_batch_size: auto` and `max_tokens_per_micro_batch: {tokens}` both set the micro-batch; "
            "leave one of them out."
        )


def steps_of(steps: float, total: int) -> int:
    """Return a number of steps; ``steps`` below 1 is a share of ``total``, rounded up as in transformers."""
    return math.ceil(steps * total) if 0 < steps < 1 else int(steps)


class ModelRecipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base model and how it is loaded; shared by every stage that loads one."""

    model_name_or_path: Annotated[
        str,
        about("Base model: hub id, local directory, local .gguf file, finished merge run, or `demo`.", min_length=1),
    ]
    model_revision: Annotated[str | None, about("Hub revision of the model: branch, tag or commit.")] = None
    dtype: Annotated[Dtype, about(DTYPE_HELP)] = "auto"
    attn_implementation: Annotated[
        str | None,
        about(
            "Attention implementation: `eager`, `sdpa`, `flash_attention_2`, `_3` or `_4`, `flex_attention`, or a "
            "kernel `kernels-community/NAME@COMMIT` that the environment variable `STACKLLAMA_ALLOWED_KERNELS` names, "
            "as it is code from a hub; empty: chosen by transformers."
        ),
    ] = None
    trust_remote_code: Annotated[bool, about("Must be false: code from a model repository is never executed.")] = False


class TrainRecipe(ModelRecipe, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys that SFT, reward and PPO share."""

    stage: ClassVar[Stage]

    # base precision
    base_precision: Annotated[BasePrecision, about(PRECISION_HELP)] = "auto"
    use_bnb_nested_quant: Annotated[
        bool, about("Double quantisation: also quantise the scales of the 4-bit weights (arXiv:2305.14314).")
    ] = False

    use_liger_kernel: Annotated[
        bool,
        about(
            "Compute norms, SwiGLU and rotary embeddings by Liger's Triton kernels: faster on a GPU, numbers differ in "
            "rounding. Needs the extra `[fast]` and a model family that Liger knows. `plan` counts the memory without."
        ),
    ] = False

    # adapter
    use_peft: Annotated[bool, about("Train LoRA adapters on a frozen base; false: train all weights.")] = True
    lora_r: Annotated[int, about("LoRA rank.", ge=1)] = 16
    lora_alpha: Annotated[
        int, about("LoRA scaling: the adapter's output is multiplied by `lora_alpha` / `lora_r`.", ge=1)
    ] = 32
    lora_dropout: Annotated[float, about(DROPOUT_HELP, ge=0, lt=1)] = 0.05
    lora_target_modules: Annotated[
        list[str] | str | None,
        about(
            "Modules that get an adapter: `all-linear` (every matrix inside the layers), a list of names, or a regular "
            "expression over full names such as `.*(q|v)_proj`; empty: PEFT's default for the model (for Llama q_proj "
            "and v_proj), which learns worse (https://thinkingmachines.ai/blog/lora)."
        ),
    ] = ALL_LINEAR

    # data
    dataset_name: Annotated[
        str,
        about(
            "Data set: hub id, directory made by `data prepare`, file of rows (.jsonl, .json, .csv, .tsv, .parquet, "
            ".arrow), folder of them or pattern such as `data/train-*.parquet`, or `demo`.",
            min_length=1,
        ),
    ] = "lvwerra/stack-exchange-paired"
    dataset_config: Annotated[str | None, about("Configuration (subset) of the hub data set.")] = None
    dataset_columns: Annotated[
        dict[str, str],
        about(
            "Columns with other names than ours, such as `{prompt: title, chosen: good}`; the names are `prompt`, "
            "`chosen`, `rejected`, `completion` and `messages`."
        ),
    ] = {}
    dataset_train_split: Annotated[str, about(SPLIT_HELP, min_length=1)]
    dataset_test_split: Annotated[str, about("Held-out split to evaluate on.", min_length=1)] = Split.EVALUATION.value
    prompt_format: Annotated[
        Literal["auto", "question_answer", "chat", "none"],
        about(
            "How prompts are written: `chat`: messages in a chat template; `question_answer`: `Question: …` and "
            "`Answer: …`, as published; `none`: as they are; `auto`: by the data set's columns."
        ),
    ] = "auto"
    system_prompt: Annotated[
        str | None, about("System message of conversations that bring none (`prompt_format: chat`).")
    ] = None
    chat_template: Annotated[
        str | None, about("File with a Jinja chat template; empty: the tokenizer's own (`prompt_format: chat`).")
    ] = None
    enable_thinking: Annotated[
        bool | None, about("Passed to the chat template; empty: left to the template (`prompt_format: chat`).")
    ] = None
    dataset_streaming: Annotated[bool, about("Stream the hub data set instead of downloading all of it.")] = True
    max_train_samples: Annotated[AtLeastOne | None, about(TRAIN_SAMPLES_HELP)] = None
    max_eval_samples: Annotated[AtLeastOne | None, about(EVAL_SAMPLES_HELP)] = None

    # optimisation
    optim: Annotated[Optim, about(OPTIM_HELP)] = "adamw_torch_fused"
    learning_rate: Annotated[float, about("Peak learning rate.", gt=0, le=1)]
    lr_scheduler_type: Annotated[Scheduler, about("Learning-rate schedule.")] = "linear"
    min_lr_rate: Annotated[
        Share | None, about("`cosine_with_min_lr`: final learning rate, as a share of `learning_rate`.")
    ] = None
    warmup_steps: Annotated[Steps, about(WARMUP_HELP)] = 0
    weight_decay: Annotated[float, about(WEIGHT_DECAY_HELP, ge=0, le=1)] = 0.0
    adam_beta1: Annotated[float, about("AdamW beta1: decay rate of the first moment.", ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, about("AdamW beta2: decay rate of the second moment.", ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[float, about("AdamW epsilon.", gt=0)] = 1e-8
    max_grad_norm: Annotated[
        float, about("Gradient clipping: maximum norm of the gradient (arXiv:1211.5063).", gt=0)
    ] = 1.0
    gradient_accumulation_steps: Annotated[int, about(ACCUMULATION_HELP, ge=1)] = 1
    gradient_checkpointing: Annotated[bool | Literal["auto"], about(CHECKPOINTING_HELP)] = "auto"
    bf16: Annotated[bool, about("Run the forward pass under bfloat16 autocast.")] = False
    fp16: Annotated[bool, about("Run the forward pass under float16 autocast, with loss scaling (GPU only).")] = False
    seed: Annotated[int, about("Random seed, for everything that is random.", ge=0, lt=2**32)] = 0

    # reporting and checkpoints
    logging_steps: Annotated[
        Annotated[int, Meta(ge=1)] | Annotated[float, Meta(gt=0, lt=1)],
        about("Record metrics every N optimizer steps (PPO: every N PPO steps); below 1: a share of all steps."),
    ] = 10
    save_steps: Annotated[
        Steps,
        about(
            "Save a checkpoint every N optimizer steps; below 1: a share of all steps; 0: only by time "
            "(`save_minutes`) and when stopped."
        ),
    ] = 500
    save_minutes: Annotated[
        float,
        about(
            "Also save a checkpoint at the end of a step if the last one is N minutes old; the first after 2 "
            "minutes at most, to measure its cost; 0: only by steps.",
            ge=0,
        ),
    ] = 15.0
    save_total_limit: Annotated[
        AtLeastOne | None,
        about(
            "Number of newest checkpoints to keep; empty: all those of `save_steps`, and the newest of `save_minutes`."
        ),
    ] = 3
    metric_for_best_model: Annotated[
        str | None,
        about("Also keep the best checkpoint by this metric, e.g. eval_loss or, for PPO, eval/objective."),
    ] = None
    greater_is_better: Annotated[
        bool | None,
        about(
            "Whether higher values of `metric_for_best_model` are better; empty: lower is better if its name "
            "ends in `loss`."
        ),
    ] = None
    keep_every_steps: Annotated[int, about("Also keep the checkpoint of every N-th step; 0: none.", ge=0)] = 0
    max_skipped_steps: Annotated[
        int,
        about(
            "Roll back after N consecutive steps whose loss or gradient is not finite (each of them is skipped).", ge=1
        ),
    ] = 3
    max_rollbacks: Annotated[
        int,
        about(
            "Maximum number of rollbacks, each of which halves the learning rate, before the run fails; 0: no "
            "rollbacks.",
            ge=0,
        ),
    ] = 2
    report_to: Annotated[
        list[Literal["tensorboard", "wandb", "trackio"]],
        about("Also report metrics to these trackers, through their own packages."),
    ] = []

    # machine
    num_processes: Annotated[
        AtLeastOne | None, about("Number of processes; empty: one per visible GPU, or one on the CPU.")
    ] = None
    use_cpu: Annotated[bool, about("Train on the CPU even if there is a GPU.")] = False

    def __post_init__(self) -> None:
        """Check the keys against each other.

        Raises:
            ValueError: two keys exclude each other; the message names both and the fix.
        """
        if self.trust_remote_code:
            raise ValueError(
                "`trust_remote_code: true` is refused: code from a model repository is never executed. "
                "Use a model whose architecture is part of transformers."
            )
        self._check_precision()
        if self.attn_implementation is not None:
            check_attention(self.attn_implementation)
        if self.use_liger_kernel and self.use_cpu:
            raise ValueError(
                "`use_liger_kernel: true` needs a GPU, but `use_cpu: true` is set; set one of them to false."
            )
        self._check_columns()
        self._check_optimisation()
        if getattr(self, "max_steps", -1) == 0:
            raise ValueError("`max_steps: 0` trains nothing; give a number of steps, or -1 for `num_train_epochs`.")
        self._check_checkpoints()
        if self.bf16 and self.fp16:
            raise ValueError("`bf16` and `fp16` are both true; choose one of them.")

    def _check_precision(self) -> None:
        if self.base_precision == "bf16":
            if self.dtype not in ("auto", "bfloat16"):
                raise ValueError(
                    f"`base_precision: bf16` contradicts `dtype: {self.dtype}`; set `base_precision: dtype`, or leave "
                    "`dtype` out."
                )
            msgspec.structs.force_setattr(self, "dtype", "bfloat16")  # so that one key says how weights are loaded
        if self.quantised and self.model_name_or_path.endswith(".gguf"):
            raise ValueError(
                "a .gguf model is dequantised on loading and cannot be loaded in 8 or 4 bits; "
                "set `base_precision: bf16` or `dtype`."
            )
        if self.quantised and not self.use_peft:
            raise ValueError(
                "`use_peft: false` trains every weight, which quantised weights do not allow; "
                "set `base_precision: dtype`, or keep `use_peft: true`."
            )

    def _check_columns(self) -> None:
        columns = self.dataset_columns
        if unknown := [name for name in columns if name not in COLUMN_NAMES]:
            raise ValueError(
                f"`dataset_columns`: `{unknown[0]}` is none of {', '.join(COLUMN_NAMES)}; write `name: column of the "
                "data set`."
            )
        for name, column in columns.items():
            if twice := [other for other in columns if other != name and columns[other] == column]:
                raise ValueError(
                    f"`dataset_columns`: `{name}` and `{twice[0]}` are both the column {column}; a column has one role."
                )
        if "messages" in columns and len(columns) > 1:
            raise ValueError(
                "`dataset_columns`: `messages` is a whole conversation, prompt and response; keep it or the others."
            )
        if {"chosen", "completion"} <= set(columns):
            raise ValueError("`dataset_columns`: `chosen` and `completion` both name the response; keep one of them.")

    def _check_checkpoints(self) -> None:
        if self.metric_for_best_model and not self.save_steps:
            raise ValueError(
                f"`metric_for_best_model: {self.metric_for_best_model}` needs checkpoints at the steps that are "
                "evaluated, and `save_steps: 0` saves none there; set `save_steps` to a multiple of `eval_steps`."
            )
        if self.keep_every_steps and 0 < self.save_steps < 1:
            raise ValueError(
                f"`keep_every_steps: {self.keep_every_steps}` needs `save_steps` as a number of steps; "
                f"`save_steps: {self.save_steps:g}` is a share of all steps."
            )
        if self.keep_every_steps and (not self.save_steps or self.keep_every_steps % self.save_steps):
            raise ValueError(
                f"`keep_every_steps: {self.keep_every_steps}` must be a multiple of `save_steps: {self.save_steps}`; "
                "other steps have no checkpoint to keep."
            )

    def _check_optimisation(self) -> None:
        if self.warmup_steps and self.lr_scheduler_type == "constant":
            raise ValueError(
                f"`lr_scheduler_type: constant` would ignore `warmup_steps: {self.warmup_steps}`; "
                "use `constant_with_warmup`, or set `warmup_steps: 0`."
            )
        if (self.lr_scheduler_type == "cosine_with_min_lr") != (self.min_lr_rate is not None):
            raise ValueError(
                "`lr_scheduler_type: cosine_with_min_lr` and `min_lr_rate` belong together: the schedule ends at "
                f"`learning_rate` × `min_lr_rate`. Got `lr_scheduler_type: {self.lr_scheduler_type}` and "
                f"`min_lr_rate: {'null' if self.min_lr_rate is None else self.min_lr_rate}`; set both or neither."
            )
        if self.optim == "adafactor" and (self.adam_beta1, self.adam_beta2, self.adam_epsilon) != (0.9, 0.999, 1e-8):
            raise ValueError(
                "`optim: adafactor` has no `adam_beta1`, `adam_beta2` or `adam_epsilon`; remove them, "
                "or use one of the `adamw` optimizers."
            )

    @property
    def quantised(self) -> bool:
        """Whether the base is held in 8 or 4 bits."""
        return self.load_in_8bit or self.load_in_4bit

    @property
    def load_in_8bit(self) -> bool:
        """Whether the base is held in 8 bits; transformers' name."""
        return self.base_precision == "int8"

    @property
    def load_in_4bit(self) -> bool:
        """Whether the base is held in 4 bits; transformers' name."""
        return self.base_precision in ("nf4", "fp4")

    @property
    def checkpointing(self) -> bool:
        """Whether activations are recomputed; false while `auto` is not decided."""
        return self.gradient_checkpointing is True
