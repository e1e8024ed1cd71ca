"""The columns of a list of runs: for the screen and for ``runs ls``, what a cell shows and what rows are sorted by."""

from collections.abc import Callable, Sequence

from msgspec import Struct

from stackllama_engine.contract.metrics import metrics_of
from stackllama_engine.contract.run_dir import ENDED

from ..units import age, compact, cut, number
from .recipe_model import model_label
from .run_row import Row
from .run_trend import sparkline

Value = float | str | None
_ALIASES = {"lr": "learning_rate"}
_NOTE = 40  # columns of a note
_MINUTE = 60  # seconds: the duration of a running run changes this often


class Column(Struct, frozen=True, kw_only=True):
    """One column.

    Attributes:
        name: its title, and how it is chosen, sorted and filtered by.
        about: what it shows, for the dialog that chooses.
        text: gives a cell; ``now`` in Unix seconds.
        value: gives what is sorted and compared; None comes last.
        right: whether cells are aligned to the right.
    """

    name: str
    about: str
    text: Callable[[Row, float], str]
    value: Callable[[Row, float], Value]
    right: bool = False


def metric_value(row: Row, name: str) -> float | None:
    """Return a run's newest value of a metric, by its name in events or its label; of an ended run, its result's."""
    name = _ALIASES.get(name.lower(), name).lower()
    if row.metric and row.metric[0].lower() == name:
        return row.metric[1]
    for metric in metrics_of(row.stage):
        if name in (metric.name, metric.label.lower(), metric.short.lower()) and metric.name in row.values:
            return row.values[metric.name]
    return row.values.get(name)


def seconds_taken(row: Row, now: float) -> float | None:
    """Return how long a run took, or has been running."""
    if row.started is None:
        return None
    return max(0.0, (row.ended if row.phase in ENDED and row.ended else now) - row.started)


def last_text(row: Row) -> str:
    """Return the last column: what waits or is wrong, else the one number of the run."""
    return _last(row, f"{row.metric[0]} {number(row.metric[1])}" if row.metric else "")


def last_text_within(row: Row, size: int) -> str:
    """Return the last column in at most ``size`` cells: a number without its name, in fewer digits, or not at all.

    A number that is cut reads as another one.
    """
    texts = [last_text(row)]
    if row.metric:
        value = row.metric[1]
        texts += [_last(row, number(value, digits=digits)) for digits in (4, 3, 2, 1)] + [_last(row, "")]
    return next((text for text in texts if len(text) <= size), cut(texts[-1], size))


def _last(row: Row, metric: str) -> str:
    if not row.metric:
        metric = row.loading or (f"at {row.at}" if row.at else "")
    metric = row.at if row.waits or (row.is_foreign and row.at) else metric
    if row.elsewhere:
        metric = "  ".join(filter(None, (row.elsewhere, metric)))
    return row.error or metric


def _step(row: Row) -> str:
    return f"{row.step:,}/{row.total_steps:,}" if row.total_steps else f"{row.step:,}" if row.step else ""


