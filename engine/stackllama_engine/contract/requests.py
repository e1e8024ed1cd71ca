"""Requests to a running run: one file each in ``control/``, removed when served.

=============================  ==========================================================================
``save``                       save a checkpoint after the current step
``sample``                     respond to a few held-out prompts now, into ``samples.jsonl`` (SFT, PPO)
``pause``, ``continue``        wait after the current step with everything kept in memory; train on
``set-learning_rate``          change the schedule's peak from the next step on; the file holds the number
``set-kl_coef``                change PPO's KL coefficient from the next step on; the file holds the number
``stop``                       save and end; the run can be resumed
=============================  ==========================================================================

Callers call :func:`check` first: a request that a stage cannot serve is refused there, and never written.
"""

from collections.abc import Container, Mapping
from typing import Literal

import msgspec
from msgspec import Struct

from .atomic_files import write_whole
from .errors import RefusedError
from .run_dir import RunDir, State
from .run_files import UNDECODABLE, decode_file
from .stages import TRAINING_STAGES, Stage

Ask = Literal["save", "sample", "pause", "continue", "set"]
"""Requests to a run that continues; ``stop`` is handled by ``launch/reconcile.py``."""

PAUSED = "paused"
"""Phase that a paused run reports."""

WAITING_FOR_ROOM = "waiting for room on the disk"
"""Phase of a run that waits because it could not write; its event carries the numbers."""

SAMPLING: frozenset[Stage] = frozenset({Stage.SFT, Stage.PREFERENCE, Stage.PPO})
"""Stages that can sample responses."""

SETTABLE: dict[Stage, tuple[str, ...]] = {
    Stage.SFT: ("learning_rate",),
    Stage.REWARD: ("learning_rate",),
    Stage.PREFERENCE: ("learning_rate",),
    Stage.PPO: ("learning_rate", "kl_coef"),
}
"""Recipe keys that may change at a step boundary."""

_PREFIX = "set-"
_MOST_CHANGE = 4096  # bytes of a number


class Change(Struct, frozen=True):
    """A new value of a recipe key."""

    key: str
    value: float


def parse_change(stage: Stage, text: str) -> Change:
    """Parse ``key=value`` as a change of a running stage.

    Raises:
        UsageError: not of that form, or a value that the recipe does not accept.
        RefusedError: the stage cannot change that key while it runs.
    """
    from .recipe_io import convert_key  # the recipes' modules take as long to import as all others of a listing

    key = text.partition("=")[0]
    keys = SETTABLE.get(stage, ())
    if key.strip() not in keys:
        settable = f"set one of {', '.join(f'`{name}`' for name in keys)}" if keys else "no key of it can"
        raise RefusedError(f"`{key.strip()}` cannot change while {stage} runs; {settable}.")
    return Change(key.strip(), float(convert_key(stage, text)))


def check(run_id: str, state: State, ask: Ask) -> None:
    """Check that a run can serve a request.

    Raises:
        RefusedError: it has ended, or its stage cannot.
    """
    if state.has_ended:
        raise RefusedError(f"{run_id} has ended ({state.phase}): there is nothing to {_VERBS[ask]}.")
    if state.phase == "queued":
        raise RefusedError(f"{run_id} is queued and has not begun: there is nothing to {_VERBS[ask]}.")
    if state.phase == "stopping":
        raise RefusedError(
            f"{run_id} is stopping already; resume it afterwards with `stackllama-console runs resume {run_id}`."
        )
    if state.stage not in TRAINING_STAGES:
        raise RefusedError(f"{run_id} is a {state.stage} run, which can only be stopped.")
    if ask == "sample" and state.stage not in SAMPLING:
        raise RefusedError(f"{run_id} trains a reward model, which generates no responses.")


_VERBS: Mapping[Ask, str] = {
    "save": "save",
    "sample": "sample",
    "pause": "pause",
    "continue": "continue",
    "set": "change",
}


def write(run: RunDir, ask: Ask, change: Change | None = None) -> None:
    """Write a checked request into ``control/``; ``pause`` and ``continue`` withdraw each other.

    Raises:
        OSError: the directory cannot be written.
    """
    if ask == "set":
        assert change is not None
        run.make_control()
        write_whole(run.control / f"{_PREFIX}{change.key}", msgspec.json.encode(change.value))
        return
    opposite: dict[str, Literal["pause", "continue"]] = {"pause": "continue", "continue": "pause"}
    if ask in opposite:
        run.served(opposite[ask])
    run.request(ask)


def changes(run: RunDir, but: Container[str] = ()) -> tuple[list[Change], list[str]]:
    """Return the pending changes, except those of the files in ``but``, and the names of unreadable files."""
    pending: list[Change] = []
    unreadable: list[str] = []
    for name in run.requests():
        if not name.startswith(_PREFIX) or name in but:
            continue
        try:
            value = decode_file(run.control / name, float, _MOST_CHANGE)
            pending.append(Change(name.removeprefix(_PREFIX), float(value)))
        except FileNotFoundError:  # withdrawn
            continue
        except (OSError, *UNDECODABLE):
            unreadable.append(name)
    return pending, unreadable


def forget(run: RunDir, name: str) -> None:
    """Remove one request, which was served or cannot be, by the name of its file.

    Raises:
        OSError: it cannot be removed.
    """
    (run.control / name).unlink(missing_ok=True)


def forget_all(run: RunDir) -> None:
    """Remove every request: they were made to an attempt that has ended.

    Raises:
        OSError: one cannot be removed.
    """
    for name in list(run.requests()):
        forget(run, name)
