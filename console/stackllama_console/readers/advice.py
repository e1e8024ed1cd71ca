"""Changes of a recipe that a failure's cause or a health finding advises, in a form that can be applied. No Textual.

A finding lists its changes. A cause words them in two ways: what :mod:`stackllama_engine.launch.autopsy` says would
have fitted into memory, and sentences such as "use `packing=false`, or `packing_strategy=wrapped`". Advice without a
value ("raise `max_length`") is a person's to follow; where a cause names one key alone, that is the one to look at.
"""

import re
from collections.abc import Iterable

from msgspec import Struct

from stackllama_engine.contract.children import CHILDREN
from stackllama_engine.contract.errors import StackllamaError
from stackllama_engine.contract.health import Finding
from stackllama_engine.contract.recipe import AnyRecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import RunDir, State
from stackllama_engine.contract.stages import Stage

from .form import Form

_OF_MEMORY = re.compile(r"`(\w+=[^\s`]+(?: \w+=[^\s`]+)*)` (?:would have fitted|needs less|saves most)")
_CHANGE = r"`\w+(?:=|: )[^`]+`"
_ALL = rf"{_CHANGE}(?: and {_CHANGE})*"
_OF_SENTENCE = re.compile(
    rf"\b(?:[Uu]se|[Ss]et) ({_ALL}(?:(?:, or |, | or ){_ALL})*)(?P<half> instead of `?(?:fp16|float16)`?)?"
)
_NAMED = re.compile(r"`(\w+)(?:(?:=|: )[^`]*)?`")
_PAIR = re.compile(r"`(\w+)(?:=|: )([^`]+)`")

Changes = dict[str, str]
"""Recipe key → new value, as it is typed into the form."""


class Fix(Struct, frozen=True, kw_only=True):
    """A change that the cause of a failure or a finding advises, or the one key that the cause names."""

    run_id: str
    """The run whose copy it is applied to: of a pipeline whose first stage failed the pipeline, else the stage."""
    changes: Changes = {}
    key: str = ""
    """The key to look at, where the cause names no value for it."""

    @property
    def words(self) -> str:
        """The changes as words of a command line."""
        return " ".join(f"{key}={value}" for key, value in self.changes.items())


def advised_changes(cause: str) -> list[Changes]:
    """Return the alternatives that a cause names, in its order; changes that belong together are one alternative."""
    of_memory = [dict(word.split("=", 1) for word in match[1].split(" ")) for match in _OF_MEMORY.finditer(cause)]
    of_sentences: list[Changes] = []
    for match in _OF_SENTENCE.finditer(cause):
        for group in re.findall(_ALL, match[1]):
            changes = dict(_PAIR.findall(group))
            of_sentences.append(changes | {"fp16": "false"} if match["half"] else changes)
    return of_memory + of_sentences


def find_fix(run: RunDir, state: State, pipeline: RunDir | None = None) -> Fix | None:
    """Return the first advised alternative that changes the recipe of a failed run; None: there is none.

    Where nothing is advised and the cause names exactly one key of the recipe, that key is returned.

    Args:
        run: the run that failed.
        state: its state.
        pipeline: the run that it is a stage of, if it is that one's copy which should be changed.
    """
    if state.phase not in ("failed", "lost") or not state.cause:
        return None
    alternatives = advised_changes(state.cause)
    names = set(_NAMED.findall(state.cause))
    if not (alternatives or names):
        return None
    try:
        recipe = load_recipe(state.stage, run.recipe_file)
        whole = load_recipe(pipeline.read_state().stage, pipeline.recipe_file) if pipeline else None
    except (StackllamaError, OSError):  # without the recipe there is nothing to copy
        return None
    if not alternatives:
        return _look_at(names, run, recipe, pipeline, whole)
    return _first_change(alternatives, run, recipe, pipeline, whole)


def find_change(run: RunDir, stage: Stage, findings: Iterable[Finding]) -> Fix | None:
    """Return the first alternative, of the newest finding that has one, which changes a run's recipe; None: none."""
    alternatives = [changes for finding in reversed([*findings]) for changes in finding.tries]
    if not alternatives:
        return None
    try:
        recipe = load_recipe(stage, run.recipe_file)
    except (StackllamaError, OSError):
        return None
    return _first_change(alternatives, run, recipe, None, None)


def _first_change(
    alternatives: list[Changes], run: RunDir, recipe: AnyRecipe, pipeline: RunDir | None, whole: AnyRecipe | None
) -> Fix | None:
    for changes in alternatives:
        if not (new := _new(recipe, changes)):
            continue
        if pipeline and whole and (shared := _new(whole, {f"{_section(run)}.{key}": new[key] for key in new})):
            return Fix(run_id=pipeline.id, changes=shared)
        return Fix(run_id=run.id, changes=new)
    return None


def _look_at(
    names: set[str], run: RunDir, recipe: AnyRecipe, pipeline: RunDir | None, whole: AnyRecipe | None
) -> Fix | None:
    """Return the one key of a recipe among the names, in the pipeline's recipe where that has it; None: not one."""
    keys = names & Form(recipe.stage).fields.keys()
    if len(keys) != 1:
        return None
    key = keys.pop()
    if pipeline and whole and (shared := f"{_section(run)}.{key}") in Form(whole.stage).fields:
        return Fix(run_id=pipeline.id, key=shared)
    return Fix(run_id=run.id, key=key)


def _section(run: RunDir) -> str:
    """Return the section of a pipeline's recipe that a stage's run was made from."""
    return next((str(child.stage) for child in CHILDREN if run.id.endswith(f"-{child.suffix}")), "")


def _new(recipe: AnyRecipe, changes: Changes) -> Changes:
    """Return what of the changes differs from the recipe; nothing where a key is unknown or a value is wrong."""
    form = Form(recipe.stage)
    form.load(recipe)
    half = form.text("fp16") == "true" or form.text("dtype") == "float16" if "fp16" in form.fields else False
    if not changes.keys() <= form.fields.keys() or (changes.get("fp16") == "false" and not half):
        return {}
    before = {key: form.text(key) for key in changes}
    for key, value in changes.items():
        form.set(key, value)
    if any(form.error(key) for key in changes):
        return {}
    return {key: value for key, value in changes.items() if form.text(key) != before[key]}
