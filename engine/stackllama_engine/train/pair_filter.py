"""Selection of the pairs that a reward model or a policy can learn from: both texts fit, and they differ.

A pair whose texts are the same tokens has no better one: its loss is ln 2 whatever the model does, and in an
evaluation it is a tie that says nothing. Two pairs that contradict each other (A over B, and B over A, to one question)
are kept, as votes that disagree are data, and counted.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..contract.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


class PairFilter:
    """Keeps the pairs to learn from, and counts the others.

    Args:
        max_length: most tokens a text may have, a prompt that stands apart (``prompt_ids``) included.
        what: the pairs, in a word (``training``, ``evaluation``).
    """

    def __init__(self, max_length: int, what: str) -> None:
        self.max_length = max_length
        self._what = what
        self.too_long = 0
        self.identical = 0
        self.contradicting = 0
        """Pairs that say the opposite of an earlier one; not counted in a stream, whose length has no bound."""
        self._seen: set[int] | None = None

    def __call__(self, pairs: "Dataset | IterableDataset") -> "Dataset | IterableDataset":
        """Keep the pairs to learn from; a stream's are dropped and counted as they come.

        Raises:
            DataError: there is none.
        """
        from datasets import IterableDataset

        if isinstance(pairs, IterableDataset):
            return pairs.filter(self.keeps)
        self._seen = set()
        usable = pairs.filter(self.keeps, load_from_cache_file=False)
        self._seen = None
        if not len(usable):
            raise DataError(
                f"None of {len(pairs)} {self._what} pairs can be used: {self.too_long} have a text over `max_length="
                f"{self.max_length}` tokens (raise it), {self.identical} have the same text twice."
            )
        return usable

    def keeps(self, row: Mapping[str, list[int]]) -> bool:
        """Return whether a pair is one to learn from, and count it otherwise."""
        prompt, chosen, rejected = row.get("prompt_ids", []), row["chosen_ids"], row["rejected_ids"]
        if len(prompt) + max(len(chosen), len(rejected)) > self.max_length:
            self.too_long += 1
            return False
        if chosen == rejected:
            self.identical += 1
            return False
        if self._seen is not None:
            one, other = hash((*prompt, *chosen)), hash((*prompt, *rejected))
            self.contradicting += hash((other, one)) in self._seen
            self._seen.add(hash((one, other)))
        return True


def pair_notices(training: PairFilter, held_out: PairFilter) -> list[str]:
    """Return notices of the pairs, a sentence each."""
    counts: dict[str, tuple[Any, Any]] = {
        f"pairs dropped: one of their texts is longer than {training.max_length} tokens": (
            training.too_long,
            held_out.too_long,
        ),
        "pairs dropped: both of their texts are the same": (training.identical, held_out.identical),
        "pairs contradict another one of the same question (A over B, and B over A)": (
            training.contradicting,
            held_out.contradicting,
        ),
    }
    return [f"{one} training and {other} evaluation {what}" for what, (one, other) in counts.items() if one or other]
