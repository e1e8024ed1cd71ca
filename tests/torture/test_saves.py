"""Cases 6 and 10: killed while it saves, and a disk that is full while events are written."""

import os
import signal
import time
from pathlib import Path

import pytest
from tests.contract.test_events import test_a_disk_that_is_really_full_costs_at_most_one_record as full_disk

from .conftest import Counted

pytestmark = pytest.mark.slow

_FILES = {"adapter_model.safetensors": 300_000, "optimizer.safetensors": 600_000, "state.json": 400, "rank0/rng": 90}
_KEEP = 2


def content(name: str, step: int) -> bytes:
    """Other bytes in every file of every step."""
    seed = f"{name} of step {step}. ".encode()
    return (seed * (_FILES[name] // len(seed) + 1))[: _FILES[name]]


def save_for_ever(checkpoints: Path, step: int, ready: int) -> None:
    """As a stage does, one checkpoint after the other."""
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
        checkpoint.rotate(checkpoints, _KEEP)


def test_killed_while_it_saves_it_is_resumed_from_a_verified_checkpoint(tmp_path: Path, counted: Counted) -> None:
    from stackllama_engine.train import checkpoint

    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    seen = [0]

    def trial(number: int) -> None:
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                save_for_ever(checkpoints, seen[0], writer)
            finally:
                os._exit(9)
        os.close(writer)
        assert os.read(reader, 1) == b"x"
        os.close(reader)
        time.sleep(counted.chance.uniform(0.0, 0.15) + 0.3 * (number == 0))  # the first: until there is one
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        found, skipped = checkpoint.newest(checkpoints)
        assert found is not None, skipped
        step = checkpoint.step_of(found)
        assert step >= seen[0], "an older one than that of the resume before"
        assert [name for name in _FILES if (found / name).read_bytes() != content(name, step)] == []
        seen[0] = step

    counted.run(6, "killed during a save, resumed", trial, few=8, all_of_them=100)


@pytest.mark.torture
def test_a_full_disk(tmp_path: Path, counted: Counted) -> None:
    def trial(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        full_disk(["tmpfs", "limit"][number % 2], folder)

    counted.run(10, "disk full while events are written, and free again", trial, few=0, all_of_them=20)
