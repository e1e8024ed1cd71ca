"""A run that died of memory: in which phase, of what most, and which one change would have fitted.

The worker says so itself when an allocator refused (``train/__main__.py``). One that the kernel's out-of-memory
killer ended says nothing, and `accelerate launch` makes a plain exit code 1 of its SIGKILL. SIGKILL may come from
anybody, so it counts as memory only where the kernel counted a kill meanwhile, or where estimate or measurement come
near to what the machine has. Where the disk is full, that is named instead: a worker there may have no last words.
"""

import os
import re
import signal
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..budget.estimate import Estimate, EstimatedRecipe, summed
from ..budget.fit import Suggestion, suggestions
from ..budget.parts import Component
from ..contract.errors import ExitCode
from ..contract.events import EventReader
from ..contract.history import History, fold
from ..contract.recipe import PPORecipe
from ..contract.run_dir import RunDir, State
from .disk import full_disk
from .expected import Expected, expected
from .gpus import first_card
from .outcome import Outcome

_SAID = re.compile(r"((?:rank \d+: )?Out of (GPU )?memory) in phase (\w+)\. ")
_DETAIL = re.compile(r"\(.*\)$", re.DOTALL)
_CAPACITY = re.compile(r"total capacity of (\d{1,6}(?:\.\d{1,3})?) (GiB|MiB)")
_EXIT_SIGKILL = 128 + signal.SIGKILL
_EXIT_FLUSH = 120  # Python could not flush its output at the end
_WORDLESS = frozenset({ExitCode.FAILED, _EXIT_FLUSH, _EXIT_SIGKILL, 128 + signal.SIGBUS})  # a mapped file grew no more
_WEIGHT_KEYS = {"load_in_8bit", "load_in_4bit", "dtype"}
_NEAR = 0.8
"""Share of the machine's memory from which on a killed process is taken for one that used it up."""
_UNITS = {"GiB": 1 << 30, "MiB": 1 << 20}
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class _Death(Struct, frozen=True, kw_only=True):
    how: str
    """In words, up to the phase."""
    phase: str
    gpu: bool = False
    said: bool = False
    """The worker said it itself."""
    detail: str = ""
    """What the allocator said, in parentheses."""
    certain: bool


def explain(
    run: RunDir, state: State, outcome: Outcome, *, silent: bool = False, killer_seen: bool = False
) -> str | None:
    """The cause of a failed attempt that died of memory; None: it did not, or nothing can be added.

    Args:
        run: the run directory.
        state: with the attempt that ended.
        outcome: as it would be recorded.
        silent: the worker ended without an ``end`` record, which it writes whatever happens inside it.
        killer_seen: the kernel counted an out-of-memory kill while it ran.

    Raises:
        UsageError: the run's files cannot be read.
        OSError: likewise.
    """
    if outcome.phase != "failed":
        return None
    if silent and not killer_seen and outcome.exit_code in _WORDLESS:
        seen = full_disk(run, run.attempt_dir(state.attempt))
        if seen:
            return (
                f"The disk is full ({seen}), and the worker ended without being able to say more. Make room under "
                f"{run.path}, then resume."
            )
    said = _SAID.match(outcome.cause or "")
    killed = silent and outcome.exit_code in (_EXIT_SIGKILL, ExitCode.FAILED)
    if not said and not killed:
        return None
    history = fold(EventReader(run.attempt_dir(state.attempt) / "events.jsonl").read())
    known = expected(run, state.stage)
    if said:
        detail = _DETAIL.search(outcome.cause or "")
        death = _Death(
            how=said[1], phase=said[3], gpu=said[2] is not None, said=True, detail=f" {detail[0]}" if detail else "",
            certain=True,
        )  # fmt: skip
    elif history.phase is None:  # it never came to itself: no memory was asked for
        return None
    else:
        why = "while the kernel's out-of-memory killer was at work" if killer_seen else "probably for its memory"
        how = f"Killed {why}: out of memory"
        death = _Death(how=how, phase=history.phase, certain=killer_seen)
    told = _told(death, known, history)
    if told is None and killed and outcome.exit_code == ExitCode.FAILED:
        return (
            f"Ended by a signal in phase {death.phase}; `accelerate launch` hides which. Often it is the kernel's "
            "out-of-memory killer; `dmesg` tells."
        )
    return told


