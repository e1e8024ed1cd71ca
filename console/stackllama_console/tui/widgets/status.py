"""The lines at the top of the monitor: state, progress, time left, current metrics, the machine."""

from collections.abc import Mapping, Sequence

from rich.text import Text

from stackllama_engine.contract.metrics import headline
from stackllama_engine.contract.run_dir import State
from stackllama_engine.contract.stages import Stage

from ...readers.eta import Eta
from ...readers.protocol import Reader
from ...readings import measured_peaks
from ...units import duration, number, quantity, size, span
from ..state_style import rich_colour, state_text

_BAR = 16
_VALUE = 7
_SILENT_SECONDS = 120.0
_NARROW = 0.1  # of the time left: such a range is not said


def head_line(reader: Reader, variables: Mapping[str, str], now: float, waiting: str = "") -> Text:
    """Return state, phase, step, progress bar, pace and time left, by the run's own clock.

    Before the first step ``waiting`` says what is done, for how long, and how long that usually takes.
    """
    colours = dict(variables)
    history = reader.history
    word = f"no sign for {span(now - (history.updated or now))}" if reader.phase == "silent" else ""
    text = Text().append_text(state_text(reader.phase, colours, word))  # as a span: its style would be the line's
    state: State | None = getattr(reader, "state", None)
    if waiting:
        text.append(f"  {waiting}", style="bold")
    elif history.phase and history.phase != reader.phase and not (state and state.has_ended):
        text.append(f"  {history.at}", style="bold")
    if state and state.waiting:
        text.append(f"  {state.waiting}", style="bold")
    total = history.total_steps
    if total:
        done = min(1.0, history.step / total)
        filled = round(done * _BAR)
        text.append(f"  step {history.step:,}/{total:,}  ")
        text.append("█" * filled, style=rich_colour(colours, "primary"))
        text.append("░" * (_BAR - filled), style="dim")
        text.append(f" {done:.0%}")
    elif history.step:
        text.append(f"  step {history.step:,}")
    left = total - history.step if total else 0
    if left > 0 and (eta := reader.eta(now)):
        text.append(f"  {eta_text(eta, left)}")
    elif state and state.ended and (state.started or state.created):
        text.append(f"  took {duration(state.ended - (state.started or state.created))}")
    if state and state.attempt > 1:
        text.append(f"  attempt {state.attempt}", style="dim")
    return text


def eta_text(eta: Eta, left: int) -> str:
    """Return ``9 m left (8–12 m)  1.2 s/step``, the pace being that of the estimate: time left over steps left.

    The range is left out where it says no more than the estimate.
    """
    seconds = eta.likely / left
    pace = (
        f"{number(seconds, digits=2)} s/step"
        if seconds >= 1 or seconds <= 0
        else f"{number(1 / seconds, digits=3)} steps/s"
    )
    is_narrow = eta.high - eta.low < _NARROW * eta.likely
    between = "" if is_narrow else f" ({duration(eta.low)} – {duration(eta.high)})"
    return f"{duration(eta.likely)} left{between}  {pace}"


def headline_line(reader: Reader, stage: Stage | None) -> Text:
    """Return the newest values that matter, in one line; a NaN stands out."""
    text = Text()
    last = reader.history.last
    for metric in headline(stage):
        if metric.name in last:
            value = last[metric.name]
            if metric.unit != metric.short:  # else it is said after the value
                text.append(f"{metric.short} ", style="dim")
            shown = quantity(value, metric.unit, beside=_largest(reader, metric.name))
            text.append(shown, style="bold" if value is not None else "bold reverse")
            text.append("  ".rjust(max(2, _VALUE + 2 - len(shown))))  # what follows stays where it is
    text.rstrip()
    return text


def _largest(reader: Reader, name: str) -> float:
    """Return the largest magnitude that a metric has had, beside which noise is shown as 0."""
    series = reader.series.get(name)
    span = series.columns(*ends, 1)[0] if series is not None and (ends := series.span) else None
    return max(map(abs, span)) if span else 0.0


def memory_text(reader: Reader, predicted: float | None) -> str:
    """Return the peaks the engine measured, beside what was predicted."""
    peaks = measured_peaks(reader.history)
    return f"{peaks}; predicted {size(predicted)}" if peaks and predicted else peaks


def pending_text(requests: Sequence[str]) -> str:
    """Return which requests the run has not served yet."""
    return f"requested, after the current step: {', '.join(requests)}" if requests else ""


def silence_text(reader: Reader, now: float) -> str:
    """Return how long a running run has written nothing; in whole units, so that it seldom changes."""
    updated = reader.history.updated
    if reader.phase not in ("running", "stalled", "stopping") or not updated or now - updated < _SILENT_SECONDS:
        return ""
    return f"no update for {span(now - updated)}"
