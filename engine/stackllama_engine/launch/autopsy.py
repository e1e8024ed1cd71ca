"""The cause of a failure by memory or by a signal: which rank, which phase, the largest component, what would have fit.

The worker reports it itself when an allocator failed (``train/__main__.py``). One that the kernel's out-of-memory
killer ended writes nothing; its supervisor noticed its end (:mod:`.ranks`). Anybody may send SIGKILL, so it counts as
memory only where the kernel counted a kill meanwhile (:mod:`.oom`), or where estimate or measurement come near to the
limit. Where the disk is full, that is named instead: a worker there may be unable to write its cause.
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

_REPORTED = re.compile(r"((?:rank \d+: )?Out of (GPU )?memory) in phase (\w+)\. ")
_DETAIL = re.compile(r"\(.*\)$", re.DOTALL)
_CAPACITY = re.compile(r"total capacity of (\d{1,6}(?:\.\d{1,3})?) (GiB|MiB)")
_EXIT_SIGKILL = 128 + signal.SIGKILL
_EXIT_FLUSH = 120  # Python could not flush its output at the end
_SILENT_CODES = frozenset(
    {ExitCode.FAILED, _EXIT_FLUSH, _EXIT_SIGKILL, 128 + signal.SIGBUS}
)  # a mapped file could not grow
_WEIGHT_KEYS = {"base_precision", "dtype"}
_NEAR = 0.8
"""Share of the memory limit from which on a killed process counts as one that exhausted it."""
_UNITS = {"GiB": 1 << 30, "MiB": 1 << 20}


class _Death(Struct, frozen=True, kw_only=True):
    how: str
    """The beginning of the sentence, up to the phase."""
    phase: str
    gpu: bool = False
    reported: bool = False
    """The worker reported it itself."""
    detail: str = ""
    """The allocator's message, in parentheses."""
    certain: bool
    killer: Killer | None = None
    """The memory limit, if known."""


def explain(
    run: RunDir,
    state: State,
    outcome: Outcome,
    *,
    silent: bool = False,
    killer: Killer | None = None,
    killed: Death | None = None,
) -> str | None:
    """Return the cause of a failure by memory or by a signal; None: nothing can be added.

    Args:
        run: the run directory.
        state: with the attempt that ended.
        outcome: as it would be recorded.
        silent: the worker ended without an ``end`` event, which it writes whatever happens inside it.
        killer: the memory limit, and whether the out-of-memory killer was active meanwhile.
        killed: the rank that a signal ended first, if the supervisor noticed one.

    Raises:
        UsageError: the run's files cannot be read.
        OSError: likewise.
    """
    if outcome.phase != "failed":
        return None
    by_kernel = killer is not None and bool(killer.active)
    by_signal = killed is not None and killed.number != signal.SIGBUS  # which a full disk does not send
    if silent and not (by_kernel or by_signal) and outcome.exit_code in _SILENT_CODES:
        evidence = full_disk(run, run.attempt_dir(state.attempt))
        if evidence:
            return (
                f"The disk is full ({evidence}), and the worker ended without an error message. Make room under "
                f"{run.path}, then resume."
            )
    reported = None if killed else _REPORTED.match(outcome.cause or "")
    unnamed = not killed and silent and outcome.exit_code in (_EXIT_SIGKILL, ExitCode.FAILED)
    if not (reported or killed or unnamed):
        return None
    history = fold(EventReader(run.attempt_dir(state.attempt) / "events.jsonl").read_what_can_be())
    estimated = expected(run, state.stage)
    if killed:
        return _of_killed(killed, killer, estimated, history)
    if reported:
        detail = _DETAIL.search(outcome.cause or "")
        death = _Death(
            how=reported[1],
            phase=reported[3],
            gpu=reported[2] is not None,
            reported=True,
            detail=f" {detail[0]}" if detail else "",
            certain=True,
        )
    elif history.phase is None:  # it never started: no memory was allocated
        return None
    else:
        certain = killer is not None and bool(killer.active)
        why = " while the kernel's out-of-memory killer was active" if certain else ", probably for its memory use"
        death = _Death(how=f"Killed{why}: out of memory", phase=history.phase, certain=certain, killer=killer)
    cause = _cause(death, estimated, history)
    if cause is None and unnamed and outcome.exit_code == ExitCode.FAILED:
        return (
            f"Killed by a signal in phase {death.phase}; `accelerate launch` does not report which. Often it is the "
            "kernel's out-of-memory killer: check `dmesg`."
        )
    return cause


def _of_killed(killed: Death, killer: Killer | None, estimated: Expected | None, history: History) -> str:
    """Name the rank and the signal; for SIGKILL also the memory limit and how much of it was used."""
    beginning = f"{killed} in phase {history.phase}" if history.phase else f"{killed} before its first event"
    if killed.number not in (signal.SIGKILL, None) or killer is None:
        return f"{beginning}."
    held = killed.held or killer.peak
    limit = f"{_gib(killer.limit)} ({killer.whose})"
    memory = f"the run used {_gib(held)} of {limit}" if held else f"the limit is {limit}"
    death = _Death(how="", phase=history.phase or "", certain=bool(killer.active), killer=killer)
    if killer.active:
        beginning += f" by the kernel's out-of-memory killer: {memory}."
    elif history.phase and _is_near(death, estimated, history, held or 0):
        beginning += f", probably for its memory use: {memory}."
    else:
        hint = "the kernel's out-of-memory killer was not active, so a user or another program sent it"
        unknown = "often it is the kernel's out-of-memory killer: check `dmesg`"
        return f"{beginning}; {unknown if killer.active is None else hint}. {memory[0].upper()}{memory[1:]}."
    more = _advice(death, estimated) if history.phase else None
    return f"{beginning} {more[0].upper()}{more[1:]}" if more else beginning


