"""A run that died of memory or of a signal: which rank, in which phase, of what most, what would have fitted.

The worker says so itself when an allocator refused (``train/__main__.py``). One that the kernel's out-of-memory
killer ended says nothing; its supervisor saw it go (:mod:`.ranks`). SIGKILL may come from anybody, so it counts as
memory only where the kernel counted a kill meanwhile (:mod:`.oom`), or where estimate or measurement come near to the
limit. Where the disk is full, that is named instead: a worker there may have no last words.
"""

import re
import signal
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
from .attempt_outcome import Outcome
from .disk import full_disk
from .expected import Expected, expected
from .gpus import first_card
from .main_memory import main_memory
from .oom import Killer
from .ranks import Death

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
    killer: Killer | None = None
    """What is known of the memory limit."""


def explain(
    run: RunDir,
    state: State,
    outcome: Outcome,
    *,
    silent: bool = False,
    killer: Killer | None = None,
    killed: Death | None = None,
) -> str | None:
    """The cause of a failed attempt that died of memory or of a signal; None: nothing can be added.

    Args:
        run: the run directory.
        state: with the attempt that ended.
        outcome: as it would be recorded.
        silent: the worker ended without an ``end`` record, which it writes whatever happens inside it.
        killer: the memory limit, and whether the kernel killed meanwhile.
        killed: the rank that a signal ended first, if the supervisor saw one.

    Raises:
        UsageError: the run's files cannot be read.
        OSError: likewise.
    """
    if outcome.phase != "failed":
        return None
    by_kernel = killer is not None and bool(killer.seen)
    by_signal = killed is not None and killed.number != signal.SIGBUS  # which a full disk does not send
    if silent and not (by_kernel or by_signal) and outcome.exit_code in _WORDLESS:
        seen = full_disk(run, run.attempt_dir(state.attempt))
        if seen:
            return (
                f"The disk is full ({seen}), and the worker ended without being able to say more. Make room under "
                f"{run.path}, then resume."
            )
    said = None if killed else _SAID.match(outcome.cause or "")
    unnamed = not killed and silent and outcome.exit_code in (_EXIT_SIGKILL, ExitCode.FAILED)
    if not (said or killed or unnamed):
        return None
    history = fold(EventReader(run.attempt_dir(state.attempt) / "events.jsonl").read_what_can_be())
    known = expected(run, state.stage)
    if killed:
        return _of_killed(killed, killer, known, history)
    if said:
        detail = _DETAIL.search(outcome.cause or "")
        death = _Death(
            how=said[1],
            phase=said[3],
            gpu=said[2] is not None,
            said=True,
            detail=f" {detail[0]}" if detail else "",
            certain=True,
        )
    elif history.phase is None:  # it never came to itself: no memory was asked for
        return None
    else:
        certain = killer is not None and bool(killer.seen)
        why = "while the kernel's out-of-memory killer was at work" if certain else "probably for its memory"
        death = _Death(how=f"Killed {why}: out of memory", phase=history.phase, certain=certain, killer=killer)
    told = _told(death, known, history)
    if told is None and unnamed and outcome.exit_code == ExitCode.FAILED:
        return (
            f"Ended by a signal in phase {death.phase}; `accelerate launch` hides which. Often it is the kernel's "
            "out-of-memory killer; `dmesg` tells."
        )
    return told


