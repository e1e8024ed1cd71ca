"""The demo on few and on many cores, alone and beside load, with our threads and with others.

    python benchmarks/threads.py                      # 1 core, 2, 4 … all; some minutes
    taskset -c 0,1 python benchmarks/threads.py       # no more than these
    OMP_NUM_THREADS=16 python benchmarks/threads.py   # this number besides ours
    python benchmarks/threads.py --tiny               # three steps on one core

Each line is the demo's fine-tuning (its base, its data, its recipe), launched as a person launches it, on so many cores
(the CPU affinity that ``taskset`` sets). "ours" is what a launch chooses (``contract/threads.py``); the other number is
a person's ``OMP_NUM_THREADS``, one per core unless it is set, as PyTorch would choose. Load is a busy process per core.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "engine"), str(ROOT / "console")]

from stackllama_engine.contract.events import EventReader  # noqa: E402 - the path is set above
from stackllama_engine.contract.recipe_io import load_recipe  # noqa: E402
from stackllama_engine.contract.run_dir import Home  # noqa: E402
from stackllama_engine.contract.stages import Stage  # noqa: E402
from stackllama_engine.launch.launcher import launch, plan  # noqa: E402
from stackllama_engine.launch.reconcile import reconcile  # noqa: E402

_VARIABLE = "OMP_NUM_THREADS"
_BUSY = [sys.executable, "-c", "while True: pass"]


class Setting(NamedTuple):
    """One measurement; ``threads`` None: ours."""

    cores: list[int]
    threads: int | None
    beside_load: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 when a run failed."""
    options = _options(arguments)
    cores, chosen = sorted(os.sched_getaffinity(0)), os.environ.pop(_VARIABLE, None)
    counts = [1] if options.tiny else [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n < len(cores)] + [len(cores)]
    print("| cores | threads | load | s per step |\n|---|---|---|---|", flush=True)
    failed = False
    # a run's supervisor may still be writing when the last one has ended
    with tempfile.TemporaryDirectory(prefix="threads-", ignore_cleanup_errors=True) as folder:
        for number, setting in enumerate(_settings([cores[:n] for n in counts], chosen, tiny=options.tiny)):
            seconds = _measure(Home(Path(folder)), f"r{number}", setting, options.steps)
            failed |= seconds is None
            shown = "failed" if seconds is None else f"{seconds:.3f}"
            threads = "ours" if setting.threads is None else setting.threads
            load = "beside load" if setting.beside_load else "alone"
            print(f"| {len(setting.cores)} | {threads} | {load} | {shown} |", flush=True)
    return int(failed)


def _settings(core_sets: list[list[int]], chosen: str | None, *, tiny: bool) -> Iterator[Setting]:
    for cores in core_sets:
        for beside_load in (False,) if tiny else (False, True):
            for threads in (None,) if tiny else (None, int(chosen or len(cores))):
                yield Setting(cores, threads, beside_load)


def _measure(home: Home, name: str, setting: Setting, steps: int) -> float | None:
    """Return the median seconds of a step after the first; None when the run failed."""
    keys = ("model_name_or_path=demo", "dataset_name=demo", "dtype=float32", "load_in_8bit=false", "use_cpu=true")
    lora = ("lora_r=16", "lora_alpha=32", "lora_target_modules=all-linear")
    sizes = ("max_train_samples=800", "max_eval_samples=8", "per_device_train_batch_size=16", "max_length=256")
    often = (f"max_steps={steps}", "logging_steps=1", "eval_steps=0", "save_steps=0", "warmup_steps=0")
    before = os.sched_getaffinity(0)
    if setting.threads is not None:
        os.environ[_VARIABLE] = str(setting.threads)
    os.sched_setaffinity(0, setting.cores)  # the run inherits it
    try:
        with _load(len(setting.cores) if setting.beside_load else 0):
            run = launch(plan(home, load_recipe(Stage.SFT, None, (*keys, *lora, *sizes, *often)), name))
            while not (state := reconcile(run)).has_ended:
                time.sleep(0.2)
    finally:
        os.sched_setaffinity(0, before)
        os.environ.pop(_VARIABLE, None)
    if state.phase != "finished":
        return None
    events = EventReader(run.attempt_dir(1) / "events.jsonl").read()
    times = [event.time for event in events if event.kind == "metrics" and "loss" in event.metrics]
    return statistics.median(after - before for before, after in itertools.pairwise(times))


@contextmanager
def _load(processes: int) -> Iterator[None]:
    busy = [subprocess.Popen(_BUSY) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times of the demo by cores, threads and load.")
    parser.add_argument("--steps", type=int, default=20, help="steps of fine-tuning")
    parser.add_argument("--tiny", action="store_true", help="three steps on one core: whether it runs")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.steps = 3
    return options


if __name__ == "__main__":
    sys.exit(main())
