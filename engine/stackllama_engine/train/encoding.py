"""Encoding of text rows into token rows, the same for every stage.

Prompt and answer are tokenised apart and joined, so that what PPO samples after a prompt continues exactly the
tokens that supervised fine-tuning saw there. (The published template's prompt ends in a space; tokenised in one piece,
that space would merge into the answer's first word. Sentencepiece tokenizers begin the answer with a space of their
own; so does every stage.) A special token spelled out in a text, such as ``</s>`` in HTML, stays text.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from jinja2 import TemplateError, TemplateSyntaxError

from ..contract.errors import DataError, StackllamaError, StageError
from ..contract.prompt_format import Message, PromptFormat, syntax_error
from ..contract.recipe import TrainRecipe
from ..contract.run_dir import RunDir
from ..data.columns import MESSAGES, Columns, notices
from ..data.kinds import has_known_columns, kind_of
from ..data.local import stamp
from ..data.sources import open_rows, read_columns, skip_notice
from .loading import one_line
from .reporting import Reporter
from .session import CACHE

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset  # which PPO, a merge and a chat do without
    from transformers import PreTrainedTokenizerBase

SHUFFLE_BUFFER = 5000
"""Rows of a stream that are shuffled at a time, as in the published script."""

_SKIPPED: dict[str, Counter[str]] = {}
"""Rows that were skipped while a data set was made, by split and reason; datasets copies what a generator is given."""

Encode = Callable[[dict[str, Any]], dict[str, Any]]
Tokenizing = Callable[["Dataset", Encode], "Dataset"]
"""Encodes all rows; see :mod:`.tokenizing`."""
Messages = Sequence[Message]

_HELD = "\ue000{}\ue001"
"""Stands for a special token that a text spells out while the chat template is rendered (private-use characters)."""
_MARK = "\ue002"
"""Stands for an answer while what a template writes behind it is looked up."""
_USER_MARK = "\ue003"
"""Stands for a question, likewise."""
_PRIVATE = "[\ue000-\ue003]"
"""The same characters in a text are held as well."""
_QUOTED = 80
"""Characters of a question that stand for it in an error."""
_HELD_PLACE = re.compile("\ue000([0-9]+)\ue001")


class TextBatch:
    """Texts of some rows, tokenised together, by the tokenizer's own threads (``RAYON_NUM_THREADS``).

    Args:
        tokenizer: the encoder's.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.rendered: dict[bytes, str] = {}
        """What the chat template made of conversations."""
        self._tokenizer = tokenizer
        self._ids: dict[tuple[bool, bool], dict[str, list[int]]] = {}

    def ids(self, text: str, add_special_tokens: bool, split_special_tokens: bool) -> list[int]:
        """Return a text's tokens as a list of its own; before :meth:`tokenize` note the text and return none."""
        return [*self._ids.setdefault((add_special_tokens, split_special_tokens), {}).setdefault(text, [])]

    def tokenize(self) -> None:
        """Tokenise all texts noted so far."""
        for (add, split), texts in self._ids.items():
            every: Any = self._tokenizer([*texts], add_special_tokens=add, split_special_tokens=split)["input_ids"]
            texts.update(zip(texts, every, strict=True))


