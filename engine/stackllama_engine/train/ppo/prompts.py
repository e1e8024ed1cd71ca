"""Prompts of PPO, in an order that depends on the seed and the step alone."""

from array import array  # 4 bytes per token; a list of ints takes 36
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import torch

from ...contract.errors import DataError
from ...contract.prompt_format import Message
from ...contract.recipe import PPORecipe
from ...data.columns import ALL_SCALARS, MESSAGES, TEXT_COLUMNS
from ...data.sources import skip_notice, unique_questions
from ..encoding import Encoder, report_columns, source_rows
from ..overlap import overlap_notice
from ..reporting import Reporter

Row = dict[str, Any]


class Prompt(NamedTuple):
    """A prompt and its tokens in the run's format."""

    question: str
    ids: "array[int]"
    messages: list[Message] | None = None
    """The conversation, where the source has one."""
    columns: Mapping[str, Any] = MappingProxyType({})
    """Further columns of its row, for reward functions; the same names in every prompt."""


class Prompts:
    """Prompts that are short enough, reshuffled each time all of them were used.

    Args:
        prompts: at least one.
        seed: the recipe's.
    """

    def __init__(self, prompts: list[Prompt], seed: int) -> None:
        self._prompts = prompts
        self._seed = seed
        self._epoch = -1
        self._order: list[int] = []

    def __len__(self) -> int:
        return len(self._prompts)

    def at(self, position: int) -> Prompt:
        """Return the prompt at a position of the endless sequence of shuffled passes."""
        epoch, index = divmod(position, len(self._prompts))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self._prompts), generator=generator).tolist()
        return self._prompts[self._order[index]]


def load_prompts(
    recipe: PPORecipe,
    split: str,
    limit: int | None,
    encoder: Encoder,
    reporter: Reporter,
    read: Collection[str] | None = None,
) -> list[Prompt]:
    """Load the distinct prompts of a split (:func:`distinct`) that are shorter than ``max_prompt_length``.

    Args:
        recipe: the PPO recipe.
        split: of its data set.
        limit: maximum number.
        encoder: of the run's prompt format.
        reporter: gets the numbers of prompts left out.
        read: columns that reward functions read; None: all.

    Raises:
        DataError: there is none, or a column cannot be recorded.
    """
    prompts: list[Prompt] = []
    too_long = 0
    repeats: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    rows = source_rows(recipe, split, ("question",), None, wanted_columns(recipe), skipped)
    for row in distinct(rows, recipe, repeats, read):
        question, messages = row["question"], row.get("messages")
        ids = encoder.prompt(question, messages)
        if len(ids) >= recipe.max_prompt_length:
            too_long += 1
            continue
        prompts.append(Prompt(question, array("I", ids), messages, _columns(row, recipe)))
        if len(prompts) == limit:
            break
    if notice := skip_notice(split, skipped):
        reporter.health(notice)
    if too_long:
        reporter.health(f"{too_long} prompts of {split} dropped: they have {recipe.max_prompt_length} tokens or more")
    for reason, number in repeats.items():
        reporter.health(f"{number} rows of {split} dropped: {reason}")
    if not prompts:
        raise DataError(
            f"{recipe.dataset_name}: no prompt of split `{split}` is shorter than `max_prompt_length: "
            f"{recipe.max_prompt_length}` tokens; raise it."
        )
    return prompts


def wanted_columns(recipe: PPORecipe) -> Collection[str]:
    """Return the further columns to read, as :func:`.data.sources.open_rows` takes them."""
    return ALL_SCALARS if recipe.reward_columns is None else recipe.reward_columns


def distinct(
    rows: Iterable[Row], recipe: PPORecipe, repeats: Counter[str], read: Collection[str] | None = None
) -> Iterator[Row]:
    """Yield the first row of every prompt; where reward functions read columns, of every prompt with these.

    Args:
        rows: with :func:`wanted_columns`.
        recipe: says whether there are functions.
        repeats: counts the other rows, by reason.
        read: columns that the functions read; None: all.

    Raises:
        DataError: a column cannot be recorded.
    """
    apart = bool(recipe.reward_funcs) and recipe.reward_columns != [] and (read is None or bool(read))
    same = "prompt and columns" if apart else "prompt"
    reason = f"{same} of an earlier row"

    def read_columns(row: Row) -> str:
        values = {name: value for name, value in _columns(row, recipe).items() if read is None or name in read}
        return msgspec.json.encode(values, order="sorted").decode()

    besides = read_columns if apart else lambda _: ""
    return unique_questions(rows, besides, lambda: repeats.update([reason]))


def _columns(row: Mapping[str, Any], recipe: PPORecipe) -> dict[str, Any]:
    """Return the columns of a row besides its prompt, and where none are named besides a pair of responses.

    Raises:
        DataError: one holds something that ``samples.jsonl`` cannot, such as an image.
    """
    left_out = ["question", MESSAGES] if recipe.reward_columns else [*TEXT_COLUMNS, MESSAGES]
    columns = {name: value for name, value in row.items() if name not in left_out}
    for name, value in columns.items():
        try:
            msgspec.json.encode(value)
        except (TypeError, ValueError):
            raise DataError(
                f"{recipe.dataset_name}: column {name} holds {type(value).__name__}, which `samples.jsonl` cannot "
                "hold; leave it out of `reward_columns`."
            ) from None
    return columns


def report_prompts(recipe: PPORecipe, training: list[Prompt], held_out: list[Prompt], reporter: Reporter) -> None:
    """Report how prompts are made of the source's columns, and whether held-out ones are trained on."""
    report_columns(recipe, ("question",), reporter)
    trained = {prompt.question for prompt in training}
    shared = sum(prompt.question in trained for prompt in held_out)
    if notice := overlap_notice(recipe, shared, len(held_out), "prompts"):
        reporter.health(notice)
