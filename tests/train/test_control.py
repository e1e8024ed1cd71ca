"""Requests to a stage through a ``control/`` that cannot be read or written."""

import errno
import shutil
from pathlib import Path

import pytest

from stackllama_engine.contract import requests
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train.control import Wanted

from .in_process import PPO, attempt


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_control_that_is_a_circular_link_holds_no_request(home: Home, base: Path) -> None:
    with attempt(home, base, Stage.SFT, "use_cpu=true") as one:
        shutil.rmtree(one.run.control)
        one.run.control.symlink_to(one.run.control)
        polled = one.session.requests
        assert polled.poll(1) == Wanted() and not polled.agree().stop
        polled.leave_early()
        polled.served("save", 1)
        assert "control/save cannot be removed" in one.health


def test_a_request_that_cannot_be_removed_is_served_once(
    home: Home, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with attempt(home, base, Stage.PPO, *PPO) as one:
        polled = one.session.requests
        requests.write(one.run, "save")
        requests.write(one.run, "set", requests.Change("kl_coef", 0.5))
        monkeypatch.setattr(requests, "forget", read_only)
        wanted = polled.poll(1)
        assert wanted.save and [change.key for change in wanted.changes] == ["kl_coef"]
        polled.served("save", 1)
        polled.served("set", 1, wanted.changes[0])
        assert polled.poll(2) == Wanted()
        assert one.health.count("cannot be removed (Read-only file system)") == 2
        one.run.request("stop")
        assert polled.poll(3).stop
