"""Evaluation on questions that were trained on: reported, because its metrics are then not held-out ones.

It happens with one split named twice, with the split ``all``, and with data whose own splits share questions.
"""

from typing import TYPE_CHECKING, Any

from ..contract.recipe import TrainRecipe

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

COLUMN = "question_hash"


class Overlap:
    """Finds the evaluation rows whose question is also trained on.

    Args:
        held_out: rows with the column :data:`COLUMN`.
    """

    def __init__(self, held_out: "Dataset") -> None:
        self._held_out: list[int] = list(held_out[COLUMN])
        self._wanted = frozenset(self._held_out)
        self._found: set[int] = set()

    def watch(self, training: "Dataset | IterableDataset") -> "Dataset | IterableDataset":
        """Compare the training rows, and return them without the column; a stream's are compared as they come."""
        from datasets import IterableDataset

        if isinstance(training, IterableDataset):
            return training.filter(self._see).remove_columns(COLUMN)
        self._found |= self._wanted.intersection(training[COLUMN])
        return training.remove_columns(COLUMN)

    @property
    def rows(self) -> int:
        """Evaluation rows that are not held out, so far."""
        return sum(one in self._found for one in self._held_out)

    def notice(self, recipe: TrainRecipe) -> str | None:
        """Return a notice of the overlap, or None."""
        return overlap_notice(recipe, self.rows, len(self._held_out), "rows")

    def _see(self, row: dict[str, Any]) -> bool:
        if row[COLUMN] in self._wanted:
            self._found.add(row[COLUMN])
        return True


def overlap_notice(recipe: TrainRecipe, shared: int, total: int, what: str) -> str | None:
    """Return a notice of ``shared`` among ``total`` evaluation rows or prompts that are trained on; None: none are."""
    if not shared:
        return None
    return (
        f"evaluation is not held out: {shared} of {total} evaluation {what} have a question that is also trained on "
        f"(`dataset_train_split={recipe.dataset_train_split}`, `dataset_test_split={recipe.dataset_test_split}`); "
        "name splits that share no question to measure anything but memory"
    )
