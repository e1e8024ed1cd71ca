"""Rows of supervised fine-tuning that ``max_length`` changes: counted, reported, and dropped where no answer is left.

Without packing, and packed by ``bfd``, a sequence longer than ``max_length`` loses its end: part of the answer and the
end token, which the model then does not learn to write after it. A row whose prompt alone fills the sequence would
train on a question without an answer; it is dropped. ``bfd_split`` makes several sequences of a long row, and
``wrapped`` cuts everywhere by design: there nothing is lost.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..contract.errors import DataError
from ..contract.recipe import SFTRecipe

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

PROMPT = "prompt_length"
"""Column: tokens of the prompt."""


def cuts_training_rows(recipe: SFTRecipe) -> bool:
    """Return whether longer training rows are cut; otherwise they are split."""
    return not recipe.packing or recipe.packing_strategy == "bfd"


class LengthLimit:
    """Counts the rows that are cut and drops those without room for an answer.

    Args:
        max_length: tokens per sequence.
        what: the rows, in a word (``training``, ``evaluation``).
        cuts: whether longer rows are cut; otherwise they are split, and all are kept.
    """

    def __init__(self, max_length: int, what: str, *, cuts: bool) -> None:
        self.max_length = max_length
        self.dropped = 0
        self.cut = 0
        """Rows that lose their end, the end token at least."""
        self.only_end = 0
        """Rows among them that lose the end token alone."""
        self._what = what
        self._cuts = cuts

    def __call__(self, rows: "Dataset | IterableDataset") -> "Dataset | IterableDataset":
        """Keep rows with room for an answer, without their prompt length; a stream's are counted as they come.

        Raises:
            DataError: no row has room.
        """
        from datasets import IterableDataset

        if isinstance(rows, IterableDataset):
            return rows.filter(self.keeps).remove_columns(PROMPT)
        usable = rows.filter(self.keeps, load_from_cache_file=False)
        if not len(usable):
            raise DataError(
                f"`max_length={self.max_length}`: none of {len(rows)} {self._what} rows has a prompt that leaves "
                "room for an answer; raise it."
            )
        return usable.remove_columns(PROMPT)

    def notice(self) -> str | None:
        """Describe the rows that were cut or dropped; None where there are none."""
        parts: list[str] = []
        if self.cut:
            parts.append(
                f"{self.cut} {self._what} rows are cut to `max_length={self.max_length}` tokens and lose the end of "
                "the answer" + (f" ({self.only_end} lose only the end token)" if self.only_end else "")
            )
        if self.dropped:
            parts.append(f"{self.dropped} {self._what} rows dropped: their prompt alone fills {self.max_length} tokens")
        return "; ".join(parts) or None

    def keeps(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row has room for an answer, and count what becomes of it."""
        if not self._cuts:
            return True
        if row[PROMPT] >= self.max_length:
            self.dropped += 1
            return False
        over = len(row["input_ids"]) - self.max_length
        self.cut += over > 0
        self.only_end += over == 1
        return True
