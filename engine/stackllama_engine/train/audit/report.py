"""The audit of a reward model: is it better than rules that know nothing, what does it confuse, what would fool it?

Made at the end of a reward run, and by ``stackllama-console audit RUN``. Bounds of the verdict are ours; each finding
has its numbers, so that a person can hold other bounds against them.
"""

from collections.abc import Sequence
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...contract.audit import Audit, Baseline, Finding, Interval, Probe, Verdict
from ..encoding import Encoder
from .probes import Row, Score, probes
from .rules import formatting, repetition, word_margins
from .statistics import Array, Clusters, buckets, calibration, calibration_limit, rank_correlation, right

_FEW = 50  # questions
_FEW_TEXTS = 20
_BUCKETS = 5
_FOOLED, _OFTEN = 0.5, 0.25  # share of spoilt responses that score higher
_CONFIDENT = 0.1  # calibration error
_BY_LENGTH = 0.6  # rank correlation with length


class Pairs(NamedTuple):
    """Held-out or training pairs as the stage encodes them; a question's pairs have its hash."""

    chosen: list[list[int]]
    rejected: list[list[int]]
    questions: list[int]

    def where(self, kept: NDArray[np.bool_]) -> "Pairs":
        """Return the pairs for which ``kept``, ``[N]``, is true."""
        chosen, rejected = (list(compress(column, kept)) for column in (self.chosen, self.rejected))
        return Pairs(chosen, rejected, list(compress(self.questions, kept)))


def audit(
    scores: Array,
    held_out: Pairs,
    training: Pairs | None,
    rows: Sequence[Row],
    encoder: Encoder,
    score: Score,
    limit: int,
) -> Audit:
    """Audit a reward model.

    Args:
        scores: of the held-out pairs, ``[N, 2]``, the chosen response's first.
        held_out: the same pairs.
        training: pairs that the rule of words is fitted on; None: there is no such rule.
        rows: held-out rows of different questions, for :func:`.probes.probes`.
        encoder: of the reward model's prompt format.
        score: scores other texts.
        limit: most tokens of a text.
    """
    whole: Any = np.isfinite(scores).all(axis=1)
    finite: NDArray[np.bool_] = whole
    broken = Finding(verdict="bad", text=_not_finite(int((~finite).sum()), len(finite)))
    if not finite.any():
        return _of_nothing(broken)
    scores, held_out = scores[finite], held_out.where(finite)
    clusters = Clusters(held_out.questions)
    margins = scores[:, 0] - scores[:, 1]
    correct = right(margins)
    accuracy = clusters.mean(correct, margins != 0)
    lengths = np.array([[len(one), len(other)] for one, other in zip(held_out.chosen, held_out.rejected, strict=True)])
    answers = _responses(held_out, encoder)
    rules = {"longer wins": (lengths[:, 0] - lengths[:, 1]).astype(np.float64)}
    rules["more formatting wins"] = np.array([float(formatting(a) - formatting(b)) for a, b in answers])
    if training is not None and training.chosen:
        rules["words alone"] = word_margins(_responses(training, encoder), answers)
    baselines = [
        Baseline(name=name, accuracy=clusters.mean(right(each)), lead=clusters.mean(correct - right(each)))
        for name, each in rules.items()
    ]
    curve, error = calibration(margins)
    both = [*held_out.questions, *held_out.questions]
    repeated = np.array([repetition(ids) for ids in (*held_out.chosen, *held_out.rejected)])
    flat = np.concatenate([scores[:, 0], scores[:, 1]])
    found = probes(rows, encoder, score, float(scores.std()), limit) if len(rows) > 1 else []
    by_length = np.concatenate([lengths[:, 0], lengths[:, 1]]).astype(np.float64)
    length_correlation = rank_correlation(flat, by_length, both)
    findings = [] if finite.all() else [broken]
    apart = len({one for one, differs in zip(held_out.questions, margins != 0, strict=True) if differs})
    findings += _findings(accuracy, clusters.count, apart, baselines, found, length_correlation)
    if error > max(_CONFIDENT, chance := calibration_limit(margins)):
        findings.append(_of_confidence(error, chance))
    return Audit(
        pairs=len(margins),
        questions=clusters.count,
        ties=int((margins == 0).sum()),
        accuracy=accuracy,
        baselines=baselines,
        by_length=buckets(rules["longer wins"], correct, clusters, _BUCKETS, _tokens),
        by_margin=buckets(np.abs(margins), correct, clusters, _BUCKETS, _range),
        calibration=curve,
        calibration_error=error,
        length_correlation=length_correlation,
        repetition_correlation=rank_correlation(flat, repeated, both),
        probes=found,
        verdict=_worst([finding.verdict for finding in findings]),
        findings=findings,
    )


