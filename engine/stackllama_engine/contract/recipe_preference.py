"""The preference recipe: direct preference optimisation on pairs, without a reward model and without sampling."""

import math
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from .recipe_common import (
    ACCUMULATION_HELP,
    AUTO_BATCH,
    AUTO_HELP,
    EVAL_HELP,
    EVAL_SAMPLES_HELP,
    LEARNING_RATE_HELP,
    SPLIT_HELP,
    TRAIN_SAMPLES_HELP,
    WARMUP_HELP,
    AtLeastOne,
    BatchSize,
    Scheduler,
    Steps,
    TrainRecipe,
    about,
    micro_batch_of,
)
from .stages import Split, Stage

PreferenceLoss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
"""Losses of TRL's DPOTrainer that train on pairs; `sft` is of use in a sum only."""
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
"""Losses that `label_smoothing` is of effect with."""


class PreferenceRecipe(TrainRecipe, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Direct preference optimisation (DPO) on pairs; policy and reference share one frozen base."""

    stage: ClassVar[Stage] = Stage.PREFERENCE

    dataset_train_split: Annotated[str, about(SPLIT_HELP, min_length=1)] = Split.REWARD.value
    max_train_samples: Annotated[AtLeastOne | None, about(TRAIN_SAMPLES_HELP)] = 100_000
    max_eval_samples: Annotated[AtLeastOne | None, about(EVAL_SAMPLES_HELP)] = 1000
    lora_dropout: Annotated[
        float,
        about("Must be 0: the loss compares log-probabilities of policy and reference on the same text.", ge=0, lt=1),
    ] = 0.0
    learning_rate: Annotated[float, about(LEARNING_RATE_HELP, gt=0, le=1)] = 5e-6
    lr_scheduler_type: Annotated[Scheduler, about("Learning-rate schedule.")] = "cosine"
    warmup_steps: Annotated[Steps, about(WARMUP_HELP)] = 0.1
    per_device_train_batch_size: Annotated[BatchSize, about(f"Micro-batch size per device, in pairs. {AUTO_HELP}")] = (
        AUTO_BATCH
    )
    gradient_accumulation_steps: Annotated[int, about(ACCUMULATION_HELP, ge=1)] = 4
    per_device_eval_batch_size: Annotated[int, about("Evaluation batch size per device, in pairs.", ge=1)] = 4
    max_steps: Annotated[int, about("Number of optimizer steps; -1: given by `num_train_epochs`.", ge=-1)] = -1
    num_train_epochs: Annotated[float, about("Number of epochs if `max_steps` is -1.", gt=0)] = 1.0
    max_length: Annotated[
        int, about("Drop a pair if its prompt with either response has more tokens than this.", ge=8)
    ] = 1024
    eval_steps: Annotated[Steps, about(EVAL_HELP)] = 0

    loss_type: Annotated[
        PreferenceLoss | Annotated[list[PreferenceLoss], Meta(min_length=1)],
        about(
            "Loss on pairs, or a list of losses that are added "
            "(https://huggingface.co/docs/trl/dpo_trainer#loss-functions); `sigmoid`: DPO's (arXiv:2305.18290)."
        ),
    ] = "sigmoid"
    loss_weights: Annotated[list[float], about("Weight of each of `loss_type` in the sum; empty: 1 each.")] = []  # noqa: RUF012 - msgspec copies it
    beta: Annotated[
        float,
        about("How strongly the policy is held to the reference (arXiv:2305.18290, eq. 7); larger: less change.", gt=0),
    ] = 0.1
    label_smoothing: Annotated[
        Annotated[float, Meta(ge=0, lt=0.5)],
        about("Share of pairs that are expected to be the wrong way round (`robust`, `exo_pair`, `aot`)."),
    ] = 0.0

    def __post_init__(self) -> None:
        """Check the keys against each other; see :class:`TrainRecipe`."""
        super().__post_init__()
        if not self.use_peft:
            raise ValueError(
                "`use_peft: false` is not supported by the preference stage: its reference is the base without the "
                "adapter; keep `use_peft: true`."
            )
        if self.lora_dropout:
            raise ValueError(
                f"`lora_dropout: {self.lora_dropout:g}` would blur the log-probabilities that the loss compares; "
                "set `lora_dropout: 0`."
            )
        if len(set(self.losses)) < len(self.losses):
            raise ValueError("`loss_type` names a loss twice; name it once, with another weight.")
        if self.loss_weights and len(self.loss_weights) != len(self.losses):
            raise ValueError(
                f"`loss_weights` has {len(self.loss_weights)} entries for {len(self.losses)} losses of `loss_type`; "
                "give one for each, or leave it empty."
            )
        if self.loss_weights and not (all(0 <= one < math.inf for one in self.loss_weights) and any(self.loss_weights)):
            raise ValueError(
                f"`loss_weights: {self.loss_weights}`: weights are finite, not negative, and not all 0; a loss of no "
                "weight can be left out of `loss_type`."
            )
        if "exo_pair" in self.losses and not self.label_smoothing:
            raise ValueError(
                "`loss_type: exo_pair` needs `label_smoothing` above 0; its paper uses 0.001 (arXiv:2402.00856)."
            )
        if self.label_smoothing and not set(self.losses) & set(SMOOTHED):
            raise ValueError(
                f"`label_smoothing: {self.label_smoothing:g}` is of no effect with `loss_type: "
                f"{', '.join(self.losses)}`; use one of {', '.join(SMOOTHED)}, or leave it out."
            )

    @property
    def losses(self) -> list[PreferenceLoss]:
        """`loss_type` as a list."""
        return self.loss_type if isinstance(self.loss_type, list) else [self.loss_type]

    @property
    def micro_batch_size(self) -> int:
        """`per_device_train_batch_size` as a number."""
        return micro_batch_of(self.per_device_train_batch_size)
