"""Rows of the stages that train on pairs: read, tokenised, filtered, and compared with the held-out ones."""

from datasets import Dataset, IterableDataset

from ..contract.recipe import PreferenceRecipe, RewardRecipe
from .encoding import Encode, Tokenizing, evaluation_rows, report_columns, report_skipped, training_rows
from .overlap import COLUMN, Overlap
from .pair_filter import PairFilter, pair_notices
from .session import Session

COLUMNS = ("question", "response_j", "response_k")


class PairRows:
    """Training and held-out pairs of a run.

    Args:
        recipe: names data and limits.
        session: of this rank; the main one reads first.
        encode: makes a row's token ids, with the hash of its question in :data:`.overlap.COLUMN`.
        together: encodes many rows at once.

    Raises:
        DataError: the source cannot be read, lacks a column, or holds no pair that can be used.
    """

    def __init__(
        self, recipe: RewardRecipe | PreferenceRecipe, session: Session, encode: Encode, together: Tokenizing
    ) -> None:
        self._recipe, self._reporter = recipe, session.reporter
        report_columns(recipe, COLUMNS, self._reporter)
        self._reporter.activity("tokenizing")
        with session.main_first():
            self._training, self._held_out = (
                PairFilter(recipe.max_length, what) for what in ("training", "evaluation")
            )
            held_out = self._held_out(evaluation_rows(recipe, session.run, COLUMNS, encode, together))
            assert isinstance(held_out, Dataset)
            self._overlap = Overlap(held_out)
            training = self._training(training_rows(recipe, session.run, COLUMNS, encode, together))
            self.training = self._overlap.watch(training)
            self.held_out = held_out.remove_columns(COLUMN)
        self._streamed = isinstance(self.training, IterableDataset)
        if not self._streamed:
            self._report()

    def report_streamed(self) -> None:
        """Report the rows of a stream, which were counted as they came; those of a file were reported before."""
        if self._streamed:
            self._report()

    @property
    def dropped(self) -> dict[str, int]:
        """Pairs that were left out so far, for ``result.json``."""
        return {
            "dropped_too_long": self._training.too_long + self._held_out.too_long,
            "dropped_identical": self._training.identical + self._held_out.identical,
        }

    def _report(self) -> None:
        report_skipped(self._reporter)
        for notice in (*pair_notices(self._training, self._held_out), self._overlap.notice(self._recipe)):
            if notice:
                self._reporter.health(notice)
