"""Reading, checking and writing recipes.

Precedence: defaults < file < ``key=value`` on the command line. Whatever is wrong is one :class:`RecipeError`
that names the file (or the command line), the key, the value and the nearest right key.
"""

import difflib
import functools
import math
import typing
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from .errors import RecipeError
from .files import existing
from .recipe import RECIPES, WIRED, AnyRecipe, PipelineRecipe
from .stages import TRAINING_STAGES, Stage

COMMAND_LINE = "command line"
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)  # ValueError: a date that no calendar has
_fields = functools.cache(msgspec.structs.fields)  # a form asks at every keystroke
_PATH_KEYS = (
    "model_name_or_path", "dataset_name", "reward_model_path", "reward_fn_path", "adapter_path", "policy_adapter_path",
)  # fmt: skip


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice instead of keeping the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        pairs: list[tuple[yaml.Node, yaml.Node]] = node.value
        for key_node, _ in pairs:
            key = self._construct(key_node)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key is plain text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key `{key}` is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def _construct(self, node: yaml.Node) -> Any:
        return typing.cast("Any", self.construct_object(node, deep=True))  # pyright: ignore[reportUnknownMemberType]


def load_recipe(stage: Stage, file: Path | None = None, overrides: Iterable[str] = ()) -> AnyRecipe:
    """Read a recipe file, apply ``key=value`` overrides, check everything.

    Args:
        stage: which recipe.
        file: YAML file, or None for the defaults alone.
        overrides: ``key=value`` strings, the value in YAML; for a pipeline also ``sft.key=value``.

    Raises:
        RecipeError: anything wrong in either; nothing was created.
    """
    values = _read_file(file) if file else {}
    origin = dict.fromkeys(_leaves(values), str(file))
    for text in overrides:
        key, value = _parse_override(text)
        _assign(values, key, value)
        origin[key] = COMMAND_LINE
    return build_recipe(stage, values, origin, str(file) if file else COMMAND_LINE)


def build_recipe(
    stage: Stage, values: Mapping[str, Any], origin: Mapping[str, str] | None = None, where: str = "recipe"
) -> AnyRecipe:
    """Check a mapping against the stage's Struct.

    Args:
        stage: which recipe.
        values: keys and values; local paths in them become absolute.
        origin: where each key was given, for the message; ``where`` stands for the missing ones.
        where: the file or source as a whole.

    Raises:
        RecipeError: unknown key, wrong value, missing key, or keys that exclude each other.
    """
    origin = origin or {}
    if stage is Stage.PIPELINE:
        return _build_pipeline(values, origin, where)
    cls = RECIPES[stage]
    fields = {field.name: field for field in _fields(cls)}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        source = origin.get(key, where)
        if key not in fields:
            raise _unknown_key(key, value, source, f"{stage} recipe", fields)
        checked[key] = _convert(key, value, fields[key].type, source)
    missing = [name for name, field in fields.items() if field.required and name not in checked]
    if missing:
        hint = "; `model_name_or_path=demo` tries the embedded model" if missing[0] == "model_name_or_path" else ""
        raise RecipeError(f"{where}: `{missing[0]}` is required by the {stage} recipe and was not given{hint}.")
    for key in _PATH_KEYS:
        if checked.get(key):
            checked[key] = _absolute(checked[key])
    try:
        return cls(**checked)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from None


def convert_key(stage: Stage, text: str) -> Any:
    """The value of one ``key=value`` by the type and bounds of a stage's recipe.

    Raises:
        RecipeError: not of that form, no such key, or a value that the recipe does not take.
    """
    key, value = _parse_override(text)
    fields = {field.name: field for field in _fields(RECIPES[stage])}
    if key not in fields:
        raise _unknown_key(key, value, COMMAND_LINE, f"{stage} recipe", fields)
    return _convert(key, value, fields[key].type, COMMAND_LINE)


def dump_recipe(recipe: AnyRecipe) -> str:
    """The recipe as YAML with every default written out; :func:`load_recipe` reads it back unchanged."""
    header = f"# stage: {recipe.stage}\n"
    # ASCII only: PyYAML writes U+0085 and its like as line breaks when unicode is allowed, and reads a blank back.
    return header + yaml.safe_dump(msgspec.to_builtins(recipe), sort_keys=False, allow_unicode=False, width=100)


def _read_file(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{file}: no such recipe file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file}: cannot be read: {error}.") from None
    try:
        values = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except _NOT_YAML as error:
        raise RecipeError(f"{file}: not valid YAML: {_one_line(error)}.") from None
    if values is None:
        return {}
    mapping = _mapping(values)
    if mapping is None:
        raise RecipeError(f"{file}: a recipe is a mapping of `key: value` lines.")
    return mapping


