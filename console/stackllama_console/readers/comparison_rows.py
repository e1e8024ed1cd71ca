"""The comparison's two tables, recipe keys that differ and metrics, one column per run."""

import os.path
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from stackllama_engine.contract.metrics import Unit, better, metrics_of, unit_of

from ..units import duration, number
from .comparison import Comparison, Side
from .series import Series

Tone = Literal["plain", "default", "best", "missing"]

_MISSING = "·"
_AFTER = ("git commit", "version: ")


class Cell(Struct, frozen=True):
    """One run's value."""

    text: str
    tone: Tone = "plain"


class FactRow(Struct, frozen=True):
    """A key and one cell per run; without cells a heading."""

    key: str
    cells: tuple[Cell, ...] = ()


def recipe_rows(comparison: Comparison) -> list[FactRow]:
    """Return keys whose values differ, in the recipe's order, then commit and versions, then a count of the rest."""
    sides = [side for side in comparison.sides if side.facts.values]
    keys = list(dict.fromkeys(key for side in sides for key in side.facts.values))
    different = [key for key in keys if len({side.facts.values.get(key) for side in sides}) > 1]
    if not keys:
        return []
    if len(sides) < 2:
        return [FactRow("Only one of the recipes could be read: nothing to compare.")]

    def place(key: str) -> tuple[bool, bool]:
        return sum(key in side.facts.values for side in sides) < 2, key.startswith(_AFTER)

    rows = [_recipe_row(key, comparison.sides) for key in sorted(different, key=place)]
    if not rows:
        return [FactRow(f"All {len(keys)} keys, the commit and the versions are the same.")]
    return [*rows, FactRow(""), FactRow(f"{len(keys) - len(different)} other keys are the same. Dim: the default.")]


def _recipe_row(key: str, sides: Sequence[Side]) -> FactRow:
    texts = [side.facts.values.get(key) for side in sides]
    shown = without_shared_folder(texts)
    cells: list[Cell] = []
    for text, side in zip(shown, sides, strict=True):
        tone: Tone = "default" if key in side.facts.defaults else "plain"
        cells.append(Cell(_MISSING, "missing") if text is None else Cell(text, tone))
    return FactRow(key, tuple(cells))


def without_shared_folder(texts: Sequence[str | None]) -> list[str | None]:
    """Cut the common beginning of absolute paths at a separator; other texts are unchanged."""
    paths = [text for text in texts if text]
    if len(set(paths)) < 2 or not all(text.startswith("/") for text in paths):
        return list(texts)
    shared = re.sub(r"[^-_./]*$", "", os.path.commonprefix(paths))  # noqa: RUF071 - cut at a separator here
    if len(shared) < 2 or shared in paths:
        return list(texts)
    return [f"…{text[len(shared) :]}" if text else text for text in texts]


def metric_rows(comparison: Comparison, metrics: Sequence[str]) -> list[FactRow]:
    """Return state, steps and time; newest and best value of each metric; the numbers of ``result.json``."""
    sides = comparison.sides
    rows = [
        FactRow("state", tuple(Cell(side.reader.phase if side.reader else "unknown") for side in sides)),
        FactRow("step", tuple(Cell(_steps(side)) for side in sides)),
        FactRow("took", tuple(Cell(_took(side)) for side in sides)),
    ]
    if metrics:
        rows += [FactRow(""), FactRow("newest · ▲▼ its best @step · ◂ best run")]
        rows += [_metric_row(name, sides) for name in metrics]
    keys = dict.fromkeys(key for side in sides for key in side.facts.results)
    if keys:
        rows += [FactRow(""), FactRow("result.json")]
        rows += [_result_row(key, sides) for key in keys]
    return rows


def _steps(side: Side) -> str:
    history = side.reader.history if side.reader else None
    if history is None or not (history.step or history.total_steps):
        return _MISSING
    return f"{history.step:,}/{history.total_steps:,}" if history.total_steps else f"{history.step:,}"


def _took(side: Side) -> str:
    """Return how long a run took; nothing for a running one, whose time would change at every poll."""
    state = side.state
    if state is None or state.ended is None:
        return _MISSING
    return duration(state.ended - (state.started or state.created))


