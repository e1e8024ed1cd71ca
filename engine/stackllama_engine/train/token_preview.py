"""Preview of a stage's data as tokens: ``python -m stackllama_engine.train.token_preview``, a request on stdin.

Shows the exact tokens of the first examples with those that bear loss, how long the first rows are, which are dropped
or cut and why, which occur twice, and how many prompts of PPO's split occur in the other stages' splits. It prints one
JSON document; an error is one line on stderr.
"""

import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from ..contract.document import print_document
from ..contract.errors import DataError
from ..contract.recipe import RECIPES, PPORecipe, PreferenceRecipe, RewardRecipe, SFTRecipe, TrainRecipe
from ..contract.stages import Stage
from ..contract.streams import open_standard_streams
from ..data.columns import MESSAGES, NEEDS
from ..data.sources import open_rows
from ..data.splits import question_hash, stable_hash
from . import models
from .encoding import Encoder
from .lengths import PROMPT, LengthLimit, cuts_training_rows
from .pair_filter import PairFilter
from .ppo.prompts import distinct, wanted_columns
from .prompt_formats import find_prompt_format, generation_stops
from .stage_rows import pair, preference, supervised, trains_on_responses_alone

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_ROWS = 2_000
"""Rows that are tokenised."""
MOST_PROMPTS = 100_000
"""Rows of a split whose prompts are compared."""
_OF_PROMPT = {"question", MESSAGES}
_BINS = 10
_PERCENTILES = {"shortest": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "longest": 1.0}


class Part(Struct, frozen=True):
    """A stage's share of the data."""

    stage: Stage
    name: str
    split: str
    config: str | None = None
    columns: dict[str, str] = {}


class Request(Struct, frozen=True, kw_only=True):
    """What to preview."""

    stage: Stage
    recipe: dict[str, Any]
    parts: list[Part] = []
    """Of every stage, to compare prompts; may be empty."""
    count: int = 3
    """Number of examples."""
    columns_read: list[str] | None = None
    """Columns that PPO's reward functions read; None: all."""


class Sequence(Struct, frozen=True):
    """A text as the stage reads it."""

    name: str
    """``chosen`` and ``rejected``, else ``text`` or ``prompt``."""
    ids: list[int]
    tokens: list[str]
    """The same, decoded one by one."""
    loss: list[bool]
    """Whether a token bears loss; for a reward model, whether the score is read there."""


class Lengths(Struct, frozen=True):
    """Lengths in tokens."""

    percentiles: dict[str, int]
    bin_width: int
    histogram: list[int]
    """Number of sequences by length."""
    start: int
    """Length at which the first bin begins."""


class Overlap(Struct, frozen=True):
    """Distinct prompts of PPO that occur in another stage's data."""

    stage: Stage
    shared: int
    prompts: int
    """Distinct prompts of PPO that were compared."""


class TokenPreview(Struct, frozen=True, kw_only=True):
    """The data of a stage, as tokens."""

    stage: Stage
    source: str
    split: str
    model: str
    prompt_format: str
    looked_at: int
    """Number of usable rows that were read."""
    examples: list[list[Sequence]]
    lengths: dict[str, Lengths]
    """By name of the sequence, and of ``prompt`` and ``response``."""
    changed: dict[str, int]
    """Rows that are dropped or cut, by reason."""
    duplicates: dict[str, int]
    overlaps: list[Overlap]
    not_compared: list[str] = []
    """Why prompts of PPO's or another stage's split were not compared."""


