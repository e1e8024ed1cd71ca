"""Recipes: one frozen Struct a stage, the single place for keys, types, bounds, defaults and help.

Keys are those of TRL and transformers wherever they exist there, so that people can paste what they have.
Defaults are the published StackLLaMA values (https://huggingface.co/blog/stackllama and the scripts it links).
Reading and checking is in :mod:`.recipe_io`.
"""

import re
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct

from .stages import Split, Stage

AtLeastOne = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial"]
KlEstimator = Literal["k1", "k2", "k3"]
Optim = Literal[
    "adamw_torch_fused", "adamw_torch", "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit",
    "adafactor",
]  # fmt: skip
_OPTIM = (
    "Optimizer, by transformers' names. 8-bit states (arXiv:2110.02861) take a quarter of float32 ones; paged ones "
    "move to the host when the GPU is full; `adafactor` keeps sums over rows and columns (arXiv:1804.04235)."
)
_STACKLLAMA = "https://huggingface.co/blog/stackllama"
_TRL_VLLM = "https://huggingface.co/docs/trl/vllm_integration"
_N_DETAILS = "https://huggingface.co/blog/the_n_implementation_details_of_rlhf_with_ppo"
FUNCTION = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")
"""``package.module:function``."""
REWARD_ARGUMENTS = frozenset({"questions", "responses"})
"""The keywords that a ``reward_fn`` is called with, a list of texts each."""
VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM can make room for (its ``config/lora.py``)."""
VLLM_LEAST_TEMPERATURE = 0.01
"""vLLM raises what is lower to this (its ``sampling_params.py``)."""


def _help(text: str, **bounds: Any) -> Meta:
    return Meta(description=text, **bounds)


class ModelRecipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base model and how it is loaded; shared by every stage that loads one."""

    model_name_or_path: Annotated[
        str, _help("Hub id, local directory, local .gguf file, a finished merge run, or `demo`.", min_length=1)
    ]
    model_revision: Annotated[str | None, _help("Hub revision (branch, tag or commit).")] = None
    dtype: Annotated[Dtype, _help("Weights that are not quantised; `auto` keeps the checkpoint's own.")] = "auto"
    attn_implementation: Annotated[
        Literal["eager", "sdpa", "flash_attention_2"] | None, _help("Attention kernel; empty: transformers chooses.")
    ] = None
    trust_remote_code: Annotated[bool, _help("Always off: code from a model repository is never executed.")] = False


