"""Run directories made by hand, with events whose times and steps are given."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.launch.conftest import clock, gpus

from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage

CREATED = 1_700_000_000.0


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def make_run(home: Home) -> Iterator[Callable[..., RunDir]]:
    """Make runs with one attempt. Unless it has ended the lock is held, as by a supervisor."""
    locks: list[int] = []

    def make(stage: Stage = Stage.PPO, name: str = "run", phase: str = "running", **fields: Any) -> RunDir:
        run = home.create(stage, fields.pop("recipe", "model_name_or_path: demo\n"), name)
        run.attempt_dir(1).mkdir(mode=0o700)
        parents, locked = fields.pop("parents", None), fields.pop("locked", True)
        if parents is not None:
            run.path.joinpath("launch.json").write_bytes(
                msgspec.json.encode({"argv": [], "cwd": "/", "host": "h", "created": CREATED, "parents": parents})
            )
        known: dict[str, Any] = {"attempt": 1, "created": CREATED, "started": CREATED + 10}
        run.write_state(State(stage=stage, phase=phase, **(known | fields)))  # type: ignore[arg-type]
        if locked and not run.read_state().has_ended:
            locks.append(run.acquire_lock())
        return run

    yield make
    for lock in locks:
        os.close(lock)


def line(kind: str, time: float = CREATED, **fields: Any) -> bytes:
    """One record of an events file."""
    return msgspec.json.encode({"seq": 0, "time": time, "kind": kind, **fields}) + b"\n"


@pytest.fixture
def add() -> Callable[..., None]:
    """Append records to an attempt's events: bytes as they are, or (kind, fields)."""

    def append(run: RunDir, *records: bytes | tuple[str, dict[str, Any]], attempt: int = 1) -> None:
        path = run.attempt_dir(attempt) / "events.jsonl"
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as file:
            for record in records:
                file.write(record if isinstance(record, bytes) else line(record[0], **record[1]))

    return append


FORBIDDEN = {chr(code) for code in [*range(9), *range(11, 32), *range(127, 160)]} | set("\u200e\u200f\u202e\u2066")


@pytest.fixture
def assert_clean() -> Callable[[Any], None]:
    """Nothing a terminal would obey is in the text of a value."""

    def check(value: Any) -> None:
        found = FORBIDDEN & set(str(value))
        assert not found, f"{sorted(map(ascii, found))} in {value!r}"

    return check


__all__ = ["CREATED", "FORBIDDEN", "clock", "gpus", "line"]
