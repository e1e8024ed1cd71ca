"""Check at launch that a stage's prompt format goes with its model and with what it builds on, as far as files say.

The stage checks again, with the tokenizer and with data that only it reads (a hub data set).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from ..contract.errors import RefusedError, StageError, UsageError
from ..contract.prompt_format import (
    Kind,
    automatic_kind,
    check_same,
    format_inputs,
    no_chat_template,
    prompt_format_of,
    read_prompt_format,
    read_template,
)
from ..contract.recipe import AnyRecipe, TrainedRecipe
from ..contract.user_files import MOST_CONFIG, read_bytes
from ..contract.wording import echo
from ..data.columns import Columns
from ..data.kinds import DEMO
from .data_check import check_data
from .template_syntax import check_syntax

_ONE_CHAT = "the stages of a pipeline train one model in one format"


def check_prompt_format(recipe: TrainedRecipe, columns: Columns | None) -> None:
    """Refuse a chat without a chat template, and a model, reward model or adapter of another format.

    Args:
        recipe: with its inputs resolved.
        columns: of its data set; None where a launch does not read it.

    Raises:
        UsageError: there is no chat template, it cannot be read or parsed, or a key needs a chat.
        RefusedError: an input was trained with another format.
        StageError: what an input was trained with cannot be read.
    """
    kind = prompt_format_kind(recipe, columns)
    if kind is None:
        return
    inputs = format_inputs(recipe)
    if recipe.prompt_format == "auto":
        kind = automatic_kind(kind, inputs.values())
    if kind == "chat" and not recipe.chat_template and not has_chat_template(Path(recipe.model_name_or_path)):
        raise UsageError(no_chat_template(recipe.model_name_or_path))
    try:
        own = prompt_format_of(kind, recipe, lambda: None)
    except StageError as error:
        raise UsageError(str(error)) from None
    if recipe.chat_template and (wrong := check_syntax(own.chat_template or "")):
        raise UsageError(f"`chat_template: {recipe.chat_template}`: {wrong}.")
    for key, path in inputs.items():
        if before := read_prompt_format(path):
            # the template of a tokenizer, which is not read here, is taken to be that of what the stage builds on
            template = own.chat_template or (before.chat_template if kind == "chat" else None)
            try:
                check_same(msgspec.structs.replace(own, chat_template=template), path, key)
            except StageError as error:
                raise RefusedError(str(error)) from None


def prompt_format_kind(recipe: TrainedRecipe, columns: Columns | None) -> Kind | None:
    """Return the kind that a recipe's `prompt_format` resolves to; None where the data set is not known yet."""
    if recipe.prompt_format != "auto":
        return recipe.prompt_format
    if recipe.dataset_name == DEMO:
        return "question_answer"
    return columns.style if columns else None


def check_one_kind(stages: Iterable[AnyRecipe]) -> None:
    """Refuse a pipeline whose stages would train in several formats.

    Raises:
        UsageError: they would, or a template cannot be read.
        DataError: a stage's data cannot be read.
    """
    recipes = [stage for stage in stages if isinstance(stage, TrainedRecipe)]
    kinds = {recipe.stage: prompt_format_kind(recipe, check_data(recipe)) for recipe in recipes}
    known = {stage: kind for stage, kind in kinds.items() if kind}
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{stage} {kind}" for stage, kind in known.items())
        raise UsageError(
            f"`prompt_format`: the stages of a pipeline train one model in one format, but here it is {listed}; set "
            "`prompt_format` for all of them."
        )
    if "question_answer" not in known.values() and "none" not in known.values():
        _check_one_chat(recipes)


def _check_one_chat(recipes: Sequence[TrainedRecipe]) -> None:
    """Refuse stages whose chats would be rendered differently; a later stage's tokenizer has SFT's template."""
    for key in ("system_prompt", "enable_thinking"):
        values = {recipe.stage: getattr(recipe, key) for recipe in recipes}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{stage} {echo(key, value)}" for stage, value in values.items())
            raise UsageError(f"`{key}`: {_ONE_CHAT}, but here it is {listed}; set `{key}` for all of them.")
    first, *later = recipes
    for recipe in later:
        if recipe.chat_template and _template(recipe) != _template(first):
            taught = f"`{first.chat_template}`" if first.chat_template else "the tokenizer's template"
            raise UsageError(
                f"`{recipe.stage}.chat_template: {recipe.chat_template}`: {_ONE_CHAT}, but {first.stage} uses "
                f"{taught}; set `chat_template` for all of them, or for none."
            )


def _template(recipe: TrainedRecipe) -> str | None:
    try:
        return read_template(recipe.chat_template) if recipe.chat_template else None
    except StageError as error:
        raise UsageError(str(error)) from None


def has_chat_template(directory: Path) -> bool:
    """Look for the chat template beside a local model's tokenizer, in either of the places it is kept in.

    True as well where that is not known, as for a hub model.
    """
    config = directory / "tokenizer_config.json"
    if not config.is_file() or (directory / "chat_template.jinja").is_file():
        return True
    try:
        return b'"chat_template"' in read_bytes(config, MOST_CONFIG)
    except OSError:  # the stage reads it, and says what is wrong
        return True
