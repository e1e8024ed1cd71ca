"""`load_in_8bit`, `load_in_4bit` and `bnb_4bit_quant_type`, read as `base_precision`.

They are the keys of transformers, TRL and this engine before 0.3. A layer of a recipe (its file, its command line, a
pipeline's section) is put over the ones below it, so that its words count as if it had said `base_precision` itself.
"""

from collections.abc import Collection
from typing import Any

from .findings import Entry, Findings
from .wording import convert, echo

NEW = "base_precision"
FOUR_BITS = ("nf4", "fp4")
_TYPES: dict[str, Any] = {"load_in_8bit": bool, "load_in_4bit": bool, "bnb_4bit_quant_type": str}
_KIND = "bnb_4bit_quant_type"


def put_over(
    below: dict[str, Entry], layer: dict[str, Entry], known: dict[str, Any], findings: Findings
) -> dict[str, Entry]:
    """Return the entries of several layers, those of ``layer`` over the ones before.

    Args:
        below: entries of the layers before.
        layer: entries of one more.
        known: the recipe's keys; where `base_precision` is none of them, the former keys are left for the check.
        findings: receives notes and contradictions.
    """
    former = {key: layer[key] for key in _TYPES if key in layer}
    if NEW not in known or not former:
        return below | layer
    entries = below | {key: entry for key, entry in layer.items() if key not in former}
    values: dict[str, Any] = {}
    for key, entry in former.items():
        try:
            values[key] = _value(key, entry.value)
        except ValueError as error:
            findings.wrong(entry.source, f"{entry.echo}: {error}")
            return entries
    given = layer[NEW].value if NEW in layer else None
    if problem := _contradiction(values, given):
        findings.wrong(next(iter(former.values())).source, problem)
        return entries
    before = entries[NEW].value if NEW in entries else None
    kind = values.get(_KIND) or (below[_KIND].value if _KIND in below else None)
    if _KIND in former:
        entries[_KIND] = former[_KIND]  # a layer above may say the rest
    precision = before if given is not None else _precision(values, before, kind)
    if precision is not None and precision != before:
        last = list(former.values())[-1]
        entries[NEW] = Entry(source=last.source, key=NEW, typed=precision, value=precision)
        said = ", ".join(entry.echo for entry in former.values())
        findings.note(f"{last.source}: {said}: read as `{NEW}={precision}`.")
    return entries


def is_former(key: str, known: Collection[str]) -> bool:
    """Return whether a recipe with these keys reads this one as `base_precision`."""
    return key in _TYPES and NEW in known


def without_kind(entries: dict[str, Entry], known: dict[str, Any]) -> dict[str, Entry]:
    """Return the entries without a 4-bit type that :func:`put_over` kept for layers that did not come."""
    return {key: entry for key, entry in entries.items() if key != _KIND or NEW not in known}


def _value(key: str, value: Any) -> Any:
    """Convert the value of a former key.

    Raises:
        ValueError: it is none that the key took.
    """
    if key == _KIND:
        if value not in FOUR_BITS:
            raise ValueError("expected one of `nf4`, `fp4`")
        return value
    return convert(value, _TYPES[key])


def _precision(values: dict[str, Any], before: Any, kind: Any) -> str | None:
    """Return what the former keys of one layer say, over ``before``; None: nothing."""
    if values.get("load_in_8bit"):
        return "int8"
    if values.get("load_in_4bit"):
        return kind or "nf4"
    denied = {"load_in_8bit": (None, "auto", "int8"), "load_in_4bit": (None, "auto", *FOUR_BITS)}
    if any(before in precisions for key, precisions in denied.items() if key in values):
        return "dtype"
    return values.get(_KIND) if before in FOUR_BITS else None


def _contradiction(values: dict[str, Any], given: Any) -> str | None:
    """Return what is wrong with the keys of one layer together; None if they agree."""
    if values.get("load_in_8bit") and values.get("load_in_4bit"):
        return "`load_in_8bit` and `load_in_4bit` are both true; choose one of them"
    agree: dict[tuple[str, Any], bool] = {
        ("load_in_8bit", True): given == "int8",
        ("load_in_8bit", False): given not in ("int8", "auto"),
        ("load_in_4bit", True): given in FOUR_BITS,
        ("load_in_4bit", False): given not in (*FOUR_BITS, "auto"),
        (_KIND, "nf4"): given != "fp4",
        (_KIND, "fp4"): given != "nf4",
    }
    for key, value in values.items() if given is not None else ():
        if not agree[key, value]:
            return f"{echo(key, value)} contradicts {echo(NEW, given)}; keep `{NEW}` alone"
    return None