class TrainRecipe(ModelRecipe, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What SFT, reward and PPO have in common."""

    stage: ClassVar[Stage]

    # base precision
    load_in_8bit: Annotated[bool, _help("Frozen base in int8 (bitsandbytes LLM.int8()).")] = True
    load_in_4bit: Annotated[bool, _help("Frozen base in 4 bits (bitsandbytes, QLoRA).")] = False
    bnb_4bit_quant_type: Annotated[Literal["nf4", "fp4"], _help("4-bit data type.")] = "nf4"
    use_bnb_nested_quant: Annotated[bool, _help("Quantise the 4-bit scales as well (double quantisation).")] = False

    # adapter
    use_peft: Annotated[bool, _help("LoRA on a frozen base; false trains every weight.")] = True
    lora_r: Annotated[int, _help("LoRA rank.", ge=1)] = 16
    lora_alpha: Annotated[int, _help("LoRA scaling numerator (scale = alpha / r).", ge=1)] = 32
    lora_dropout: Annotated[float, _help("Dropout on the adapter's input.", ge=0, lt=1)] = 0.05
    lora_target_modules: Annotated[
        list[str] | str | None, _help("Module names, `all-linear`, or empty for PEFT's default (q_proj, v_proj).")
    ] = None

    # data
    dataset_name: Annotated[
        str,
        _help("Hub id, a directory made by `data prepare`, a .jsonl/.parquet file, or `demo`.", min_length=1),
    ] = "lvwerra/stack-exchange-paired"
    dataset_config: Annotated[str | None, _help("Hub data set's configuration name.")] = None
    dataset_train_split: Annotated[str, _help("Split this stage trains on.", min_length=1)]
    dataset_test_split: Annotated[str, _help("Split held out for evaluation.", min_length=1)] = Split.EVALUATION.value
    dataset_streaming: Annotated[bool, _help("Stream a hub data set instead of downloading it whole.")] = True
    max_train_samples: Annotated[AtLeastOne | None, _help("Use only the first N training rows.")] = None
    max_eval_samples: Annotated[AtLeastOne | None, _help("Use only the first N evaluation rows.")] = None

    # optimisation
    optim: Annotated[Optim, _help(_OPTIM)] = "adamw_torch_fused"
    learning_rate: Annotated[float, _help("Peak learning rate.", gt=0, le=1)]
    lr_scheduler_type: Annotated[Scheduler, _help("Learning-rate schedule.")] = "linear"
    warmup_steps: Annotated[int, _help("Optimizer steps of linear warm-up.", ge=0)] = 0
    weight_decay: Annotated[float, _help("AdamW's decoupled weight decay.", ge=0, le=1)] = 0.0
    adam_beta1: Annotated[float, _help("AdamW beta1.", ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, _help("AdamW beta2.", ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[float, _help("AdamW epsilon.", gt=0)] = 1e-8
    max_grad_norm: Annotated[float, _help("Clip the gradient norm here (arXiv:1211.5063).", gt=0)] = 1.0
    gradient_accumulation_steps: Annotated[int, _help("Micro-batches added up before one optimizer step.", ge=1)] = 1
    gradient_checkpointing: Annotated[bool, _help("Recompute activations in the backward pass to save memory.")] = False
    bf16: Annotated[bool, _help("bfloat16 autocast in the forward pass.")] = False
    fp16: Annotated[bool, _help("float16 autocast with loss scaling (GPU only).")] = False
    seed: Annotated[int, _help("Seed of everything random.", ge=0, lt=2**32)] = 0

    # reporting and checkpoints
    logging_steps: Annotated[int, _help("Record metrics every N optimizer steps.", ge=1)] = 10
    save_steps: Annotated[
        int, _help("Write a checkpoint every N optimizer (PPO: rollout) steps; 0: only when stopped.", ge=0)
    ] = 500
    save_total_limit: Annotated[int, _help("Keep the newest N checkpoints.", ge=1)] = 3
    metric_for_best_model: Annotated[
        str | None, _help("Also keep the checkpoint that is best by this metric (eval_loss; PPO: eval/mean_reward).")
    ] = None
    greater_is_better: Annotated[
        bool | None, _help("Of that metric; empty: lower is better where its name ends in `loss`.")
    ] = None
    keep_every_steps: Annotated[int, _help("Also keep the checkpoint of every N-th step; 0: none.", ge=0)] = 0
    max_skipped_steps: Annotated[
        int, _help("Roll back after N steps in a row whose loss or gradient is not finite (each is skipped).", ge=1)
    ] = 3
    max_rollbacks: Annotated[
        int, _help("Roll back N times, with half the learning rate each, before the run ends; 0: never.", ge=0)
    ] = 2
    report_to: Annotated[
        list[Literal["tensorboard", "wandb", "trackio"]], _help("Also report to these, through their own packages.")
    ] = []

    # machine
    num_processes: Annotated[AtLeastOne | None, _help("Processes; empty: one a visible GPU, or one on the CPU.")] = None
    use_cpu: Annotated[bool, _help("Train on the CPU even where there is a GPU.")] = False

    def __post_init__(self) -> None:
        """Checks between keys.

        Raises:
            ValueError: two keys that exclude each other; the text names both and the way out.
        """
        if self.trust_remote_code:
            raise ValueError(
                "`trust_remote_code: true` is refused: code from a model repository is never executed. "
                "Use a model whose architecture transformers has built in."
            )
        if self.load_in_8bit and self.load_in_4bit:
            raise ValueError("`load_in_8bit` and `load_in_4bit` are both true; choose one of them.")
        self._check_optimisation()
        if getattr(self, "max_steps", -1) == 0:
            raise ValueError("`max_steps: 0` trains nothing; give a number of steps, or -1 for `num_train_epochs`.")
        if self.quantised and self.model_name_or_path.endswith(".gguf"):
            raise ValueError(
                "a .gguf model is dequantised while it is read and cannot be loaded in 8 or 4 bits at once; "
                "set `load_in_8bit: false` and `load_in_4bit: false`."
            )
        self._check_checkpoints()
        if self.bf16 and self.fp16:
            raise ValueError("`bf16` and `fp16` are both true; choose one of them.")
        if not self.use_peft and (self.load_in_8bit or self.load_in_4bit):
            raise ValueError(
                "`use_peft: false` trains every weight, which quantised weights do not allow; "
                "set `load_in_8bit: false` and `load_in_4bit: false`, or keep `use_peft: true`."
            )

    def _check_checkpoints(self) -> None:
        if self.metric_for_best_model and not self.save_steps:
            raise ValueError(
                f"`metric_for_best_model: {self.metric_for_best_model}` chooses among checkpoints and `save_steps: 0` "
                "writes none; set `save_steps` to a multiple of `eval_steps`."
            )
        if self.keep_every_steps and (not self.save_steps or self.keep_every_steps % self.save_steps):
            raise ValueError(
                f"`keep_every_steps: {self.keep_every_steps}` is no multiple of `save_steps: {self.save_steps}`, so "
                "those steps have no checkpoint to keep."
            )

    def _check_optimisation(self) -> None:
        if self.warmup_steps and self.lr_scheduler_type == "constant":
            raise ValueError(
                f"`lr_scheduler_type: constant` would ignore `warmup_steps: {self.warmup_steps}`; "
                "use `constant_with_warmup`, or set `warmup_steps: 0`."
            )
        if self.optim == "adafactor" and (self.adam_beta1, self.adam_beta2, self.adam_epsilon) != (0.9, 0.999, 1e-8):
            raise ValueError(
                "`optim: adafactor` has no `adam_beta1`, `adam_beta2` or `adam_epsilon`; leave them out, "
                "or use one of the `adamw` optimizers."
            )

    @property
    def quantised(self) -> bool:
        """Whether the base is held in 8 or 4 bits."""
        return self.load_in_8bit or self.load_in_4bit


class SFTRecipe(TrainRecipe, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Supervised fine-tuning on the better answer of each pair."""

    stage: ClassVar[Stage] = Stage.SFT

    gradient_checkpointing: Annotated[bool, _help("Recompute activations in the backward pass to save memory.")] = True
    dataset_train_split: Annotated[str, _help("Split this stage trains on.", min_length=1)] = Split.FINETUNE.value
    max_eval_samples: Annotated[AtLeastOne | None, _help("Use only the first N evaluation rows.")] = 4000
    learning_rate: Annotated[float, _help("Peak learning rate.", gt=0, le=1)] = 1e-5
    lr_scheduler_type: Annotated[Scheduler, _help("Learning-rate schedule.")] = "cosine"
    warmup_steps: Annotated[int, _help("Optimizer steps of linear warm-up.", ge=0)] = 100
    weight_decay: Annotated[float, _help("AdamW's decoupled weight decay.", ge=0, le=1)] = 0.05
    per_device_train_batch_size: Annotated[int, _help("Sequences a device and micro-batch.", ge=1)] = 4
    per_device_eval_batch_size: Annotated[int, _help("Sequences a device in evaluation.", ge=1)] = 4
    max_steps: Annotated[int, _help("Optimizer steps; -1: `num_train_epochs` decides.", ge=-1)] = 5000
    num_train_epochs: Annotated[float, _help("Passes over the data when `max_steps` is -1.", gt=0)] = 1.0
    max_length: Annotated[int, _help("Tokens a sequence; packed chunks have exactly this length.", ge=8)] = 1024
    packing: Annotated[bool, _help("Fill every sequence with several answers.")] = True
    packing_strategy: Annotated[
        Literal["wrapped", "bfd", "bfd_split"],
        _help("`wrapped`: fixed chunks with EOS between answers, as published; `bfd`: TRL's best-fit decreasing."),
    ] = "wrapped"
    eval_steps: Annotated[int, _help("Evaluate every N optimizer steps; 0: only at the end.", ge=0)] = 1000


class RewardRecipe(TrainRecipe, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A reward model: one score a text, trained on pairs by the Bradley-Terry loss."""

    stage: ClassVar[Stage] = Stage.REWARD

    load_in_8bit: Annotated[bool, _help("Frozen base in int8 (bitsandbytes LLM.int8()).")] = False
    dtype: Annotated[Dtype, _help("Weights that are not quantised; `auto` keeps the checkpoint's own.")] = "bfloat16"
    lora_r: Annotated[int, _help("LoRA rank.", ge=1)] = 8
    lora_dropout: Annotated[float, _help("Dropout on the adapter's input.", ge=0, lt=1)] = 0.1
    dataset_train_split: Annotated[str, _help("Split this stage trains on.", min_length=1)] = Split.REWARD.value
    max_train_samples: Annotated[AtLeastOne | None, _help("Use only the first N training rows.")] = 100_000
    max_eval_samples: Annotated[AtLeastOne | None, _help("Use only the first N evaluation rows.")] = 50_000
    learning_rate: Annotated[float, _help("Peak learning rate.", gt=0, le=1)] = 2e-5
    weight_decay: Annotated[float, _help("AdamW's decoupled weight decay.", ge=0, le=1)] = 0.001
    per_device_train_batch_size: Annotated[int, _help("Pairs a device and micro-batch.", ge=1)] = 4
    per_device_eval_batch_size: Annotated[int, _help("Pairs a device in evaluation.", ge=1)] = 4
    max_steps: Annotated[int, _help("Optimizer steps; -1: `num_train_epochs` decides.", ge=-1)] = -1
    num_train_epochs: Annotated[float, _help("Passes over the data when `max_steps` is -1.", gt=0)] = 1.0
    max_length: Annotated[int, _help("A pair is dropped when either text has more tokens.", ge=8)] = 512
    eval_steps: Annotated[int, _help("Evaluate every N optimizer steps; 0: only at the end.", ge=0)] = 0
    center_rewards_coefficient: Annotated[
        NotNegative | None, _help("Pull the mean reward to zero (arXiv:2312.09244, eq. 2).")
    ] = None


class PPORecipe(TrainRecipe, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PPO against the reward model, policy and reference on one frozen base."""

    stage: ClassVar[Stage] = Stage.PPO

    dataset_train_split: Annotated[str, _help("Split this stage trains on.", min_length=1)] = Split.RL.value
    reward_model_path: Annotated[
        str | None,
        _help(
            "A finished reward run, an adapter directory, or a sequence-classification model; empty: `reward_fn` alone."
        ),
    ] = None
    reward_model_weight: Annotated[float, _help("The reward model's share of the score: a factor of its own.")] = 1.0
    reward_fn: Annotated[
        str | None,
        _help(
            "`package.module:function` of yours, called with `questions` and `responses`; one number each. "
            "Looked for in the working directory, in PYTHONPATH and among installed packages."
        ),
    ] = None
    reward_fn_path: Annotated[
        str | None, _help("Directory that holds the module of `reward_fn`; empty: where it is found at launch.")
    ] = None
    reward_fn_weight: Annotated[float, _help("The function's share of the score: a factor of its own.")] = 1.0
    length_penalty: Annotated[
        NotNegative, _help("Subtracted from the score for every token beyond `length_penalty_start`.")
    ] = 0.0
    length_penalty_start: Annotated[int, _help("Tokens of a response without `length_penalty`.", ge=0)] = 0
    repetition_penalty: Annotated[
        NotNegative,
        _help("Subtracted from the score × the share of repeated n-grams (1 − distinct-n, arXiv:1510.03055)."),
    ] = 0.0
    repetition_n_grams: Annotated[int, _help("Tokens of an n-gram of `repetition_penalty`.", ge=1)] = 3
    lora_dropout: Annotated[float, _help("Must be 0: PPO compares probabilities before and after.", ge=0, lt=1)] = 0.0
    policy_adapter_path: Annotated[
        str | None, _help("Continue this adapter; a frozen copy of it becomes the reference.")
    ] = None
    max_train_samples: Annotated[AtLeastOne | None, _help("Use only the first N questions.")] = 100_000
    max_eval_samples: Annotated[
        AtLeastOne | None, _help("Held-out questions answered before and after (`eval_steps`: and in between).")
    ] = 64
    optim: Annotated[Optim, _help(_OPTIM)] = "adamw_torch"
    learning_rate: Annotated[float, _help("Peak learning rate.", gt=0, le=1)] = 1.4e-5
    lr_scheduler_type: Annotated[
        Scheduler, _help(f"Learning-rate schedule over PPO steps; `linear` anneals to 0 ({_N_DETAILS}).")
    ] = "constant"

    # batch: per_device_train_batch_size × gradient_accumulation_steps × num_mini_batches = rollouts a device and step
    per_device_train_batch_size: Annotated[int, _help("Responses a device and micro-batch of the update.", ge=1)] = 1
    gradient_accumulation_steps: Annotated[int, _help("Micro-batches added up before one optimizer step.", ge=1)] = 8
    num_mini_batches: Annotated[int, _help("Optimizer steps an epoch of one rollout.", ge=1)] = 1
    num_ppo_epochs: Annotated[int, _help("Passes over one rollout (arXiv:1707.06347, algorithm 1).", ge=1)] = 4
    local_rollout_forward_batch_size: Annotated[
        int, _help("Responses a device in sampling, reference and reward forwards.", ge=1)
    ] = 8
    max_steps: Annotated[int, _help("PPO steps (rollout + update).", ge=1)] = 1000

    # sampling
    max_prompt_length: Annotated[int, _help("Prompts with as many tokens or more are dropped.", ge=1)] = 512
    output_min_length: Annotated[
        int, _help(f"Response length is drawn from [output_min_length, output_max_length) ({_STACKLLAMA}).", ge=1)
    ] = 32
    output_max_length: Annotated[
        int, _help(f"Response length is drawn from [output_min_length, output_max_length) ({_STACKLLAMA}).", ge=2)
    ] = 128
    temperature: Annotated[
        float,
        _help(f"Sampling temperature; also divides the logits of every log-probability ({_N_DETAILS}).", gt=0),
    ] = 1.0
    use_vllm: Annotated[bool, _help(f"Sample with vLLM on the GPU that trains: the extra `[vllm]` ({_TRL_VLLM}).")] = (
        False
    )
    vllm_gpu_memory_utilization: Annotated[
        float, _help(f"Share of the GPU that vLLM takes while it samples, its own weights included ({_TRL_VLLM}).",
                     gt=0, lt=1)
    ] = 0.3  # fmt: skip
    missing_eos_penalty: Annotated[
        NotNegative | None,
        _help("Subtract this from the score of a response that never ended (arXiv:2403.17031, the EOS trick)."),
    ] = None
    missing_eos_reward: Annotated[
        float | None,
        _help("Or replace the score of a response that never ended by this, after baseline, normalisation and clipping "
              "(arXiv:2403.17031: −1)."),
    ] = None  # fmt: skip

    # reward and KL
    normalize_reward: Annotated[
        bool, _help("Subtract the running mean of all scores so far and divide by their deviation (arXiv:2307.04964).")
    ] = False
    cliprange_reward: Annotated[
        Positive | None, _help("Clip scores to ± this, after `normalize_reward` (arXiv:2307.04964, section 5.3.1).")
    ] = None
    reward_baseline: Annotated[
        float, _help(f"Subtracted from every score, after normalisation and clipping ({_STACKLLAMA}).")
    ] = 0.0
    kl_coef: Annotated[float, _help("Initial KL coefficient (arXiv:1909.08593, section 2.2).", ge=0)] = 0.2
    kl_estimator: Annotated[
        KlEstimator,
        _help("Per-token KL estimator of the penalty (http://joschu.net/blog/kl-approx.html); the gradient of k1 alone "
              "is unbiased."),
    ] = "k1"  # fmt: skip
    adap_kl_ctrl: Annotated[bool, _help("Adapt the KL coefficient (arXiv:1909.08593, section 2.2).")] = True
    target: Annotated[
        float, _help("KL per response that the adaptive controller aims at (arXiv:1909.08593, section 2.2).", gt=0)
    ] = 6.0
    horizon: Annotated[
        int, _help("Responses over which the controller adapts (arXiv:1909.08593, section 2.2).", ge=1)
    ] = 10_000

    # PPO
    gamma: Annotated[float, _help("Discount of GAE (arXiv:1506.02438).", ge=0, le=1)] = 1.0
    lam: Annotated[float, _help("GAE lambda (arXiv:1506.02438).", ge=0, le=1)] = 0.95
    whiten_rewards: Annotated[
        bool, _help(f"Whiten the per-token rewards of all ranks (mean kept) before GAE ({_N_DETAILS}).")
    ] = False
    whiten_advantages: Annotated[bool, _help(f"Whiten the advantages of all tokens of all ranks ({_N_DETAILS}).")] = (
        True
    )
    cliprange: Annotated[float, _help("Clip range of the policy ratio (arXiv:1707.06347).", gt=0)] = 0.2
    cliprange_value: Annotated[
        float, _help(f"Clip range of the value around that of the rollout ({_N_DETAILS}).", gt=0)
    ] = 0.2
    vf_coef: Annotated[float, _help("Weight of the value loss (arXiv:1707.06347, eq. 9).", ge=0)] = 0.1
    ent_coef: Annotated[
        float, _help("Weight of the entropy bonus, 0: none, which is cheaper (arXiv:1707.06347, eq. 9).", ge=0)
    ] = 0.0
    early_stopping: Annotated[
        bool,
        _help("Leave the epochs of a rollout when its policy KL exceeds 1.5 × target_kl "
              "(https://spinningup.openai.com/en/latest/algorithms/ppo.html)."),
    ] = True  # fmt: skip
    target_kl: Annotated[
        float,
        _help("Policy KL of one rollout for `early_stopping` "
              "(https://spinningup.openai.com/en/latest/algorithms/ppo.html).", gt=0),
    ] = 0.1  # fmt: skip
    ratio_threshold: Annotated[
        float, _help(f"Skip a mini-batch whose mean ratio exceeds this: loss spikes ({_STACKLLAMA}).", gt=1)
    ] = 10.0
    value_head_init: Annotated[
        Literal["zero", "reward"],
        _help("Value head starts at zero or as the reward head (arXiv:2403.17031)."),
    ] = "zero"
    value_adapter: Annotated[
        bool, _help("The value head gets an adapter of its own and leaves the policy's alone; one more pass.")
    ] = False

    # reporting
    eval_steps: Annotated[
        int, _help("Answer the held-out questions again every N PPO steps; 0: only before and after.", ge=0)
    ] = 0
    num_sample_generations: Annotated[int, _help("Samples recorded each step and evaluation.", ge=0)] = 4

    def __post_init__(self) -> None:
        """Checks between keys; see :class:`TrainRecipe`."""
        super().__post_init__()
        if not self.use_peft:
            raise ValueError("PPO needs `use_peft: true`: policy and reference share one frozen base.")
        if self.lora_dropout:
            raise ValueError(
                "PPO runs without dropout, so that the ratio is 1 where the policy has not changed; "
                "set `lora_dropout: 0`."
            )
        if not (self.reward_model_path or self.reward_fn):
            raise ValueError("`reward_model_path` is required by the ppo recipe, unless `reward_fn` gives the reward.")
        if self.reward_fn is not None and not FUNCTION.fullmatch(self.reward_fn):
            raise ValueError(
                f"`reward_fn: {self.reward_fn}` names no function; write `package.module:function`, such as "
                "`rewards:politeness` for `politeness` in rewards.py."
            )
        if self.value_head_init == "reward" and not self.reward_model_path:
            raise ValueError("`value_head_init: reward` needs `reward_model_path`; use `value_head_init: zero`.")
        if self.fp16:
            raise ValueError("PPO does not scale losses for `fp16`; use `bf16: true`.")
        if self.missing_eos_penalty is not None and self.missing_eos_reward is not None:
            raise ValueError(
                "`missing_eos_penalty` and `missing_eos_reward` are both set; one lowers the score of a response that "
                "never ended, the other replaces it. Leave one of them empty."
            )
        if self.output_min_length >= self.output_max_length:
            raise ValueError(
                f"`output_min_length` ({self.output_min_length}) must be below "
                f"`output_max_length` ({self.output_max_length}); the length is drawn from [min, max)."
            )
        if self.use_vllm:
            self._check_vllm()

    def _check_vllm(self) -> None:
        """What vLLM cannot sample from, as the policy that is trained."""
        if self.use_cpu:
            raise ValueError("`use_vllm: true` needs a GPU, and `use_cpu: true` uses none; set one of them to false.")
        if self.quantised or self.model_name_or_path.endswith(".gguf"):
            base = "a .gguf base" if not self.quantised else f"a base in {8 if self.load_in_8bit else 4} bits"
            raise ValueError(
                f"`use_vllm: true` cannot sample from {base}, which vLLM would not read as this engine does; use "
                "safetensors with `load_in_8bit: false`, `load_in_4bit: false` and `dtype: bfloat16`, or "
                "`use_vllm: false`."
            )
        if self.dtype == "float32":
            raise ValueError(
                "`use_vllm: true` needs weights in 16 bits, which is all that vLLM applies LoRA to; use "
                "`dtype: bfloat16`, or `use_vllm: false`."
            )
        if self.lora_r > VLLM_LORA_RANKS[-1]:
            raise ValueError(
                f"`use_vllm: true` takes adapters up to rank {VLLM_LORA_RANKS[-1]}, and `lora_r` is {self.lora_r}; "
                "lower it, or use `use_vllm: false`."
            )
        if self.temperature < VLLM_LEAST_TEMPERATURE:
            raise ValueError(
                f"`use_vllm: true` samples at a `temperature` of {VLLM_LEAST_TEMPERATURE} or more, not at "
                f"{self.temperature:g}; raise it, or use `use_vllm: false`."
            )

    @property
    def local_batch_size(self) -> int:
        """Rollouts a device and PPO step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_mini_batches


class MergeRecipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Merge an adapter into its base, verified on probe prompts."""

    stage: ClassVar[Stage] = Stage.MERGE

    adapter_path: Annotated[str, _help("A finished SFT, reward or PPO run, or an adapter directory.", min_length=1)]
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], _help("Merged weights; never 8-bit or 4-bit.")] = (
        "bfloat16"
    )
    num_processes: Annotated[Literal[1], _help("A merge is one process.")] = 1
    use_cpu: Annotated[bool, _help("Merge on the CPU even where there is a GPU.")] = True
    seed: Annotated[int, _help("Seed of the probe prompts.", ge=0, lt=2**32)] = 0


class PipelineRecipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SFT → merge → reward → merge → PPO → merge; each stage's inputs are wired from the one before.

    Each section holds that stage's keys with every default written out, except the wired ones (:data:`WIRED`).
    """

    stage: ClassVar[Stage] = Stage.PIPELINE

    sft: dict[str, Any]
    reward: dict[str, Any]
    ppo: dict[str, Any]
    merge: dict[str, Any]


AnyRecipe = SFTRecipe | RewardRecipe | PPORecipe | MergeRecipe | PipelineRecipe

RECIPES: dict[Stage, type[AnyRecipe]] = {
    cls.stage: cls for cls in (SFTRecipe, RewardRecipe, PPORecipe, MergeRecipe, PipelineRecipe)
}

WIRED: dict[Stage, tuple[str, ...]] = {
    Stage.SFT: (),
    Stage.REWARD: ("model_name_or_path",),
    Stage.PPO: ("model_name_or_path", "reward_model_path"),
    Stage.MERGE: ("adapter_path",),
}
"""Keys that a pipeline fills in from the stage before."""

ALTERNATIVES: dict[Stage, tuple[str, str]] = {Stage.PPO: ("reward_model_path", "reward_fn")}
"""Keys of which one has to be given, the usual one first."""
