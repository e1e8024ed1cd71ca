"""Translation of TRL's and transformers' keys and values: other names, strategies, shares of steps, text as lists.

A layer of a recipe (its file, or its command line) goes through :func:`translate` before it is checked.
"""

import contextlib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from .findings import Entry, Findings
from .foreign_keys import ACCEPTED, IGNORED_KEYS, refusal
from .recipe_common import ALL_LINEAR
from .user_yaml import YamlError, load_yaml
from .wording import echo

_NAMES = re.compile(r"[\w.-]+(\s*[,\s]\s*[\w.-]+)*,?")
_OUTSIDE_BRACES = re.compile(r"\{[^}]*\}|\[[^\]]*\]")

Values = Mapping[str, Any]
Read = tuple[dict[str, Any], str]
"""Values by our key, and a note for the user; empty for none."""


def translate(
    values: Values, known: Collection[str], source: str, findings: Findings, prefix: str = ""
) -> dict[str, Entry]:
    """Translate one layer's entries to our keys.

    Problems, ignored keys and notes are added to ``findings``. An unknown key stays as it is, for the check to refuse.

    Args:
        values: keys and values as given.
        known: the keys of the recipe.
        source: the file, or the command line.
        findings: receives problems and notes.
        prefix: the section of a pipeline, with a dot.
    """
    entries: dict[str, Entry] = {}
    ignored: dict[str, list[str]] = {}
    for key in sorted(values, key=lambda key: key in _COMPUTED):  # a strategy overrides the steps beside it
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
        for ours, translated in read.items():
            if key not in _COMPUTED and ours in entries and entries[ours].value != translated:
                findings.wrong(source, f"{shown}: {entries[ours].echo} sets the same key; keep one of them")
            entries[ours] = Entry(source=source, key=prefix + key, typed=typed, value=translated)
    for reason, keys in ignored.items():
        findings.note(f"{source}: ignored {', '.join(f'`{key}`' for key in keys)}: {reason}.")
    return entries


