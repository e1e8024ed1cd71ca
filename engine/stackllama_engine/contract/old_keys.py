"""Keys of earlier versions of this engine, which are still read, with a note."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from msgspec import UNSET, Struct

from .findings import Entry, Findings


class OldKeys(Struct, frozen=True):
    """Former keys and how they are read.

    Attributes:
        new: the key that replaced them.
        read: returns the new key's value, from the old keys' values and the new one's, if that is given too; UNSET:
            the old keys say what is the new one's default.
        defaults: the old keys and their default values.
    """

    new: str
    read: Callable[[Mapping[str, Any], Any], Any]
    defaults: Mapping[str, Any]


def _length_limits(old: Mapping[str, Any], given: Any) -> Any:
    """Return the limits of a response's length: each from the old key, else from the new key, else its old default."""
    before = cast("list[Any]", given) if isinstance(given, list) else []
    limits: dict[str, Any] = dict(zip(_LENGTHS, before, strict=False))
    return [(_LENGTHS | limits | dict(old))[key] for key in _LENGTHS]


def _function(old: Mapping[str, Any], given: Any) -> Any:
    """Return the one function, or what belongs to it, as a list."""
    (value,) = old.values()
    return UNSET if value is None else [value]


def _function_weight(old: Mapping[str, Any], given: Any) -> Any:
    (value,) = old.values()
    return UNSET if value == _WEIGHT else [value]


_WEIGHT = 1.0
_LENGTHS: dict[str, Any] = {"output_min_length": 32, "output_max_length": 128}
OLD_KEYS: tuple[OldKeys, ...] = (
    OldKeys("random_length_limits", _length_limits, _LENGTHS),  # the length was drawn from [min, max)
    OldKeys("reward_funcs", _function, {"reward_fn": None}),  # there was one function
    OldKeys("reward_func_paths", _function, {"reward_fn_path": None}),
    OldKeys("reward_weights", _function_weight, {"reward_fn_weight": _WEIGHT}),
)


def is_old(key: str, known: Collection[str]) -> bool:
    """Return whether a recipe with these keys reads an old key."""
    return any(key in old.defaults and old.new in known for old in OLD_KEYS)


def read_old_keys(entries: dict[str, Entry], known: Collection[str], findings: Findings) -> dict[str, Entry]:
    """Replace old keys by the new ones.

    Args:
        entries: entries of one recipe, from all layers, by key.
        known: the recipe's keys; an old key that is still one of them is left alone.
        findings: receives the notes.
    """
    for old in OLD_KEYS:
        given = {key: entries[key] for key in old.defaults if key in entries and key not in known}
        if not given or old.new not in known:
            continue
        entries = {key: entry for key, entry in entries.items() if key not in given}
        before = entries[old.new].value if old.new in entries else None
        value = old.read({key: entry.value for key, entry in given.items()}, before)
        if value is UNSET:
            continue
        last = list(given.values())[-1]
        entries[old.new] = Entry(source=last.source, key=old.new, typed=value, value=value)
        names = ", ".join(f"`{key}`" for key in given)
        findings.note(f"{last.source}: {names}: read as `{old.new}={value}`, the key's new name.")
    return entries
