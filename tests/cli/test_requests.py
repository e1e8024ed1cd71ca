"""Requests to a running run from the command line."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from stackllama_engine.contract import requests
from stackllama_engine.contract.children import CHILDREN, child_id
from stackllama_engine.contract.requests import Change
from stackllama_engine.contract.run_dir import RunDir
from stackllama_engine.contract.stages import Stage

MakeRun = Callable[..., RunDir]


@pytest.mark.parametrize("ask", ["save", "sample", "pause", "continue"])
def test_request_is_one_file(ask: str, make_run: MakeRun, run_main: Callable[..., Any]) -> None:
    run = make_run(Stage.PPO, "one", "running")
    result = run_main("runs", ask, "one", "--json")
    assert result.code == 0 and result.err.startswith("one ")
    assert json.loads(result.out)["asked"] == ask
    assert list(run.requests()) == [ask]


def test_pause_says_what_it_keeps_and_how_to_continue(make_run: MakeRun, run_main: Callable[..., Any]) -> None:
    make_run(Stage.SFT, "one", "running")
    said = run_main("runs", "pause", "one").err
    assert "memory stays allocated" in said and "runs continue one" in said


def test_set_request_carries_its_value(make_run: MakeRun, run_main: Callable[..., Any]) -> None:
    run = make_run(Stage.PPO, "one", "running")
    assert run_main("runs", "set", "one", "kl_coef=0.05").code == 0
    assert requests.changes(run) == ([Change("kl_coef", 0.05)], [])


@pytest.mark.parametrize(
    ("stage", "phase", "words", "code", "why"),
    [
        (Stage.REWARD, "running", ["sample", "one"], 3, "generates no responses"),
        (Stage.REWARD, "running", ["set", "one", "kl_coef=1"], 3, "cannot change"),
        (Stage.PPO, "running", ["set", "one", "kl_coef=-1"], 2, "kl_coef"),
        (Stage.PPO, "finished", ["pause", "one"], 3, "has ended"),
        (Stage.PPO, "finished", ["save", "one"], 3, "nothing to save"),
        (Stage.MERGE, "running", ["pause", "one"], 3, "only be stopped"),
        (Stage.PIPELINE, "running", ["pause", "one"], 3, "between two stages"),
    ],
)
def test_refusals_write_nothing(
    stage: Stage, phase: str, words: list[str], code: int, why: str, make_run: MakeRun, run_main: Callable[..., Any]
) -> None:
    run = make_run(stage, "one", phase)
    result = run_main("runs", *words)
    assert result.code == code and why in result.err
    assert list(run.requests()) == []


def test_request_to_a_pipeline_goes_to_its_active_stage(make_run: MakeRun, run_main: Callable[..., Any]) -> None:
    pipeline = make_run(Stage.PIPELINE, "p", "running")
    child = make_run(Stage.SFT, child_id("p", CHILDREN[0].suffix), "running")
    launch = {"argv": [], "cwd": "/", "host": "here", "created": 0.0, "parents": ["p"]}
    (child.path / "launch.json").write_bytes(msgspec.json.encode(launch))
    result = run_main("runs", "pause", "p")
    assert result.code == 0 and child.id in result.err
    assert list(child.requests()) == ["pause"] and list(pipeline.requests()) == []


def test_resume_of_a_paused_run_names_continue(
    make_run: MakeRun, write_events: Callable[..., None], run_main: Callable[..., Any]
) -> None:
    run = make_run(Stage.SFT, "one", "running")
    write_events(run, ("phase", {"phase": "train"}), ("phase", {"phase": requests.PAUSED}))
    result = run_main("runs", "resume", "one")
    assert result.code == 3
    assert "Run `one` is paused; continue it: `stackllama-console runs continue one`." in result.err
    write_events(run, ("phase", {"phase": "train"}))
    assert "Run `one` is alive; stop it first" in run_main("runs", "resume", "one").err
    assert "is alive; stop it first" in run_main("runs", "rm", "one", "--yes").err


def test_resume_of_a_pipeline_with_a_paused_stage_names_continue(
    make_run: MakeRun, write_events: Callable[..., None], run_main: Callable[..., Any]
) -> None:
    make_run(Stage.PIPELINE, "p", "running")
    child = make_run(Stage.SFT, child_id("p", CHILDREN[0].suffix), "running")
    launch = {"argv": [], "cwd": "/", "host": "here", "created": 0.0, "parents": ["p"]}
    (child.path / "launch.json").write_bytes(msgspec.json.encode(launch))
    write_events(child, ("phase", {"phase": requests.PAUSED}))
    assert "runs continue p`" in run_main("runs", "resume", "p").err
