"""The lines at the top of the monitor: state, progress, time left, current metrics, the machine, the outcome."""

import re
import time
from collections.abc import Mapping

from rich.text import Text

from stackllama_engine.contract.metrics import headline
from stackllama_engine.contract.run_dir import RunDir, State
from stackllama_engine.contract.stages import Stage

from ...pipelines import newest
from ...readers.eta import Eta
from ...readers.protocol import Reader
from ...readings import measured_peaks
from ...sanitise import log_line, one_line
from ...units import duration, number, quantity, size
from ..run_keys import resume_in_words
from ..state_style import rich_colour, state_text

_BAR = 16
_VALUE = 7
_SILENT_SECONDS = 120.0
_GPU_ERROR = re.compile(r"a gpu error was logged|\bxid \d|\becc error")
"""A defective GPU; tried before memory, as Xid 31 is a GPU memory page fault."""
_OUT_OF_MEMORY = re.compile(r"out[ -]of[ -](?:gpu )?memory|outofmemory|for its memory use")


def head_line(reader: Reader, variables: Mapping[str, str], now: float) -> Text:
    """Return state, phase, step, progress bar, pace and time left, by the run's own clock: nothing ticks by itself."""
    colours = dict(variables)
    text = state_text(reader.phase, colours)
    history = reader.history
    state: State | None = getattr(reader, "state", None)
    if history.phase and history.phase != reader.phase and not (state and state.has_ended):
        text.append(f"  {history.at}", style="bold")
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
    """Return ``9 m left (8–12 m)  1.2 s/step``, the pace being that of the estimate: time left over steps left."""
    seconds = eta.likely / left
    pace = (
        f"{number(seconds, digits=2)} s/step"
        if seconds >= 1 or seconds <= 0
        else f"{number(1 / seconds, digits=3)} steps/s"
    )
    return f"{duration(eta.likely)} left ({duration(eta.low)} – {duration(eta.high)})  {pace}"


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


def silence_text(reader: Reader, now: float) -> str:
    """Return how long a running run has written nothing; in whole minutes, so that it seldom changes."""
    updated = reader.history.updated
    if reader.phase not in ("running", "stalled", "stopping") or not updated or now - updated < _SILENT_SECONDS:
        return ""
    return f"no update for {int((now - updated) // 60)} min"


def outcome_lines(run: RunDir | None, state: State | None, variables: Mapping[str, str]) -> list[Text]:
    """Return how a run that did not finish well ended: cause, code or signal, last lines, what to try."""
    if run is None or state is None or not state.has_ended or state.phase == "finished":
        return []
    lines: list[Text] = []
    if state.cause:
        cause = Text("cause  ", style=rich_colour(dict(variables), "error") if state.phase != "stopped" else "")
        cause.append(one_line(state.cause), style="bold")
        lines.append(cause)
    if state.exit_code is not None:
        lines.append(Text(f"ended  {exit_text(state.exit_code)}"))
    if state.phase in ("failed", "lost"):
        lines += [Text(f"  │ {log_line(line)}", style="dim") for line in state.last_lines[-6:]]
    lines.append(Text(f"try    {advice(run, state)}"))
    return lines


def exit_text(code: int) -> str:
    """Return an exit code in words."""
    import signal

    if code > 128:
        try:
            return f"signal {signal.Signals(code - 128).name} (exit code {code})"
        except ValueError:
            return f"signal {code - 128} (exit code {code})"
    meaning = {1: "failed", 2: "invalid recipe or input", 3: "refused before start", 75: "stopped after saving"}
    return f"exit code {code}" + (f", {meaning[code]}" if code in meaning else "")


def advice(run: RunDir, state: State) -> str:
    """Return what to press next, by what went wrong."""
    cause = (state.cause or "").lower()
    if state.exit_code == 2:
        return "e: fix the recipe in the form and relaunch"
    if _GPU_ERROR.search(cause):
        return f"see the log below and `dmesg` for the GPU error, then r: {resume_in_words(state.stage)}"
    if _OUT_OF_MEMORY.search(cause):
        return "e: smaller batch, shorter sequences or 4-bit weights; the form's budget shows what fits"
    if "nan" in cause or "infinity" in cause or "became" in cause:
        return "e: lower learning_rate, or use bf16 instead of fp16; r: resume from the last checkpoint"
    if "no space" in cause or "disk" in cause:
        return f"free disk space, then r: {resume_in_words(state.stage)}"
    if state.phase == "stopped":
        return f"r: {resume_in_words(state.stage)}"
    if state.stage is Stage.PIPELINE:
        child = newest(run, state)
        where = f" (see its stage {child.id.removeprefix(run.id + '-')}: , and .)" if child else ""
        return f"r: resume from the stage that failed{where}"
    return f"see the log below (/: search); r: {resume_in_words(state.stage)}; e: edit a copy of the recipe"


def now() -> float:
    """Return Unix seconds; one place, so that tests and screenshots can hold it still."""
    return time.time()
