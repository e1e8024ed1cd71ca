"""Recipes: one frozen Struct a stage, the single place for keys, types, bounds, defaults and help.

Defaults fit a run with LoRA today; the values published in 2023 (https://huggingface.co/blog/stackllama and the
scripts it links) are in ``examples/stackllama-7b.yaml``.
Reading and checking is in :mod:`.recipe_io`.
"""

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Struct

from .recipe_common import (
    EVAL_HELP,
    LORA,
    WARMUP_HELP,
    AtLeastOne,
    Dtype,
    ModelRecipe,
    NotNegative,
    Optim,
    Scheduler,
    Steps,
    TrainRecipe,
    about,
)
from .recipe_ppo import FUNCTION, REWARD_ARGUMENTS, VLLM_LORA_RANKS, PPORecipe
from .stages import Split, Stage

__all__ = [
    "ALTERNATIVES",
    "FUNCTION",
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
    "RewardRecipe",
    "SFTRecipe",
    "TrainRecipe",
]


class SFTRecipe(TrainRecipe, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Supervised fine-tuning on the better answer of each pair."""

    stage: ClassVar[Stage] = Stage.SFT

    gradient_checkpointing: Annotated[bool, about("Recompute activations in the backward pass to save memory.")] = True
    dataset_train_split: Annotated[str, about("Split this stage trains on.", min_length=1)] = Split.FINETUNE.value
    max_train_samples: Annotated[AtLeastOne | None, about("Use only the first N training rows.")] = 100_000
    max_eval_samples: Annotated[AtLeastOne | None, about("Use only the first N evaluation rows.")] = 4000
    learning_rate: Annotated[
        float, about(f"Peak learning rate; LoRA takes ten times that of full training ({LORA}).", gt=0, le=1)
    ] = 2e-4
    lr_scheduler_type: Annotated[Scheduler, about("Learning-rate schedule.")] = "cosine"
    warmup_steps: Annotated[Steps, about(WARMUP_HELP)] = 0.03
    weight_decay: Annotated[float, about("AdamW's decoupled weight decay.", ge=0, le=1)] = 0.05
    per_device_train_batch_size: Annotated[int, about("Sequences per device and micro-batch.", ge=1)] = 4
    per_device_eval_batch_size: Annotated[int, about("Sequences per device in evaluation.", ge=1)] = 4
    max_steps: Annotated[int, about("Optimizer steps; -1: `num_train_epochs` decides.", ge=-1)] = -1
    num_train_epochs: Annotated[float, about("Passes over the data when `max_steps` is -1.", gt=0)] = 1.0
    max_length: Annotated[int, about("Tokens per sequence.", ge=8)] = 1024
    packing: Annotated[bool, about("Fill every sequence with several answers.")] = True
    packing_strategy: Annotated[
        Literal["wrapped", "bfd", "bfd_split"],
        about(
            "`bfd`: whole answers by best fit (arXiv:2404.10830), none sees another, longer ones are cut; `bfd_split`: "
            "longer ones are split; `wrapped`: one text cut into chunks, answers see those before, as in 2023."
        ),
    ] = "bfd"
    eval_steps: Annotated[Steps, about(EVAL_HELP)] = 1000


class RewardRecipe(TrainRecipe, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A reward model: one score a text, trained on pairs by the Bradley-Terry loss."""

    stage: ClassVar[Stage] = Stage.REWARD

    load_in_8bit: Annotated[bool, about("Frozen base in int8 (bitsandbytes LLM.int8()).")] = False
    dtype: Annotated[Dtype, about("Weights that are not quantised; `auto` keeps the checkpoint's own.")] = "bfloat16"
    lora_r: Annotated[int, about("LoRA rank.", ge=1)] = 8
    lora_dropout: Annotated[float, about("Dropout on the adapter's input.", ge=0, lt=1)] = 0.1
    dataset_train_split: Annotated[str, about("Split this stage trains on.", min_length=1)] = Split.REWARD.value
    max_train_samples: Annotated[AtLeastOne | None, about("Use only the first N training rows.")] = 100_000
    max_eval_samples: Annotated[AtLeastOne | None, about("Use only the first N evaluation rows.")] = 4000
    learning_rate: Annotated[
        float, about(f"Peak learning rate; LoRA takes ten times that of full training ({LORA}).", gt=0, le=1)
    ] = 1e-4
    weight_decay: Annotated[float, about("AdamW's decoupled weight decay.", ge=0, le=1)] = 0.001
    per_device_train_batch_size: Annotated[int, about("Pairs per device and micro-batch.", ge=1)] = 4
    per_device_eval_batch_size: Annotated[int, about("Pairs per device in evaluation.", ge=1)] = 4
    max_steps: Annotated[int, about("Optimizer steps; -1: `num_train_epochs` decides.", ge=-1)] = -1
    num_train_epochs: Annotated[float, about("Passes over the data when `max_steps` is -1.", gt=0)] = 1.0
    max_length: Annotated[int, about("A pair is dropped when either text has more tokens.", ge=8)] = 512
    eval_steps: Annotated[Steps, about(EVAL_HELP)] = 0
    center_rewards_coefficient: Annotated[
        NotNegative | None, about("Pull the mean reward to zero (arXiv:2312.09244, eq. 2).")
    ] = None


class MergeRecipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Merge an adapter into its base, verified on probe prompts."""

    stage: ClassVar[Stage] = Stage.MERGE

    adapter_path: Annotated[str, about("A finished SFT, reward or PPO run, or an adapter directory.", min_length=1)]
    base_model_name_or_path: Annotated[
        str | None,
        about("The adapter's base where it is not, or no longer, what the adapter says: a path, merge run or hub id."),
    ] = None
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], about("Merged weights; never 8-bit or 4-bit.")] = (
        "bfloat16"
    )
    num_processes: Annotated[Literal[1], about("A merge is one process.")] = 1
    use_cpu: Annotated[bool, about("Merge on the CPU even where there is a GPU.")] = True
    seed: Annotated[int, about("Seed of the probe prompts.", ge=0, lt=2**32)] = 0


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
