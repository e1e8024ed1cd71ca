"""Reading, checking and writing recipes.

Precedence: defaults < file < ``key=value`` on the command line. All that is wrong is one :class:`RecipeError`, a line
each, that names the file (or the command line), the key, the value and how to fix it. Keys and values of TRL and
transformers are read by :mod:`.translate`, those of earlier versions by :mod:`.old_keys`.
"""

import functools
import shlex
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec import UNSET, Struct

from .atomic_files import existing, existing_files
from .errors import RecipeError
from .findings import COMMAND_LINE, Entry, Findings
from .foreign_keys import TRL_ONLY, format_of, meaning
from .old_keys import is_old, read_old_keys
from .precision_keys import is_former, put_over, without_kind
from .recipe import RECIPES, WIRED, AnyRecipe, PipelineRecipe, TrainRecipe
from .stages import PIPELINE_STAGES, TRAINING_STAGES, Stage
from .translate import translate
from .user_files import read_text
from .user_yaml import YamlError, load_yaml
from .wording import convert, echo, is_of_type, slip_of

_Layer = tuple[str, Mapping[str, Any]]
"""A source, and its keys and values."""
_MOST = 1 << 20  # bytes of a recipe file
_fields = functools.cache(msgspec.structs.fields)  # a form asks at every keystroke
PATH_KEYS = (
    "model_name_or_path",
    "dataset_name",
    "reward_model_path",
    "reward_func_paths",
    "adapter_path",
    "policy_adapter_path",
    "base_model_name_or_path",
    "chat_template",
)
"""Keys whose values may be paths of this machine."""


class Reading(Struct, frozen=True, kw_only=True):
    """A recipe, and what a person should know of how its keys were read.

    Attributes:
        recipe: checked.
        notes: sentences: keys that do not apply here, old names, values that were read as others.
    """

    recipe: AnyRecipe
    notes: tuple[str, ...] = ()


def read_recipe(stage: Stage, file: Path | None = None, overrides: Iterable[str] = ()) -> Reading:
    """Read a recipe file, apply ``key=value`` overrides, check everything.

    Args:
        stage: which recipe.
        file: YAML file, or None for the defaults alone.
        overrides: ``key=value`` strings, the value in YAML; for a pipeline also ``sft.key=value``.

    Raises:
        RecipeError: all that is wrong in either; nothing was created.
    """
    layers: list[_Layer] = []
    if file:
        file_values = read_file(file)
        _refuse_foreign(file, file_values)
        layers.append((str(file), file_values))
    values: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for word in overrides:
        key, value, texts[key] = _parse_override(word)
        _assign(values, key, value, layers[0][1] if layers else {})
    layers.append((COMMAND_LINE, values))
    return _assemble(stage, layers, str(file) if file else COMMAND_LINE, texts)


def load_recipe(stage: Stage, file: Path | None = None, overrides: Iterable[str] = ()) -> AnyRecipe:
    """Read a recipe as :func:`read_recipe` does, without its notes."""
    return read_recipe(stage, file, overrides).recipe


def build_recipe(stage: Stage, values: Mapping[str, Any], where: str = "recipe") -> AnyRecipe:
    """Check a mapping against the stage's Struct.

    Args:
        stage: which recipe.
        values: keys and values; local paths in them become absolute.
        where: where they come from, for messages.

    Raises:
        RecipeError: unknown keys, wrong values, missing keys, or keys that exclude each other.
    """
    return _assemble(stage, [(where, values)], where).recipe


def convert_key(stage: Stage, text: str) -> Any:
    """Convert the value of one ``key=value`` by the type and bounds of a stage's recipe.

    Raises:
        RecipeError: not of that form, no such key, or a value that the recipe does not take.
    """
    key, value, typed = _parse_override(text)
    fields = key_types(stage)
    if key not in fields:
        raise RecipeError(f"{COMMAND_LINE}: {unknown_key(key, key, value, f'{stage} recipe', fields, typed)}")
    try:
        return convert(value, fields[key])
    except ValueError as error:
        raise RecipeError(f"{COMMAND_LINE}: {echo(key, typed)}: {error}.") from None


def dump_recipe(recipe: AnyRecipe) -> str:
    """Write the recipe as YAML, every default included; :func:`load_recipe` reads it back unchanged."""
    header = f"# stage: {recipe.stage}\n"
    # ASCII only: PyYAML writes U+0085 and its like as line breaks when unicode is allowed, and reads a blank back.
    return header + yaml.safe_dump(msgspec.to_builtins(recipe), sort_keys=False, allow_unicode=False, width=100)


def read_file(file: Path) -> dict[str, Any]:
    """Read the keys and values of a recipe file, unchecked.

    Raises:
        RecipeError: unreadable, not YAML, or not a mapping.
    """
    try:
        text = read_text(file, _MOST, pipe=True)
    except FileNotFoundError:
        raise RecipeError(f"{file}: no such recipe file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file}: cannot be read: {error}.") from None
    try:
        values = load_yaml(text, strict=True)
    except YamlError as error:
        raise RecipeError(f"{file}: not valid YAML: {error}.") from None
    if values is None:
        return {}
    mapping = _mapping(values)
    if mapping is None:
        raise RecipeError(f"{file}: a recipe is a mapping of `key: value` lines.")
    return mapping


