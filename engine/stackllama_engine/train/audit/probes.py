"""Chosen responses spoilt in ways that a reward model must notice: a policy finds those that it does not."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np

from ...contract.audit import Probe
from ..encoding import Encoder
from .statistics import Array, wilson

TEXTS = 64
"""Responses that are spoilt; each way costs as many forward passes."""
_TIMES = 3
_CLEARLY = 0.05  # standard deviations: less is a tie
Row = Mapping[str, Any]
Score = Callable[[Sequence[list[int]]], Array]
"""Scores texts, given as token ids; float64 ``[N]``."""


def probes(rows: Sequence[Row], encoder: Encoder, score: Score, spread: float, limit: int) -> list[Probe]:
    """Score spoilt responses beside the responses themselves.

    Args:
        rows: held-out pairs of different questions, two at least; the first :data:`TEXTS` are used.
        encoder: of the reward model's prompt format.
        score: the reward model.
        spread: standard deviation of its scores, the unit of ``change``.
        limit: most tokens of a text; a spoilt one that is longer is left out: cut, it might be the response itself.
    """
    rows = rows[:TEXTS]
    whole = score([encoder.text_ids(row["question"], row["response_j"], row.get("messages")) for row in rows])
    made: list[Probe] = []
    for name, ids in _spoilt(rows, encoder):
        fits = np.array([len(one) <= limit for one in ids])
        margins = score(list(compress(ids, fits))) - whole[fits]
        margins = margins[np.isfinite(margins)]
        if not len(margins):
            continue
        made.append(
            Probe(
                name=name,
                texts=len(margins),
                change=float(margins.mean()) / spread if spread else 0.0,
                wins=wilson(int((margins > _CLEARLY * spread).sum()), len(margins)),
            )
        )
    return made


def _spoilt(rows: Sequence[Row], encoder: Encoder) -> Iterator[tuple[str, list[list[int]]]]:
    def encode(text: Callable[[int], str], *, ended: bool = True) -> list[list[int]]:
        return [
            encoder.text_ids(row["question"], text(index), row.get("messages"), ended=ended)
            for index, row in enumerate(rows)
        ]

    def own(index: int) -> str:
        return str(rows[index]["response_j"])

    yield "empty", encode(lambda _: "")
    yield "cut in half", encode(lambda index: own(index)[: len(own(index)) // 2], ended=False)
    yield "three times over", encode(lambda index: "\n\n".join([own(index)] * _TIMES))
    yield "of another question", encode(lambda index: own((index + 1) % len(rows)))
    yield "the question again", encode(lambda index: str(rows[index]["question"]))
