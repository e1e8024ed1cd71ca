"""The stages of the recipe, in their order."""

import enum


class Stage(enum.StrEnum):
    """What a run does. ``pipeline`` runs the others, each in a run directory of its own."""

    SFT = "sft"
    REWARD = "reward"
    PPO = "ppo"
    MERGE = "merge"
    PIPELINE = "pipeline"


TRAINING_STAGES = (Stage.SFT, Stage.REWARD, Stage.PPO)


class Split(enum.StrEnum):
    """The parts of the data. Every question is in exactly one of them.

    Names and purposes follow ``lvwerra/stack-exchange-paired``.
    """

    FINETUNE = "finetune"
    REWARD = "reward"
    RL = "rl"
    EVALUATION = "evaluation"
