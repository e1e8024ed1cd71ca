"""The metrics that health rules read: of a run's first steps, and of its newest ones."""

import math
from collections.abc import Mapping

from msgspec import Struct

from ..contract.metrics import LENGTH_CORRELATION, OUTSIDE_RANGE, REPETITION, SCORES_STD

EARLY = 5
"""First values of a metric, which later ones are compared with."""
_EARLY_STEPS = 20
"""First steps among which these are: not every step has every metric, as one may be skipped."""
_NEWEST_STEPS = 40
"""Newest steps that are kept; no rule looks further back."""
READ = frozenset(
    {
        "objective/scores",
        "objective/kl",
        "objective/kl_coef",
        "response_length",
        "learning_rate",
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "policy/entropy_avg",
        "loss/value_avg",
        "ppo/skipped_updates",
        "ppo/updates",
        "reward/model",
        "val/num_eos_tokens",
        "val/num_tokens",
        "val/ratio",
        "val/var_explained",
        LENGTH_CORRELATION,
        OUTSIDE_RANGE,
        REPETITION,
        SCORES_STD,
    }
)
"""Metrics that rules read; no others are kept. None is a time, so that a resumed run's are those of a straight one."""
_PEAKS = ("learning_rate",)
"""Metrics whose highest value is kept."""

Metrics = Mapping[str, float | None]
Row = tuple[int, dict[str, float]]
"""A step, and those of its metrics that are read and finite."""


class Known(Struct, frozen=True, kw_only=True):
    """What is known of a run's base and reward model from the runs that trained them; None: not known."""

    base_loss: float | None = None
    """Held-out loss of the base's SFT run, in nats per token."""
    score_std: float | None = None
    """Standard deviation of the reward model's scores of its own held-out responses."""


class WindowState(Struct, frozen=True, kw_only=True):
    """All that a :class:`Window` holds, for a checkpoint."""

    early: list[Row] = []
    newest: list[Row] = []
    peaks: dict[str, list[tuple[int, float]]] = {}
    """Metric → steps at which it rose above all values before, and these values; of many the newest."""


class Window:
    """Metrics per step, by name."""

    def __init__(self, known: Known, state: WindowState | None = None) -> None:
        self.known = known
        self.state = state or WindowState()

    @property
    def step(self) -> int:
        """The newest step; 0: none yet."""
        return self.state.newest[-1][0] if self.state.newest else 0

    def add(self, step: int, metrics: Metrics) -> None:
        """Add a step; it and those after it, which a rollback or a resume takes back, are dropped first."""
        finite = {
            name: value
            for name, value in metrics.items()
            if name in READ and value is not None and math.isfinite(value)
        }
        row = (step, finite)
        early, newest = ([each for each in rows if each[0] < step] for rows in (self.state.early, self.state.newest))
        if len(early) < _EARLY_STEPS:
            early.append(row)
        peaks = {name: self._peaks_with(name, step, finite.get(name)) for name in _PEAKS}
        self.state = WindowState(early=early, newest=[*newest, row][-_NEWEST_STEPS:], peaks=peaks)

    def newest(self, name: str, count: int) -> list[float]:
        """Return the newest ``count`` values among the steps that are kept, oldest first; none: there are fewer."""
        values = _values(self.state.newest, name)
        return values[-count:] if len(values) >= count else []

    def early(self, name: str) -> list[float]:
        """Return the first :data:`EARLY` values among the run's first steps; none: there are fewer."""
        values = _values(self.state.early, name)
        return values[:EARLY] if len(values) >= EARLY else []

    def peak(self, name: str) -> float | None:
        """Return the highest value so far; None: there is none."""
        peaks = self.state.peaks.get(name)
        return peaks[-1][1] if peaks else None

    def _peaks_with(self, name: str, step: int, value: float | None) -> list[tuple[int, float]]:
        peaks = [peak for peak in self.state.peaks.get(name, []) if peak[0] < step]
        if value is not None and (not peaks or value > peaks[-1][1]):
            peaks.append((step, value))
        return peaks[-_NEWEST_STEPS:]


def _values(rows: list[Row], name: str) -> list[float]:
    assert name in READ, name
    return [row[name] for _, row in rows if name in row]