class Encoder:
    """Prompts and responses of one format as tokens.

    Args:
        tokenizer: the model's.
        prompt_format: of the stage.
        stops: tokens of the model's generation configuration that end a response, besides those found here.
        whose: whose chat template it is, for errors.

    Raises:
        StageError: the chat template is not one: it fails, or leaves a question or an answer out.

    Attributes:
        stop_ids: tokens that end a response: the tokenizer's end token first, then that of the chat template's turns,
            then ``stops``.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompt_format: PromptFormat,
        stops: Iterable[int] = (),
        *,
        whose: str = "",
    ) -> None:
        self.tokenizer = tokenizer
        self._name = f"The chat template{whose and f' of {whose}'}"
        self.format = prompt_format
        self._texts: TextBatch | None = None
        self._tail, end = self._turn_end() if self._is_chat else ("", None)
        own = [int(one) for one in (tokenizer.eos_token_id, end) if one is not None]  # type: ignore[arg-type]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys([*own, *stops]))
        self.ends_with = own[-1] if own else None  # a reward model's tokenizer (BERT's) may have none

    @property
    def _is_chat(self) -> bool:
        return self.format.kind == "chat"

    def prompt(self, question: str, messages: Messages | None = None) -> list[int]:
        """Return token ids of the prompt with the tokenizer's begin token, without its end token.

        Args:
            question: the prompt as one text.
            messages: the conversation before the answer, if the source has one.

        Raises:
            DataError: the chat template refuses the conversation.
        """
        if self._is_chat:
            turns, held = self._hold(self._conversation(question, messages))
            return self._tokens(self._render(turns, answered=False), held)
        text = self.format.render(_single(question, messages, self.format))
        ids = self._ids(text, add_special_tokens=True, split_special_tokens=True)
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids

    def answer(self, question: str, answer: str, messages: Messages | None = None, *, ended: bool = True) -> list[int]:
        """Return token ids of an answer as they follow the prompt, with the end token when the answer is complete.

        Raises:
            DataError: the chat template refuses the conversation.
        """
        if not self._is_chat:
            ids = self._ids(answer, add_special_tokens=False, split_special_tokens=True)
            return self._ended(ids) if ended else ids
        conversation = self._conversation(question, messages)
        turns, held = self._hold([*conversation, {"role": "assistant", "content": answer}])
        before, after = self._render(turns[:-1], answered=False), self._render(turns, answered=True)
        content = turns[-1]["content"]
        # a template that rewrites the prompt once there is an answer: what PPO samples follows the prompt as it is
        body = self._without_tail(after[len(before) :], content) if after.startswith(before) else content
        if not ended:
            return self._tokens(body, held)
        upto = self._tail_upto_end
        return self._tokens(body + upto, held) if upto else self._ended(self._tokens(body, held))

    def _ended(self, ids: list[int]) -> list[int]:
        return ids if self.ends_with is None else [*ids, self.ends_with]

    def text_ids(
        self, question: str, answer: str, messages: Messages | None = None, *, ended: bool = True
    ) -> list[int]:
        """Return token ids of prompt and answer.

        Raises:
            DataError: the chat template refuses the conversation.
        """
        return self.prompt(question, messages) + self.answer(question, self.trimmed(answer), messages, ended=ended)

    def conversation_ids(self, question: str, answer: str, messages: Messages | None = None) -> list[int]:
        """Return token ids of prompt and answer as the chat template renders them together, with all that ends them.

        Raises:
            DataError: the chat template refuses the conversation.
        """
        turns, held = self._hold([*self._conversation(question, messages), {"role": "assistant", "content": answer}])
        return self._tokens(self._render(turns, answered=True), held)

    def trimmed(self, answer: str) -> str:
        """Return an answer without white space around it, which is no part of it except where texts are as they are."""
        return answer if self.format.kind == "none" else answer.strip()

    def prompt_text(self, question: str, messages: Messages | None = None) -> str:
        """Return the prompt as text, as :meth:`prompt` encodes it.

        Raises:
            DataError: the chat template refuses the conversation.
        """
        if self._is_chat:
            return self._render(self._conversation(question, messages), answered=False)
        return self.format.render(_single(question, messages, self.format))

    def text(self, question: str, answer: str, messages: Messages | None = None) -> str:
        """Return prompt and answer as text.

        Raises:
            DataError: the chat template refuses the conversation.
        """
        if self._is_chat:
            conversation = self._conversation(question, messages)
            return self._render([*conversation, {"role": "assistant", "content": answer}], answered=True)
        return self.format.render(_single(question, messages, self.format), answer)

    # chat

    def _conversation(self, question: str, messages: Messages | None) -> list[Message]:
        turns = [dict(message) for message in messages or [{"role": "user", "content": question}]]
        if self.format.system_prompt and turns[0]["role"] != "system":
            return [{"role": "system", "content": self.format.system_prompt}, *turns]
        return turns

    def _render(self, conversation: Messages, *, answered: bool) -> str:
        if self._texts is None:
            return self._rendered(conversation, answered=answered)
        key = msgspec.json.encode((conversation, answered))
        if key not in self._texts.rendered:  # both passes ask for it, and both responses of a pair for the prompt
            self._texts.rendered[key] = self._rendered(conversation, answered=answered)
        return self._texts.rendered[key]

    def _rendered(self, conversation: Messages, *, answered: bool) -> str:
        thinking: dict[str, Any] = {}
        if self.format.enable_thinking is not None:
            thinking["enable_thinking"] = self.format.enable_thinking
        try:
            rendered: Any = self.tokenizer.apply_chat_template(
                [*conversation],
                chat_template=self.format.chat_template,
                add_generation_prompt=not answered,
                tokenize=False,
                **thinking,
            )
        except TemplateSyntaxError as error:
            raise StageError(f"{self._name}: {syntax_error(error)}.") from error
        except Exception as error:  # whatever a template computes
            of = _described(conversation)
            if isinstance(error, TemplateError | TypeError | ValueError):
                raise DataError(f"{self._name} refuses {of}: {one_line(error)}.") from error
            raise StageError(f"{self._name} fails on {of}: {type(error).__name__}: {one_line(error)}.") from error
        return str(rendered)

    def _hold(self, conversation: Messages) -> tuple[list[Message], list[str]]:
        """Replace special tokens that texts spell out by other characters; return what was replaced as well."""
        held: list[str] = []

        def replaced(match: re.Match[str]) -> str:
            held.append(match.group())
            return _HELD.format(len(held) - 1)

        return [{**turn, "content": self._special.sub(replaced, turn["content"])} for turn in conversation], held

    def _tokens(self, text: str, held: Sequence[str]) -> list[int]:
        """Tokenise rendered text as transformers does, and what was held as plain text."""
        ids: list[int] = []
        for index, part in enumerate(_HELD_PLACE.split(text) if held else [text]):
            spelled = index % 2 == 1
            text = held[int(part)] if spelled else part
            ids += self._ids(text, add_special_tokens=False, split_special_tokens=spelled)
        return ids

    def encode_together(self, encode: Encode, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Encode rows as ``encode`` does one by one with this encoder, and tokenise all of their texts at once.

        ``encode`` runs twice: the first time says which texts there are, and gets no tokens.

        Raises:
            DataError: the chat template refuses a conversation.
        """
        self._texts = TextBatch(self.tokenizer)
        try:
            for row in rows:
                encode(dict(row))
            self._texts.tokenize()
            return [encode(dict(row)) for row in rows]
        finally:
            self._texts = None

    def _ids(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> list[int]:
        if self._texts is not None:
            return self._texts.ids(text, add_special_tokens, split_special_tokens)
        ids: Any = self.tokenizer(
            text, add_special_tokens=add_special_tokens, split_special_tokens=split_special_tokens
        )["input_ids"]
        return ids

    @cached_property
    def _special(self) -> re.Pattern[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        tokens = {*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        longest_first = sorted(filter(None, tokens), key=len, reverse=True)
        return re.compile("|".join([*map(re.escape, longest_first), _PRIVATE]))

    def _turn_end(self) -> tuple[str, int | None]:
        """Return what the template writes behind an answer, and the first special token there, if any."""
        turns = [{"role": "user", "content": _USER_MARK}, {"role": "assistant", "content": _MARK}]
        rendered = self._render(turns, answered=True)
        for mark, role in ((_USER_MARK, "user"), (_MARK, "assistant")):
            if mark not in rendered:
                raise StageError(
                    f"{self._name} leaves out what the {role} says, and it has to write the content of every message; "
                    "use another one (`chat_template`)."
                )
        tail = rendered.rpartition(_MARK)[2]
        special = set(self.tokenizer.all_special_ids)
        special |= {index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        ids: Any = self.tokenizer(tail, add_special_tokens=False)["input_ids"]
        return tail, next((int(index) for index in ids if index in special), None)

    @cached_property
    def _tail_upto_end(self) -> str:
        """What the template writes behind an answer, up to its end token; empty where it writes no end token."""
        end = "" if self.ends_with is None else str(self.tokenizer.convert_ids_to_tokens(self.ends_with))
        before, found, _ = self._tail.partition(end) if end else ("", "", "")
        return before + found if found else ""

    def _without_tail(self, rendered: str, content: str) -> str:
        """Cut what the template writes behind an answer; a template may write something else behind this one."""
        if rendered.endswith(self._tail):
            return rendered.removesuffix(self._tail)
        place = rendered.rfind(content.strip())
        return rendered[: place + len(content.strip())] if place >= 0 else rendered


def _described(conversation: Messages) -> str:
    """Describe a conversation for an error: its roles, and the beginning of its last question."""
    roles = ", ".join(message["role"] for message in conversation)
    asked = next((turn["content"] for turn in reversed(conversation) if turn["role"] == "user"), "")
    quoted = " ".join(re.sub(_PRIVATE, "", _HELD_PLACE.sub("…", asked)).split())[:_QUOTED]
    return f"a conversation of {roles}" + (f" ({quoted!r})" if quoted else "")


def _single(question: str, messages: Messages | None, prompt_format: PromptFormat) -> str:
    """Return a conversation's one user turn, or the question.

    Raises:
        DataError: there are several turns, which only a chat template can render.
    """
    if messages is None:
        return question
    if [message["role"] for message in messages] != ["user"]:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(f"`prompt_format={prompt_format.kind}` takes one question, not a conversation of {roles}.")
    return messages[0]["content"]


def training_rows(
    recipe: TrainRecipe, run: RunDir, needs: tuple[str, ...], encode: Encode, together: Tokenizing | None = None
) -> "Dataset | IterableDataset":
    """Load the stage's training rows, encoded; streamed only where the source is a hub stream of unknown length.

    Args:
        recipe: of the stage.
        run: its directory.
        needs: columns.
        encode: of a row.
        together: tokenises many rows at once with the same result; None: one by one.

    Raises:
        DataError: the source cannot be read or lacks a column.
    """
    from datasets import IterableDataset, IterableDatasetDict

    if recipe.dataset_streaming and recipe.max_train_samples is None and _is_hub(recipe.dataset_name):
        rows = IterableDataset.from_generator(
            _counted_rows, gen_kwargs=_arguments(recipe, recipe.dataset_train_split, needs, None)
        )
        assert isinstance(rows, IterableDataset) and not isinstance(rows, IterableDatasetDict)
        if getattr(recipe, "max_steps", -1) < 0:
            raise DataError(
                f"{recipe.dataset_name} is streamed, so its length is unknown: set `max_steps`, `max_train_samples`, "
                "or `dataset_streaming: false`."
            )
        rows = rows.shuffle(seed=recipe.seed, buffer_size=SHUFFLE_BUFFER)  # pairs of one question lie side by side
        return rows.map(encode, remove_columns=[*needs, MESSAGES])
    return _materialise(recipe, run, recipe.dataset_train_split, needs, encode, recipe.max_train_samples, together)


def evaluation_rows(
    recipe: TrainRecipe, run: RunDir, needs: tuple[str, ...], encode: Encode, together: Tokenizing | None = None
) -> "Dataset":
    """Load the held-out rows, encoded; arguments as for :func:`training_rows`.

    Raises:
        DataError: the source cannot be read or lacks a column.
    """
    return _materialise(recipe, run, recipe.dataset_test_split, needs, encode, recipe.max_eval_samples, together)


def report_columns(recipe: TrainRecipe, needs: tuple[str, ...], reporter: Reporter) -> None:
    """Report how prompts are made of several columns, and which text is not read.

    Raises:
        DataError: the source cannot be read or lacks a column.
    """
    if not reporter.is_main or has_known_columns(recipe.dataset_name):
        return
    for notice in notices(Path(recipe.dataset_name).name, source_columns(recipe, needs)):
        reporter.health(notice)


def report_skipped(reporter: Reporter) -> None:
    """Report the rows that were skipped while :func:`training_rows` and :func:`evaluation_rows` were read."""
    for split in list(_SKIPPED):
        if notice := skip_notice(split, _SKIPPED.pop(split)):
            reporter.health(notice)


def source_columns(recipe: TrainRecipe, needs: Iterable[str]) -> Columns:
    """Find how the columns of a recipe's training data are used, from its first rows.

    Raises:
        DataError: the source cannot be read or lacks a column.
    """
    return read_columns(
        recipe.dataset_name,
        recipe.dataset_train_split,
        needs,
        config=recipe.dataset_config,
        streaming=recipe.dataset_streaming,
        names=recipe.dataset_columns,
    )


def source_rows(
    recipe: TrainRecipe,
    split: str,
    needs: tuple[str, ...],
    limit: int | None,
    extra: Collection[str] = (),
    skipped: Counter[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield rows as text, straight from the source; with further columns and counts as :func:`.data.sources.open_rows`.

    Raises:
        DataError: the source cannot be read or lacks a column.
    """
    yield from _rows(**_arguments(recipe, split, needs, limit), extra=extra, skipped=skipped)


def _materialise(
    recipe: TrainRecipe,
    run: RunDir,
    split: str,
    needs: tuple[str, ...],
    encode: Encode,
    limit: int | None,
    together: Tokenizing | None,
) -> "Dataset":
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        rows = Dataset.from_generator(
            _counted_rows, gen_kwargs=_arguments(recipe, split, needs, limit), cache_dir=str(run.path / CACHE)
        )
    except DatasetGenerationError as error:
        raise _own_error(error) from None
    assert isinstance(rows, Dataset)
    return rows.map(encode, remove_columns=rows.column_names) if together is None else together(rows, encode)


def _own_error(error: BaseException) -> BaseException:
    """Return our error that datasets wrapped in one of its own, or its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, StackllamaError):
        cause = cause.__cause__ or cause.__context__
    return cause or error


def _arguments(recipe: TrainRecipe, split: str, needs: tuple[str, ...], limit: int | None) -> dict[str, Any]:
    return {
        "name": recipe.dataset_name,
        "split": split,
        "config": recipe.dataset_config,
        "names": recipe.dataset_columns,
        "seed": recipe.seed,
        "streaming": recipe.dataset_streaming,
        "limit": limit,
        "needs": needs,
        "identity": stamp(recipe.dataset_name),
    }


def _rows(name: str, split: str, identity: str, needs: Iterable[str], **options: Any) -> Iterator[dict[str, Any]]:
    """Yield rows; ``identity`` is an argument so that a changed file is never served from a cache."""
    yield from open_rows(name, split, needs=tuple(needs), **options)


def _counted_rows(split: str, **options: Any) -> Iterator[dict[str, Any]]:
    """Yield rows, and count those that are skipped for :func:`report_skipped`."""
    skipped = _SKIPPED[split] = Counter[str]()
    yield from _rows(split=split, skipped=skipped, **options)


def _is_hub(name: str) -> bool:
    return kind_of(name) == "hub"
