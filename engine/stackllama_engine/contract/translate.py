"""Reading values as TRL and transformers take them: other names, strategies, shares of all steps, texts for lists.

A layer of a recipe (its file, or its command line) goes through :func:`translate` before it is checked.
"""

import contextlib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from .findings import Entry, Findings
from .foreign_keys import ACCEPTED, IGNORED_KEYS, refusal
from .user_yaml import YamlError, load_yaml
from .wording import echo

_NAMES = re.compile(r"[\w.-]+(\s*[,\s]\s*[\w.-]+)*,?")
_OUTSIDE_BRACES = re.compile(r"\{[^}]*\}|\[[^\]]*\]")
ALL_LINEAR = "all-linear"

Values = Mapping[str, Any]
Read = tuple[dict[str, Any], str]
"""Values by our key, and a note where a person should know; empty for none."""


def translate(
    values: Values, known: Collection[str], source: str, findings: Findings, prefix: str = ""
) -> dict[str, Entry]:
    """One layer's entries by our key.

    What is wrong, ignored or worth a note is taken down in ``findings``. A key that nobody knows stays as it is, for
    the check to refuse.

    Args:
        values: keys and values as given.
        known: the keys of the recipe.
        source: the file, or the command line.
        findings: where problems and notes go.
        prefix: the section of a pipeline, with a dot.
    """
    entries: dict[str, Entry] = {}
    ignored: dict[str, list[str]] = {}
    for key in sorted(values, key=lambda key: key in _COMPUTED):  # a strategy decides over the steps beside it
        value = values[key]
        typed = findings.typed(source, prefix + key, value)
        shown = echo(prefix + key, typed)
        try:
            read, note = _read(key, value, values, known)
        except ValueError as error:
            findings.wrong(source, f"{shown}: {error}")
            continue
        if read is None:
            ignored.setdefault(IGNORED_KEYS[key], []).append(prefix + key)
            continue
        if note:
            findings.note(f"{source}: {shown}: {note}.")
        for ours, found in read.items():
            if key not in _COMPUTED and ours in entries and entries[ours].value != found:
                findings.wrong(source, f"{shown}: {entries[ours].echo} says it as well; keep one of them")
            entries[ours] = Entry(source=source, key=prefix + key, typed=typed, value=found)
    for reason, keys in ignored.items():
        findings.note(f"{source}: ignored {', '.join(f'`{key}`' for key in keys)}: {reason}.")
    return entries


def _read(key: str, value: Any, values: Values, known: Collection[str]) -> tuple[dict[str, Any] | None, str]:
    """One key as ours; None instead of values for one that is ignored.

    Raises:
        ValueError: it is refused, or its value cannot be read.
    """
    if key in known:
        return _VALUES[key](value, values) if key in _VALUES else ({key: value}, "")
    ours = ACCEPTED.get(key, "")
    if ours in known:
        return _VALUES[ours](value, values) if ours in _VALUES else ({ours: value}, "")
    if key in _COMPUTED:
        ours, read = _COMPUTED[key]
        if ours in known:
            return read(value, values)
    if key in IGNORED_KEYS:
        return None, ""
    why = refusal(key, value)
    if why:
        raise ValueError(why)
    return {} if why == "" else {key: value}, ""


# -- values of our own keys ---------------------------------------------------------------------------------------


def target_modules(value: Any) -> Any:
    """``lora_target_modules``: names in one text are taken apart; a text that is no list of names is a pattern.

    PEFT matches a pattern against the whole of a module's full name, so that neither ``q_proj`` nor
    ``q_proj,v_proj`` would be found.

    Raises:
        ValueError: several patterns, or `all-linear` beside names.
    """
    if not isinstance(value, str) or value == ALL_LINEAR:
        return value
    if _NAMES.fullmatch(value):
        names = [name for name in re.split(r"[,\s]+", value) if name]
        if ALL_LINEAR in names:
            raise ValueError("`all-linear` stands alone; remove the names beside it")
        return names
    if "," in _OUTSIDE_BRACES.sub("", value):
        raise ValueError(
            "names are separated by commas and a pattern is one regular expression over full names; for several "
            r"patterns write `.*\.(q_proj|v_proj)`"
        )
    return value


def _target_modules(value: Any, values: Values) -> Read:
    return {"lora_target_modules": target_modules(value)}, ""


def _report_to(value: Any, values: Values) -> Read:
    if value is None:
        return {"report_to": []}, ""
    if value == "all" or value == ["all"]:
        raise ValueError("name them: tensorboard, wandb, trackio")
    if isinstance(value, str):
        value = [name for name in re.split(r"[,\s]+", value) if name]
    if isinstance(value, list):
        value = [name for name in cast("list[Any]", value) if name != "none"]
    return {"report_to": value}, ""


