"""Conversion of typed text to a recipe's value, to a word of the command line, and back.

Numbers and flags are read as YAML, exactly as the command line reads them. Text is taken as it stands, so that a
model named ``on`` stays text; where YAML would read it otherwise, its word on the command line is quoted.
"""

import copy
import functools
import json
import re
import typing
from typing import Any

import msgspec
import yaml

from stackllama_engine.contract.user_yaml import YamlError, load_yaml

from .form_fields import FormField

_NONE = ("null", "~", "none")


def parse(field: FormField, text: str) -> Any:
    """Return the value for a recipe's mapping, which checks it. Raises nothing."""
    if field.optional and (not text or (field.kind != "text" and text.lower() in _NONE)):
        return None
    match field.kind:
        case "text":
            return "" if text == '""' else text
        case "choice":
            return next((value for value in _literal_values(field.type) if str(value) == text), text)
        case "list":
            return _parse_list(field, text)
        case "mapping":
            return _read(text if text.startswith("{") else f"{{{text}}}")
        case _:
            return _read(text)


def converted(field: FormField, text: str) -> Any:
    """Return the value in the key's own type.

    Raises:
        msgspec.ValidationError: it is none.
    """
    value = parse(field, text)
    return msgspec.convert(value, field.type, strict=not isinstance(value, str))


def write(value: Any) -> str:
    """Write a recipe's value as a person would type it; :func:`parse` reads it back."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float():
            return re.sub(r"e-0(\d)$", r"e-\1", repr(value))
        case list():
            items = typing.cast("list[Any]", value)
            if not items:
                return ""
            plain = len(items) > 1 and all(re.fullmatch(r"[\w.*-]+", str(item)) for item in items)
            return ", ".join(map(str, items)) if plain else _flow(items)
        case dict():
            return _pairs(typing.cast("dict[str, Any]", value))[1:-1]
        case _:
            return str(value)


def write_text(field: FormField, value: Any) -> str:
    """Write a value for this field: as :func:`write`, in quotes or brackets where it would be misread."""
    text = write(value)
    if parse(field, text) == value or not isinstance(value, str | list):
        return text
    return quoted(value) if isinstance(value, str) else "[]"


def word(field: FormField, text: str) -> str:
    """Return the part after ``key=`` on the command line."""
    value = parse(field, text)
    if value is None:
        return "null"
    if isinstance(value, list):
        return _flow(typing.cast("list[Any]", value))
    if isinstance(value, dict):
        return _pairs(typing.cast("dict[str, Any]", value))
    if field.kind in ("whole", "number", "flag"):
        return text
    return str(value) if _read(str(value)) == value else quoted(str(value))


def quoted(text: str) -> str:
    """Quote text so that YAML reads back exactly this text; printable, whatever is in it."""
    if text.isprintable() and _read(plain := json.dumps(text, ensure_ascii=False)) == text:
        return plain
    return yaml.safe_dump(text, default_style='"', allow_unicode=False, width=float("inf")).rstrip("\n")


def _flow(items: list[Any]) -> str:
    plain = f"[{', '.join(map(str, items))}]"
    return plain if _read(plain) == items else f"[{', '.join(quoted(str(item)) for item in items)}]"


def _pairs(value: dict[str, Any]) -> str:
    """Write a mapping as YAML on one line, in braces."""
    return yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False).rstrip("\n")


def _parse_list(field: FormField, text: str) -> Any:
    if not text:
        return []
    if text[0] in "[\"'":
        return _read(text)
    if _of_numbers(field.type):
        return _read(f"[{text}]")
    if "," in text:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text if _takes_text(field.type) else [text]


def _of_numbers(annotation: Any) -> bool:
    """Return whether it is a list of numbers, perhaps optional and annotated."""
    if typing.get_origin(annotation) is list:
        return _takes_number(typing.get_args(annotation)[0])
    return any(_of_numbers(part) for part in typing.get_args(annotation))


def _takes_number(annotation: Any) -> bool:
    return annotation in (int, float) or any(_takes_number(part) for part in typing.get_args(annotation))


def _takes_text(annotation: Any) -> bool:
    return annotation is str or (
        typing.get_origin(annotation) is not list and any(_takes_text(part) for part in typing.get_args(annotation))
    )


def _literal_values(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    return tuple(value for part in typing.get_args(annotation) for value in _literal_values(part))


@functools.lru_cache(maxsize=1024)  # every keystroke asks for every difference again, and YAML takes its time
def _scalar(text: str) -> Any:
    try:
        return load_yaml(text)
    except YamlError:
        return text


def _read(text: str) -> Any:
    """Read text as the command line would; a list is the caller's own."""
    return copy.deepcopy(_scalar(text))
