"""Conversion of votes to scores, and of scores to pairs of a better and a worse answer.

The rule of Askell et al. 2021 (https://arxiv.org/abs/2112.00861, section 4.1), as StackLLaMA used it:
``round(log2(1 + votes))``, plus 1 if the asker accepted the answer; negative votes score −1, accepted or not.

Every two answers of a question with different scores make a pair; equal scores are a tie and make none. A question
gives at most :data:`MAX_PAIRS` pairs. Where it has more, the ones with the smallest hash of (seed, question, better,
worse) are kept: a uniform sample, as published, but the same one whatever the order of the answers.
"""

import heapq
import math
from collections.abc import Sequence
from itertools import combinations

from msgspec import Struct

from .splits import stable_hash

MAX_PAIRS = 10


class Answer(Struct, frozen=True):
    """A scored answer. ``id`` tells the answers of a question apart."""

    id: int
    score: int
    text: str


class Pairs(Struct, frozen=True):
    """Pairs made from the answers of one question."""

    kept: list[tuple[Answer, Answer]]
    """(better, worse), in the order of their hash."""
    ties: int
    """Number of pairs with equal scores, which are not used."""
    over_limit: int
    """Pairs left out because the question had more than the limit."""


def score(votes: int, accepted: bool = False) -> int:
    """Return the score of an answer with ``votes`` = up-votes minus down-votes."""
    return -1 if votes < 0 else round(math.log2(1 + votes)) + accepted


def make_pairs(question: str | int, answers: Sequence[Answer], *, limit: int = MAX_PAIRS, seed: int = 0) -> Pairs:
    """Make the pairs of one question, whose id or text only seeds the sample."""
    pairs: list[tuple[Answer, Answer]] = []
    ties = 0
    for one, other in combinations(answers, 2):
        if one.score == other.score:
            ties += 1
        else:
            pairs.append((one, other) if one.score > other.score else (other, one))
    kept = heapq.nsmallest(limit, pairs, key=lambda pair: stable_hash("pair", seed, question, pair[0].id, pair[1].id))
    return Pairs(kept=kept, ties=ties, over_limit=len(pairs) - len(kept))