def _of_killed(killed: Death, killer: Killer | None, known: Expected | None, history: History) -> str:
    """Who was killed, by what, and of SIGKILL the memory limit and what was held of it."""
    beginning = f"{killed} in phase {history.phase}" if history.phase else f"{killed} before it said anything"
    if killed.number not in (signal.SIGKILL, None) or killer is None:
        return f"{beginning}."
    held = killed.held or killer.peak
    limit = f"{_gib(killer.limit)} ({killer.whose})"
    figures = f"the run held {_gib(held)} of {limit}" if held else f"the limit is {limit}"
    death = _Death(how="", phase=history.phase or "", certain=bool(killer.seen), killer=killer)
    if killer.seen:
        beginning += f" by the kernel's out-of-memory killer: {figures}."
    elif history.phase and _is_near(death, known, history, held or 0):
        beginning += f", probably for its memory: {figures}."
    else:
        hint = "the kernel's out-of-memory killer ended nothing meanwhile, so somebody or another program sent it"
        unknown = "often that is the kernel's out-of-memory killer, and `dmesg` tells"
        return f"{beginning}; {unknown if killer.seen is None else hint}. {figures[0].upper()}{figures[1:]}."
    more = _advice(death, known) if history.phase else None
    return f"{beginning} {more[0].upper()}{more[1:]}" if more else beginning


def _is_near(death: _Death, known: Expected | None, history: History, held: int) -> bool:
    """Whether a killed process may have been killed for its memory though nobody counted it."""
    room = _room(death)
    found = _of_phase(known, death.phase) if known else None
    if room and held > _NEAR * room:
        return True
    return known is not None and found is not None and _near(found, history, room, counts=not known.on_gpu)


def _told(death: _Death, known: Expected | None, history: History) -> str | None:
    beginning = f"{death.how} in phase {death.phase}"
    found = _of_phase(known, death.phase) if known else None
    if known is None or found is None:  # nothing to compare with: what the worker said stands
        return None if death.said or not death.certain else f"{beginning}."
    host = known.on_gpu and not death.gpu  # of the main memory, an estimate of a GPU says nothing
    if not death.certain and not _near(found, history, _room(death), counts=not host):
        return None
    return f"{beginning}: {_advice(death, known)}"


def _advice(death: _Death, known: Expected | None) -> str | None:
    """What took most where the run died, and the one change that would have fitted."""
    found = _of_phase(known, death.phase) if known else None
    if known is None or found is None:
        return None
    if known.on_gpu and not death.gpu:
        return f"this machine's main memory, not the GPU's.{death.detail}"
    largest = max(found.components, key=lambda one: one.bytes)
    told = f"of {_gib(found.allocated)} expected there {_of(largest)} most"
    return f"{told}. {_way_out(known, found, death.phase, _room(death))}{death.detail}"


def _way_out(known: Expected, found: Estimate, phase: str, room: int | None) -> str:
    """The one change that would have fitted."""
    # it did not fit, whatever the formula says: a change must at least save what the formula is unsure of
    target = min(room or found.device[1], found.device[0])

    def at_phase(recipe: EstimatedRecipe, changed: Estimate) -> Estimate:
        return _only(known, changed, phase) or changed

    options = suggestions(
        known.recipe,
        known.architecture,
        target,
        gpus=known.gpus,
        on_gpu=known.on_gpu,
        reward=known.reward,
        adjust=at_phase,
    )
    if phase == "load":
        options = [one for one in options if one.changes.keys() & _WEIGHT_KEYS]
    fitting = [one for one in options if one.fits == "yes"]
    fits = bool(room) and found.device[1] <= (room or 0)
    elsewhere = f"That fits into {_gib(room or 0)}: something else held memory, or the estimate is wrong"
    if not fitting:
        best = max(options, key=lambda one: one.saving, default=None)
        more = f"; `{_words(best)}` saves most ({_gib(best.saving)})" if best else ""
        return f"{elsewhere if fits else 'No change of the recipe is sure to fit'}{more}."
    best = min(fitting, key=lambda one: " + " in one.title)  # one change before several; the cheapest is the first
    after = " to ".join(map(_gib, best.device_after))
    if fits:
        return f"{elsewhere}. `{_words(best)}` needs less: {after}."
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
        return death.killer.limit if death.killer else main_memory().total
    if match := _CAPACITY.search(death.detail):
        return round(float(match[1]) * _UNITS[match[2]])
    card = first_card()
    return card.memory if card else None


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
