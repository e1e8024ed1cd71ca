"""Requests as files: written, pending, and refused before they are written."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from stackllama_engine.contract import requests
from stackllama_engine.contract.errors import RefusedError, UsageError
from stackllama_engine.contract.requests import Ask, Change
from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return Home(tmp_path).create(Stage.PPO, "", "one")


def state(stage: Stage, phase: str = "running") -> State:
    return State(stage=stage, phase=phase, created=time.time())  # type: ignore[arg-type]


def test_newest_change_of_a_key_waits_until_it_is_forgotten(run: RunDir) -> None:
    requests.write(run, "set", Change("kl_coef", 0.5))
    requests.write(run, "set", Change("kl_coef", 0.0))
    requests.write(run, "set", Change("learning_rate", 1e-5))
    assert requests.changes(run) == ([Change("kl_coef", 0.0), Change("learning_rate", 1e-5)], [])
    requests.forget(run, "set-kl_coef")
    requests.forget(run, "set-kl_coef")
    assert requests.changes(run) == ([Change("learning_rate", 1e-5)], [])


def test_a_change_that_cannot_be_read_is_named(run: RunDir) -> None:
    (run.control / "set-kl_coef").write_text("a lot")
    assert requests.changes(run) == ([], ["set-kl_coef"])
    requests.forget(run, "set-kl_coef")
    assert list(run.requests()) == []


def test_pause_and_continue_withdraw_each_other(run: RunDir) -> None:
    requests.write(run, "pause")
    requests.write(run, "continue")
    assert list(run.requests()) == ["continue"]
    requests.write(run, "pause")
    requests.write(run, "sample")
    assert list(run.requests()) == ["pause", "sample"]
    requests.forget_all(run)
    assert list(run.requests()) == []


def test_unreadable_control_directory_has_no_requests(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    requests.write(run, "save")
    run.request("stop")
    assert run.asked_to_stop()
    for number in (errno.EACCES, errno.EIO, errno.ESTALE, errno.ELOOP):
        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", failing(number))
            patch.setattr(os, "stat", failing(number))
            assert list(run.requests()) == [] and not run.asked_to_stop()
            requests.forget_all(run)
    assert list(run.requests()) == ["save", "stop"]


def failing(number: int) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("stage", "phase", "ask", "why"),
    [
        (Stage.REWARD, "running", "sample", "generates no responses"),
        (Stage.MERGE, "running", "pause", "can only be stopped"),
        (Stage.SFT, "stopped", "continue", "has ended"),
        (Stage.SFT, "stopping", "pause", "stopping already"),
    ],
)
def test_check_refuses_requests_that_cannot_be_served(stage: Stage, phase: str, ask: Ask, why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        requests.check("one", state(stage, phase), ask)


def test_change_is_checked_by_the_recipes_bounds() -> None:
    assert requests.parse_change(Stage.PPO, "kl_coef=1e-2") == Change("kl_coef", 0.01)
    assert requests.parse_change(Stage.SFT, "learning_rate=2e-5") == Change("learning_rate", 2e-5)
    for text in ("kl_coef=-1", "learning_rate=0", "learning_rate=fast", "learning_rate"):
        with pytest.raises(UsageError):
            requests.parse_change(Stage.PPO, text)
    with pytest.raises(RefusedError, match="`gamma` cannot change"):
        requests.parse_change(Stage.PPO, "gamma=1")
    with pytest.raises(RefusedError, match="`learning_rate`"):
        requests.parse_change(Stage.SFT, "kl_coef=0.1")