def _told(death: _Death, known: Expected | None, history: History) -> str | None:
    beginning = f"{death.how} in phase {death.phase}"
    found = _of_phase(known, death.phase) if known else None
    if known is None or found is None:  # nothing to compare with: what the worker said stands
        return None if death.said or not death.certain else f"{beginning}."
    room = _room(death)
    host = known.on_gpu and not death.gpu  # of the main memory, an estimate of a GPU says nothing
    if not death.certain and not _near(found, history, room, counts=not host):
        return None
    if host:
        return f"{beginning}: this machine's main memory, not the GPU's.{death.detail}"
    largest = max(found.components, key=lambda one: one.bytes)
    told = f"{beginning}: of {_gib(found.allocated)} expected there {_of(largest)} most"
    return f"{told}. {_way_out(known, found, death.phase, room)}{death.detail}"


def _way_out(known: Expected, found: Estimate, phase: str, room: int | None) -> str:
    """The one change that would have fitted."""
    # it did not fit, whatever the formula says: a change must at least save what the formula is unsure of
    target = min(room or found.device[1], found.device[0])

    def at_phase(recipe: EstimatedRecipe, changed: Estimate) -> Estimate:
        return _only(known, changed, phase) or changed

    options = suggestions(
        known.recipe, known.architecture, target, gpus=known.gpus, on_gpu=known.on_gpu, reward=known.reward,
        adjust=at_phase,
    )  # fmt: skip
    if phase == "load":
        options = [one for one in options if one.changes.keys() & _WEIGHT_KEYS]
    fitting = [one for one in options if one.fits == "yes"]
    if not fitting:
        best = max(options, key=lambda one: one.saving, default=None)
        more = f"; `{_words(best)}` saves most ({_gib(best.saving)})" if best else ""
        return f"No change of the recipe is sure to fit{more}."
    best = min(fitting, key=lambda one: " + " in one.title)  # one change before several; the cheapest is the first
    after = " to ".join(map(_gib, best.device_after))
    if room and found.device[1] <= room:
        return (
            f"That fits into {_gib(room)}: something else held memory, or the estimate is wrong. "
            f"`{_words(best)}` needs less: {after}."
        )
    return f"`{_words(best)}` would have fitted: {after}" + (f" of {_gib(room)}." if room else ".")


def _of_phase(known: Expected, phase: str) -> Estimate | None:
    """The estimate where the run died; None where the formula has no such moment."""
    if phase in ("train", "load"):
        return known.estimate
    return _only(known, known.estimate, phase)


def _only(known: Expected, found: Estimate, phase: str) -> Estimate | None:
    """An estimate of one of PPO's phases alone."""
    if not isinstance(known.recipe, PPORecipe):
        return None
    names = ("rollout", "score") if phase == "evaluate" else (phase,)
    phases = [one for one in found.phases if one.name in names]
    return summed(phases, known.architecture, gpus=known.gpus, on_gpu=known.on_gpu) if phases else None


def _near(found: Estimate, history: History, room: int | None, *, counts: bool) -> bool:
    """Whether measurement, or the estimate where it counts, comes near to all there is."""
    if room is None:
        return False
    measured = history.memory.get("rss") or 0.0
    return measured > _NEAR * room or (counts and found.device[1] > room)


def _room(death: _Death) -> int | None:
    """Bytes of the device that was full: as the allocator said, else as the driver says; of a CPU its memory."""
    if not death.gpu:
        return _main_memory()
    if match := _CAPACITY.search(death.detail):
        return round(float(match[1]) * _UNITS[match[2]])
    card = first_card()
    return card.memory if card else None


def _main_memory() -> int:
    """This machine's memory, or as much of it as a container may use."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in _CGROUP_LIMITS:
        try:
            text = Path(name).read_text(encoding="ascii").strip()
        except OSError:  # the other version of cgroups, or none
            continue
        if text.isdecimal():
            total = min(total, int(text))
    return total


def _of(component: Component) -> str:
    return f"`{component.name}` ({_gib(component.bytes)}) {'take' if component.name.endswith('s') else 'takes'}"


def _words(suggestion: Suggestion) -> str:
    """The changes as words of the command line."""
    words = ((key, _value(value)) for key, value in suggestion.changes.items())
    return " ".join(f"{key}={value}" for key, value in words)


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 29 else f"{count / (1 << 20):.0f} MiB"
