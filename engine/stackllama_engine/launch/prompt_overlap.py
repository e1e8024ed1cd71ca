"""Prompts that a split shares with what was trained on, counted in local data without loading anything else.

A source keeps each question in one of its splits (:mod:`..data.splits`), so that two splits of one source need not be
read. Otherwise the first :data:`MOST_ROWS` rows of both sides are compared by the hash of their prompts. Of hub data
sets only the names of source and split are compared.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice

from msgspec import Struct

from ..contract.errors import DataError
from ..contract.recipe import PPORecipe, TrainedRecipe
from ..contract.stages import Stage
from ..data.columns import Columns, clean_rows, prompt_of
from ..data.kinds import DEMO, Kind, kind_of
from ..data.local import ALL, local_rows, stamp
from ..data.splits import question_hash, same_text, split_of
from .data_check import check_data
from .lineage import Trained

MOST_ROWS = 20_000
"""Rows that are read of a source; a second or two."""
MOST_SHARED = 0.01
"""Share of prompts up to which nothing is said: real data repeat a few questions, and so many move an accuracy by one
point at most."""


@dataclass(frozen=True)
class Part:
    """A split of a recipe's data set, as far as a stage reads it; equal parts have equal prompts."""

    recipe: TrainedRecipe = field(compare=False)
    stage: Stage
    source: tuple[str, str | None, frozenset[tuple[str, str]]]
    """Name, configuration and column names."""
    kind: Kind | None
    """None: it cannot be read."""
    split: str
    limit: int | None
    """Rows, of PPO distinct prompts, that the stage takes from the start; None: all."""
    version: str
    """Changes with the files."""


class Prompts(Struct, frozen=True):
    """Prompts of a part."""

    hashes: tuple[int, ...]
    """One per row, of PPO one per prompt."""
    whole: bool
    """Whether the part was read to its end."""


class Shared(Struct, frozen=True):
    """Prompts of one part that occur in others."""

    where: tuple[str, ...]
    """Names of the trainings that have them."""
    count: int = 0
    total: int = 0
    """0: not counted."""
    whole: bool = True
    """Whether all rows were compared."""

    def __str__(self) -> str:
        """Write count and share: ``120 of 400 prompts (30 %)``."""
        if not self.total:
            return "prompts"
        first = "" if self.whole else f", of the first {MOST_ROWS} rows"
        return f"{self.count} of {self.total} prompts ({100 * self.count / self.total:.0f} %{first})"


def held_out_prompts_trained_on(recipe: TrainedRecipe, before: Sequence[Trained]) -> str | None:
    """Find held-out prompts that the stage, or one that it builds on, trains on."""
    held_out = _part(recipe, recipe.dataset_test_split, recipe.max_eval_samples)
    shared = count_shared(held_out, [Trained("this run", recipe), *before])
    if shared is None:
        return None
    return (
        f"`dataset_test_split={recipe.dataset_test_split}`: {shared} to evaluate on are also trained on "
        f"({', '.join(shared.where)}), so that the evaluation measures memory; name a split that was not trained on."
    )


def rl_prompts_trained_on(recipe: TrainedRecipe, before: Sequence[Trained]) -> str | None:
    """Find prompts of PPO that the reward model or the policy's base was trained on.

    StackLLaMA (https://huggingface.co/blog/stackllama) takes other questions for each stage, as InstructGPT does for
    its labelled prompts (arXiv:2203.02155).
    """
    if not isinstance(recipe, PPORecipe):
        return None
    shared = count_shared(_training(recipe), before)
    if shared is None:
        return None
    return (
        f"`dataset_train_split={recipe.dataset_train_split}`: {shared} of PPO were also trained on "
        f"({', '.join(shared.where)}); rewards of prompts that were trained on may be higher than those of new ones."
    )


def count_shared(part: Part, trained: Sequence[Trained]) -> Shared | None:
    """Count the prompts of a part that trainings have; None: :data:`MOST_SHARED` or less, or that is not known."""
    others = [(one.name, _training(one.recipe)) for one in trained]
    if part.kind == "hub":
        where = tuple(name for name, other in others if (other.source, other.split) == (part.source, part.split))
        return Shared(where) if where else None
    wanted: frozenset[int] = frozenset()
    common: set[int] = set()
    where: tuple[str, ...] = ()
    whole = True
    for name, other in others:
        if _apart(part, other) or (own := _prompts(part)) is None or (theirs := _prompts(other)) is None:
            continue
        wanted = frozenset(own.hashes)
        if here := wanted.intersection(theirs.hashes):
            common |= here
            where = (*where, name)
            whole = whole and own.whole and theirs.whole
    return Shared(where, len(common), len(wanted), whole) if len(common) > MOST_SHARED * len(wanted) else None


def held_out_rows(recipe: TrainedRecipe, most: int) -> int | None:
    """Count what a stage evaluates on, up to ``most``: rows, of PPO distinct prompts; None where that is not known."""
    limit = recipe.max_eval_samples
    given = limit if limit is not None and limit < most else None
    prompts = _prompts(_part(recipe, recipe.dataset_test_split, given or most))
    if prompts is None or (len(prompts.hashes) < (given or most) and not prompts.whole):
        return given
    return len(prompts.hashes)


def _training(recipe: TrainedRecipe) -> Part:
    return _part(recipe, recipe.dataset_train_split, recipe.max_train_samples)


def _part(recipe: TrainedRecipe, split: str, limit: int | None) -> Part:
    name = recipe.dataset_name
    try:
        kind, version = kind_of(name), stamp(name)
    except (DataError, OSError):  # removed since
        kind, version = None, ""
    source = (name, recipe.dataset_config, frozenset(recipe.dataset_columns.items()))
    return Part(recipe, recipe.stage, source, kind, split, limit, version)


def _apart(one: Part, other: Part) -> bool:
    """Return whether two parts are different splits of one source, which share no question."""
    return one.source == other.source and one.split != other.split and ALL not in (one.split, other.split)


@lru_cache(maxsize=16)
def _prompts(part: Part) -> Prompts | None:
    """Read a part's prompts; None of a hub's data set, and of what cannot be read, which its stage says."""
    if part.kind in ("hub", None):
        return None
    try:
        demo = part.recipe.dataset_name == DEMO
        columns = Columns({"question": "question"}) if demo else check_data(part.recipe)
        return _read(part, columns) if columns else None
    except (DataError, OSError):
        return None


def _read(part: Part, columns: Columns) -> Prompts:
    name = part.recipe.dataset_name
    by_hash = part.kind in ("file", "files") and part.split != ALL  # as :func:`.local.local_rows`, but bounded
    hashes: list[int] = []
    seen: set[int] = set()
    rows = 0
    for where, row in islice(local_rows(name, ALL if by_hash else part.split), MOST_ROWS):
        rows += 1
        if by_hash and split_of(same_text(prompt_of(row, columns.names) or "")) != part.split:
            continue
        for clean in clean_rows(row, columns, where, Counter()):
            number = question_hash(clean["question"])
            if part.stage is Stage.PPO and number in seen:
                continue
            seen.add(number)
            hashes.append(number)
            if len(hashes) == part.limit:
                return Prompts(tuple(hashes), whole=True)
    return Prompts(tuple(hashes), whole=rows < MOST_ROWS)
