"""The smaller panels of the monitor, as lines of text."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from stackllama_engine.contract.children import CHILDREN
from stackllama_engine.contract.metrics import unit_of

from ...readers.chart_sets import labels_for
from ...readers.pipeline_reader import PipelineReader
from ...readers.protocol import Reader
from ...sanitise import one_line, sanitise
from ...units import cut, number
from ..state_style import state_text
from .cells import cut_middle

_LABEL = 17
_VALUES = 20  # cells of both values with the blanks before them
_TEXT_LINES = 6


def metric_lines(reader: Reader, evaluation: str = "", width: int = 0) -> list[Text]:
    """Return every metric's first and newest value, the stage's own first, below how held-out prompts were sampled.

    Names are cut to what ``width`` leaves for them, at the least to what the panel beside the charts does.
    """
    history = reader.history
    names = labels_for(reader.stage, history.last)
    if not names:
        return []
    longest = max(len(one_line(label)) for _, label in names)
    room = max(_LABEL, min(longest, width - _VALUES))
    lines = [Text(f"{'':{room}} {'first':>9} {'now':>9}", style="dim")]
    if evaluation:  # above, because the panel shows no more than fits
        parts = textwrap.wrap(f"held-out: {evaluation}", len(lines[0]))
        lines = [*(Text(part, style="dim") for part in parts), *lines]
    for name, label in names:
        first, last = history.first.get(name), history.last[name]
        unit, beside = unit_of(reader.stage, name), max(abs(first or 0.0), abs(last or 0.0))
        line = Text(f"{cut_middle(one_line(label), room):{room}} ")
        line.append(f"{number(first, unit, beside=beside):>9} ", style="dim")
        line.append(f"{number(last, unit, beside=beside):>9}", style="bold" if last is not None else "bold reverse")
        lines.append(line)
    return lines


def sample_lines(rows: Sequence[Mapping[str, Any]], width: int, height: int) -> list[Text]:
    """Return the newest samples, as many as fit."""
    lines: list[Text] = []
    for row in rows:
        if lines:
            lines.append(Text(""))
        step = row.get("step", "?")
        values = [f"step {step:,}" if isinstance(step, int) else f"step {step}"]
        known = (("reward", row.get("reward")), ("KL", row.get("kl")))
        values += [f"{label} {number(value)}" for label, value in known if value is not None]
        lines.append(Text(cut("  ".join(values), width), style="bold"))
        for text, style in ((str(row.get("question", "")), "dim"), (str(row.get("response", "")), "")):
            wrapped = textwrap.wrap(one_line(text), width)[:_TEXT_LINES] or ["(nothing)"]
            lines += [Text(sanitise(line), style=style) for line in wrapped]
    return lines[: max(0, height)]


def pipeline_line(pipeline: PipelineReader, variables: Mapping[str, str]) -> Text:
    """Return one mark per stage: done, running or to come; the one that is shown is underlined."""
    text = Text()
    children = {child.name: child for child in pipeline.children}
    shown = pipeline.shown.run.id if pipeline.shown else ""
    for child in CHILDREN:
        if text:
            text.append(" → ", style="dim")
        child_reader = children.get(child.suffix)
        name = child.suffix.replace("-merged", " merge")
        if child_reader is None:
            text.append(f"· {name}", style="dim")
            continue
        mark = state_text(child_reader.state.phase, dict(variables))
        part = Text(f"{mark.plain[0]} {name}", style=mark.style)
        if child_reader.run.id == shown:
            part.stylize("bold underline")
        text.append_text(part)
    return text
