"""Scores and pairs, worked by hand."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackllama_engine.data.pairs import Answer, make_pairs, score


@pytest.mark.parametrize(
    ("votes", "accepted", "expected"),
    [
        (0, False, 0),  # log2(1) = 0
        (1, False, 1),  # log2(2) = 1
        (2, False, 2),  # log2(3) = 1.58
        (4, False, 2),  # log2(5) = 2.32
        (5, False, 3),  # log2(6) = 2.58
        (7, True, 4),  # log2(8) = 3, accepted
        (0, True, 1),
        (1000, False, 10),  # log2(1001) = 9.97
        (-1, False, -1),
        (-30, False, -1),
        (-1, True, -1),  # voted down and accepted all the same
    ],
)
def test_score_follows_the_published_rule(votes: int, accepted: bool, expected: int) -> None:
    assert score(votes, accepted) == expected


def answers(*scores: int) -> list[Answer]:
    return [Answer(id=number, score=value, text=f"a{number}") for number, value in enumerate(scores)]


def ids(pairs: Sequence[tuple[Answer, Answer]]) -> set[tuple[int, int]]:
    return {(better.id, worse.id) for better, worse in pairs}


def test_every_two_different_scores_make_a_pair_and_ties_none() -> None:
    pairs = make_pairs(1, answers(2, 5, 2, -1))
    assert ids(pairs.kept) == {(1, 0), (1, 2), (0, 3), (1, 3), (2, 3)}
    assert (pairs.ties, pairs.over_limit) == (1, 0)


def test_one_answer_or_equal_scores_make_no_pair() -> None:
    assert make_pairs(1, []).kept == make_pairs(1, answers(3)).kept == make_pairs(1, answers(3, 3)).kept == []
    assert make_pairs(1, answers(3, 3, 3)).ties == 3


def test_at_most_ten_of_a_question_whatever_the_order() -> None:
    six = answers(0, 1, 2, 3, 4, 5)  # 15 pairs
    pairs = make_pairs(7, six)
    assert (len(pairs.kept), pairs.over_limit) == (10, 5)
    assert make_pairs(7, six[::-1]).kept == pairs.kept
    assert ids(make_pairs(7, six, seed=1).kept) != ids(pairs.kept)
    assert ids(make_pairs(8, six).kept) != ids(pairs.kept)


@given(st.lists(st.integers(-1, 6), max_size=12), st.integers(0, 5))
def test_better_is_better_and_nothing_is_lost(scores: list[int], seed: int) -> None:
    pairs = make_pairs("q", answers(*scores), seed=seed)
    assert all(better.score > worse.score for better, worse in pairs.kept)
    assert len(ids(pairs.kept)) == len(pairs.kept) <= 10
    assert len(pairs.kept) + pairs.over_limit + pairs.ties == len(scores) * (len(scores) - 1) // 2
