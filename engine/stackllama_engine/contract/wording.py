"""Words for a wrong value, the same on the command line and in the console: "expected a number"."""

import difflib
import math
import re
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

import msgspec
import yaml

_ALIKE = 0.8  # of a choice: `bfloat61` is near `bfloat16`, `flex_attention` is not near `flash_attention_2`
_LONG = 8  # letters of a key in which two may be wrong
_MOST_SHOWN = 60  # characters of a value that a message repeats
_TYPE_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "null": "null",
    "array": "a list such as [a, b]",
    "object": "a mapping",
    "date": "a date",
    "datetime": "a date",
}
_BOUNDS = {">=": "of at least", ">": "greater than", "<=": "of at most", "<": "less than"}


def convert(value: Any, wanted: Any) -> Any:
    """Convert a YAML value to a key's type.

    Raises:
        ValueError: it is of another type or out of bounds; the text says what was expected.
    """
    if isinstance(value, float) and value.is_integer() and is_steps(wanted):
        value = int(value)  # `100.0`: not a share
    # YAML 1.1 reads 1e-5 as a string; msgspec's lax mode turns strings into the numbers they spell.
    try:
        converted = msgspec.convert(value, wanted, strict=not isinstance(value, str))
    except msgspec.ValidationError as error:
        raise ValueError(_reason(error, value, wanted)) from None
    if isinstance(converted, float) and not math.isfinite(converted):
        raise ValueError("expected a finite number")
    return converted


def wrong(value: Any, wanted: Any) -> str | None:
    """Return what is wrong with a value, or None."""
    try:
        convert(value, wanted)
    except ValueError as error:
        return str(error)
    return None


def is_of_type(value: Any, wanted: Any) -> bool:
    """Return whether a value is of a key's type, its bounds aside."""
    return wrong(value, typing.Union[tuple(members(wanted))]) is None  # noqa: UP007 - of a list


def echo(key: str, value: Any) -> str:
    """Return ``key=value`` on one line and not too long; text as it is, other values as YAML writes them."""
    if isinstance(value, str):
        text = value
    else:
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"), sort_keys=False)
        text = text.removesuffix("...\n")
    text = " ".join(text.split())
    return f"`{key}={text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 1] + '…'}`"


def slip_of(word: str, known: Iterable[str]) -> str | None:
    """Return the one of some keys that a word must be a typing error for; None where there is none.

    Keys that are spelt alike often mean different things (``max_samples``, ``max_eval_samples``): one letter may be
    wrong, two in a long word; upper case, dashes and missing underscores do not count, digits must agree.
    """
    plain = {_plain(name): name for name in known}
    slips = {name: _edits(_plain(word), name) for name in plain if _digits(name) == _digits(word)}
    near = min(slips, key=lambda name: slips[name], default=None)
    if near is None or slips[near] > (2 if len(near) >= _LONG else 1):
        return None
    return plain[near]


def _plain(key: str) -> str:
    return re.sub(r"[\W_]", "", key).lower()


def _digits(key: str) -> str:
    return re.sub(r"\D", "", key)


def _edits(one: str, other: str) -> int:
    """Count letters to insert, remove, replace or swap with their neighbour: optimal string alignment."""
    before, last = list[int](), list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        row = [i]
        for j, wanted in enumerate(other, start=1):
            least = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                least = min(least, before[j - 2] + 1)
            row.append(least)
        before, last = last, row
    return last[-1]


def members(wanted: Any) -> list[Any]:
    """Return the types that an annotation admits, without their bounds."""
    origin = typing.get_origin(wanted)
    if origin is typing.Annotated:
        return members(typing.get_args(wanted)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(wanted) for member in members(part)]
    return [wanted]


def is_steps(wanted: Any) -> bool:
    """Return whether a key counts steps, or is a share of all of them."""
    return {int, float} <= {member for member in members(wanted) if isinstance(member, type)}


def _reason(error: msgspec.ValidationError, value: Any, wanted: Any) -> str:
    text = str(error).split(" - at ")[0]
    choices = _choices(wanted)
    if choices and ("enum value" in text or (isinstance(value, str) and "got `str`" in text)):
        items: list[Any] = typing.cast("list[Any]", value) if isinstance(value, list) else [value]
        near = next((near for item in items if item not in choices and (near := _nearest(str(item), choices))), None)
        hint = f"; did you mean `{near}`?" if near else ""
        return f"expected {_alternatives(choices, wanted)}{hint}"
    if is_steps(wanted):
        least = next((meta.ge for meta in _bounds(wanted, int) if meta.ge is not None), 0)
        return f"expected a whole number of at least {least}, or a share of all steps between 0 and 1"
    text = text.partition(", got ")[0]  # the message repeats the value itself
    text = re.sub(r"`([a-z| ]+)`", _type_words, text)
    if any(meta.min_length == meta.max_length is not None for meta in _bounds(wanted, list)):
        text = re.sub(r" of length (?:>=|<=) (\d+)$", r" with exactly \1 entries", text)
    text = re.sub(r" of length (>=|<=) (\d+)$", _length_words, text)
    text = re.sub(r" (>=|>|<=|<) (-?\d[\d.e+-]*)$", _bound_words, text)
    return text[:1].lower() + text[1:]


def _nearest(value: str, choices: list[str]) -> str | None:
    near = difflib.get_close_matches(value, choices, n=1, cutoff=_ALIKE)
    return near[0] if near else None


def _type_words(match: re.Match[str]) -> str:
    *rest, last = [_TYPE_WORDS.get(name, f"`{name}`") for name in match[1].split(" | ")]
    return f"{', '.join(rest)} or {last}" if rest else last


def _length_words(match: re.Match[str]) -> str:
    return f" with {_BOUNDS[match[1]].removeprefix('of ')} {match[2]} entries"


def _bound_words(match: re.Match[str]) -> str:
    return f" {_BOUNDS[match[1]]} {match[2].removesuffix('.0')}"


def _alternatives(choices: list[str], wanted: Any) -> str:
    """Return what a key with choices accepts: "`auto`, a number or null"."""
    words = [f"`{choice}`" for choice in choices]
    if len(choices) > 1:
        words = [f"one of {', '.join(words)}"]
    others = [_TYPE_WORDS["null" if part is types.NoneType else part.__name__] for part in _plain_members(wanted)]
    *rest, last = [*words, *others]
    if not rest:
        return last
    return f"{', '.join(rest)}{',' if len(choices) > 1 else ''} or {last}"


def _plain_members(wanted: Any) -> list[type]:
    """Return the scalar types that an annotation admits beside its choices."""
    return [part for part in members(wanted) if part in (int, float, str, bool, types.NoneType)]


def _bounds(wanted: Any, kind: type) -> list[msgspec.Meta]:
    """Return the annotations of one of the types that a key admits."""
    origin = typing.get_origin(wanted)
    parts = typing.get_args(wanted)
    if origin is typing.Annotated:
        inner, *notes = parts
        if inner is kind or typing.get_origin(inner) is kind:
            return [note for note in notes if isinstance(note, msgspec.Meta)]
        return _bounds(inner, kind)
    if origin in (typing.Union, types.UnionType):
        return [meta for part in parts for meta in _bounds(part, kind)]
    return []


def _choices(wanted: Any) -> list[str]:
    """Return the values of every Literal inside a type annotation."""
    if typing.get_origin(wanted) is Literal:
        return [str(choice) for choice in typing.get_args(wanted)]
    return [choice for part in typing.get_args(wanted) for choice in _choices(part)]
