"""Format of prompts: how a prompt and a response become one text, recorded beside whatever was trained with it.

``question_answer``  ``Question: …\\n\\nAnswer: …``, as published for StackLLaMA (https://huggingface.co/blog/stackllama);
                     the prompt ends with the space after ``Answer:``
``chat``             messages, rendered by a chat template: the tokenizer's own, or one that the recipe names
``none``             prompt and response as they are, one after the other

A model that was trained with one format answers badly in another one, without any error, so a stage compares its own
with the one recorded beside its inputs (:func:`check_same`).
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from .atomic_files import write_whole
from .errors import StageError
from .recipe_common import TrainRecipe
from .stages import Stage
from .user_files import MOST_CONFIG, read_json, read_text

Kind = Literal["question_answer", "chat", "none"]
Message = dict[str, str]
"""``role`` and ``content``."""

PROMPT_FORMAT_FILE = "prompt_format.json"
"""File beside an adapter or a model, and in a run's directory."""
QUESTION_ANSWER_TEMPLATE = (
    "{% set turns = messages | rejectattr('role', 'equalto', 'system') | list %}"
    "{% for message in turns %}"
    "{% if message['role'] == 'user' %}{{ 'Question: ' + message['content'] + '\\n\\nAnswer: ' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
"""``question_answer`` as a chat template, for programs that serve a merged model."""

_RUN_FILES = ("recipe.yaml", "state.json")
_OUTPUTS = ("adapter", "merged")
_BASE_FILE = "base.json"


class PromptFormat(Struct, frozen=True, kw_only=True):
    """A format; the defaults are that of every run before 0.3, which had no other.

    Attributes:
        kind: see the module.
        system_prompt: first message of every conversation that brings none; chat only.
        chat_template: source of the Jinja template; chat only.
        enable_thinking: given to the template; None: left to it.
    """

    kind: Kind = "question_answer"
    system_prompt: str | None = None
    chat_template: str | None = None
    enable_thinking: bool | None = None

    @property
    def digest(self) -> str:
        """Hash of everything that decides how text is rendered."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]

    def served_template(self, *, begins: bool) -> str | None:
        """Return the chat template that renders a conversation in this format; None if there is none to write down.

        Args:
            begins: whether the tokenizer puts its begin token before a text, which a chat template has to do itself.
        """
        if self.kind == "question_answer":
            return "{{ bos_token }}" * begins + QUESTION_ANSWER_TEMPLATE
        return self.chat_template

    def __str__(self) -> str:
        """Describe it for messages: ``chat (template 1f0c…)``."""
        return f"{self.kind} ({self.digest})" if self.kind == "chat" else self.kind

    def render(self, question: str, answer: str = "") -> str:
        """Return prompt and answer as text; not for chat, which takes a tokenizer."""
        assert self.kind != "chat"
        return f"Question: {question}\n\nAnswer: {answer}" if self.kind == "question_answer" else question + answer


def write_prompt_format(directory: Path, prompt_format: PromptFormat | None) -> None:
    """Record the format that what lies in a directory was trained with; None: unknown.

    Raises:
        OSError: disk full or not writable.
    """
    encoded = msgspec.json.encode(prompt_format)
    write_whole(directory / PROMPT_FORMAT_FILE, msgspec.json.format(encoded, indent=2) + b"\n")


def read_prompt_format(directory: Path) -> PromptFormat | None:
    """Read the format that an adapter, a model or a run was trained with; None if nothing says so.

    What a version before 0.3 trained was trained with ``question_answer``.

    Raises:
        StageError: the file cannot be read.
    """
    file = directory / PROMPT_FORMAT_FILE
    try:
        return read_json(file, PromptFormat | None)  # type: ignore[arg-type]
    except FileNotFoundError:
        return PromptFormat() if _is_ours(directory) else None
    except NotADirectoryError:  # a .gguf file
        return None
    except (OSError, ValueError) as error:
        raise StageError(f"{file} cannot be read: {error}.") from error


def is_older(directory: Path) -> bool:
    """Return whether a version before 0.3 trained what lies in a directory."""
    return not (directory / PROMPT_FORMAT_FILE).exists() and _is_ours(directory)


def format_inputs(recipe: TrainRecipe) -> dict[str, Path]:
    """Return what a stage builds on and shares its prompt format with, by recipe key; SFT may teach another format."""
    keys = () if recipe.stage is Stage.SFT else ("model_name_or_path", "reward_model_path", "policy_adapter_path")
    return {key: Path(value) for key in keys if (value := getattr(recipe, key, None))}


def automatic_kind(style: Kind, inputs: Iterable[Path]) -> Kind:
    """Return what `auto` resolves to: the data set's style; what an earlier version trained was question and answer."""
    return "question_answer" if style == "none" and any(map(is_older, inputs)) else style


def prompt_format_of(kind: Kind, recipe: TrainRecipe, own_template: Callable[[], str | None]) -> PromptFormat:
    """Return the format of a recipe.

    Args:
        kind: what `prompt_format` resolved to.
        recipe: of a stage.
        own_template: returns the tokenizer's chat template; called for a chat whose recipe names none.

    Raises:
        StageError: a key needs a chat, or the file cannot be read; and what ``own_template`` raises.
    """
    if kind == "chat":
        return PromptFormat(
            kind="chat",
            system_prompt=recipe.system_prompt,
            chat_template=read_template(recipe.chat_template) if recipe.chat_template else own_template(),
            enable_thinking=recipe.enable_thinking,
        )
    chat_only = ("system_prompt", "chat_template", "enable_thinking")
    if given := [name for name in chat_only if getattr(recipe, name) is not None]:
        raise StageError(
            f"`{given[0]}` needs `prompt_format: chat`, but the prompt format is {kind}"
            + (f", as the columns of {recipe.dataset_name} say" if recipe.prompt_format == "auto" else "")
            + f"; set `prompt_format: chat`, or leave `{given[0]}` empty."
        )
    return PromptFormat(kind=kind)


def read_template(file: str) -> str:
    """Read a chat template, with line ends and without a byte-order mark as transformers reads it.

    Raises:
        StageError: it cannot be read.
    """
    try:
        text = read_text(Path(file), MOST_CONFIG)
    except (OSError, ValueError) as error:
        raise StageError(f"`chat_template: {file}` cannot be read: {' '.join(str(error).split())}.") from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def syntax_error(error: Any) -> str:
    """Describe jinja2's TemplateSyntaxError."""
    return f"syntax error in line {error.lineno}: {error.message}"


def no_chat_template(model: str) -> str:
    """Return the refusal of a chat whose tokenizer has no chat template, where the recipe names none."""
    return (
        f"`prompt_format: chat`: the tokenizer of {model} has no chat template; name one with `chat_template: FILE` "
        "(Jinja), or set `prompt_format: question_answer`."
    )


def _is_ours(directory: Path) -> bool:
    """Return whether a directory is a run, or an adapter or model that a run wrote."""
    if (directory / _BASE_FILE).is_file():
        return True
    run = directory.parent if directory.name in _OUTPUTS else directory
    return all((run / name).is_file() for name in _RUN_FILES)


def check_same(own: PromptFormat, path: Path, key: str) -> None:
    """Compare a stage's format with that of one of its inputs.

    Args:
        own: the stage's.
        path: directory of the input.
        key: recipe key that names the input.

    Raises:
        StageError: they differ; names both, and the way out.
    """
    other = read_prompt_format(path)
    if other is None or other.digest == own.digest:
        return
    differing = [name for name in own.__struct_fields__ if getattr(own, name) != getattr(other, name)]
    shown = f"prompt format {own}, but {path} was trained with {other}"
    way = (
        f"set `prompt_format={other.kind}`"
        if "kind" in differing
        else f"{', '.join(f'`{name}`' for name in differing)} differ: use those of that run"
    )
    raise StageError(f"`{key}`: {shown}: {way}, or train that stage again with this format.")
