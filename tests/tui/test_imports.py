"""The console never loads what trains; readers and commands never load Textual. As seen in `sys.modules`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import stackllama_console
from stackllama_engine.contract.child_environment import source_path

ROOT = Path(stackllama_console.__file__).parent
TRAINING = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")
DRAWING = ("textual", *TRAINING)


def _modules(*folders: str) -> list[str]:
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py") if file.stem != "__init__"]
    return sorted(".".join(("stackllama_console", *file.relative_to(ROOT).with_suffix("").parts)) for file in files)


def _loaded(code: str, watched: tuple[str, ...]) -> set[str]:
    source = f"import sys, importlib\n{code}\nprint(*set({watched!r}) & set(sys.modules))"
    path = os.pathsep.join([str(ROOT.parent), source_path("").get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", source], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def _importing(modules: list[str]) -> str:
    return f"for name in {modules!r}: importlib.import_module(name)"


def test_the_whole_console_loads_nothing_that_trains() -> None:
    assert _loaded(_importing(_modules("tui", "readers", "cli")), TRAINING) == set()


def test_readers_load_no_textual() -> None:
    assert _loaded(_importing(_modules("readers")), DRAWING) == set()


def test_screens_load_no_command() -> None:
    assert _loaded(_importing(_modules("tui", "readers")), ("stackllama_console.cli",)) == set()


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["runs", "ls"], ["info"]])
def test_commands_without_a_screen_load_no_textual(words: list[str]) -> None:
    lines = ("from stackllama_console.__main__ import main", "sys.stdout, out = sys.stderr, sys.stdout")
    assert _loaded("\n".join((*lines, f"main({words!r})", "sys.stdout = out")), DRAWING) == set()


def test_import_check_can_fail() -> None:
    assert _loaded("import stackllama_console.tui.app", ("textual",)) == {"textual"}
