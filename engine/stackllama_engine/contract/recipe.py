"""Recipes: one frozen Struct per stage, the single place for keys, types, bounds, defaults and help.

Defaults suit a LoRA run today; the values published in 2023 (https://huggingface.co/blog/stackllama and the scripts it
links) are in ``examples/stackllama-7b.yaml``. :mod:`.recipe_io` reads and checks recipes.
"""

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Struct

from .recipe_common import (
    AUTO_BATCH,
    AUTO_HELP,
    DROPOUT_HELP,
    DTYPE_HELP,
    EVAL_HELP,
    EVAL_SAMPLES_HELP,
    LEARNING_RATE_HELP,
    SPLIT_HELP,
    TRAIN_SAMPLES_HELP,
    WARMUP_HELP,
    WEIGHT_DECAY_HELP,
    AtLeastOne,
    BatchSize,
    Dtype,
    ModelRecipe,
    NotNegative,
    Optim,
    Scheduler,
    Steps,
    TrainRecipe,
    about,
    check_one_limit,
    micro_batch_of,
)
from .recipe_ppo import (
    FUNCTION,
    OWN_COMPONENTS,
    PROMPT_COLUMNS,
    REWARD_ARGUMENTS,
    VLLM_LORA_RANKS,
    PPORecipe,
    RewardFunc,
)
from .recipe_preference import PreferenceRecipe
from .stages import Split, Stage

__all__ = [
    "ALTERNATIVES",
    "FUNCTION",
    "OWN_COMPONENTS",
    "PROMPT_COLUMNS",
    "RECIPES",
    "REWARD_ARGUMENTS",
    "VLLM_LORA_RANKS",
    "WIRED",
    "AnyRecipe",
    "MergeRecipe",
    "ModelRecipe",
    "Optim",
    "PPORecipe",
    "PipelineRecipe",
    "PreferenceRecipe",
    "RewardFunc",
    "RewardRecipe",
    "SFTRecipe",
    "SupervisedRecipe",
    "TrainRecipe",
    "TrainedRecipe",
]