def _is_near(death: _Death, estimated: Expected | None, history: History, held: int) -> bool:
    """Return whether a process may have been killed for its memory although no kill was counted."""
    capacity = _capacity(death)
    estimate = _of_phase(estimated, death.phase) if estimated else None
    if capacity and held > _NEAR * capacity:
        return True
    if estimated is None or estimate is None:
        return False
    return _near(estimate, history, capacity, counts=not estimated.on_gpu)


def _cause(death: _Death, estimated: Expected | None, history: History) -> str | None:
    beginning = f"{death.how} in phase {death.phase}"
    estimate = _of_phase(estimated, death.phase) if estimated else None
    if estimated is None or estimate is None:  # nothing to compare with: the worker's own cause is kept
        return None if death.reported or not death.certain else f"{beginning}."
    host = estimated.on_gpu and not death.gpu  # an estimate of GPU memory says nothing about the RAM
    if not death.certain and not _near(estimate, history, _capacity(death), counts=not host):
        return None
    return f"{beginning}: {_advice(death, estimated)}"


def _advice(death: _Death, estimated: Expected | None) -> str | None:
    """Return the largest component where the run died, and the one change that would have fitted."""
    estimate = _of_phase(estimated, death.phase) if estimated else None
    if estimated is None or estimate is None:
        return None
    if estimated.on_gpu and not death.gpu:
        return f"this machine's RAM, not GPU memory.{death.detail}"
    largest = max(estimate.components, key=lambda component: component.bytes)
    share = f"{_component(largest)} the largest share of the {_gib(estimate.allocated)} expected there"
    return f"{share}. {_way_out(estimated, estimate, death.phase, _capacity(death))}{death.detail}"


def _way_out(estimated: Expected, estimate: Estimate, phase: str, capacity: int | None) -> str:
    """Return the one change that would have fitted."""
    # it did not fit, whatever the formula says: a change must at least save what the formula is unsure of
    target = min(capacity or estimate.device[1], estimate.device[0])

    def at_phase(recipe: EstimatedRecipe, changed: Estimate) -> Estimate:
        return _only(estimated, changed, phase) or changed

    options = suggestions(
        estimated.recipe,
        estimated.architecture,
        target,
        gpus=estimated.gpus,
        on_gpu=estimated.on_gpu,
        reward=estimated.reward,
        adjust=at_phase,
    )
    if phase == "load":
        options = [one for one in options if one.changes.keys() & _WEIGHT_KEYS]
    fitting = [one for one in options if one.fits == "yes"]
    fits = bool(capacity) and estimate.device[1] <= (capacity or 0)
    elsewhere = f"The estimate fits into {_gib(capacity or 0)}: another process held memory, or the estimate is too low"
    if not fitting:
        best = max(options, key=lambda one: one.saving, default=None)
        more = f"; `{_words(best)}` saves most ({_gib(best.saving)})" if best else ""
        return f"{elsewhere if fits else 'No change of the recipe is certain to fit'}{more}."
    best = min(fitting, key=lambda one: " + " in one.title)  # one change before several; the cheapest is the first
    after = " to ".join(map(_gib, best.device_after))
    if fits:
        return f"{elsewhere}. `{_words(best)}` needs less: {after}."
    return f"`{_words(best)}` would have fitted: {after}" + (f" of {_gib(capacity)}." if capacity else ".")


def _of_phase(estimated: Expected, phase: str) -> Estimate | None:
    """Return the estimate where the run died; None where the formula has no such phase."""
    if phase in ("train", "load"):
        return estimated.estimate
    return _only(estimated, estimated.estimate, phase)


def _only(estimated: Expected, estimate: Estimate, phase: str) -> Estimate | None:
    """Return an estimate of one of PPO's phases alone."""
    if not isinstance(estimated.recipe, PPORecipe):
        return None
    names = ("rollout", "score") if phase == "evaluate" else (phase,)
    phases = [one for one in estimate.phases if one.name in names]
    return summed(phases, estimated.architecture, gpus=estimated.gpus, on_gpu=estimated.on_gpu) if phases else None


def _near(estimate: Estimate, history: History, capacity: int | None, *, counts: bool) -> bool:
    """Return whether measurement, or the estimate where it counts, comes near to the limit."""
    if capacity is None:
        return False
    measured = history.memory.get("rss") or 0.0
    return measured > _NEAR * capacity or (counts and estimate.device[1] > capacity)


def _capacity(death: _Death) -> int | None:
    """Return the capacity in bytes: from the allocator's message, else from the driver; of a CPU the memory limit."""
    if not death.gpu:
        return death.killer.limit if death.killer else main_memory().total
    if match := _CAPACITY.search(death.detail):
        return round(float(match[1]) * _UNITS[match[2]])
    card = first_card()
    return card.memory if card else None


def _component(component: Component) -> str:
    return f"`{component.name}` ({_gib(component.bytes)}) {'take' if component.name.endswith('s') else 'takes'}"


def _words(suggestion: Suggestion) -> str:
    """Write the changes as arguments of the command line."""
    words = ((key, _value(value)) for key, value in suggestion.changes.items())
    return " ".join(f"{key}={value}" for key, value in words)


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 29 else f"{count / (1 << 20):.0f} MiB"
