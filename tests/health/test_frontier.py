"""The choice of an evaluation by the rule of one standard error."""

import pytest

from stackllama_engine.health.frontier import Point, choose

KEPT = range(0, 100, 10)


def points(*values: float, error: float = 0.1) -> list[Point]:
    return [
        Point(step=10 * index, reward=float(index), kl=2.0 * index, selection=value, selection_se=error)
        for index, value in enumerate(values, 1)
    ]


@pytest.mark.parametrize(
    ("values", "step", "worse"),
    [
        ((0.1, 0.5, 0.9), 30, False),
        ((0.1, 0.9, 0.65), 30, False),  # 0.25 of 0.28, two standard errors of the difference: noise
        ((0.1, 0.9, 0.5), 20, True),
        ((0.1, 0.85, 0.9, 0.5), 20, True),  # the earliest within a standard error of the best
        ((0.9, 0.9, 0.9), 30, False),
    ],
)
def test_takes_the_earliest_within_one_standard_error_of_the_best(
    values: tuple[float, ...], step: int, worse: bool
) -> None:
    choice = choose("`gold`", points(*values), KEPT)
    assert choice and (choice.step, choice.is_worse_at_the_end) == (step, worse)


@pytest.mark.parametrize(("kept", "step"), [({30, 40}, 30), ({20, 30}, 20), ({10, 40}, 20), (set[int](), 20)])
def test_takes_one_whose_checkpoint_is_there(kept: set[int], step: int) -> None:
    choice = choose("`gold`", points(0.1, 0.85, 0.9, 0.5), kept)
    assert choice and choice.step == step


def test_says_which_step_and_why() -> None:
    choice = choose("`gold`", reversed_order := points(0.1, 0.9, 0.5)[::-1], KEPT)
    assert choice and choice.points == reversed_order[::-1]
    assert choice.text == (
        "take step 20, not the last (30): `gold` was 0.9 ± 0.1 there and 0.5 ± 0.1 at the end, the reward 2 and 3, "
        "the KL 4 and 6"
    )
    same = choose("`gold`", points(0.1, 0.9), KEPT)
    assert same and same.text == "the last step (20) is not known to be worse than any other by `gold`"


def test_one_evaluation_is_no_choice() -> None:
    assert choose("`gold`", points(0.5), KEPT) is None and choose("`gold`", [], KEPT) is None