class SFTRecipe(TrainRecipe, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Supervised fine-tuning on the better response of each pair."""

    stage: ClassVar[Stage] = Stage.SFT

    dataset_train_split: Annotated[str, about(SPLIT_HELP, min_length=1)] = Split.FINETUNE.value
    max_train_samples: Annotated[AtLeastOne | None, about(TRAIN_SAMPLES_HELP)] = 100_000
    max_eval_samples: Annotated[AtLeastOne | None, about(EVAL_SAMPLES_HELP)] = 4000
    learning_rate: Annotated[float, about(LEARNING_RATE_HELP, gt=0, le=1)] = 2e-4
    lr_scheduler_type: Annotated[Scheduler, about("Learning-rate schedule.")] = "cosine"
    warmup_steps: Annotated[Steps, about(WARMUP_HELP)] = 0.03
    weight_decay: Annotated[float, about(WEIGHT_DECAY_HELP, ge=0, le=1)] = 0.05
    per_device_train_batch_size: Annotated[
        BatchSize, about(f"Micro-batch size per device, in sequences. {AUTO_HELP}")
    ] = AUTO_BATCH
    per_device_eval_batch_size: Annotated[int, about("Evaluation batch size per device, in sequences.", ge=1)] = 4
    max_steps: Annotated[int, about("Number of optimizer steps; -1: given by `num_train_epochs`.", ge=-1)] = -1
    num_train_epochs: Annotated[float, about("Number of epochs if `max_steps` is -1.", gt=0)] = 1.0
    max_length: Annotated[int, about("Maximum number of tokens per sequence.", ge=8)] = 1024
    packing: Annotated[bool, about("Pack several examples into each sequence.")] = True
    packing_strategy: Annotated[
        Literal["wrapped", "bfd", "bfd_split"],
        about(
            "`bfd`: best-fit packing of whole examples, which do not attend to each other; longer ones are "
            "truncated (arXiv:2404.10830). `bfd_split`: longer ones are split. `wrapped`: one text cut into "
            "chunks, whose examples attend to those before, as in 2023."
        ),
    ] = "bfd"
    assistant_only_loss: Annotated[
        bool | None,
        about(
            "Train on responses alone, not on prompts; empty: true with `prompt_format: chat`, else false, as in 2023."
        ),
    ] = None
    eval_steps: Annotated[Steps, about(EVAL_HELP)] = 1000

    @property
    def micro_batch_size(self) -> int:
        """`per_device_train_batch_size` as a number."""
        return micro_batch_of(self.per_device_train_batch_size)


class RewardRecipe(TrainRecipe, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Reward model with one score per text, trained on pairs with the Bradley-Terry loss."""

    stage: ClassVar[Stage] = Stage.REWARD

    dtype: Annotated[Dtype, about(DTYPE_HELP)] = "bfloat16"
    lora_r: Annotated[int, about("LoRA rank.", ge=1)] = 8
    lora_dropout: Annotated[float, about(DROPOUT_HELP, ge=0, lt=1)] = 0.1
    dataset_train_split: Annotated[str, about(SPLIT_HELP, min_length=1)] = Split.REWARD.value
    max_train_samples: Annotated[AtLeastOne | None, about(TRAIN_SAMPLES_HELP)] = 100_000
    max_eval_samples: Annotated[AtLeastOne | None, about(EVAL_SAMPLES_HELP)] = 4000
    learning_rate: Annotated[float, about(LEARNING_RATE_HELP, gt=0, le=1)] = 1e-4
    weight_decay: Annotated[float, about(WEIGHT_DECAY_HELP, ge=0, le=1)] = 0.001
    per_device_train_batch_size: Annotated[BatchSize, about(f"Micro-batch size per device, in pairs. {AUTO_HELP}")] = (
        AUTO_BATCH
    )
    max_tokens_per_micro_batch: Annotated[
        AtLeastOne | None,
        about(
            "Maximum number of tokens per micro-batch, padding included: the pairs of an optimizer step are sorted by "
            "length and cut by tokens instead of by `per_device_train_batch_size`; empty: by pairs. The effective "
            "batch stays."
        ),
    ] = None
    per_device_eval_batch_size: Annotated[int, about("Evaluation batch size per device, in pairs.", ge=1)] = 4
    max_steps: Annotated[int, about("Number of optimizer steps; -1: given by `num_train_epochs`.", ge=-1)] = -1
    num_train_epochs: Annotated[float, about("Number of epochs if `max_steps` is -1.", gt=0)] = 1.0
    max_length: Annotated[int, about("Drop a pair if either of its texts has more tokens than this.", ge=8)] = 512
    eval_steps: Annotated[Steps, about(EVAL_HELP)] = 0
    center_rewards_coefficient: Annotated[
        NotNegative | None,
        about(
            "Coefficient of the loss term that pulls the mean reward to zero; empty: none (arXiv:2312.09244, eq. 2)."
        ),
    ] = None

    def __post_init__(self) -> None:
        """Check the keys against each other; see :class:`TrainRecipe`."""
        super().__post_init__()
        check_one_limit(self.per_device_train_batch_size, self.max_tokens_per_micro_batch)
        if self.max_tokens_per_micro_batch is not None and self.max_tokens_per_micro_batch < 2 * self.max_length:
            raise ValueError(
                f"`max_tokens_per_micro_batch: {self.max_tokens_per_micro_batch}` holds no pair of full length: "
                f"`max_length: {self.max_length}` makes up to {2 * self.max_length} tokens; raise it to at least that."
            )

    @property
    def micro_batch_size(self) -> int:
        """`per_device_train_batch_size` as a number."""
        return micro_batch_of(self.per_device_train_batch_size)


class MergeRecipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Merge of an adapter into its base, verified on probe prompts."""

    stage: ClassVar[Stage] = Stage.MERGE

    adapter_path: Annotated[
        str, about("Adapter to merge: finished SFT, reward, preference or PPO run, or adapter directory.", min_length=1)
    ]
    base_model_name_or_path: Annotated[
        str | None,
        about("Base model of the adapter, if it is not where the adapter says: path, merge run or hub id."),
    ] = None
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], about("Dtype of the merged weights.")] = "bfloat16"
    num_processes: Annotated[Literal[1], about("Must be 1: a merge is one process.")] = 1
    use_cpu: Annotated[bool, about("Merge on the CPU even if there is a GPU.")] = True
    seed: Annotated[int, about("Random seed of the probe prompts.", ge=0, lt=2**32)] = 0


class PipelineRecipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SFT → merge → reward → merge → PPO → merge; each stage's inputs come from the one before.

    Each section holds that stage's keys with every default written out, except the wired ones (:data:`WIRED`).
    """

    stage: ClassVar[Stage] = Stage.PIPELINE

    sft: dict[str, Any]
    reward: dict[str, Any]
    ppo: dict[str, Any]
    merge: dict[str, Any]


SupervisedRecipe = SFTRecipe | RewardRecipe | PreferenceRecipe
"""Of the stages that train on a fixed data set, with transformers' Trainer."""
TrainedRecipe = SupervisedRecipe | PPORecipe
AnyRecipe = TrainedRecipe | MergeRecipe | PipelineRecipe

RECIPES: dict[Stage, type[AnyRecipe]] = {
    cls.stage: cls for cls in (SFTRecipe, RewardRecipe, PreferenceRecipe, PPORecipe, MergeRecipe, PipelineRecipe)
}

WIRED: dict[Stage, tuple[str, ...]] = {
    Stage.SFT: (),
    Stage.REWARD: ("model_name_or_path",),
    Stage.PREFERENCE: (),
    Stage.PPO: ("model_name_or_path", "reward_model_path"),
    Stage.MERGE: ("adapter_path",),
}
"""Keys that a pipeline fills in from the previous stage."""

ALTERNATIVES: dict[Stage, tuple[str, str]] = {Stage.PPO: ("reward_model_path", "reward_funcs")}
"""Keys of which one must be given, the usual one first."""
