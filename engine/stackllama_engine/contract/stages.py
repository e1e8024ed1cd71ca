"""Stages of training and parts of the data."""

import enum


class Stage(enum.StrEnum):
    """Stage of a run. ``pipeline`` runs SFT, reward, PPO and merges in this order, each in its own run directory."""

    SFT = "sft"
    REWARD = "reward"
    PREFERENCE = "preference"
    PPO = "ppo"
    MERGE = "merge"
    PIPELINE = "pipeline"


TRAINING_STAGES = (Stage.SFT, Stage.REWARD, Stage.PREFERENCE, Stage.PPO)
PIPELINE_STAGES = (Stage.SFT, Stage.REWARD, Stage.PPO)
"""Stages of a pipeline that train."""


class Split(enum.StrEnum):
    """Parts of the data; every question is in exactly one.

    Names and purposes follow ``lvwerra/stack-exchange-paired``.
    """

    FINETUNE = "finetune"
    REWARD = "reward"
    RL = "rl"
    EVALUATION = "evaluation"