def _metric_row(name: str, sides: Sequence[Side]) -> FactRow:
    curves = [side.reader.series.get(name) if side.reader else None for side in sides]
    bests = [best_of(name, series) if series is not None else None for series in curves]
    values = [best[1] for best in bests if best]
    top = (
        (max(values) if better(name) == "higher" else min(values)) if len(values) > 1 and len(set(values)) > 1 else None
    )
    cells: list[Cell] = []
    unit = unit_among(name, sides)
    beside = max((abs(series.last) for series in curves if series is not None and series.last is not None), default=0.0)
    for series, best in zip(curves, bests, strict=True):
        if series is None or series.last is None:
            cells.append(Cell(_MISSING, "missing"))
            continue
        sign = "▲" if better(name) == "higher" else "▼"
        text = number(series.last, unit, beside=beside) + (
            f"  {sign} {number(best[1], unit, beside=beside)} @{best[0]:,.0f}" if best else ""
        )
        cells.append(_best(text, best is not None and best[1] == top))
    return FactRow(name, tuple(cells))


def unit_among(name: str, sides: Sequence[Side]) -> Unit:
    """Return the unit of a metric's values, as the first stage that knows it has it."""
    name = _listed_name(name)
    for side in sides:
        if (unit := unit_of(side.stage, name)) != "number":
            return unit
    return "number"


def chart_titles(names: Sequence[str], sides: Sequence[Side]) -> dict[str, str]:
    """Return what the monitor calls each metric; the name itself where nothing does, or two are called the same."""
    labels: dict[str, str] = {}
    for side in reversed(sides):
        labels |= {metric.name: metric.label for metric in metrics_of(side.stage)}
    titles: dict[str, str] = {}
    for name in names:
        label = labels.get(_listed_name(name), name)
        titles[name] = f"{label}, {name.split('/')[1]}" if _listed_name(name) in labels.keys() - {name} else label
    counts = Counter(titles.values())
    return {name: title if counts[title] == 1 else name for name, title in titles.items()}


def _listed_name(name: str) -> str:
    """Return the name that a metric is listed under: ``gpu/*/memory`` of ``gpu/mean/memory``."""
    parts = name.split("/")
    return f"gpu/*/{parts[2]}" if parts[0] == "gpu" and len(parts) == 3 else name


def _result_row(key: str, sides: Sequence[Side]) -> FactRow:
    values = [side.facts.results.get(key) for side in sides]
    numbers = {value for value in values if value is not None}
    both = [side.facts.results.get(name) for side in sides for name in (key, _other_of_pair(key))]
    beside, top = max((abs(value) for value in both if value is not None), default=0.0), None
    if len(numbers) > 1 and (best := better(key)):
        top = max(numbers) if best == "higher" else min(numbers)
    return FactRow(
        key,
        tuple(
            Cell(_MISSING, "missing") if value is None else _best(number(value, beside=beside), value == top)
            for value in values
        ),
    )


def _other_of_pair(key: str) -> str:
    """Return ``after.kl`` of ``before.kl`` and the other way round; else the key itself."""
    for one, other in (("before.", "after."), ("after.", "before.")):
        if key.startswith(one):
            return other + key.removeprefix(one)
    return key


def best_of(name: str, series: Series) -> tuple[float, float] | None:
    """Return (step, value) of a metric's earliest best point; None where no value is best.

    By bisection: costs a few `Series.columns`, however many points there are.
    """
    if better(name) is None or not len(series):
        return None
    side = 1 if better(name) == "higher" else 0
    steps = series.steps
    low, high = 0, len(series) - 1
    whole = series.columns(steps[low], steps[high], 1)[0]
    if whole is None:
        return None
    best = whole[side]
    while low < high:
        middle = (low + high) // 2
        left = series.columns(steps[low], steps[middle], 1)[0]
        if left is not None and left[side] == best:
            high = middle
        else:
            low = middle + 1
    return steps[low], best


def _best(text: str, is_best: bool) -> Cell:
    return Cell(f"{text} ◂", "best") if is_best else Cell(text)
