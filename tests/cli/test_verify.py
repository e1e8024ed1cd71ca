"""``runs verify``."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from stackllama_engine.contract.checkpoints import FileSeal, Manifest
from stackllama_engine.contract.run_dir import RunDir
from stackllama_engine.contract.stages import Stage


def put(run: RunDir, step: int, content: bytes = b"weights") -> Path:
    path = run.checkpoints / f"step-{step:06d}"
    path.mkdir()
    (path / "weights").write_bytes(content)
    seal = FileSeal(size=7, sha256=hashlib.sha256(b"weights").hexdigest())
    (path / "manifest.json").write_bytes(msgspec.json.encode(Manifest(step=step, files={"weights": seal})))
    return path


def test_verify_lists_checkpoints_and_the_one_to_resume_from(
    make_run: Callable[..., RunDir], run_main: Callable[..., Any]
) -> None:
    run = make_run(Stage.SFT, "mine")
    put(run, 1)
    put(run, 2)
    put(run, 3, b"WEIGHTS")
    (run.checkpoints / ".tmp-000004").mkdir()
    result = run_main("runs", "verify", "mine")
    assert result.code == 1 and "1 of 3 damaged; resume would start from step-000002" in result.err
    assert result.out.splitlines() == [
        "step-000001  ok",
        "step-000002  ok",
        "step-000003  damaged  weights is not as it was sealed",
    ]
    document = run_main("runs", "verify", "mine", "--json")
    found = document.json()
    assert document.code == 1 and found["resumes_from"] == "step-000002"
    assert found["checkpoints"][2] == {
        "checkpoint": "step-000003",
        "step": 3,
        "ok": False,
        "problem": "weights is not as it was sealed",
    }


def test_verify_exits_with_0_when_all_are_valid(make_run: Callable[..., RunDir], run_main: Callable[..., Any]) -> None:
    run = make_run(Stage.SFT, "mine")
    put(run, 1)
    put(run, 2)
    assert run_main("runs", "verify", "mine").code == 0


def test_verify_exits_with_1_when_none_is_valid(make_run: Callable[..., RunDir], run_main: Callable[..., Any]) -> None:
    run = make_run(Stage.SFT, "mine")
    assert run_main("runs", "verify").code == 1
    put(run, 3, b"WEIGHTS")
    result = run_main("runs", "verify")
    assert (result.code, "no valid checkpoint" in result.err) == (1, True)


def test_verify_sanitises_hostile_names(
    make_run: Callable[..., RunDir], run_main: Callable[..., Any], assert_clean: Callable[[str], None]
) -> None:
    run = make_run(Stage.SFT, "mine")
    (put(run, 3) / "\x1b[2J\u202e").write_bytes(b"")
    result = run_main("runs", "verify", "mine")
    assert result.code == 1
    assert_clean(result.out)


def test_verify_of_a_pipeline_names_its_stages(make_run: Callable[..., RunDir], run_main: Callable[..., Any]) -> None:
    make_run(Stage.PIPELINE, "all")
    result = run_main("runs", "verify", "all")
    assert result.code == 2
    assert "all-sft, all-reward, all-ppo" in result.err
