"""The command of the process that chats with a run."""

import sys
from pathlib import Path

import pytest

from stackllama_engine.contract.run_dir import RunDir
from stackllama_engine.launch.chat_process import chat_command


def test_chat_command_is_argv_without_the_launchers_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")  # of somebody else's launcher
    monkeypatch.setenv("STACKLLAMA_RUN", "/a/run")
    run = RunDir(tmp_path / "my runs; $(id)")
    argv, environment = chat_command(run, "step-000003", cpu=True)
    module = [sys.executable, "-P", "-m", "stackllama_engine.train.chat", str(run.path)]
    assert argv == [*module, "--checkpoint=step-000003", "--cpu"]
    assert chat_command(run)[0] == module
    assert not environment.keys() & {"RANK", "STACKLLAMA_RUN"}
    assert (Path(environment["PYTHONPATH"].split(":")[0]) / "stackllama_engine").is_dir()