class _Rows:
    """Counts over the rows of a stage.

    Args:
        recipe: the stage's.
        encoder: of its prompt format.
    """

    def __init__(self, recipe: TrainRecipe, encoder: Encoder) -> None:
        self._recipe = recipe
        self._encoder = encoder
        self._pairs: PairFilter | None = None
        self._texts: LengthLimit | None = None
        if isinstance(recipe, RewardRecipe | PreferenceRecipe):
            self._pairs = PairFilter(recipe.max_length, "training")
        elif isinstance(recipe, SFTRecipe):
            self._texts = LengthLimit(recipe.max_length, "training", cuts=cuts_training_rows(recipe))
        self._long_prompts = 0
        self.lengths: dict[str, list[int]] = {}

    @property
    def changed(self) -> dict[str, int]:
        """Rows that the stage drops or cuts, by reason."""
        counts: dict[str, int] = {}
        if isinstance(self._recipe, PPORecipe):
            limit = f"`max_prompt_length={self._recipe.max_prompt_length}`"
            counts[f"dropped: the prompt has {limit} tokens or more"] = self._long_prompts
        if self._pairs:
            limit = f"`max_length={self._pairs.max_length}`"
            counts[f"dropped: a text is longer than {limit} tokens"] = self._pairs.too_long
            counts["dropped: both texts are the same"] = self._pairs.identical
        if self._texts:
            limit = f"`max_length={self._texts.max_length}`"
            counts[f"cut at {limit} tokens: the end of the response is lost"] = self._texts.cut
            counts[f"dropped: the prompt alone fills {limit} tokens"] = self._texts.dropped
        return {reason: count for reason, count in counts.items() if count}

    def encode(self, row: dict[str, Any]) -> dict[str, tuple[list[int], list[bool]]]:
        """Return the row's sequences, ids and loss by name, as the stage makes them; counts what it changes."""
        recipe, encoder = self._recipe, self._encoder
        if isinstance(recipe, SFTRecipe):
            return {"text": self._text(recipe, row)}
        prompt = encoder.prompt(row["question"], row.get("messages"))
        self._count("prompt", prompt)
        if isinstance(recipe, PreferenceRecipe):
            return self._preference(row)
        if isinstance(recipe, PPORecipe):
            self._long_prompts += len(prompt) >= recipe.max_prompt_length
            return {"prompt": (prompt, [False] * len(prompt))}
        assert self._pairs
        texts = pair(encoder, row)
        self._pairs.keeps({"chosen_ids": texts.chosen, "rejected_ids": texts.rejected})
        named: dict[str, list[int]] = texts._asdict()
        for name, ids in named.items():
            self._count(name, ids)
        return {name: (ids, [*([False] * (len(ids) - 1)), True]) for name, ids in named.items()}

    def _text(self, recipe: SFTRecipe, row: dict[str, Any]) -> tuple[list[int], list[bool]]:
        assert self._texts
        prompt, response = supervised(self._encoder, row)
        ids = prompt + response
        for name, part in (("prompt", prompt), ("response", response), ("text", ids)):
            self._count(name, part)
        loss = [not trains_on_responses_alone(recipe, self._encoder)] * len(prompt) + [True] * len(response)
        self._texts.keeps({PROMPT: len(prompt), "input_ids": ids})
        most = recipe.max_length if cuts_training_rows(recipe) else len(ids)
        return ids[:most], loss[:most]

    def _preference(self, row: dict[str, Any]) -> dict[str, tuple[list[int], list[bool]]]:
        assert self._pairs
        prompt, chosen, rejected = preference(self._encoder, row)
        self._pairs.keeps({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
        sequences: dict[str, tuple[list[int], list[bool]]] = {}
        for name, response in (("chosen", chosen), ("rejected", rejected)):
            self._count(name, prompt + response)
            sequences[name] = (prompt + response, [False] * len(prompt) + [True] * len(response))
        return sequences

    def _count(self, name: str, ids: list[int]) -> None:
        self.lengths.setdefault(name, []).append(len(ids))


def preview(request: Request) -> TokenPreview:
    """Read and tokenise the first rows of a stage's training split.

    Raises:
        StackllamaError: data or tokenizer cannot be used.
    """
    recipe = msgspec.convert(request.recipe, RECIPES[request.stage])
    assert isinstance(recipe, TrainRecipe)
    tokenizer = models.load_tokenizer(recipe.model_name_or_path, recipe.model_revision)
    stops = generation_stops(recipe.model_name_or_path, recipe.model_revision)
    encoder = Encoder(tokenizer, find_prompt_format(recipe, tokenizer), stops)
    skipped: Counter[str] = Counter()
    own = Part(
        request.stage, recipe.dataset_name, recipe.dataset_train_split, recipe.dataset_config, recipe.dataset_columns
    )
    limit = min(MOST_ROWS, recipe.max_train_samples or MOST_ROWS)
    extra = wanted_columns(recipe) if isinstance(recipe, PPORecipe) else ()
    rows = list(islice(_rows_of(own, NEEDS[request.stage], skipped, extra), limit))
    counts = _Rows(recipe, encoder)
    repeats: Counter[str] = Counter()
    used = list(distinct(rows, recipe, repeats, request.columns_read)) if isinstance(recipe, PPORecipe) else rows
    examples: list[list[Sequence]] = []
    for row in used:
        sequences = counts.encode(row)
        if len(examples) < request.count:
            examples.append([_sequence(tokenizer, name, *sequence) for name, sequence in sequences.items()])
    overlaps, not_compared = _overlaps(request.parts)
    return TokenPreview(
        stage=request.stage,
        source=recipe.dataset_name,
        split=recipe.dataset_train_split,
        model=recipe.model_name_or_path,
        prompt_format=str(encoder.format),
        looked_at=len(rows),
        examples=examples,
        lengths={name: lengths_of(values) for name, values in counts.lengths.items()},
        changed={f"skipped: {reason}": number for reason, number in skipped.items()}
        | {f"dropped: {reason}": number for reason, number in repeats.items()}
        | counts.changed,
        duplicates=_duplicates(rows),
        overlaps=overlaps,
        not_compared=not_compared,
    )


def lengths_of(values: list[int]) -> Lengths:
    """Return percentiles (nearest rank) and a histogram of at least one length."""
    ordered = sorted(values)
    percentiles = {
        name: ordered[min(int(share * len(ordered)), len(ordered) - 1)] for name, share in _PERCENTILES.items()
    }
    start = ordered[0]  # lengths are often even, and far from 0
    width = (ordered[-1] - start) // _BINS + 1
    bins = Counter((value - start) // width for value in values)
    return Lengths(percentiles, width, [bins[index] for index in range(max(bins) + 1)], start)


def _sequence(tokenizer: "PreTrainedTokenizerBase", name: str, ids: list[int], loss: list[bool]) -> Sequence:
    return Sequence(name, ids, [str(tokenizer.decode([one])) for one in ids], loss)


def _duplicates(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Count the rows that repeat an earlier one's prompt, and those that repeat all of it."""
    prompts = {question_hash(row["question"]) for row in rows}
    whole = {
        stable_hash(question_hash(row["question"]), repr([row[name] for name in sorted(row.keys() - _OF_PROMPT)]))
        for row in rows
    }
    return {"prompt": len(rows) - len(prompts), "whole row": len(rows) - len(whole)}


def _overlaps(parts: Iterable[Part]) -> tuple[list[Overlap], list[str]]:
    """Count how many prompts of PPO each other stage has; a small file may have no row in a split."""
    digests: dict[Stage, set[int]] = {}
    errors: list[str] = []
    for part in parts:
        try:
            digests[part.stage] = _prompts_of(part)
        except DataError as error:
            errors.append(f"{part.stage}: {error}")
    prompts = digests.pop(Stage.PPO, None)
    if prompts is None:
        return [], errors
    return [Overlap(stage, len(prompts & others), len(prompts)) for stage, others in digests.items()], errors


def _prompts_of(part: Part) -> set[int]:
    return {question_hash(row["question"]) for row in islice(_rows_of(part, ("question",), Counter()), MOST_PROMPTS)}


def _rows_of(
    part: Part, needs: tuple[str, ...], skipped: Counter[str], extra: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    return open_rows(
        part.name, part.split, config=part.config, needs=needs, names=part.columns, extra=extra, skipped=skipped
    )


def main() -> int:
    """Serve one request; return the exit code."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    return print_document(lambda: preview(request))


if __name__ == "__main__":
    open_standard_streams()
    raise SystemExit(main())
