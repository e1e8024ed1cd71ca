"""Run directories made by hand, and `main` called in this process with its output captured."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stackllama_console.__main__ import main
from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.recipe_io import dump_recipe, load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage

OVERRIDES = {
    Stage.SFT: ["model_name_or_path=demo", "dataset_name=demo"],
    Stage.REWARD: ["model_name_or_path=demo", "dataset_name=demo"],
    Stage.PREFERENCE: ["model_name_or_path=demo", "dataset_name=demo"],
    Stage.PPO: ["model_name_or_path=demo", "dataset_name=demo", "reward_model_path=demo"],
    Stage.MERGE: ["adapter_path=demo"],
    Stage.PIPELINE: ["model_name_or_path=demo", "dataset_name=demo"],
}

PAYLOADS = [
    "\x1b]52;c;aGVsbG8=\x07stolen clipboard",
    "\x1b]0;title\x1b\\new title",
    "\x1b[2J\x1b[Hcleared",
    "\x9b2Jcleared in one character",
    "\x9d52;c;aGVsbG8=\x9cOSC in one character",
    "\x1bP1$r0m\x1b\\device control",
    "\x90q\x9cdevice control in one character",
    "back\x08\x08\x08\x08space and \x7fdelete",
    "over\rwritten",
    "\x1bcreset",
    "\x1b]8;;http://evil\x07link\x1b]8;;\x07",
    "\x1b]52;c;never ended",
    "\u202egnp.exe\u202c bidi \u2066isolate\u2069 \u200f",
    "x [/] [/INST] [@click=app.quit]markup[/]",
    "[bold red]not red[/bold red]",
    "bell\x07 and nul\x00",
    "\x1b\x1b[2J[2J nested",
]

FORBIDDEN = {chr(code) for code in [*range(9), *range(11, 32), *range(127, 160)]} | set(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Whoever starts tests in a shell's background has Ctrl-C ignored, and so would every command started here."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACKLLAMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def payloads() -> list[str]:
    return PAYLOADS


@pytest.fixture
def assert_clean() -> Callable[[str], None]:
    """Nothing a terminal would obey is in the text."""

    def check(text: str) -> None:
        found = FORBIDDEN & set(text)
        assert not found, f"{sorted(map(ascii, found))} in {text!r}"

    return check


class Result(msgspec.Struct):
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return msgspec.json.decode(self.out)


@pytest.fixture
def run_main(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def call(*arguments: str) -> Result:
        capsys.readouterr()
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture
def make_run(home: Home) -> Iterator[Callable[..., RunDir]]:
    """Make run directories: recipe, state, one attempt. Without ``ended`` the lock is held, as by a supervisor."""
    locks: list[int] = []

    def make(stage: Stage, name: str, phase: str = "finished", **fields: Any) -> RunDir:
        overrides = fields.pop("overrides", [])
        run = home.create(stage, dump_recipe(load_recipe(stage, None, [*OVERRIDES[stage], *overrides])), name)
        run.attempt_dir(1).mkdir(mode=0o700)
        now = time.time()
        ended = phase in ("finished", "failed", "stopped", "lost")
        known: dict[str, Any] = {"attempt": 1, "created": now - 90, "started": now - 80}
        if ended:
            code = {"finished": 0, "stopped": 75, "failed": 1}.get(phase)
            known |= {"ended": now - 20, "exit_code": code}
        else:
            locks.append(run.acquire_lock())
        run.write_state(State(stage=stage, phase=phase, **(known | fields)))  # type: ignore[arg-type]
        return run

    yield make
    for lock in locks:
        os.close(lock)


@pytest.fixture
def write_events() -> Callable[..., None]:
    """Write (kind, fields) records to an attempt's events."""

    def write(run: RunDir, *events: tuple[str, dict[str, Any]], attempt: int = 1) -> None:
        writer = EventWriter(run.attempt_dir(attempt) / "events.jsonl")
        for kind, fields in events:
            writer.write(kind, **fields)  # type: ignore[arg-type]
        writer.close()

    return write
