"""Cases 6 and 10: killed during a save, and a disk that is full while events are written."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from tests.contract.test_events import test_a_disk_that_is_really_full_costs_at_most_one_record as full_disk
from tests.launch.conftest import wait_for

from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage

from .conftest import Counted

pytestmark = pytest.mark.slow

_FILES = {"adapter_model.safetensors": 300_000, "optimizer.safetensors": 600_000, "state.json": 400, "rank0/rng": 90}
_KEEP = 2


def content(name: str, step: int) -> bytes:
    """Return different bytes for every file of every step."""
    seed = f"{name} of step {step}. ".encode()
    return (seed * (_FILES[name] // len(seed) + 1))[: _FILES[name]]


def damage(chance: random.Random, folder: Path) -> None:
    """Flip a bit, as a disk does, without changing the size."""
    path = folder / chance.choice(sorted(_FILES))
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 0x10
    path.write_bytes(data)


def save_for_ever(checkpoints: Path, step: int, ready: int) -> None:
    """Save one checkpoint after the other, as a stage does."""
    from stackllama_engine.train import checkpoint

    os.write(ready, b"x")
    while True:
        step += 1
        staging = checkpoint.staging_dir(checkpoints, step)
        for name in _FILES:
            path = staging / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content(name, step))
        checkpoint.seal(staging, checkpoints, step)
        checkpoint.rotate(checkpoints, checkpoint.Retention(newest=_KEEP))


def test_killed_while_it_saves_it_is_resumed_from_a_verified_checkpoint(tmp_path: Path, counted: Counted) -> None:
    from stackllama_engine.train import checkpoint
    from stackllama_engine.train.reporting import Reporter

    run = Home(tmp_path / "home").create(Stage.SFT, "{}")
    run.attempt_dir(1).mkdir()
    reporter = Reporter(run, 1, is_main=True)
    step = 0

    def verified() -> list[Path]:
        return [path for path in run.checkpoints.glob("step-*") if checkpoint.problem(path) is None]

    def trial(number: int) -> None:
        nonlocal step
        start = step
        if counted.chance.random() < 0.3 and len(verified()) > 1:  # damaged: skipped, and the step is repeated
            damage(counted.chance, run.checkpoints / f"step-{step:06d}")
            found = checkpoint.to_resume(reporter)
            assert found is not None and checkpoint.step_of(found) < step, "resumed from a damaged checkpoint"
            start = checkpoint.step_of(found)
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                save_for_ever(run.checkpoints, start, writer)
            finally:
                os._exit(9)
        os.close(writer)
        assert os.read(reader, 1) == b"x"
        os.close(reader)
        if number == 0:  # until there is one to resume from
            wait_for(lambda: checkpoint.newest(run.checkpoints)[0] is not None)
        time.sleep(counted.chance.uniform(0.0, 0.15))
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        found = checkpoint.to_resume(reporter)
        assert found is not None and checkpoint.problem(found) is None
        step = checkpoint.step_of(found)
        assert step >= start, "an older one than that of the resume before"
        assert [name for name in _FILES if (found / name).read_bytes() != content(name, step)] == []
        assert all(path.name.startswith("step-") for path in run.checkpoints.iterdir()), "not cleaned up"

    counted.run(6, "killed during a save, resumed", trial, few=8, all_of_them=100)


@pytest.mark.torture
def test_a_full_disk(tmp_path: Path, counted: Counted) -> None:
    def trial(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        full_disk(["tmpfs", "limit"][number % 2], folder)

    counted.run(10, "disk full while events are written, and free again", trial, few=0, all_of_them=20)
