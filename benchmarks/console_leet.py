"""Weights & Biases' terminal viewer, LEET, beside ours on the same four metrics, in turns.

Needs ``wandb`` in this environment, or in the one whose Python ``WANDB_PYTHON`` names; without it nothing is measured.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import console_marks as marks
from console_live import Writer
from console_measurement import KIB, Measurement, Sizes, median, say, spread
from console_runs import long_sft
from console_terminal import BARE, BENCHMARKS, CONSOLE, Terminal

from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage

_PYTHON = os.environ.get("WANDB_PYTHON", sys.executable)
_LAST = 0.7531
_OVERVIEW = "Run Overview"
_FOUR = (sys.executable, str(BENCHMARKS / "console_four.py"))
_RATE = 2


def leet(scratch: Path, sizes: Sizes) -> list[Measurement]:
    """Measure bytes of four live charts, first paint, and opening a long run, on both sides."""
    version = _version()
    if not version:
        return [
            Measurement(
                name="beside LEET",
                wanted="as much or less",
                measured="not measured: wandb is not installed here (pip install wandb, or WANDB_PYTHON=…/bin/python)",
            )
        ]
    return [*_bytes(scratch, sizes, version), *_opening(scratch, sizes, version)]


def _bytes(scratch: Path, sizes: Sizes, version: str) -> list[Measurement]:
    sides = ("charts alone", "whole monitor", "LEET")
    rates: dict[str, list[float]] = {side: [] for side in sides}
    loads: dict[str, list[float]] = {side: [] for side in sides}
    home = scratch / "home"
    with Writer("four", home, "live", sizes.history, _RATE), _wandb(scratch / "live", sizes.history, _RATE) as folder:
        commands = {
            "charts alone": ([*_FOUR, str(home), "live"], ("loss", "grad_norm")),
            "whole monitor": ([*CONSOLE, "--home", str(home), "open", "live"], ("live", *marks.charts(Stage.SFT, 2))),
            "LEET": (_leet(folder), (_OVERVIEW, "grad_norm")),
        }
        for _ in range(sizes.few):
            for side, (argv, shown) in commands.items():
                with Terminal(argv, scratch) as terminal:
                    terminal.wait_for(*shown)
                    time.sleep(sizes.warm)
                    start, cpu = time.monotonic(), _cpu(terminal)
                    time.sleep(sizes.watched)
                    rates[side].append(terminal.bytes_since(start) / sizes.watched)
                    loads[side].append((_cpu(terminal) - cpu) / sizes.watched)
    theirs = f"LEET {version}: {median(rates['LEET']) / KIB:.2f} KiB/s, {median(loads['LEET']):.1%}"
    bounds = {"charts alone": 1.0, "whole monitor": 2.0}
    return [
        Measurement(
            name=f"four live charts of {sizes.history:,} points, 2 Hz, {side}",
            wanted=f"≤ {bound:g} KiB/s",
            measured=f"{median(rates[side]) / KIB:.2f} KiB/s, {median(loads[side]):.1%} of a core",
            bare=theirs,
            passed=median(rates[side]) <= bound * KIB,
            notes=[
                f"{sizes.few} turns of {sizes.watched:g} s: {spread(rates[side], 1 / KIB, 2)} KiB/s, "
                f"LEET {spread(rates['LEET'], 1 / KIB, 2)}; the same four metrics, no log lines, no samples"
            ],
        )
        for side, bound in bounds.items()
    ]


def _opening(scratch: Path, sizes: Sizes, version: str) -> list[Measurement]:
    say(f"       writing two runs of {sizes.leet_steps:,} steps …")
    home = Home(scratch / "opening")
    run = long_sft(home, "long", 2 * sizes.leet_steps, _LAST)
    last = f"{_LAST}"[:5]
    first: dict[str, list[float]] = {"ours": [], "LEET": [], "bare": []}
    whole: dict[str, list[float]] = {"ours": [], "LEET": []}
    loads: dict[str, list[float]] = {"ours": [], "LEET": []}

    def opened(side: str, terminal: Terminal) -> None:
        """Wait until all is drawn: the last value may stand elsewhere on the screen before."""
        terminal.settle(3.0)
        whole[side].append(terminal.chunks[-1][0] - terminal.started)
        loads[side].append(_cpu(terminal))

    with _wandb(scratch / "long", sizes.leet_steps) as folder:
        for _ in range(sizes.few):
            with Terminal([*CONSOLE, "--home", str(home.path), "open", run.id], scratch) as terminal:
                first["ours"].append(terminal.wait_for(marks.runs_screen()[-1]) - terminal.started)
                terminal.wait_for(run.id, last)
                opened("ours", terminal)
            with Terminal(_leet(folder), scratch) as terminal:
                first["LEET"].append(terminal.wait_for(_OVERVIEW) - terminal.started)
                terminal.wait_for("grad_norm")
                opened("LEET", terminal)
            with Terminal([*BARE, "static"], scratch) as terminal:
                first["bare"].append(terminal.wait_for("a bare application") - terminal.started)
    ratio = median([ours / bare for ours, bare in zip(first["ours"], first["bare"], strict=True)])
    return [
        Measurement(
            name="first paint, on a run",
            wanted="≤ 1.2 × bare",
            measured=f"{median(first['ours']):.2f} s = {ratio:.2f} ×",
            bare=f"{median(first['bare']):.2f} s, LEET {version}: {median(first['LEET']):.2f} s",
            passed=ratio <= 1.2,
            notes=[f"{sizes.few} turns; ours {spread(first['ours'], 1, 2)}, LEET {spread(first['LEET'], 1, 2)} s"],
        ),
        Measurement(
            name=f"opening {sizes.leet_steps:,} steps of four metrics",
            wanted="≤ 1 s",
            measured=f"{median(whole['ours']):.2f} s",
            bare=f"LEET {version}: {median(whole['LEET']):.2f} s",
            passed=median(whole["ours"]) <= 1,
            notes=[
                f"{sizes.few} turns; ours {spread(whole['ours'], 1, 2)}, LEET {spread(whole['LEET'], 1, 2)} s; "
                f"of processor time {median(loads['ours']):.2f} and {median(loads['LEET']):.2f} s"
            ],
        ),
    ]


def _version() -> str:
    """Return wandb's version; empty where it is not installed."""
    code = "from importlib.metadata import version; print(version('wandb'))"
    done = subprocess.run([_PYTHON, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 and Path(_PYTHON).with_name("wandb").exists() else ""


def _leet(folder: str) -> list[str]:
    return [str(Path(_PYTHON).with_name("wandb")), "leet", folder]


@contextmanager
def _wandb(folder: Path, steps: int, rate: float | None = None) -> Iterator[str]:
    """Have a run written by wandb, live with a rate; yield its folder."""
    argv = [_PYTHON, str(BENCHMARKS / "console_wandb.py"), str(folder), str(steps), str(_LAST)]
    with subprocess.Popen(
        [*argv, *([str(rate)] if rate else [])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline().partition(" ")
        if said[0] != "ready":
            raise RuntimeError("wandb wrote no run")
        yield said[2].strip()
        process.communicate()


def _cpu(terminal: Terminal) -> float:
    """Return the processor time of the terminal's processes: LEET is started by a launcher."""
    children = Path(f"/proc/{terminal.process.pid}/task/{terminal.process.pid}/children").read_text().split()
    return terminal.cpu() + sum(terminal.cpu(int(child)) for child in children)
