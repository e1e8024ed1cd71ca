"""What a run can be asked for while it trains: one file in ``control/`` each, removed when served.

=============================  ==========================================================================
``save``                       a checkpoint at the next step
``sample``                     answers to a few held-out questions now, into ``samples.jsonl`` (SFT, PPO)
``pause``, ``continue``        wait after the step that runs, with everything kept in memory; go on
``set-learning_rate``          the schedule's peak, from the next step on; the file holds the number
``set-kl_coef``                PPO's KL coefficient, from the next step on; the file holds the number
``stop``                       save and end, resumable
=============================  ==========================================================================

Whoever asks calls :func:`check` first: a request that a stage cannot serve is refused there, and never written.
"""

from collections.abc import Container, Mapping
from typing import Literal

import msgspec
from msgspec import Struct

from .atomic_files import write_whole
from .errors import RefusedError
from .recipe_io import convert_key
from .run_dir import RunDir, State
from .run_files import UNDECODABLE, decode_file
from .stages import TRAINING_STAGES, Stage

Ask = Literal["save", "sample", "pause", "continue", "set"]
"""What is asked of a run that goes on; ``stop`` is ``launch/reconcile.py``'s."""

PAUSED = "paused"
"""The phase that a paused run reports."""

WAITING_FOR_ROOM = "waiting for room on the disk"
"""The phase of a run that waits because something of it could not be written; its event carries figures."""

SAMPLING: frozenset[Stage] = frozenset({Stage.SFT, Stage.PPO})
"""Stages that answer questions."""

SETTABLE: dict[Stage, tuple[str, ...]] = {
    Stage.SFT: ("learning_rate",),
    Stage.REWARD: ("learning_rate",),
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
    """``key=value`` as a change of a running stage.

    Raises:
        UsageError: not of that form, or a value that the recipe would not take either.
        RefusedError: the stage cannot change that key while it runs.
    """
    key = text.partition("=")[0]
    keys = SETTABLE.get(stage, ())
    if key.strip() not in keys:
        able = f"what can be set is {', '.join(f'`{name}`' for name in keys)}" if keys else "nothing can be set"
        raise RefusedError(f"`{key.strip()}` cannot change while {stage} runs; {able}.")
    return Change(key.strip(), float(convert_key(stage, text)))


def check(run_id: str, state: State, ask: Ask) -> None:
    """Whether a run can serve a request.

    Raises:
        RefusedError: it has ended, or its stage cannot.
    """
    if state.has_ended:
        raise RefusedError(f"{run_id} has ended ({state.phase}): there is nothing to {_VERBS[ask]}.")
    if state.phase == "stopping":
        raise RefusedError(f"{run_id} is stopping already; `runs resume {run_id}` goes on afterwards.")
    if state.stage not in TRAINING_STAGES:
        raise RefusedError(f"{run_id} is a {state.stage} run, which ends by itself soon: it can only be stopped.")
    if ask == "sample" and state.stage not in SAMPLING:
        raise RefusedError(f"{run_id} trains a reward model, which scores texts and answers nothing.")


_VERBS: Mapping[Ask, str] = {
    "save": "save",
    "sample": "ask",
    "pause": "pause",
    "continue": "continue",
    "set": "change",
}


def write(run: RunDir, ask: Ask, change: Change | None = None) -> None:
    """Put a checked request into ``control/``; ``pause`` and ``continue`` take each other back.

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
    """Changes that wait, ``but`` for some files, and names of files that ask for one in no readable way."""
    found: list[Change] = []
    unreadable: list[str] = []
    for name in run.requests():
        if not name.startswith(_PREFIX) or name in but:
            continue
        try:
            value = decode_file(run.control / name, float, _MOST_CHANGE)
            found.append(Change(name.removeprefix(_PREFIX), float(value)))
        except FileNotFoundError:  # taken back
            continue
        except (OSError, *UNDECODABLE):
            unreadable.append(name)
    return found, unreadable


def forget(run: RunDir, name: str) -> None:
    """Remove one request by the name of its file: it was served, or cannot be.

    Raises:
        OSError: it cannot be removed.
    """
    (run.control / name).unlink(missing_ok=True)


def forget_all(run: RunDir) -> None:
    """Remove every request: they were asked of an attempt that is over.

    Raises:
        OSError: one cannot be removed.
    """
    for name in list(run.requests()):
        forget(run, name)
