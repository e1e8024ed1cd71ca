"""A home with a run of each kind, held still; terminals that are closed whatever happens."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from tests.tui.screens_kit import add_samples, isolate, make_run, write_metrics
from tests.tui.terminal import Terminal
from textual import app, pilot, screen

from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage

STEPS = 40


_FRAME, _QUIET, _TURNS = 0.01, 0.001, 20


async def wait_for_idle(min_sleep: float = _FRAME, max_sleep: float = 1.0) -> None:
    """Wait until the console is idle, half as long as Textual does.

    What was posted in the meantime has its turns in the event loop before the processor time is looked at.
    """
    begun = time.monotonic()
    while time.monotonic() - begun < max_sleep:
        used = time.process_time()
        await asyncio.sleep(max(_FRAME, min_sleep))
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        if time.process_time() - used < _QUIET:
            break


@pytest.fixture(autouse=True)
def soon_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten a pilot's two waits after each key, and paint the screen more often meanwhile."""
    monkeypatch.setattr(screen, "UPDATE_PERIOD", _FRAME / 3)
    for module in (app, pilot):
        monkeypatch.setattr(module, "wait_for_idle", wait_for_idle)


def curve(first: float, last: float) -> list[float]:
    """Return values on a straight line from the first to the last."""
    return [first + (last - first) * step / (STEPS - 1) for step in range(STEPS)]


def write_log(run: RunDir, *lines: str) -> None:
    """Write the newest attempt's log."""
    (run.attempt_dir(1) / "log.txt").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def stocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """Yield a home: `tuned` (SFT), `aligned` (PPO, with samples) finished, `broken` failed, `alive` holds its lock."""
    home = isolate(tmp_path, monkeypatch)
    tuned = make_run(home, Stage.SFT, "tuned")
    write_metrics(tuned, {"loss": curve(4.0, 1.0), "learning_rate": curve(1e-4, 0.0)})
    write_log(tuned, "INFO begun", "WARNING a shard is small", "INFO saved")
    tuned.write_json("result.json", {"loss_first": 4.0, "loss_last": 1.0})
    aligned = make_run(home, Stage.PPO, "aligned")
    names = ("objective/scores", "objective/kl", "policy/entropy_avg", "val/ratio", "policy/clipfrac_avg", "grad_norm")
    write_metrics(aligned, {name: curve(index, 2.0 + index) for index, name in enumerate(names)})
    write_log(aligned, *(f"INFO rollout {step}" for step in range(1, STEPS + 1)))
    add_samples(
        aligned,
        *(
            {
                "step": step,
                "question": f"why {step}?",
                "response": f"because {step}",
                "reward": step / 10,
                "kl": 0.5,
                "length": 2,
                "ended": True,
            }
            for step in range(1, STEPS + 1)
        ),
    )
    broken = make_run(home, Stage.REWARD, "broken", phase="failed")
    write_metrics(broken, {"loss": curve(0.7, 0.6), "accuracy": curve(0.5, 0.6)})
    state = msgspec.structs.replace(
        broken.read_state(), exit_code=1, cause="out of memory in train", last_lines=["step 40", "OutOfMemoryError"]
    )
    broken.write_state(state)
    alive = make_run(home, Stage.SFT, "alive", phase="running")
    write_metrics(alive, {"loss": curve(3.0, 2.0)})
    write_log(alive, "INFO begun")
    lock = alive.acquire_lock()
    yield home
    os.close(lock)


@pytest.fixture
def terminal(stocked: Home) -> Iterator[Callable[..., Terminal]]:
    """Yield a function that opens the console on the stocked home, or on what is given instead."""
    opened: list[Terminal] = []

    def start(*arguments: str, home: Path | None = None, **options: object) -> Terminal:
        opened.append(Terminal(home or stocked.path, *arguments, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and modification time of every file below a folder."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
