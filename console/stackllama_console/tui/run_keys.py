"""The keys that can do something to a run, by its stage and phase: for footers, and in words for the list of runs."""

from stackllama_engine.contract.chat_target import WRITING
from stackllama_engine.contract.run_dir import ENDED
from stackllama_engine.contract.stages import Stage

_HINTS = {
    "damaged": ("repair", "delete"),
    "finished": ("open", "samples", "chat", "fold", "clone"),
    "failed": ("open", "resume", "clone"),
    "running": ("open", "stop", "save"),
    "queued": ("open", "stop", "clone"),
}
"""Kind of phase → what is advised, the most likely first."""


def run_keys(stage: Stage | None, phase: str) -> frozenset[str]:
    """Return the actions that can do something to a run: names of bindings without their screen.

    Args:
        stage: the run's; None where it cannot be read.
        phase: of its state, or ``damaged``.
    """
    if phase == "damaged":
        return frozenset({"repair", "delete"})
    keys = {"open", "clone"}
    if phase == "queued":  # nothing to save yet
        keys |= {"stop"}
    elif phase not in ENDED:
        keys |= {"stop", "save"}
    else:
        keys |= {"delete"} if phase == "finished" else {"delete", "resume"}
    if stage is Stage.PPO or (stage is Stage.PIPELINE and phase == "finished"):
        keys.add("samples")
    if stage is Stage.PIPELINE:
        keys.add("fold")
    if (stage in WRITING and phase not in ("queued", "starting")) or (stage is Stage.MERGE and phase == "finished"):
        keys.add("chat")
    return frozenset(keys)


def advice_of_run(stage: Stage | None, phase: str, *, began: bool = True) -> str:
    """Return the keys that make sense for a run of the list, in words.

    Args:
        stage: as in :func:`run_keys`.
        phase: likewise.
        began: False: it has only been queued so far.
    """
    kind = phase if phase in _HINTS else "failed" if phase in ENDED else "running"
    keys = run_keys(stage, phase)
    words = (
        {"stop": "x: stop waiting"} if phase == "queued" else {"resume": f"r: {resume_in_words(stage, began=began)}"}
    )
    return ", ".join(words.get(action) or _in_words(action, stage) for action in _HINTS[kind] if action in keys)


def resume_in_words(stage: Stage | None, *, began: bool = True) -> str:
    """Return what a resume does: a merge saves nothing on its way, nor does a run that has only been queued."""
    if not began:
        return "put it back in its queue"
    return {
        Stage.MERGE: "restart the merge",
        Stage.PIPELINE: "resume from its current stage",
    }.get(stage or Stage.SFT, "resume from the last checkpoint")


def _in_words(action: str, stage: Stage | None) -> str:
    return {
        "repair": "r: repair its records from its other files",
        "delete": "D: delete",
        "open": "enter: open its stages" if stage is Stage.PIPELINE else "enter: open",
        "samples": "a: samples",
        "chat": "t: chat",
        "fold": "z: fold them",
        "clone": "e: edit a copy",
        "stop": "x: save and stop",
        "save": "w: save checkpoint",
    }[action]
