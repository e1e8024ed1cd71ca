"""What GPU benchmarks have in common: precisions, variants of the engine, time limits, prepared models.

Imports no torch, so that the process that plans and waits is light.
"""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import floor
import ppo_work
from gpu_results import ROOT
from ppo_work import Work

sys.path.insert(0, str(ROOT / "engine"))

from stackllama_engine.launch.gpus import first_card
from stackllama_engine.train.left_out import NAMES, VARIABLE

PRECISIONS = {
    "float32": ("load_in_8bit=false", "dtype=float32"),
    "bf16": ("load_in_8bit=false", "dtype=bfloat16", "bf16=true"),
    "int8": ("load_in_8bit=true", "bf16=true"),
    "nf4": ("load_in_8bit=false", "load_in_4bit=true", "bf16=true"),
}
"""Recipe keys of each precision of the base."""
SECONDS = 240.0
"""Time limit of one model."""
_TINY_SECONDS = 1400.0  # on a CPU that others use as well
_SPARE = 15.0  # of these, left for what took longer than it did before
PATHS = tuple(name for name in NAMES if name != "varlen")
"""Faster paths that PPO takes; its rows are not packed."""
_LEFT_OUT: dict[str, str] = {"all": "", **{f"without {name}": name for name in PATHS}, "none": ",".join(PATHS)}
VARIANTS = (*_LEFT_OUT, "with liger")
"""The engine as it is, without each of the faster paths, without all of them, and with Liger's kernels."""


def leave_out(variant: str) -> tuple[str, ...]:
    """Set what the engine leaves out in this process; return the recipe keys that belong to the variant."""
    os.environ[VARIABLE] = _LEFT_OUT.get(variant, "")
    return ("use_liger_kernel=true",) if variant == "with liger" else ()


def is_available(variant: str) -> bool:
    """Return whether the packages of a variant are installed."""
    return variant != "with liger" or importlib.util.find_spec("liger_kernel") is not None


def shape_of(work: Work) -> floor.Shape:
    """Return the sizes of a work's model for floors."""
    return floor.Shape(
        work.hidden, work.intermediate, work.layers, work.heads, work.kv_heads or work.heads, work.vocabulary
    )


def device_name(options: argparse.Namespace) -> str:
    """Return the card's name, or CPU."""
    card = None if options.tiny else first_card()
    return card.name if card else "CPU"


class Deadline:
    """The end of a model's time, and what is still begun before it."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds - _SPARE

    def allows(self, seconds: float) -> bool:
        """Return whether something that takes so long still ends in time."""
        return time.monotonic() + seconds < self._end


def parser(description: str, models: Sequence[str]) -> argparse.ArgumentParser:
    """Return the options that GPU benchmarks share."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--models", nargs="+", choices=models, default=list(models), help="sizes of the random LLaMA")
    options.add_argument("--seconds", type=float, default=SECONDS, help="time limit per model; run again to resume")
    options.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements", help="where results go")
    options.add_argument("--work", type=Path, help="where models are kept for the next run; default: nowhere")
    options.add_argument("--tiny", action="store_true", help="a tiny model on the CPU: whether it runs, not how fast")
    options.add_argument("--worker", metavar="MODEL", help=argparse.SUPPRESS)
    return options


def start(
    options: argparse.Namespace, program: Path, more: Sequence[Any], finish: Callable[[argparse.Namespace], bool]
) -> int:
    """Measure each model in a process of its own, ended at its time limit; then write the table.

    Args:
        options: of :func:`parser`.
        program: the benchmark, which is started again with ``--worker``.
        more: its own options.
        finish: writes the table from the results in ``options.out``; returns whether anything failed.

    Returns:
        the exit code: 1 where something failed.
    """
    card = None if options.tiny else first_card()
    if card is None and not options.tiny:
        print("No GPU here: nothing was measured. `--tiny` tries it on the CPU.")
        return 0
    if options.tiny:
        options.seconds = _TINY_SECONDS
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which ends the worker as well
    with _directory(None if options.tiny else options.out) as options.out, _directory(options.work) as work:
        succeeded = True
        for model in ["tiny"] if options.tiny else options.models:
            words = [sys.executable, program, "--worker", model, "--out", options.out, "--work", work]
            words += ["--seconds", options.seconds, *more, *(["--tiny"] if options.tiny else [])]
            succeeded &= _run([str(word) for word in words], options.seconds, model)
        failed = finish(options)
    return 1 if failed or not succeeded else 0


@contextmanager
def _directory(path: Path | None) -> Iterator[Path]:
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="gpu-benchmark-") as folder:
        yield Path(folder)


def _run(words: list[str], seconds: float, model: str) -> bool:
    """Run a process and everything that it starts, until its time is over; return whether it did not fail."""
    print(f"{model}: {seconds:.0f} s at most", flush=True)
    process = subprocess.Popen(words, start_new_session=True)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        print(
            f"{model}: the time is over; run it again to resume with what was cut off, or raise `--seconds`", flush=True
        )
        return True
    finally:  # also where a person interrupts
        _end(process)
    if code:
        print(f"{' '.join(words)} failed with exit code {code}", file=sys.stderr, flush=True)
    return not code


def _end(process: subprocess.Popen[Any]) -> None:
    """End a process's whole group; one that has ended by itself has none left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def prepare(folder: Path, model: str, work: Work, batches: int, *, reward_model: bool) -> float:
    """Make a model's base, reward adapter and prompts, unless they are there; return the seconds that it took.

    Args:
        folder: of the model.
        model: its name; ``tiny`` is made on the CPU.
        work: its sizes.
        batches: of prompts.
        reward_model: whether a whole reward model is written as well, for trainers that need one.
    """
    import ppo_stage  # and with it torch

    began = time.monotonic()
    mark = folder / f"complete-{batches}-{'whole' if reward_model else 'adapter'}"
    if not mark.exists():
        placed = ppo_work.placement(model)
        folder.mkdir(parents=True, exist_ok=True)
        ppo_work.prepare(folder, batches, work, reward_model=reward_model, **placed)
        ppo_stage.write_reward_adapter(folder, work, **placed)
        mark.touch()
    return time.monotonic() - began