def _mapping(value: Any) -> dict[str, Any] | None:
    """Return the value itself when it is a mapping with text keys, else None."""
    if not isinstance(value, dict):
        return None
    mapping = typing.cast("dict[Any, Any]", value)
    return mapping if all(isinstance(key, str) for key in mapping) else None


def _parse_override(word: str) -> tuple[str, Any, str]:
    """Split a ``key=value`` word into key, value as YAML reads it, and value as it was typed."""
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise RecipeError(f"{COMMAND_LINE}: `{word}` is not of the form key=value.")
    try:
        return key.strip(), load_yaml(text, strict=True), text
    except YamlError:
        return key.strip(), text, text  # a plain string with YAML's special characters in it, such as a path


def _assign(values: dict[str, Any], key: str, value: Any, below: Mapping[str, Any]) -> None:
    """Put a value under a dotted key: into a section, or into a mapping, which keeps the entries of ``below``."""
    section, dot, rest = key.partition(".")
    if not dot:
        values[key] = value
        return
    under = _mapping(below.get(section)) or {}
    inner = _mapping(values.setdefault(section, {} if section in RECIPES else dict(under)))
    if inner is None:
        raise RecipeError(f"{COMMAND_LINE}: `{key}`: `{section}` is a value, not a section.")
    _assign(inner, rest, value, under)


def _refuse_foreign(file: Path, values: Mapping[str, Any]) -> None:
    """Refuse another trainer's recipe in one sentence rather than one for each of its keys."""
    if name := format_of(set(values)):
        raise RecipeError(
            f"{file}: this is a recipe of {name}, whose keys mean other things. "
            f"`stackllama-console recipe convert {shlex.quote(str(file))}` converts it for this engine and lists what "
            "is left out."
        )


def _assemble(stage: Stage, layers: Sequence[_Layer], where: str, texts: Mapping[str, str] | None = None) -> Reading:
    """Put later layers over earlier ones; everything that is wrong in any of them is one error.

    Args:
        stage: which recipe.
        layers: sources with their keys and values.
        where: the source that is named for what is missing.
        texts: the command line's values as they were typed, by key.
    """
    findings = Findings(texts=dict(texts or {}))
    if stage is Stage.PIPELINE:
        recipe = _build_pipeline(layers, where, findings)
    else:
        entries: dict[str, Entry] = {}
        for source, values in layers:
            layer = translate(values, key_types(stage), source, findings)
            entries = put_over(entries, layer, key_types(stage), findings)
        recipe = _build(stage, entries, where, findings)
    findings.check()
    assert recipe is not None
    _note_adapter(recipe, layers, findings)
    return Reading(recipe=recipe, notes=tuple(findings.notes))


def _note_adapter(recipe: AnyRecipe, layers: Sequence[_Layer], findings: Findings) -> None:
    """Note that an adapter is trained where a recipe from TRL, by its other keys, asks for none."""
    keys = {key for _, values in layers for key in values}
    if isinstance(recipe, TrainRecipe) and recipe.use_peft and "use_peft" not in keys and keys & TRL_ONLY:
        findings.note("`use_peft` is not given: LoRA is trained here, where TRL would train every weight.")


def _build(stage: Stage, entries: dict[str, Entry], where: str, findings: Findings) -> AnyRecipe | None:
    """Build one stage's recipe; None where something is wrong, which ``findings`` then says."""
    fields = _fields(RECIPES[stage])
    types = key_types(stage)
    checked: dict[str, Any] = {}
    wrong = False
    for key, entry in read_old_keys(without_kind(entries, types), types, findings).items():
        if key not in types:
            findings.wrong(
                entry.source, unknown_key(key, entry.key, entry.value, f"{stage} recipe", types, entry.typed)
            )
            wrong = True
            continue
        try:
            checked[key] = convert(entry.value, types[key])
        except ValueError as error:
            way_out = "; leave it out for the default" if entry.value is None else ""
            findings.wrong(entry.source, f"{entry.echo}: {error}{way_out}")
            wrong = True
    for name in (field.name for field in fields if field.required and field.name not in entries):
        hint = "; `model_name_or_path=demo` tries the embedded model" if name == "model_name_or_path" else ""
        findings.wrong(where, f"`{name}` is required by the {stage} recipe and was not given{hint}")
        wrong = True
    if wrong:
        return None
    for key in PATH_KEYS:
        if checked.get(key):
            checked[key] = _absolute(checked[key], existing_files if key == "dataset_name" else existing)
    try:
        recipe = RECIPES[stage](**checked)
    except ValueError as error:
        findings.wrong(where, str(error))
        return None
    if checked.get("random_length_limits") and "response_length" in entries:
        findings.note(f"{where}: `random_length_limits` decides, so `response_length` is ignored.")
    return recipe


