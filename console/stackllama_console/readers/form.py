"""A recipe being filled in: typed values, their errors, and the resulting recipe. No Textual.

Only what differs from the defaults is kept. Every error is the recipe's own, in the words of the command line.
"""

import re
import shlex
from typing import Any

import msgspec
import yaml
from msgspec import UNSET

from stackllama_engine.contract.errors import RecipeError
from stackllama_engine.contract.recipe import ALTERNATIVES, RECIPES, WIRED, AnyRecipe, PipelineRecipe
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.recipe_ppo import unused_keys
from stackllama_engine.contract.stages import PIPELINE_STAGES, Stage
from stackllama_engine.contract.wording import wrong
from stackllama_engine.launch.sections import PLACEHOLDER

from . import form_text
from .form_fields import FormField, fields_of

PROGRAM = "stackllama-console"
_WHERE = "recipe"
_NAMED = re.compile(r"`(\w+)(?:[:=][^`]*)?`")
_PARTS = (*PIPELINE_STAGES, Stage.MERGE)


class Form:
    """One stage's recipe under a person's hands.

    Args:
        stage: which recipe.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.fields = fields_of(stage)
        self.version = 0
        """Grows with every change."""
        self.source: dict[str, str] | None = None
        """Values of the recipe that filled the form, as :meth:`differences`; None: it was not filled from one."""
        self._texts: dict[str, str] = {}
        self._wrong: dict[str, str] = {}  # what is wrong with one value by itself
        self._errors: dict[str, str] | None = None
        self._recipe: AnyRecipe | None = None

    # -- values ---------------------------------------------------------------------------------------------------

    def set(self, key: str, text: str) -> None:
        """Take what was typed. Text that says the default, and empty text where there has to be a value, resets.

        Raises:
            KeyError: the form has no such key.
        """
        self._store(self.fields[key], text.strip())

    def reset(self, key: str) -> None:
        """Reset a key to its default."""
        self._texts.pop(self.fields[key].key, None)
        self._wrong.pop(key, None)
        self._changed()

    def clear(self) -> None:
        """Reset every key to its default."""
        self.source = None
        self._texts.clear()
        self._wrong.clear()
        self._changed()

    def text(self, key: str) -> str:
        """Return the field's text: what was typed, else the default; empty for a key without one."""
        return self._texts[key] if key in self._texts else self.default_text(key)

    def default_text(self, key: str) -> str:
        """Return the default as text; a pipeline's stages take the shared value for theirs."""
        field = self.fields[key]
        if field.stage in PIPELINE_STAGES and field.name in self._texts:
            return self._texts[field.name]
        return "" if field.default is UNSET else form_text.write_text(field, field.default)

    def differs(self, key: str) -> bool:
        """Return whether the value is not the default."""
        return key in self._texts

    def differences(self) -> dict[str, str]:
        """Return the typed values that are not the default, by key, in the form's order."""
        return {key: self._texts[key] for key in self.fields if key in self._texts}

    def unused(self) -> dict[str, str]:
        """Return the keys that another one leaves without effect, each with that one's setting: ``advantage: rloo``."""
        if self.stage not in (Stage.PPO, Stage.PIPELINE):
            return {}
        prefix = "" if self.stage is Stage.PPO else f"{Stage.PPO}."
        names = unused_keys(self.text(f"{prefix}advantage"), self.text(f"{prefix}kl_in_loss") == "true")
        return {f"{prefix}{name}": setting for name, setting in names.items()}

    def was(self, key: str) -> str | None:
        """Return the text that the form was filled with, where it is another one now; else None."""
        if self.source is None:
            return None
        before = self.source[key] if key in self.source else self.default_text(key)
        return before if before != self.text(key) else None

    def changes(self) -> dict[str, tuple[str, str]]:
        """Return what differs from the recipe that filled the form: key → its text and the text now."""
        return {key: (before, self.text(key)) for key in self.fields if (before := self.was(key)) is not None}

    def load(self, recipe: AnyRecipe) -> None:
        """Fill in from another run's recipe: afterwards :meth:`recipe` gives an equal one.

        Raises:
            ValueError: it is another stage's.
        """
        if recipe.stage is not self.stage:
            raise ValueError(f"a {recipe.stage} recipe does not fit into the form of {self.stage}")
        self.clear()
        values = _pipeline_values(recipe) if isinstance(recipe, PipelineRecipe) else msgspec.structs.asdict(recipe)
        for key, value in values.items():
            field = self.fields[key]
            self._store(field, form_text.write_text(field, value))
        self.source = self.differences()

    # -- checks ---------------------------------------------------------------------------------------------------

    def error(self, key: str) -> str | None:
        """Return what is wrong with this key, by itself or together with others."""
        return self.errors().get(key)

    def errors(self) -> dict[str, str]:
        """Return all errors by key; those that name no key of the form, under the empty key.

        While a value is wrong by itself, keys are not checked against each other.
        """
        if self._errors is None:
            self._recipe = None
            self._errors = dict(self._wrong)
            if not self._wrong:
                self._errors |= self._check_together()
            self._errors |= self._missing()
        return self._errors

    def recipe(self) -> AnyRecipe | None:
        """Return the whole recipe, defaults included; None while anything is wrong."""
        return None if self.errors() else self._recipe

    # -- what it comes to -----------------------------------------------------------------------------------------

    def overrides(self) -> list[str]:
        """Return the differences as ``key=value`` words of the command line."""
        return [f"{key}={form_text.word(self.fields[key], text)}" for key, text in self.differences().items()]

    def command(self) -> str:
        """Return the command that launches this, quoted for a shell."""
        return shlex.join([PROGRAM, "launch", str(self.stage), *self.overrides()])

    def to_yaml(self) -> str:
        """Return the differences as a recipe file."""
        values = self._values()
        body = yaml.safe_dump(values, sort_keys=False, allow_unicode=False, width=100) if values else ""
        return f"# stage: {self.stage}\n{body}"

    # -- inside ---------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        self.version += 1
        self._errors = None

    def _store(self, field: FormField, text: str) -> None:
        key = field.key
        self._texts.pop(key, None)
        self._wrong.pop(key, None)
        if not self._says_default(field, text):
            self._texts[key] = text
            if wrong := self._wrong_alone(field, text):
                self._wrong[key] = wrong
        self._changed()

    def _says_default(self, field: FormField, text: str) -> bool:
        if not text and (field.required or field.by_stage):
            return True
        default = self.default_text(field.key)
        if text == default:
            return not field.by_stage
        if field.default is UNSET:
            return False
        try:
            return form_text.converted(field, text) == form_text.converted(field, default)
        except msgspec.ValidationError:
            return False

    def _wrong_alone(self, field: FormField, text: str) -> str | None:
        """Return the recipe's error about this value alone."""
        reason = wrong(form_text.parse(field, text), field.type)
        return "a value is needed" if reason and not text else reason

    def _missing(self) -> dict[str, str]:
        hints = {"model_name_or_path": "needed; `demo` tries the embedded model"}
        hints |= {first: f"needed, or `{other}`" for first, other in ALTERNATIVES.values()}
        return {key: hints.get(key, "needed") for key in self._needed()}

    def _needed(self) -> list[str]:
        """Return required keys that are missing; of alternatives, the first."""
        missing = [key for key, field in self.fields.items() if field.required and key not in self._texts]
        choice = ALTERNATIVES.get(self.stage, ())
        return [*missing, *choice[:1]] if not self._texts.keys() & set(choice) else missing

    def _values(self) -> dict[str, Any]:
        """Return the differences as the mapping of a recipe file."""
        values: dict[str, Any] = {}
        for key, text in self.differences().items():
            field = self.fields[key]
            place = values if field.stage is None else values.setdefault(str(field.stage), {})
            place[field.name] = form_text.parse(field, text)
        return values

    def _check_together(self) -> dict[str, str]:
        """Check keys against each other; without errors this makes the recipe."""
        values = dict.fromkeys(self._needed(), PLACEHOLDER) | self._values()
        try:
            self._recipe = build_recipe(self.stage, values, where=_WHERE)
        except RecipeError as error:
            if self.stage is Stage.PIPELINE:
                return self._blame_stages(values)
            return self._blame(str(error), None)
        return {}

    def _blame_stages(self, values: dict[str, Any]) -> dict[str, str]:
        errors: dict[str, str] = {}
        for stage in _PARTS:
            own = {str(part): values.get(str(part), {}) for part in _PARTS}
            names = {name for name in RECIPES[stage].__struct_fields__}
            shared = {key: value for key, value in values.items() if key not in own and key in names}
            section = (shared if stage in PIPELINE_STAGES else {}) | own[str(stage)]
            try:
                build_recipe(stage, section | dict.fromkeys(WIRED[stage], PLACEHOLDER), where=_WHERE)
            except RecipeError as error:
                for key, message in self._blame(str(error), stage).items():
                    errors.setdefault(key, message)
        return errors

    def _blame(self, message: str, stage: Stage | None) -> dict[str, str]:
        """Put the message under every key that it names in backticks."""
        text = message.removeprefix(f"{_WHERE}: ")
        keys = [self._key_of(name, stage) for name in _NAMED.findall(text)]
        named = dict.fromkeys(key for key in keys if key in self.fields)
        return dict.fromkeys(named or [""], f"{stage}: {text}" if stage else text)

    def _key_of(self, name: str, stage: Stage | None) -> str:
        """Return the key that decides a name's value: the stage's own, unless only the shared one was typed."""
        own = f"{stage}.{name}"
        if stage is None or (name in self._texts and own not in self._texts):
            return name
        return own if own in self.fields else name


def _pipeline_values(recipe: PipelineRecipe) -> dict[str, Any]:
    """Return form keys with the values that make this recipe; what all training stages share is given once."""
    fields = fields_of(Stage.PIPELINE)
    sections: dict[Stage, dict[str, Any]] = {part: getattr(recipe, part) for part in _PARTS}
    values: dict[str, Any] = {}
    for key, field in fields.items():
        if field.stage is None:
            having = [stage for stage in PIPELINE_STAGES if key in sections[stage]]
            stage_values = [sections[stage][key] for stage in having]
            defaults = [fields[own].default if (own := f"{stage}.{key}") in fields else UNSET for stage in having]
            if stage_values != defaults and all(value == stage_values[0] for value in stage_values):
                values[key] = stage_values[0]
        elif field.name not in values or field.stage not in PIPELINE_STAGES:
            values[key] = sections[field.stage][field.name]
    return values
