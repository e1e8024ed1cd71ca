"""``audit.json`` of a reward run, written by ``train/audit``: whether a policy should be trained on its scores.

Every figure is of held-out pairs. Intervals are 95 % bootstrap intervals over questions: pairs of one question are not
independent (arXiv:2411.00640, section 2.2); those of probes, whose texts are of different questions, are Wilson's.
"""

from typing import Literal

from msgspec import Struct

from .errors import DamagedError
from .run_dir import RunDir
from .run_files import UNDECODABLE, decode_file

AUDIT_FILE = "audit.json"
Verdict = Literal["good", "doubtful", "bad"]


class Interval(Struct, frozen=True):
    """An estimate and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Baseline(Struct, frozen=True, kw_only=True):
    """A rule that knows nothing of the reward model, on the same pairs."""

    name: str
    accuracy: Interval
    lead: Interval
    """Accuracy of the reward model minus that of the rule."""


class Bucket(Struct, frozen=True, kw_only=True):
    """The pairs of one range."""

    label: str
    pairs: int
    accuracy: Interval


class Reliability(Struct, frozen=True, kw_only=True):
    """Pairs of like confidence: the probability that the scores give to the preferred order, and how often it is so."""

    predicted: float
    observed: float
    pairs: int


class Probe(Struct, frozen=True, kw_only=True):
    """Chosen responses that were spoilt in one way."""

    name: str
    texts: int
    change: float
    """Mean score of the spoilt response minus that of the response, in standard deviations of all scores."""
    wins: Interval
    """Share of spoilt responses that score higher than the response, by more than 0.05 standard deviations."""


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that speaks against the reward model."""

    verdict: Verdict
    text: str
    """A sentence with its numbers."""


class Audit(Struct, frozen=True, kw_only=True):
    """The whole audit."""

    pairs: int
    questions: int
    ties: int
    accuracy: Interval
    baselines: list[Baseline]
    by_length: list[Bucket]
    """Accuracy by the length of the chosen response minus that of the rejected one, in tokens."""
    by_margin: list[Bucket]
    """Accuracy by how sure the scores are: |difference|, from small to large."""
    calibration: list[Reliability]
    calibration_error: float
    """Mean |predicted − observed| over pairs (arXiv:1706.04599, eq. 3)."""
    length_correlation: float
    """Spearman's, of score and length in tokens, within questions."""
    repetition_correlation: float
    """Spearman's, of score and share of repeated 3-grams, within questions."""
    probes: list[Probe]
    verdict: Verdict
    findings: list[Finding]


def read_audit(run: RunDir) -> Audit | None:
    """Return a run's audit; None where it was not made.

    Raises:
        DamagedError: the file cannot be read.
    """
    file = run.path / AUDIT_FILE
    try:
        return decode_file(file, Audit)
    except FileNotFoundError:
        return None
    except (OSError, *UNDECODABLE) as error:
        raise DamagedError(
            f"{file}: not an audit that can be read ({error}). Make it anew: "
            f"`stackllama-console audit {run.id} --again`."
        ) from None
