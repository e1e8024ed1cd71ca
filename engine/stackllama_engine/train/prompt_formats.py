"""The prompt format of a run: found from recipe, data and tokenizer, recorded, and compared with what it builds on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils.hub import cached_file

from ..contract.errors import StageError
from ..contract.prompt_format import (
    PROMPT_FORMAT_FILE,
    PromptFormat,
    automatic_kind,
    check_same,
    format_inputs,
    is_older,
    no_chat_template,
    prompt_format_of,
    read_prompt_format,
    read_template,
    write_prompt_format,
)
from ..contract.recipe import TrainRecipe
from ..data.columns import NEEDS
from .encoding import Encoder, source_columns
from .loading import loading
from .reporting import Reporter
from .saving import newest_sealed
from .session import Session

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def make_encoder(recipe: TrainRecipe, session: Session, tokenizer: "PreTrainedTokenizerBase") -> Encoder:
    """Find the run's prompt format, record it in the run's directory and return its encoder.

    Raises:
        StackllamaError: the data cannot be read, there is no chat template, or an input has another format.
    """
    before = _begun_with(session)
    recorded = _recorded_template(recipe, before, session.reporter)
    prompt_format = find_prompt_format(recipe, tokenizer, before, recorded)
    if before is not None and before.digest != prompt_format.digest:
        raise StageError(
            f"this run was trained with prompt format {before}, and now it would be {prompt_format}: set "
            "`prompt_format`, `system_prompt`, `chat_template` and `enable_thinking` back, or start a new run."
        )
    for key, path in format_inputs(recipe).items():
        check_same(prompt_format, input_directory(path, recipe), key)
    if session.is_main and not (session.run.path / PROMPT_FORMAT_FILE).exists():
        write_prompt_format(session.run.path, prompt_format)
        session.reporter.health(f"prompt format: {prompt_format}")
    if before is not None and is_older(session.run.path):  # it continues with the one end token that it knew
        return Encoder(tokenizer, prompt_format)
    return Encoder(tokenizer, prompt_format, generation_stops(recipe.model_name_or_path, recipe.model_revision))


def find_prompt_format(
    recipe: TrainRecipe,
    tokenizer: "PreTrainedTokenizerBase",
    before: PromptFormat | None = None,
    recorded: str | None = None,
) -> PromptFormat:
    """Resolve the recipe's keys; `auto` is decided by the data set's columns.

    Args:
        recipe: of a stage.
        tokenizer: may bring the chat template.
        before: format that the run was begun with, which `auto` keeps.
        recorded: template to use in place of the recipe's file.

    Raises:
        StackllamaError: the data cannot be read, or the keys do not go together.
    """
    kind = recipe.prompt_format
    if kind == "auto" and before is not None:
        kind = before.kind
    elif kind == "auto":
        kind = automatic_kind(source_columns(recipe, NEEDS[recipe.stage]).style, format_inputs(recipe).values())
    if recorded is not None:
        return prompt_format_of(kind, msgspec.structs.replace(recipe, chat_template=None), lambda: recorded)
    return prompt_format_of(kind, recipe, lambda: _own_template(recipe, tokenizer))


def _recorded_template(recipe: TrainRecipe, before: PromptFormat | None, reporter: Reporter) -> str | None:
    """Return the template that a run was begun with if the file that it came from cannot be read any more."""
    if recipe.chat_template is None or before is None or before.chat_template is None:
        return None
    try:
        read_template(recipe.chat_template)
    except StageError as error:
        reporter.health(f"{error} The run continues with the template that it recorded ({PROMPT_FORMAT_FILE}).")
        return before.chat_template
    return None


def _own_template(recipe: TrainRecipe, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the tokenizer's chat template.

    Raises:
        StageError: there is none.
    """
    try:
        own: Any = tokenizer.get_chat_template()
        return str(own)
    except ValueError as error:
        raise StageError(no_chat_template(recipe.model_name_or_path)) from error


def generation_stops(name: str, revision: str | None) -> tuple[int, ...]:
    """Return the end tokens that a model's generation configuration names; Llama 3, Qwen and Gemma have several.

    Raises:
        StageError: it cannot be read.
    """
    if Path(name).is_file():  # .gguf
        return ()
    with loading(name, "generation configuration"):
        file = cached_file(name, GENERATION_CONFIG_NAME, revision=revision, _raise_exceptions_for_missing_entries=False)
        if file is None:  # many models come without one
            return ()
        ends = GenerationConfig.from_pretrained(str(Path(file).parent)).eos_token_id
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (int(ends),)


def input_directory(path: Path, recipe: TrainRecipe) -> Path:
    """Return an input's directory; of a hub id that of its downloaded `prompt_format.json`, where it has one.

    Raises:
        StageError: the hub cannot be asked.
    """
    if path.exists() or path.suffix == ".gguf":
        return path
    name = path.as_posix()
    revision = recipe.model_revision if name == recipe.model_name_or_path else None
    with loading(name, "prompt format"):
        file = cached_file(name, PROMPT_FORMAT_FILE, revision=revision, _raise_exceptions_for_missing_entries=False)
    return path if file is None else Path(file).parent


def recorded_encoder(
    directory: Path, tokenizer: "PreTrainedTokenizerBase", model: str, revision: str | None
) -> Encoder:
    """Return the encoder of what was trained in a run's directory; of an earlier version's, question and answer."""
    prompt_format = read_prompt_format(directory) or PromptFormat()
    return Encoder(tokenizer, prompt_format, generation_stops(model, revision))


def _begun_with(session: Session) -> PromptFormat | None:
    """Return the format that an earlier attempt of the run trained with; None if nothing was trained yet."""
    run = session.run
    if not (run.path / PROMPT_FORMAT_FILE).exists() and newest_sealed(run.checkpoints) is None:
        return None
    return read_prompt_format(run.path)
