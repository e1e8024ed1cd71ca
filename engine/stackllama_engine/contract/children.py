"""The six runs of a pipeline, in order, and where each one's inputs come from."""

import os

from msgspec import Struct

from .errors import DamagedError
from .run_dir import Home, RunDir
from .stages import Stage


class Child(Struct, frozen=True, kw_only=True):
    """One run of a pipeline.

    Attributes:
        suffix: its id is ``<pipeline id>-<suffix>``.
        stage: what it runs.
        wired: recipe key → suffix of the child whose output fills it in.
    """

    suffix: str
    stage: Stage
    wired: dict[str, str]


CHILDREN = (
    Child(suffix="sft", stage=Stage.SFT, wired={}),
    Child(suffix="sft-merged", stage=Stage.MERGE, wired={"adapter_path": "sft"}),
    Child(suffix="reward", stage=Stage.REWARD, wired={"model_name_or_path": "sft-merged"}),
    Child(suffix="reward-merged", stage=Stage.MERGE, wired={"adapter_path": "reward"}),
    # The reward model as an adapter, not merged: PPO can then hold policy, reference and reward on one base.
    Child(suffix="ppo", stage=Stage.PPO, wired={"model_name_or_path": "sft-merged", "reward_model_path": "reward"}),
    Child(suffix="ppo-merged", stage=Stage.MERGE, wired={"adapter_path": "ppo"}),
)


def child_id(pipeline_id: str, suffix: str) -> str:
    """Return the run id of a pipeline's child."""
    return f"{pipeline_id}-{suffix}"


def parents_of(run: RunDir) -> list[str]:
    """Return the runs that a run was made from, as its launcher recorded; none when it was never started.

    Raises:
        DamagedError: ``launch.json`` cannot be read.
    """
    return run.read_launch().parents if os.path.lexists(run.path / "launch.json") else []


def known_parents(run: RunDir) -> list[str]:
    """Return :func:`parents_of`; none where the record is damaged, for listings of many runs."""
    try:
        return parents_of(run)
    except DamagedError:
        return []


def pipeline_of(run: RunDir) -> RunDir | None:
    """Return the pipeline that made a run; None for every other one."""
    pipelines = (
        parent for parent in known_parents(run) for child in CHILDREN if run.id == child_id(parent, child.suffix)
    )
    return next((RunDir(run.path.parent / pipeline) for pipeline in pipelines), None)


def is_child(run: RunDir) -> bool:
    """Return whether a pipeline made a run."""
    return pipeline_of(run) is not None


def children_of(pipeline: RunDir) -> list[RunDir]:
    """Return the runs that a pipeline has made."""
    ids = {child_id(pipeline.id, child.suffix) for child in CHILDREN}
    runs = (run for run in Home(pipeline.path.parents[1]).runs() if run.id in ids)
    return [run for run in runs if pipeline.id in known_parents(run)]
