"""When a checkpoint is due by the clock, and what is said of its cost."""

from pathlib import Path

import pytest

from stackllama_engine.contract.events import EventReader
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train.reporting import Reporter
from stackllama_engine.train.save_timer import SaveTimer

MIB = 1 << 20


class Timed:
    """A timer of ``minutes`` whose clock a test moves on."""

    def __init__(self, reporter: Reporter, minutes: float) -> None:
        self.now = 0.0
        self.reporter = reporter
        self.timer = SaveTimer(minutes, reporter, lambda: self.now)

    def due(self, step: int, *, after: float) -> bool:
        self.now += after
        return self.timer.due(step)

    def save(self, step: int, *, seconds: float, size: int | None = 85 * MIB, last: bool = False) -> None:
        self.timer.begin()
        self.now += seconds
        self.timer.end(step, size, last=last)

    @property
    def said(self) -> list[str]:
        events = EventReader(self.reporter.run.attempt_dir(1) / "events.jsonl").read()
        return [event.data["message"] for event in events if event.kind == "health"]


@pytest.fixture
def reporter(tmp_path: Path) -> Reporter:
    run = Home(tmp_path).create(Stage.SFT, "", "mine")
    run.attempt_dir(1).mkdir()
    return Reporter(run, 1, is_main=True)


@pytest.fixture
def timed(reporter: Reporter) -> Timed:
    return Timed(reporter, 15)


def test_the_first_comes_in_the_first_minutes_and_then_one_every_interval(timed: Timed) -> None:
    assert not timed.due(1, after=119)
    assert timed.due(2, after=1)
    timed.save(2, seconds=1.2)
    assert not timed.due(3, after=899.5)
    assert timed.due(4, after=0.5)


def test_an_interval_of_less_than_the_first_minutes_counts_from_the_beginning(reporter: Reporter) -> None:
    timed = Timed(reporter, 0.5)
    assert timed.due(1, after=30)


def test_whatever_was_saved_in_between_begins_the_interval_anew(timed: Timed) -> None:
    timed.save(1, seconds=1)
    timed.now += 800
    timed.save(7, seconds=1)  # asked for, or by steps
    assert not timed.due(8, after=200)
    assert timed.due(9, after=700)


def test_in_a_pause_what_is_saved_is_not_saved_again(timed: Timed) -> None:
    timed.save(3, seconds=1)
    assert not timed.due(3, after=36_000)
    assert timed.due(4, after=0)


def test_zero_is_never(reporter: Reporter) -> None:
    timed = Timed(reporter, 0)
    assert not timed.due(1, after=1e9)
    timed.save(1, seconds=1)
    assert not timed.due(2, after=1e9)
    assert timed.said == ["a checkpoint takes 1.0 s and 85 MiB"]


def test_the_cost_is_said_once_with_its_share_of_the_time(timed: Timed) -> None:
    timed.save(1, seconds=1.2)
    timed.save(2, seconds=2.4)
    assert timed.said == ["a checkpoint takes 1.2 s and 85 MiB: 0.13 % of the time at one every 15 minutes"]


def test_of_a_save_that_ends_the_run_or_fails_nothing_is_said(timed: Timed) -> None:
    timed.save(1, seconds=1, size=None)
    timed.save(2, seconds=1, last=True)
    assert timed.said == []


def test_a_save_that_failed_is_not_tried_again_at_every_step(timed: Timed) -> None:
    timed.save(1, seconds=1, size=None)
    assert not timed.due(2, after=60)
    assert timed.due(3, after=60)


def test_saves_that_would_eat_the_run_come_less_often_which_is_said_once(timed: Timed) -> None:
    timed.save(1, seconds=90, size=84 << 30)
    assert timed.said == [
        "a checkpoint takes 90.0 s and 84.0 GiB, more than 5 % of the 15 minutes of `save_minutes`: one is now "
        "written every 30 minutes"
    ]
    assert not timed.due(2, after=1799)
    assert timed.due(3, after=1)
    timed.save(3, seconds=180)
    assert len(timed.said) == 1
    assert not timed.due(4, after=3599) and timed.due(5, after=1)
    timed.save(5, seconds=1)  # a disk that was busy with others
    assert timed.due(6, after=900)