def _read(key: str, value: Any, values: Values, known: Collection[str]) -> tuple[dict[str, Any] | None, str]:
    """Translate one key to ours; None instead of values for an ignored one.

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
    """Read ``lora_target_modules``: split names in one text; a text that is not a list of names is a pattern.

    PEFT matches a pattern against a module's full name, so that neither ``q_proj`` nor ``q_proj,v_proj`` would match.

    Raises:
        ValueError: several patterns, or `all-linear` together with names.
    """
    if not isinstance(value, str) or value == ALL_LINEAR:
        return value
    if _NAMES.fullmatch(value):
        names = [name for name in re.split(r"[,\s]+", value) if name]
        if ALL_LINEAR in names:
            raise ValueError("`all-linear` cannot be combined with names; remove the names")
        return names
    if "," in _OUTSIDE_BRACES.sub("", value):
        raise ValueError(
            "expected names separated by commas, or one regular expression over full names; for several patterns "
            r"write `.*\.(q_proj|v_proj)`"
        )
    return value


def _target_modules(value: Any, values: Values) -> Read:
    return {"lora_target_modules": target_modules(value)}, ""


def _report_to(value: Any, values: Values) -> Read:
    if value is None:
        return {"report_to": []}, ""
    if value == "all" or value == ["all"]:
        raise ValueError("`all` is not supported; name the trackers: tensorboard, wandb, trackio")
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
    if isinstance(value, int) and not isinstance(value, bool) and value <= 0:
        return {"save_total_limit": None}, "read as no limit, as in transformers"
    return {"save_total_limit": value}, ""


def _packing_strategy(value: Any, values: Values) -> Read:
    if value == "ffd":
        return {"packing_strategy": "bfd"}, "read as `bfd`, its new name in TRL"
    return {"packing_strategy": value}, ""


def _one_or_several(key: str) -> Callable[[Any, Values], Read]:
    """Read a list of which one entry may be given by itself, and texts separated by commas."""

    def read(value: Any, values: Values) -> Read:
        if isinstance(value, str):
            parts = [part.strip() for part in value.split(",") if part.strip()]
            value = [float(part) if key == "reward_weights" and number(part) is not None else part for part in parts]
        return {key: value if isinstance(value, list) or value is None else [value]}, ""

    return read


_VALUES: dict[str, Callable[[Any, Values], Read]] = {
    "lora_target_modules": _target_modules,
    "report_to": _report_to,
    "bf16": _bf16,
    "dtype": _dtype,
    "save_total_limit": _save_total_limit,
    "packing_strategy": _packing_strategy,
    **{key: _one_or_several(key) for key in ("reward_funcs", "reward_func_paths", "reward_weights", "reward_columns")},
}

# -- keys from which one of ours is computed -----------------------------------------------------------------------


def _warmup_ratio(value: Any, values: Values) -> Read:
    if values.get("warmup_steps"):
        return {}, "ignored, because `warmup_steps` is given as well, as in transformers"
    ratio = number(value)
    if ratio is None or not 0 <= ratio < 1:
        raise ValueError("expected a share of all steps, at least 0 and below 1")
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
            return {}, f"ignored; set `{ours}` and `metric_for_best_model`"
        raise ValueError("expected one of `no`, `steps`, `epoch`")

    return read


def _each_epoch(ours: str, values: Values) -> Read:
    """Read "at each epoch's end" as a share of all steps; the last epoch's end is the run's."""
    epochs = number(values.get("num_train_epochs"))
    if ours == "save_steps" and (epochs is None or epochs <= 1):
        return {}, "ignored; `save_steps` is used, and the run's end is saved anyway"
    if ours == "eval_steps" and epochs is not None and epochs <= 1:
        return {ours: 0}, "read as `eval_steps=0`: evaluate at the end of the only epoch"
    if epochs is None or number(values.get("max_steps", -1)) != -1:
        return {}, f"ignored; `{ours}` is used"
    share = int(1e6 / epochs) / 1e6  # not above the epoch's end, whose step is rounded up
    return {ours: share}, f"read as `{ours}={share:g}`, a share of all steps"


def _lr_scheduler_kwargs(value: Any, values: Values) -> Read:
    if isinstance(value, str):  # JSON in quotes, as transformers takes it
        with contextlib.suppress(YamlError):
            value = load_yaml(value)
    if not value:
        return {}, ""
    options = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    rate, peak = number(options.get("min_lr")), number(values.get("learning_rate"))
    if set(options) == {"min_lr_rate"}:
        return {"min_lr_rate": options["min_lr_rate"]}, ""
    if set(options) == {"min_lr"} and rate is not None and peak:
        return {"min_lr_rate": rate / peak}, f"read as `min_lr_rate={rate / peak:g}`"
    raise ValueError("only the final learning rate can be set, as `min_lr_rate`, a share of `learning_rate`")


_STILL_EVALUATED = "the held-out examples are still evaluated at the end"
_COMPUTED: dict[str, tuple[str, Callable[[Any, Values], Read]]] = {
    "warmup_ratio": ("warmup_steps", _warmup_ratio),
    "eval_strategy": ("eval_steps", _strategy("eval_steps", _STILL_EVALUATED)),
    "evaluation_strategy": ("eval_steps", _strategy("eval_steps", _STILL_EVALUATED)),
    "save_strategy": (
        "save_steps",
        _strategy("save_steps", "checkpoints are saved by `save_minutes` and when stopped"),
    ),
    "lr_scheduler_kwargs": ("min_lr_rate", _lr_scheduler_kwargs),
}


def number(value: Any) -> float | None:
    """Convert a YAML value to a number; None if it is not one."""
    try:
        return None if isinstance(value, bool) else float(value)  # YAML 1.1 reads 1e-1 as text
    except (TypeError, ValueError):
        return None
