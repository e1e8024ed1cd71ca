"""The filter of a list of runs: ``state:failed stage:ppo reward>1 -tag:old baseline``.

Words are separated by blanks (``"two words"`` is one) and all have to match; ``-`` before one: it must not.

=====================  ====================================================================================
``word``               part of the id, title, stage, state, model, tags or note, in upper or lower case
``field:value``        ``state``, ``stage``, ``tag``: the whole value; ``model``, ``run``, ``pipeline``,
                       ``note``: part of it; several values with commas between them: one of them
``name>number``        also ``>=  <  <=  =``; a metric by its label or name (``KL<10``), or ``step``, ``age``,
                       ``duration``, ``ETA``, the last three with a unit (``age<2d``: s, m, h, d)
=====================  ====================================================================================
"""

import operator
import re
from collections.abc import Callable

from msgspec import Struct

from .recipe_model import model_label
from .run_columns import metric_value, seconds_taken
from .run_row import Row

_WORD = re.compile(r'(?:[^\s"]|"[^"]*"?)+')
_FIELD = re.compile(r"(\w+):(.*)", re.S)
_COMPARISON = re.compile(r"([A-Za-z_][\w/.-]*)(>=|<=|>|<|=)(.*)", re.S)
_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)([smhd]?)", re.I)
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_WHOLE: dict[str, Callable[[Row], tuple[str, ...]]] = {
    "state": lambda row: (row.phase,),
    "stage": lambda row: (str(row.stage or ""),),
    "tag": lambda row: row.tags,
}
_PARTS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: f"{row.model} {model_label(row.model)}",
    "run": lambda row: f"{row.id} {row.title}",
    "pipeline": lambda row: row.pipeline or "",
    "note": lambda row: row.note,
}
_NUMBERS: dict[str, Callable[[Row, float], float | None]] = {
    "step": lambda row, _: None if row.is_foreign and not row.step else float(row.step),
    "age": lambda row, now: row.age(now) if row.created else None,
    "duration": seconds_taken,
    "eta": lambda row, _: row.seconds_left,
}
Condition = Callable[[Row, float], bool]


class RunFilter(Struct, frozen=True):
    """Conditions that all have to hold, and what of the text makes no sense, as a sentence."""

    conditions: tuple[Condition, ...] = ()
    error: str = ""

    def passes(self, row: Row, now: float) -> bool:
        """Return whether a row is shown; ``now`` in Unix seconds."""
        return all(condition(row, now) for condition in self.conditions)


def parse_filter(text: str) -> RunFilter:
    """Parse a filter. A word that makes no sense (yet, while it is typed) is left out, and named in ``error``."""
    conditions: list[Condition] = []
    errors: list[str] = []
    for word in _WORD.findall(text):
        negated = word.startswith("-") and len(word) > 1
        try:
            condition = _condition(word.removeprefix("-").replace('"', "") if negated else word.replace('"', ""))
        except ValueError as error:
            errors.append(str(error))
            continue
        if condition is not None:
            conditions.append(_negated(condition) if negated else condition)
    return RunFilter(tuple(conditions), errors[0] if errors else "")


def _negated(condition: Condition) -> Condition:
    return lambda row, now: not condition(row, now)


def _condition(word: str) -> Condition | None:
    """Return one word's condition; None where its value has not been typed yet.

    Raises:
        ValueError: there is no such field, or its value must be a number.
    """
    field, comparison = _FIELD.fullmatch(word), _COMPARISON.fullmatch(word)
    if field and (not comparison or len(field[1]) < len(comparison[1])):
        return _field_condition(field[1].lower(), field[2].lower())
    if comparison:
        return _comparison(comparison[1], _OPERATORS[comparison[2]], comparison[3])
    word = word.lower()
    return lambda row, _: word in _text(row)


def _text(row: Row) -> str:
    return " ".join((row.id, row.title, str(row.stage or ""), row.phase, row.model, *row.tags, row.note)).lower()


def _field_condition(field: str, value: str) -> Condition | None:
    if field not in _WHOLE and field not in _PARTS:
        raise ValueError(f"no field `{field}`; fields are {', '.join((*_WHOLE, *_PARTS))}")
    wanted = [part for part in value.split(",") if part]
    if not wanted:
        return None
    if field in _WHOLE:
        whole = _WHOLE[field]
        return lambda row, _: any(part in map(str.lower, whole(row)) for part in wanted)
    part_of = _PARTS[field]
    return lambda row, _: any(part in part_of(row).lower() for part in wanted)


def _comparison(name: str, compare: Callable[[float, float], bool], text: str) -> Condition | None:
    if not text:
        return None
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"`{text}` is not a number; write e.g. `{name}>1`")
    of_time = _NUMBERS.get(name.lower())
    if match[2] and (of_time is None or name.lower() == "step"):
        raise ValueError(f"`{name}` has no unit; only age, duration and ETA have one")
    limit = float(match[1]) * _SECONDS[match[2].lower()]

    def holds(row: Row, now: float) -> bool:
        value = of_time(row, now) if of_time else metric_value(row, name)
        return value is not None and compare(value, limit)

    return holds
