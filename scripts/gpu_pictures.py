"""The pictures of docs/howto/gpus.md, made by the application itself on GPUs that a stand-in for NVML invents.

    python scripts/gpu_pictures.py               # writes docs/images/gpus-*.svg, in seconds
    python scripts/gpu_pictures.py --out FOLDER

No GPU is needed and nothing is trained: the run is written by hand, and its process is this one. The title of every
picture says so.
"""

import argparse
import asyncio
import math
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.launch.fake_nvml import GIB, FakeNvml  # noqa: E402 - found by the line above

SHOTS: dict[str, tuple[int, tuple[int, int], tuple[str, ...], str]] = {
    "gpus-1-monitor": (1, (80, 24), ("enter",), "GPU 0"),
    "gpus-1-monitor-wide": (1, (160, 45), ("enter",), "GPU utilization"),
    "gpus-8-monitor": (8, (80, 24), ("enter",), "8 GPUs"),
    "gpus-8-monitor-wide": (8, (160, 45), ("enter",), "GPU utilization"),
    "gpus-1": (1, (80, 24), ("u",), "run or program"),
    "gpus-8": (8, (80, 24), ("u",), "run or program"),
    "gpus-8-wide": (8, (160, 45), ("u",), "run or program"),
    "gpus-16-wide": (16, (160, 45), ("u",), "run or program"),
}
"""Name → how many GPUs, size, keys from the list of runs, and what stands there when it is done."""
RUN = "math-ppo"
MACHINE = "CPU 41 %  RAM 96.2 GiB of 1.0 TiB"
STEPS = 120
_IDS = re.compile(r"terminal-\d+")
_PATIENCE = 60.0


def invented(count: int) -> FakeNvml:
    """Return GPUs of one kind; the third is hot, the sixth had memory errors."""

    def memory(index: int) -> Any:
        total, used = int(139.8 * GIB), (60 + index * 4 % 50) * GIB
        return SimpleNamespace(total=total, used=used, free=total - used)

    answers: dict[str, Callable[..., Any]] = {
        "nvmlDeviceGetName": lambda _: "NVIDIA H200",
        "nvmlDeviceGetUtilizationRates": lambda index: SimpleNamespace(gpu=97 - index * 7 % 60),
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetComputeRunningProcesses": lambda _: [
            SimpleNamespace(pid=os.getpid(), usedGpuMemory=int(41.2 * GIB))
        ],
        "nvmlDeviceGetPowerUsage": lambda index: 650_000 - 21_000 * index,
        "nvmlDeviceGetEnforcedPowerLimit": lambda _: 700_000,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda index: {0: 0x4, 2: 0x20}.get(index, 0),
        "nvmlDeviceGetTotalEccErrors": lambda index, *_: 3 if index == 5 else 0,
    }
    fake = FakeNvml(count)
    for name, answer in answers.items():
        setattr(fake, name, answer)
    return fake


def make_run(home: Path, count: int) -> int:
    """Write a PPO run that seems to be running here; return its lock."""
    from stackllama_engine.contract.events import EventWriter
    from stackllama_engine.contract.gpu_metrics import GPU_FILE, gpu_metric
    from stackllama_engine.contract.recipe_io import dump_recipe, load_recipe
    from stackllama_engine.contract.run_dir import Home, Launch, State
    from stackllama_engine.contract.stages import Stage

    words = ["model_name_or_path=demo", "dataset_name=demo", "reward_model_path=demo"]
    run = Home(home).create(Stage.PPO, dump_recipe(load_recipe(Stage.PPO, None, words)), RUN)
    run.attempt_dir(1).mkdir(mode=0o700)
    begun = time.time() - STEPS * 20
    run.write_launch(Launch(argv=[], cwd="/", host=socket.gethostname(), created=begun))
    run.write_state(State(stage=Stage.PPO, phase="running", attempt=1, created=begun, started=begun))
    events, gpus = (EventWriter(run.attempt_dir(1) / name) for name in ("events.jsonl", GPU_FILE))
    for step in range(1, STEPS + 1):
        curve = math.log1p(step) + 0.2 * math.sin(step)
        metrics = {"objective/scores": curve, "objective/kl": step / 12 + 0.3 * math.cos(step), "learning_rate": 1e-5}
        events.write("metrics", step=step, metrics=metrics)
        for part, busy in ((0.0, 93.0), (0.3, 95.0), (0.6, 91.0)):
            rates = {gpu_metric(index, "utilization"): busy - 2.5 * index for index in range(count)}
            watts = {gpu_metric(index, "power"): 300 + 3.5 * busy - 20 * index for index in range(count)}
            gpus.write("metrics", step=step, metrics=rates | watts, data={"position": step + part})
    for line in (f"INFO step {step}: 128 responses" for step in range(STEPS - 9, STEPS + 1)):
        with (run.attempt_dir(1) / "log.txt").open("a") as log:
            log.write(f"{line}\n")
    events.close()
    gpus.close()
    return run.acquire_lock()


async def take(name: str, out: Path) -> None:
    """Take one picture."""
    from stackllama_console.readers import gpu_processes, machine
    from stackllama_console.tui import watched
    from stackllama_console.tui.app import ConsoleApp, Options
    from stackllama_console.tui.screens import gpus
    from stackllama_engine.contract.process_id import identify
    from stackllama_engine.contract.run_dir import Home
    from stackllama_engine.launch import nvml

    count, size, keys, text = SHOTS[name]
    with tempfile.TemporaryDirectory() as own:
        os.environ |= {f"XDG_{kind}_HOME": own for kind in ("STATE", "CONFIG", "CACHE", "DATA")}
        lock = make_run(Path(own) / "home", count)
        here = identify(os.getpid())
        stand_ins: list[tuple[Any, str, Any]] = [
            (nvml, "pynvml", invented(count)),
            (machine, "run_processes", lambda _: [here]),
            (gpu_processes, "marked_run", lambda _: Path(RUN)),
            (watched, "describe", lambda _: MACHINE),
            (gpus, "describe", lambda _: MACHINE),
        ]
        for module, attribute, value in stand_ins:
            setattr(module, attribute, value)
        app = ConsoleApp(Options(home=Home(Path(own) / "home")))
        async with app.run_test(size=size) as pilot:

            def shown() -> str:
                strips = app.screen._compositor.render_strips()
                return "\n".join("".join(segment.text for segment in strip) for strip in strips)

            async def until(condition: Callable[[], bool]) -> None:
                deadline = time.monotonic() + _PATIENCE
                while not condition():
                    if time.monotonic() > deadline:
                        raise SystemExit(f"{name}: never came; on the screen:\n{shown()}")
                    await pilot.pause(0.1)

            await until(lambda: RUN in shown())
            await pilot.press(*keys)
            await until(lambda: text in shown())
            await pilot.pause(1.0)
            svg = _IDS.sub("terminal", app.export_screenshot(title=f"{count} simulated GPU{'s' * (count > 1)}"))
        os.close(lock)
    (out / f"{name}.svg").write_text(svg)


def main(arguments: Sequence[str] | None = None) -> int:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", metavar="FOLDER")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    socket.gethostname = lambda: "gpu-box"
    for name in SHOTS:
        asyncio.run(take(name, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