def _duration(row: Row, now: float) -> str:
    taken = seconds_taken(row, now)
    if taken is None:
        return ""
    return compact(taken if row.phase in ENDED or taken < _MINUTE else taken // _MINUTE * _MINUTE)


def _metric(name: str, about: str) -> Column:
    def text(row: Row, _: float) -> str:
        value = metric_value(row, name)
        return "" if value is None else number(value)

    return Column(name=name, about=about, text=text, value=lambda row, _: metric_value(row, name), right=True)


COLUMNS: dict[str, Column] = {
    column.name: column
    for column in (
        Column(name="run", about="id or title", text=lambda row, _: row.name, value=lambda row, _: row.name.lower()),
        Column(
            name="stage", about="", text=lambda row, _: str(row.stage or ""), value=lambda row, _: str(row.stage or "")
        ),
        Column(
            name="model",
            about="base model",
            text=lambda row, _: cut(model_label(row.model), 28),
            value=lambda row, _: model_label(row.model).lower() or None,
        ),
        Column(name="state", about="", text=lambda row, _: row.phase, value=lambda row, _: row.phase),
        Column(
            name="step",
            about="steps done, of all",
            text=lambda row, _: _step(row),
            value=lambda row, _: float(row.step) if row.step else None,
            right=True,
        ),
        Column(
            name="age",
            about="since it was launched",
            text=lambda row, now: age(row.age(now)) if row.created else "",
            value=lambda row, now: row.age(now) if row.created else None,
            right=True,
        ),
        Column(
            name="duration", about="since it started, until it ended", text=_duration, value=seconds_taken, right=True
        ),
        Column(
            name="ETA",
            about="time left, from its own pace",
            text=lambda row, _: "" if row.seconds_left is None else age(row.seconds_left),
            value=lambda row, _: row.seconds_left,
            right=True,
        ),
        _metric("reward", "newest reward of PPO"),
        _metric("KL", "newest KL to the reference"),
        _metric("loss", "newest training loss"),
        _metric("lr", "learning rate now"),
        Column(
            name="trend",
            about="recent values of its number",
            text=lambda row, _: sparkline(row.trend),
            value=lambda row, _: row.trend[-1] - row.trend[0] if row.trend else None,
        ),
        Column(
            name="tags",
            about="your tags",
            text=lambda row, _: " ".join(row.tags),
            value=lambda row, _: " ".join(row.tags).lower() or None,
        ),
        Column(
            name="note",
            about="your note",
            text=lambda row, _: cut(row.note, _NOTE),
            value=lambda row, _: row.note.lower() or None,
        ),
        Column(
            name="last",
            about="its one number, or what is wrong",
            text=lambda row, _: last_text(row),
            value=lambda row, _: row.metric[1] if row.metric else None,
        ),
    )
}
"""Every column in its place from left to right."""
GROUPS = ("pipeline", "stage", "model", "none")
"""What rows can be grouped by: pipelines as trees, which is the default; columns; nothing, by age alone."""


def default_columns(width: int) -> list[str]:
    """Return the columns that are shown where none were chosen."""
    names = ["run", "stage", "state", "step", "age", "last"]
    if width >= 110:
        names.insert(2, "model")
    for name, least in (("stage", 78), ("age", 60), ("step", 44)):
        if width < least:
            names.remove(name)
    return names


def arranged(rows: Sequence[Row], sort: str, group: str, now: float) -> list[Row]:
    """Return rows in another order; as they are, pipelines as trees, where neither is asked for.

    Args:
        rows: newest first, children beneath their pipeline.
        sort: name of a column, ``-`` before it for the highest first; empty: newest first.
        group: one of `GROUPS`; rows of a group stay together, groups by name.
        now: Unix seconds.
    """
    if not sort and group not in ("stage", "model", "none"):
        return list(rows)
    found = sorted(rows, key=lambda row: (-row.created, row.id))
    name = sort.removeprefix("-")
    if name in COLUMNS:
        value = COLUMNS[name].value
        known = [row for row in found if value(row, now) is not None]
        known.sort(key=lambda row: _ordered(value(row, now)), reverse=sort.startswith("-"))
        found = [*known, *(row for row in found if value(row, now) is None)]
    if group in ("stage", "model"):
        found.sort(key=lambda row: group_name(row, group))
    return found


def _ordered(value: Value) -> tuple[float, str]:
    return (0.0, value) if isinstance(value, str) else (value or 0.0, "")


def group_name(row: Row, group: str) -> str:
    """Return the group that a row is in; empty where rows are not grouped by a column."""
    if row.is_foreign:
        return "another trainer"
    if group == "stage":
        return str(row.stage or "?")
    return model_label(row.model) or "?" if group == "model" else ""


def is_tree(sort: str, group: str) -> bool:
    """Return whether children stand beneath their pipeline."""
    return not sort and group not in ("stage", "model", "none")