def unknown_key(key: str, typed: str, value: Any, what: str, known: Mapping[str, Any], typed_value: Any = UNSET) -> str:
    """Return the message for a key that a recipe does not have: its name here, else the key it is a typing error for.

    Args:
        key: the key.
        typed: the same with its section, as it was typed.
        value: its value.
        what: the recipe, as in ``sft recipe``.
        known: the recipe's keys and their types.
        typed_value: the value as it was typed, where that differs.
    """
    if isinstance(value, dict) and key in RECIPES and not what.startswith("pipeline"):
        return (
            f"the {what} has no section `{key}`. This looks like a pipeline recipe: use `stackllama-console pipeline`."
        )
    shown = echo(typed, value if typed_value is UNSET else typed_value)
    return f"{shown}: the {what} has no key `{key}`.{_hint(key, value, what, known)}"


def _hint(key: str, value: Any, what: str, known: Mapping[str, Any]) -> str:
    if (inner := _mapping(value)) and set(inner) & set(known):
        return f" It has no sections; put {', '.join(f'`{name}`' for name in inner)} at the top."
    if foreign := meaning(key.replace("-", "_")):
        if foreign.ours in known:
            return f" Here it is `{foreign.ours}`" + (f": {foreign.why}." if foreign.why else ".")
        return f" Leave it out: {foreign.why}." if foreign.why else ""
    others = [str(stage) for stage in (*TRAINING_STAGES, Stage.MERGE) if key in key_types(stage)]
    if others:
        return f" It is a key of the {' and '.join(others)} recipe{'s' * (len(others) > 1)}."
    near = slip_of(key, known)
    return f" Did you mean `{near}`?" if near and is_of_type(value, known[near]) else ""


def _absolute(value: Any, find: Callable[[str], Path | None]) -> Any:
    """Make a path that exists here absolute, or each of a list: the stage runs in another directory."""
    if isinstance(value, list):
        return [_absolute(part, find) if part else part for part in typing.cast("list[Any]", value)]
    path = find(value) if "/" in value or "." in value else None
    return str(path) if path else value


def _build_pipeline(layers: Sequence[_Layer], where: str, findings: Findings) -> PipelineRecipe | None:
    """Give shared keys at the top to every training stage that has them; a stage's section overrides them."""
    types = {stage: key_types(stage) for stage in (*PIPELINE_STAGES, Stage.MERGE)}
    sections: dict[Stage, list[dict[str, Entry]]] = {stage: [] for stage in types}
    shared: dict[str, Entry] = {}
    shared_types = {key: wanted for stage in PIPELINE_STAGES for key, wanted in types[stage].items()}
    for source, values in layers:
        top = {key: value for key, value in values.items() if key not in {str(stage) for stage in types}}
        shared = put_over(shared, translate(top, shared_types, source, findings), shared_types, findings)
        for stage in types:
            section = _section(stage, values, source, findings)
            for key in set(WIRED[stage]) & set(section):
                findings.wrong(source, f"`{stage}.{key}` is wired from the stage before; remove it")
                del section[key]
            sections[stage].append(translate(section, types[stage], source, findings, prefix=f"{stage}."))
    for key, entry in shared.items():
        if key not in shared_types and not _is_read(key, shared_types):
            known = shared_types | dict.fromkeys(sections, dict[str, Any])
            findings.wrong(
                entry.source, unknown_key(key, entry.key, entry.value, "pipeline recipe", known, entry.typed)
            )
    resolved: dict[str, dict[str, Any]] = {}
    for stage, layers_of_stage in sections.items():
        inherited = shared if stage in PIPELINE_STAGES else {}
        own = {key: entry for key, entry in inherited.items() if key in types[stage] or _is_read(key, types[stage])}
        for layer in layers_of_stage:
            own = put_over(own, layer, types[stage], findings)
        own |= {key: _wired(key) for key in WIRED[stage]}
        if recipe := _build(stage, own, where, findings):
            resolved[stage] = {k: v for k, v in msgspec.to_builtins(recipe).items() if k not in WIRED[stage]}
    return None if len(resolved) < len(sections) else PipelineRecipe(**resolved)


def _is_read(key: str, known: Mapping[str, Any]) -> bool:
    """Return whether a recipe with these keys reads a former one."""
    return is_old(key, known) or is_former(key, known)


def _wired(key: str) -> Entry:
    return Entry(source="pipeline", key=key, typed="wired", value="wired")


def _section(stage: Stage, values: Mapping[str, Any], source: str, findings: Findings) -> dict[str, Any]:
    value = values.get(stage)
    section = {} if value is None else _mapping(value)
    if section is None:
        findings.wrong(
            source, f"{echo(stage, findings.typed(source, stage, value))}: a section is a mapping of `key: value` lines"
        )
        return {}
    return dict(section)


@functools.cache
def key_types(stage: Stage) -> dict[str, Any]:
    """Return a recipe's keys and their types."""
    return {field.name: field.type for field in _fields(RECIPES[stage])}