def _mapping(value: Any) -> dict[str, Any] | None:
    """The value itself when it is a mapping with text keys."""
    if not isinstance(value, dict):
        return None
    mapping = typing.cast("dict[Any, Any]", value)
    return mapping if all(isinstance(key, str) for key in mapping) else None


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, raw = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"{COMMAND_LINE}: `{text}` is not of the form key=value.")
    try:
        return key.strip(), yaml.load(raw, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except _NOT_YAML:
        return key.strip(), raw  # a plain string with YAML's special characters in it, such as a path


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    section, dot, rest = key.partition(".")
    if not dot:
        values[key] = value
        return
    inner = _mapping(values.setdefault(section, {}))
    if inner is None:
        raise RecipeError(f"{COMMAND_LINE}: `{key}`: `{section}` is a value, not a section.")
    inner[rest] = value


def _leaves(values: Mapping[str, Any]) -> Iterable[str]:
    for key, value in values.items():
        if (section := _mapping(value)) is not None:
            yield from (f"{key}.{inner}" for inner in section)
        else:
            yield key


def _convert(key: str, value: Any, wanted: Any, source: str) -> Any:
    # YAML 1.1 reads 1e-5 as a string; msgspec's lax mode turns strings into the numbers they spell.
    try:
        converted = msgspec.convert(value, wanted, strict=not isinstance(value, str))
    except msgspec.ValidationError as error:
        raise RecipeError(f"{source}: `{key}: {value}` is wrong: {_reason(error, value, wanted)}.") from None
    if isinstance(converted, float) and not math.isfinite(converted):
        raise RecipeError(f"{source}: `{key}: {value}` is wrong: expected a finite number.")
    return converted


def _reason(error: msgspec.ValidationError, value: Any, wanted: Any) -> str:
    text = str(error).split(" - at ")[0].replace("`array`", "a list such as [a, b]")
    choices = _choices(wanted)
    if "enum value" in text and choices:
        near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        return f"it must be one of {', '.join(f'`{choice}`' for choice in choices)}{hint}"
    return text[:1].lower() + text[1:]


def _choices(wanted: Any) -> list[str]:
    """The values of every Literal inside a type annotation."""
    if typing.get_origin(wanted) is Literal:
        return [str(choice) for choice in typing.get_args(wanted)]
    return [choice for part in typing.get_args(wanted) for choice in _choices(part)]


def _unknown_key(key: str, value: Any, source: str, what: str, known: Iterable[str]) -> RecipeError:
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    if isinstance(value, dict):
        if key in RECIPES and not what.startswith("pipeline"):
            hint = " This looks like a pipeline recipe: use `stackllama-console pipeline`."
        return RecipeError(f"{source}: the {what} has no section `{key}`.{hint}")
    return RecipeError(f"{source}: `{key}: {value}`: the {what} has no key `{key}`.{hint}")


def _absolute(value: str) -> str:
    """A path that exists here, made absolute: the stage runs in another directory."""
    path = existing(value) if "/" in value or "." in value else None
    return str(path) if path else value


def _build_pipeline(values: Mapping[str, Any], origin: Mapping[str, str], where: str) -> PipelineRecipe:
    """Shared keys at the top go to every training stage that has them; a stage's section overrides them."""
    sections = {stage: _pipeline_section(stage, values, where) for stage in (*TRAINING_STAGES, Stage.MERGE)}
    shared = {key: value for key, value in values.items() if key not in {str(stage) for stage in sections}}
    fields = {stage: {f.name for f in _fields(RECIPES[stage])} for stage in TRAINING_STAGES}
    all_keys = sorted({key for names in fields.values() for key in names})
    for key, value in shared.items():
        if not any(key in names for names in fields.values()):
            raise _unknown_key(key, value, origin.get(key, where), "pipeline recipe", [*sections, *all_keys])
    resolved: dict[str, dict[str, Any]] = {}
    for stage, section in sections.items():
        for key in WIRED[stage]:
            if key in section:
                source = origin.get(f"{stage}.{key}", where)
                raise RecipeError(f"{source}: `{stage}.{key}` is wired from the stage before; remove it.")
        own: dict[str, Any] = {key: value for key, value in shared.items() if key in fields.get(stage, ())} | section
        own |= dict.fromkeys(WIRED[stage], "wired")
        own_origin = {key: origin.get(f"{stage}.{key}", origin.get(key, where)) for key in own}
        recipe = build_recipe(stage, own, own_origin, where)
        resolved[stage] = {k: v for k, v in msgspec.to_builtins(recipe).items() if k not in WIRED[stage]}
    return PipelineRecipe(**resolved)


def _pipeline_section(stage: Stage, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    given = values.get(stage)
    section = {} if given is None else _mapping(given)
    if section is None:
        raise RecipeError(f"{where}: `{stage}: {given}`: a section is a mapping of `key: value` lines.")
    return section


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
