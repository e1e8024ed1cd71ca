"""Time left, with numbers worked by hand from the formula in the module."""

import pytest

from stackllama_console.readers.eta import KEPT, Pace, estimate

Points = list[tuple[float, int]]


def steady(count: int, pace: float, first: int = 1) -> Points:
    """Add step ``first`` at 0 s, and ``count`` - 1 more."""
    return [(index * pace, first + index) for index in range(count)]


def test_nothing_is_said_too_early_or_without_a_total() -> None:
    assert estimate([], 10, 0.0) is None
    assert estimate(steady(1, 2.0), 10, 0.0) is None
    assert estimate(steady(2, 2.0), None, 2.0) is None
    assert estimate(steady(2, 2.0), 0, 2.0) is None
    assert estimate(steady(2, 2.0), 10, 2.0) is not None


def test_steady_pace_gives_the_likely_time_and_its_range() -> None:
    # 5 points, 4 intervals of 2 s; 5 of 10 steps done; spread 1 + 1/4
    eta = estimate(steady(5, 2.0), 10, 8.0)
    assert eta is not None
    assert (eta.pace, eta.low, eta.likely, eta.high) == (2.0, 8.0, 10.0, 12.5)


def test_one_interval_says_little_about_the_range() -> None:
    eta = estimate(steady(2, 2.0), 12, 2.0)
    assert eta is not None
    assert (eta.low, eta.likely, eta.high) == (10.0, 20.0, 40.0)


def test_the_quartiles_are_the_range() -> None:
    # durations 1 2 3 4: quartiles 1.5 2.5 3.5; 10 left; spread 1.25
    eta = estimate([(0, 1), (1, 2), (3, 3), (6, 4), (10, 5)], 15, 10.0)
    assert eta is not None
    assert (eta.low, eta.likely, eta.high) == (12.0, 25.0, 43.75)


def test_records_of_several_steps_weigh_as_many() -> None:
    # 10 steps of 1 s in one record, then 1 step of 3 s: the median step took 1 s
    eta = estimate([(0, 0), (10, 10), (13, 11)], 21, 13.0)
    assert eta is not None
    assert (eta.pace, eta.likely) == (1.0, 10.0)


def test_only_the_steps_of_this_attempt_count() -> None:
    # resumed at step 50: five steps in 8 s, whatever the first 49 took
    eta = estimate(steady(5, 2.0, first=50), 100, 8.0)
    assert eta is not None
    assert eta.likely == (100 - 54) * 2.0


def test_one_pause_widens_the_range_alone() -> None:
    # 1 s a step, and 60 s of evaluation in one of 10: excess 60 s over 10 steps, 6 s a step
    points: Points = [(0, 0), *((step + 60.0 * (step >= 5), step) for step in range(1, 11))]
    eta = estimate(points, 20, 70.0)
    assert eta is not None
    assert (eta.pace, eta.likely) == (1.0, 10.0)
    assert eta.high == pytest.approx(10 * (1 * (1 + 1 / 10) + 6))


def test_pauses_that_recur_are_expected_again() -> None:
    # 1 s a step and 10 s of saving at steps 5 and 10: 20 s over 10 steps, 2 s a step
    points: Points = [(step + 10.0 * (step // 5), step) for step in range(11)]
    eta = estimate(points, 20, 30.0)
    assert eta is not None
    assert (eta.pace, eta.likely, eta.low) == (1.0, 30.0, pytest.approx(10 / 1.1))
    assert eta.high == pytest.approx(10 * (1.1 + 2))


def test_a_stalled_run_does_not_come_closer_to_its_end() -> None:
    points = steady(5, 2.0)  # 5 left at 8 s
    told = [estimate(points, 10, now) for now in (8.0, 9.0, 10.0, 100.0, 1000.0)]
    assert [eta.likely for eta in told if eta] == [10.0, 9.0, 8.0, 8.0, 8.0]
    assert [eta.high for eta in told if eta] == [12.5, 11.5, 10.5, 100.5, 1000.5]


def test_finished_run_has_no_time_left() -> None:
    for total in (5, 3):
        eta = estimate(steady(5, 2.0), total, 100.0)
        assert eta is not None
        assert (eta.low, eta.likely, eta.high) == (0, 0, 0)


def test_a_clock_behind_the_writers_takes_nothing_off() -> None:
    eta = estimate(steady(5, 2.0), 10, -50.0)
    assert eta is not None
    assert eta.likely == 10.0


def test_times_beyond_all_bounds_say_nothing() -> None:
    assert estimate([(-1e308, 1), (1e308, 2)], 10, 0.0) is None
    eta = estimate([(5.0, 1), (5.0, 2), (5.0, 3)], 10, 5.0)
    assert eta is not None
    assert (eta.low, eta.likely, eta.high) == (0, 0, 0)


def test_the_newest_points_are_kept() -> None:
    pace = Pace()
    for step in range(1000):
        pace.add(float(step), step)
    assert len(pace.points) == KEPT
    assert pace.points[-1] == (999.0, 999)


def test_a_pause_is_no_time_of_a_step() -> None:
    # 2 s a step; paused at 8 s for 292 s, between steps 5 and 6; waiting for room from 304 s on
    pace = Pace()
    for time, step in steady(5, 2.0):
        pace.add(time, step)
    pace.enter(8.0, "paused")
    eta = estimate(pace.points, 10, pace.clock(200.0))
    assert eta is not None
    assert (eta.likely, eta.high) == (10.0, 12.5), "while it is paused"
    pace.enter(300.0, "train")
    pace.add(302.0, 6)
    pace.add(304.0, 7)
    pace.enter(304.0, "waiting for room on the disk")
    eta = estimate(pace.points, 10, pace.clock(900.0))
    assert eta is not None
    assert (eta.pace, eta.likely, list(pace.points)[-1]) == (2.0, 6.0, (12.0, 7))


def test_repeated_step_counts_once_and_a_rewind_restarts() -> None:
    pace = Pace()
    for time, step in ((0.0, 1), (1.0, 2), (1.5, 2)):
        pace.add(time, step)
    assert list(pace.points) == [(0.0, 1), (1.0, 2)]
    pace.add(3.0, 1)
    assert list(pace.points) == [(3.0, 1)], "an earlier step"
    pace.add(2.0, 2)
    assert list(pace.points) == [(2.0, 2)], "a clock that was set back"
