"""A launcher of one process: its environment is accelerate's, its exit code the worker's, and it imports neither."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env

from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.argv import ACCELERATE_FILE, build_command
from stackllama_engine.train import accelerate_cli


def arguments_of(run: Path, gpus: list[str], **values: object) -> list[str]:
    """Return accelerate's arguments as a launch writes them, with its file in the run directory."""
    recipe = build_recipe(Stage.SFT, {"model_name_or_path": "gpt2", "num_processes": 1, **values})
    command = build_command(recipe, run, gpus)
    (run / ACCELERATE_FILE).write_text(command.files[ACCELERATE_FILE])
    return command.argv[3:]


@pytest.mark.parametrize(("gpus", "values"), [([], {}), ([], {"bf16": True}), (["0"], {"bf16": True}), (["0"], {})])
def test_one_process_gets_the_environment_that_accelerate_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: list[str], values: dict[str, object]
) -> None:
    words = arguments_of(tmp_path, gpus, **values)
    ours = accelerate_cli.one_process(words)
    assert ours is not None
    command, added = ours
    for name in added:
        monkeypatch.delenv(name, raising=False)
    from accelerate.commands import launch

    monkeypatch.setenv("ACCELERATE_USE_CPU", str(not gpus).lower())  # as a launch sets it
    options, _, _ = launch._validate_launch_command(launch_command_parser().parse_args(words[1:]))
    before = dict(os.environ)
    theirs, environment = prepare_simple_launcher_cmd_env(options)
    assert command == theirs == [sys.executable, "-m", "stackllama_engine.train", "sft", str(tmp_path)]
    assert {name: value for name, value in environment.items() if before.get(name) != value} == {
        name: value for name, value in added.items() if before.get(name) != value
    }


def test_several_processes_are_accelerates(tmp_path: Path) -> None:
    assert accelerate_cli.one_process(arguments_of(tmp_path, [], use_cpu=True, num_processes=2)) is None
    assert accelerate_cli.one_process([*arguments_of(tmp_path, [])[:3], "--tpu", "-m", "x"]) is None
    assert accelerate_cli.one_process(["config"]) is None


@pytest.mark.parametrize(("worker", "launcher"), [(-9, 137), (-11, 139), (1, 1), (3, 3), (75, 75)])
def test_exit_code_is_the_workers(worker: int, launcher: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["accelerate", *arguments_of(tmp_path, [])])
    monkeypatch.setattr(accelerate_cli.subprocess, "Popen", lambda *_, **__: SimpleNamespace(wait=lambda: worker))
    with pytest.raises(SystemExit) as ended:
        accelerate_cli.run()
    assert ended.value.code == launcher


def test_success_raises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["accelerate", *arguments_of(tmp_path, [])])
    monkeypatch.setattr(accelerate_cli.subprocess, "Popen", lambda *_, **__: SimpleNamespace(wait=lambda: 0))
    accelerate_cli.run()


def test_launcher_imports_neither_torch_nor_accelerate() -> None:
    code = "import sys, stackllama_engine.train.accelerate_cli; print({'torch', 'accelerate'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