def _bf16(value: Any, values: Values) -> Read:
    return ({"bf16": True}, "read as `true`") if value == "auto" else ({"bf16": value}, "")


def _dtype(value: Any, values: Values) -> Read:
    if value is None:
        return {"dtype": "auto"}, ""
    return {"dtype": value.removeprefix("torch.") if isinstance(value, str) else value}, ""


def _save_total_limit(value: Any, values: Values) -> Read:
    none = isinstance(value, int) and not isinstance(value, bool) and value <= 0
    return (
        ({"save_total_limit": None}, "read as transformers does: no limit")
        if none
        else (
            {"save_total_limit": value},
            "",
        )
    )


def _packing_strategy(value: Any, values: Values) -> Read:
    if value == "ffd":
        return {"packing_strategy": "bfd"}, "TRL calls it `bfd` by now"
    return {"packing_strategy": value}, ""


_VALUES: dict[str, Callable[[Any, Values], Read]] = {
    "lora_target_modules": _target_modules,
    "report_to": _report_to,
    "bf16": _bf16,
    "dtype": _dtype,
    "save_total_limit": _save_total_limit,
    "packing_strategy": _packing_strategy,
}

# -- keys that are computed from -----------------------------------------------------------------------------------


def _warmup_ratio(value: Any, values: Values) -> Read:
    if values.get("warmup_steps"):
        return {}, "`warmup_steps` is given as well and counts, as in transformers"
    ratio = number(value)
    if ratio is None or not 0 <= ratio < 1:
        raise ValueError("expected a share of all steps, from 0 to below 1")
    return {"warmup_steps": ratio}, ""


def _strategy(ours: str, never: str) -> Callable[[Any, Values], Read]:
    def read(value: Any, values: Values) -> Read:
        if value is False or value == "no":  # YAML 1.1 reads `no` as false
            return {ours: 0}, f"read as `{ours}=0`: {never}"
        if value == "steps":
            return {}, ""
        if value == "epoch":
            return _each_epoch(ours, values)
        if value == "best":
            return {}, f"`{ours}` and `metric_for_best_model` decide"
        raise ValueError("expected one of `no`, `steps`, `epoch`")

    return read


def _each_epoch(ours: str, values: Values) -> Read:
    """Each epoch's end as a share of all steps; the end of the last one is the run's."""
    epochs = number(values.get("num_train_epochs"))
    if ours == "save_steps" and (epochs is None or epochs <= 1):
        return {}, "`save_steps` decides; the run's end is saved anyway"
    if ours == "eval_steps" and epochs is not None and epochs <= 1:
        return {ours: 0}, "read as `eval_steps=0`: the end of the only epoch"
    if epochs is None or number(values.get("max_steps", -1)) != -1:
        return {}, f"`{ours}` decides"
    share = int(1e6 / epochs) / 1e6  # not above the epoch's end, whose step is rounded up
    return {ours: share}, f"read as `{ours}={share:g}`, a share of all steps"


def _lr_scheduler_kwargs(value: Any, values: Values) -> Read:
    if isinstance(value, str):  # JSON in quotes, as transformers takes it
        with contextlib.suppress(YamlError):
            value = load_yaml(value)
    if not value:
        return {}, ""
    given = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    rate, peak = number(given.get("min_lr")), number(values.get("learning_rate"))
    if set(given) == {"min_lr_rate"}:
        return {"min_lr_rate": given["min_lr_rate"]}, ""
    if set(given) == {"min_lr"} and rate is not None and peak:
        return {"min_lr_rate": rate / peak}, f"read as `min_lr_rate={rate / peak:g}`"
    raise ValueError("of schedules only the least rate can be set: `min_lr_rate`, a share of `learning_rate`")


_COMPUTED: dict[str, tuple[str, Callable[[Any, Values], Read]]] = {
    "warmup_ratio": ("warmup_steps", _warmup_ratio),
    "eval_strategy": ("eval_steps", _strategy("eval_steps", "the held-out rows are still evaluated at the end")),
    "evaluation_strategy": ("eval_steps", _strategy("eval_steps", "the held-out rows are still evaluated at the end")),
    "save_strategy": ("save_steps", _strategy("save_steps", "`save_minutes` alone decides, and a stop")),
    "lr_scheduler_kwargs": ("min_lr_rate", _lr_scheduler_kwargs),
}


def number(value: Any) -> float | None:
    """A YAML value as a number; None where it is none."""
    try:
        return None if isinstance(value, bool) else float(value)  # YAML 1.1 reads 1e-1 as text
    except (TypeError, ValueError):
        return None
