"""Encoding of text rows into token rows, the same for every stage.

Prompt and answer are tokenised apart and joined, so that what PPO samples after a prompt continues exactly the
tokens that supervised fine-tuning saw there. (The template's prompt ends in a space; tokenised in one piece, that
space would merge into the answer's first word. Sentencepiece tokenizers begin the answer with a space of their own;
so does every stage.) A special token spelled out in a text, such as ``</s>`` in HTML, stays text.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, IterableDataset, IterableDatasetDict
from datasets.exceptions import DatasetGenerationError

from ..contract.errors import DataError, StackllamaError
from ..contract.recipe import TrainRecipe
from ..contract.run_dir import RunDir
from ..data.columns import notices
from ..data.kinds import has_known_columns, kind_of
from ..data.sources import open_rows, read_columns, stamp
from ..data.template import prompt
from .models import eos_id
from .reporting import Reporter
from .session import CACHE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHUFFLE_BUFFER = 5000
"""Rows of a stream that are shuffled at a time, as in the published script."""

Encode = Callable[[dict[str, Any]], dict[str, Any]]


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", question: str) -> list[int]:
    """Return token ids of ``Question: …\\n\\nAnswer: `` with the tokenizer's begin token, without its end token."""
    ids: list[int] = tokenizer(prompt(question), split_special_tokens=True)["input_ids"]  # type: ignore[assignment]
    return ids[:-1] if ids and ids[-1] == eos_id(tokenizer) else ids


def encode_answer(tokenizer: "PreTrainedTokenizerBase", answer: str, ended: bool = True) -> list[int]:
    """Return token ids of an answer, followed by the end token when the answer is complete."""
    ids: list[int] = tokenizer(answer, add_special_tokens=False, split_special_tokens=True)["input_ids"]  # type: ignore[assignment]
    return [*ids, eos_id(tokenizer)] if ended else ids


def encode_text(tokenizer: "PreTrainedTokenizerBase", question: str, answer: str, ended: bool = True) -> list[int]:
    """Return token ids of question and answer in the template."""
    return encode_prompt(tokenizer, question) + encode_answer(tokenizer, answer.strip(), ended)


def training_rows(
    recipe: TrainRecipe, run: RunDir, needs: tuple[str, ...], encode: Encode
) -> Dataset | IterableDataset:
    """Load the stage's training rows, encoded; streamed only where the source is a hub stream of unknown length.

    Raises:
        DataError: the source cannot be read or lacks a column.
    """
    if recipe.dataset_streaming and recipe.max_train_samples is None and _is_hub(recipe.dataset_name):
        rows = IterableDataset.from_generator(
            _rows, gen_kwargs=_arguments(recipe, recipe.dataset_train_split, needs, None)
        )
        assert isinstance(rows, IterableDataset) and not isinstance(rows, IterableDatasetDict)
        if getattr(recipe, "max_steps", -1) < 0:
            raise DataError(
                f"{recipe.dataset_name} is streamed, so its length is unknown: set `max_steps`, `max_train_samples`, "
                "or `dataset_streaming: false`."
            )
        rows = rows.shuffle(seed=recipe.seed, buffer_size=SHUFFLE_BUFFER)  # pairs of one question lie side by side
        return rows.map(encode, remove_columns=list(needs))
    return _materialise(recipe, run, recipe.dataset_train_split, needs, encode, recipe.max_train_samples)


def evaluation_rows(recipe: TrainRecipe, run: RunDir, needs: tuple[str, ...], encode: Encode) -> Dataset:
    """Load the held-out rows, encoded.

    Raises:
        DataError: the source cannot be read or lacks a column.
    """
    return _materialise(recipe, run, recipe.dataset_test_split, needs, encode, recipe.max_eval_samples)


def report_columns(recipe: TrainRecipe, needs: tuple[str, ...], reporter: Reporter) -> None:
    """Report how prompts are made of several columns, and which text is not read.

    Raises:
        DataError: the source cannot be read or lacks a column.
    """
    if not reporter.is_main or has_known_columns(recipe.dataset_name):
        return
    columns = read_columns(
        recipe.dataset_name,
        recipe.dataset_train_split,
        needs,
        config=recipe.dataset_config,
        streaming=recipe.dataset_streaming,
    )
    for notice in notices(Path(recipe.dataset_name).name, columns):
        reporter.health(notice)


def source_rows(recipe: TrainRecipe, split: str, needs: tuple[str, ...], limit: int | None) -> Iterator[dict[str, Any]]:
    """Yield rows as text, straight from the source.

    Raises:
        DataError: the source cannot be read or lacks a column.
    """
    yield from _rows(**_arguments(recipe, split, needs, limit))


def _materialise(
    recipe: TrainRecipe, run: RunDir, split: str, needs: tuple[str, ...], encode: Encode, limit: int | None
) -> Dataset:
    try:
        rows = Dataset.from_generator(
            _rows, gen_kwargs=_arguments(recipe, split, needs, limit), cache_dir=str(run.path / CACHE)
        )
    except DatasetGenerationError as error:
        raise _own_error(error) from None
    assert isinstance(rows, Dataset)
    return rows.map(encode, remove_columns=rows.column_names)


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
        "seed": recipe.seed,
        "streaming": recipe.dataset_streaming,
        "limit": limit,
        "needs": needs,
        "identity": stamp(recipe.dataset_name),
    }


def _rows(name: str, split: str, identity: str, needs: Iterable[str], **options: Any) -> Iterator[dict[str, Any]]:
    """Yield rows; ``identity`` is an argument so that a changed file is never served from a cache."""
    wanted = tuple(needs)
    for row in open_rows(name, split, needs=wanted, **options):
        yield {column: row[column] for column in wanted}


def _is_hub(name: str) -> bool:
    return kind_of(name) == "hub"