def _not_finite(broken: int, pairs: int) -> str:
    return f"{broken} of {pairs} pairs have a score that is not a number or infinite; they are left out of every figure"


def _of_nothing(finding: Finding) -> Audit:
    """Return the audit of a model without a pair that can be compared."""
    return Audit(
        pairs=0,
        questions=0,
        ties=0,
        accuracy=Interval(0.5, 0.0, 1.0),
        baselines=[],
        by_length=[],
        by_margin=[],
        calibration=[],
        calibration_error=0.0,
        length_correlation=0.0,
        repetition_correlation=0.0,
        probes=[],
        verdict="bad",
        findings=[finding],
    )


def _findings(
    accuracy: Interval,
    questions: int,
    apart: int,
    baselines: Sequence[Baseline],
    found: Sequence[Probe],
    length_correlation: float,
) -> list[Finding]:
    """Return what speaks against a model; of few questions or texts nothing is known well enough to be ``bad``.

    Args:
        accuracy: of the pairs whose scores differ.
        questions: of all pairs.
        apart: questions with such a pair.
        baselines: the rules.
        found: the probes.
        length_correlation: of scores and lengths.
    """
    findings: list[Finding] = []
    few = questions < _FEW
    if accuracy.low <= 0.5:
        text = _no_better_than_chance(accuracy, few=apart < _FEW)
        findings.append(Finding(verdict="doubtful" if few else "bad", text=text))
    else:
        findings += filter(None, (_of_rule(rule, few=few) for rule in baselines))
    if few:
        text = f"{questions} held-out questions are too few to say much; hold out more of them"
        findings.append(Finding(verdict="doubtful", text=text))
    findings += filter(None, map(_of_probe, found))
    if abs(length_correlation) > _BY_LENGTH:
        text = f"its scores follow length: rank correlation {length_correlation:.2f} within questions"
        findings.append(Finding(verdict="doubtful", text=text))
    return findings


def _no_better_than_chance(accuracy: Interval, *, few: bool) -> str:
    if accuracy.high < 0.5 and not few:
        return f"it prefers the worse response: accuracy {_percent(accuracy)}; are the columns swapped?"
    return f"it is not known to be better than a coin: accuracy {_percent(accuracy)}"


def _of_rule(rule: Baseline, *, few: bool) -> Finding | None:
    if rule.lead.low > 0:
        return None
    text = (
        f"the rule “{rule.name}” is right in {_percent(rule.accuracy)} of pairs, and the reward model is not known to "
        f"be better (lead {_points(rule.lead)})"
    )
    return Finding(verdict="bad" if rule.lead.high < 0 and not few else "doubtful", text=text)


def _of_probe(probe: Probe) -> Finding | None:
    if probe.wins.value <= _OFTEN:
        return None
    text = (
        f"a response that is {_in_words(probe.name)} scores higher than the response itself in {_percent(probe.wins)} "
        f"of {probe.texts} cases"
    )
    known = probe.wins.low > _FOOLED and probe.texts >= _FEW_TEXTS
    return Finding(verdict="bad" if known else "doubtful", text=text)


def _of_confidence(error: float, limit: float) -> Finding:
    text = (
        f"its confidence is off by {100 * error:.0f} points on average (calibration error; by chance up to "
        f"{100 * limit:.0f})"
    )
    return Finding(verdict="doubtful", text=text)


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    for one in ("bad", "doubtful"):
        if one in verdicts:
            return one
    return "good"


def _responses(pairs: Pairs, encoder: Encoder) -> list[tuple[str, str]]:
    """Return the texts in which the two of each pair differ: what both begin with is the prompt."""
    texts: list[tuple[str, str]] = []
    for chosen, rejected in zip(pairs.chosen, pairs.rejected, strict=True):
        same = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), 0)
        one, other = (str(encoder.tokenizer.decode(ids[same:], skip_special_tokens=True)) for ids in (chosen, rejected))
        texts.append((one, other))
    return texts


def _in_words(probe: str) -> str:
    return {
        "empty": "empty",
        "cut in half": "cut in half",
        "three times over": "repeated three times",
        "of another question": "taken from another question",
        "the question again": "the question repeated",
    }[probe]


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.0f} % (95 %: {100 * interval.low:.0f}–{100 * interval.high:.0f} %)"


def _points(interval: Interval) -> str:
    return f"{100 * interval.value:+.0f} points, 95 %: {100 * interval.low:+.0f} to {100 * interval.high:+.0f}"


def _tokens(low: float, high: float) -> str:
    return f"{low:+.0f} to {high:+.0f} tokens" if low != high else f"{low:+.0f} tokens"


def _range(low: float, high: float) -> str:
    return f"{low:.2g} to {high:.2g}"
