"""Trackers on a disk that is full: they lose or delay what they were given, and end no run."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stackllama_engine.contract.events import EventReader
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import trackers
from stackllama_engine.train.reporting import Reporter


@pytest.fixture
def reporter(tmp_path: Path) -> Iterator[Reporter]:
    run = Home(tmp_path / "home").create(Stage.SFT, "{}")
    run.attempt_dir(1).mkdir()
    reporter = Reporter(run, 1, is_main=True)
    yield reporter
    reporter.end(0)


def no_room() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Writer:
    """TensorBoard's, whose thread dies at the first write that fails: every later one fails as well."""

    room = False

    def __init__(self, log_dir: str) -> None:
        self.log_dir = log_dir
        self.dead = False


class Accelerate:
    """accelerate, with TensorBoard."""

    def __init__(self) -> None:
        self.trackers = [SimpleNamespace(name="tensorboard", writer=Writer("there"))]
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log(self, metrics: dict[str, float], step: int) -> None:
        writer = self.trackers[0].writer
        writer.dead |= not Writer.room
        if writer.dead:
            no_room()
        self.logged.append((step, metrics))


def test_metrics_that_find_no_room_come_late_and_in_order(reporter: Reporter, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerate = Accelerate()
    trackers.log(accelerate, {"loss": 3.0}, 1, reporter)
    trackers.log(accelerate, {"loss": 2.0}, 2, reporter)
    assert accelerate.logged == [] and reporter.disk.waits
    monkeypatch.setattr(Writer, "room", True)
    assert reporter.disk.poll() is None
    assert accelerate.logged == [(1, {"loss": 3.0}), (2, {"loss": 2.0})] and not reporter.disk.waits


def test_another_error_of_a_tracker_is_one(reporter: Reporter) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no such host")

    with pytest.raises(ConnectionError):
        trackers.log(SimpleNamespace(trackers=[1], log=unreachable), {"loss": 3.0}, 1, reporter)
    assert not reporter.disk.waits, "it is not tried for ever"


def test_the_trainers_own_trackers_end_no_training(reporter: Reporter) -> None:
    class Board:
        """As transformers' callback of TensorBoard."""

        tb_writer: Any = object()

        def on_log(self, *_: Any, **__: Any) -> None:
            no_room()

    Board.__module__ = "transformers.integrations.integration_utils"
    board = Board()
    trackers.survive_trackers(SimpleNamespace(callback_handler=SimpleNamespace(callbacks=[board])), reporter)
    assert board.on_log() is None and board.tb_writer is None, "the next call makes another writer"
    (event,) = EventReader(reporter.run.attempt_dir(1) / "events.jsonl").read()
    assert event.data["message"] == "the disk is full: Board lost metrics"
