"""The keys that can do something to a run, by its stage and phase: for footers, and in words for the list of runs."""

from stackllama_engine.contract.chat_target import WRITING
from stackllama_engine.contract.errors import ExitCode
from stackllama_engine.contract.requests import SAMPLING
from stackllama_engine.contract.run_dir import ENDED
from stackllama_engine.contract.stages import TRAINING_STAGES, Stage

SELECTION_ACTIONS = frozenset({"stop", "save", "resume", "delete"})
"""Names of the actions that several runs can take at once; `selection_actions` takes them."""
_HINTS = {
    "damaged": ("repair", "delete"),
    "finished": ("open", "samples", "chat", "fold", "clone"),
    "failed": ("open", "resume", "clone"),
    "mistaken": ("open", "clone", "again"),
    "running": ("open", "stop", "save"),
    "queued": ("open", "stop", "clone"),
}
"""Kind of phase → what is advised, the most likely first."""


def run_keys(stage: Stage | None, phase: str, *, saved: bool = True) -> frozenset[str]:
    """Return the actions that can do something to a run: names of bindings without their screen.

    Args:
        stage: the run's; None where it cannot be read.
        phase: of its state, or ``damaged``.
        saved: whether it has a checkpoint.
    """
    if phase == "damaged":
        return frozenset({"repair", "delete"})
    keys = {"open", "clone"}
    if phase == "queued":  # nothing to save yet
        keys |= {"stop"}
    elif phase not in ENDED:
        keys |= {"stop"} if phase == "stopping" else {"stop", *_requests(stage)}
    else:
        keys |= {"delete"} if phase == "finished" else {"delete", "resume"}
    if stage is Stage.PPO or (stage is Stage.PIPELINE and phase == "finished"):
        keys.add("samples")
    if stage is Stage.PIPELINE:
        keys.add("fold")
    if stage in TRAINING_STAGES and saved and phase not in ("queued", "starting"):
        keys.add("fork")
    if (stage in WRITING and phase not in ("queued", "starting") and (saved or phase == "finished")) or (
        stage is Stage.MERGE and phase == "finished"
    ):
        keys.add("chat")
    return frozenset(keys)


def _requests(stage: Stage | None) -> frozenset[str]:
    """Return what a running stage can be asked for; a pipeline passes it on to the stage that runs."""
    if stage is not Stage.PIPELINE and stage not in TRAINING_STAGES:
        return frozenset()
    samples = stage is Stage.PIPELINE or stage in SAMPLING
    return frozenset({"save", "pause", "change", "sample"} if samples else {"save", "pause", "change"})


def is_mistaken(phase: str, exit_code: int | None) -> bool:
    """Return whether a run ended by a person's mistake, which the same recipe would repeat."""
    return phase in ENDED and exit_code == ExitCode.USAGE


def advice_of_run(
    stage: Stage | None, phase: str, *, exit_code: int | None = None, saved: bool = True, began: bool = True
) -> str:
    """Return the keys that make sense for a run of the list, in words.

    Args:
        stage: as in :func:`run_keys`.
        phase: likewise.
        exit_code: of an ended run.
        saved: whether it has a checkpoint or a result.
        began: False: it has only been queued so far.
    """
    kind = phase if phase in _HINTS else "failed" if phase in ENDED else "running"
    kind = "mistaken" if is_mistaken(phase, exit_code) else kind
    keys = run_keys(stage, phase, saved=saved)
    if "resume" in keys:
        keys |= {"again"}
    words = {"resume": f"r: {resume_in_words(stage, saved, began=began)}"}
    if phase == "queued":
        words["stop"] = "x: stop waiting"
    return ", ".join(words.get(action) or _in_words(action, stage) for action in _HINTS[kind] if action in keys)


def resume_in_words(stage: Stage | None, saved: bool = True, *, began: bool = True) -> str:
    """Return what a resume does: a merge saves nothing on its way, and a run may have failed before it saved."""
    if not began:
        return "put it back in its queue"
    return {
        Stage.MERGE: "restart the merge",
        Stage.PIPELINE: "resume from its current stage",
    }.get(stage or Stage.SFT, "resume from the last checkpoint" if saved else "start again: no checkpoint was saved")


def _in_words(action: str, stage: Stage | None) -> str:
    return {
        "repair": "r: repair its records from its other files",
        "delete": "D: delete",
        "open": "enter: open its stages" if stage is Stage.PIPELINE else "enter: open",
        "samples": "a: samples",
        "chat": "t: chat",
        "fold": "z: fold them",
        "clone": "e: edit a copy",
        "again": "r: try the same again",
        "stop": "x: save and stop",
        "save": "w: save checkpoint",
    }[action]
