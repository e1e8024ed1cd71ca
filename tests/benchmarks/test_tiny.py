"""Every benchmark and script in its tiny form, through its own `main`, so that none of them rots."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("benchmarks", "tests/oracles")]

QUICK = (
    "benchmarks/console.py paint redraw --tiny",
    "benchmarks/console_bare.py --tiny",
    "benchmarks/console_four.py --tiny",
    "benchmarks/console_wandb.py --tiny",
    "benchmarks/console_writer.py --tiny",
    "benchmarks/gpu_memory.py",
    "benchmarks/gpu_micro.py",
    "benchmarks/gpu_ppo.py",
    "benchmarks/gpu_ppo_vs_trl.py",
    "benchmarks/gpu_sft.py",
    "benchmarks/memory_accuracy.py --tiny",
    "scripts/demo_results.py write --tiny",
    "scripts/import_graph.py --tiny",
    "scripts/lock.py --tiny",
    "scripts/reference_pages.py metrics",
    "scripts/torture_table.py --tiny",
)
"""Seconds altogether. Those of a GPU find none here, and say so."""

LONG = (
    "benchmarks/console.py idle million values charts log keys leet trainer hour --tiny",
    "benchmarks/arithmetic.py --tiny",
    "benchmarks/formula_vs_trace.py --tiny",
    "benchmarks/gpu_memory.py --tiny",
    "benchmarks/gpu_micro.py --tiny",
    "benchmarks/gpu_ppo.py --tiny",
    "benchmarks/gpu_ppo_vs_trl.py --tiny",
    "benchmarks/gpu_sft.py --tiny",
    "benchmarks/ppo_vs_trl.py --tiny --sides ours",
    "benchmarks/start.py --tiny",
    "benchmarks/threads.py --tiny",
    "benchmarks/tokenising.py --tiny",
    "scripts/demo_results.py record --tiny",
    "scripts/health_series.py --tiny",
    "scripts/ppo_flame.py --tiny",
)

_PATIENCE = 1500  # seconds; the demo, in its tiny form, takes several minutes on a busy machine

ELSEWHERE = {
    "benchmarks/ppo_ours.py": "test_long_program_runs_and_prints",  # as a side of ppo_vs_trl
    "benchmarks/ppo_trl_0_11.py": "test_trl_0_11",
    "benchmarks/ppo_trl_1_12.py": "test_trl_1_12",
    "benchmarks/sft_side.py": "test_long_program_runs_and_prints",  # gpu_sft runs it, once per side
    "scripts/screen_pictures.py": "test_screen_pictures",
    "scripts/screenshots.py": "test_screenshots",
}
"""Programs that need more than their own arguments, and the test here that runs them."""


def run(command: str, python: Path | str = sys.executable) -> str:
    """Run a program of this repository without a GPU and with one thread; return its output."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(python), *command.split()],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def tracked_state() -> str:
    """Return what git says about files that are tracked; tiny runs change none."""
    status = ["git", "status", "--porcelain", "--untracked-files=no"]
    return subprocess.run(status, cwd=ROOT, capture_output=True, text=True).stdout


@pytest.mark.parametrize("command", QUICK)
def test_quick_program_runs_and_prints(command: str) -> None:
    assert run(command)


@pytest.mark.long
@pytest.mark.timeout(_PATIENCE + 100)
@pytest.mark.parametrize("command", LONG)
def test_long_program_runs_and_prints(command: str) -> None:
    before = tracked_state()
    assert run(command)
    assert tracked_state() == before, "a tiny run changed files of the repository"


@pytest.mark.long
@pytest.mark.timeout(_PATIENCE + 100)
def test_trl_1_12() -> None:
    import environment  # pyright: ignore[reportMissingImports]

    python = environment.python_of("trl")
    if python is None:
        pytest.skip("the environment of TRL 1.12.0 is not built: `make oracles` builds it")
    assert '"seconds"' in run("benchmarks/ppo_trl_1_12.py --tiny", python)


@pytest.mark.long
@pytest.mark.timeout(_PATIENCE + 100)
def test_trl_0_11() -> None:
    import ppo_vs_trl  # pyright: ignore[reportMissingImports]

    home = _environments(ppo_vs_trl) / "trl-0.11.4"
    if not (home / "complete").exists():
        pytest.skip(f"{home} is not built: `python benchmarks/ppo_vs_trl.py` builds it (1 GB)")
    assert '"seconds"' in run("benchmarks/ppo_trl_0_11.py --tiny", home / "bin" / "python")


def _environments(module: ModuleType) -> Path:
    return module._options([]).environments


@pytest.mark.long
@pytest.mark.timeout(_PATIENCE + 100)
def test_screenshots(tmp_path: Path) -> None:
    run(f"scripts/screenshots.py --tiny --out {tmp_path}")
    assert {path.suffix for path in tmp_path.iterdir()} == {".svg"}


@pytest.mark.long
@pytest.mark.timeout(_PATIENCE + 100)
def test_screen_pictures(tmp_path: Path) -> None:
    run(f"scripts/screen_pictures.py --out {tmp_path}")
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.svg")}
    shown = {target for page in ("screens.md", "howto/gpus.md") for target in _pictures(ROOT / "docs" / page)}
    assert shown == made


def _pictures(page: Path) -> list[str]:
    """Return the pictures that a page shows, below docs/images."""
    return re.findall(r"\]\((?:\.\./)?images/([\w/-]+\.svg)\)", page.read_text())


def test_every_program_is_run_here() -> None:
    programs = {
        str(path.relative_to(ROOT))
        for folder in ("benchmarks", "scripts")
        for path in (ROOT / folder).glob("*.py")
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in ast.parse(path.read_text()).body)
    }
    assert programs == {command.split()[0] for command in (*QUICK, *LONG)} | set(ELSEWHERE)
