"""Fuzzing of run directories: any content, command and screen gives no traceback, no hang, a documented exit code.

A trial is a fresh home, one thing changed in one of its runs, one command, and what one screen reads. It is made from
its seed alone: ``STACKLLAMA_DAMAGE_SEED=123`` repeats trial 123, and a failing one prints its seed.
"""

import contextlib
import functools
import io
import os
import random
import shutil
import signal
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from tests.damage.looks import SCREENS, command, look
from tests.damage.mutations import make_removable, mutate
from tests.damage.stock import NAMES, Stock

import stackllama_console.__main__ as console
from stackllama_console.cli import parser
from stackllama_engine.contract import run_lock
from stackllama_engine.contract.run_dir import RunDir
from stackllama_engine.launch import launcher

SEED = os.environ.get("STACKLLAMA_DAMAGE_SEED")
FEW, MANY, PARTS = 150, 10_000, 4
CODES = {0, 1, 2, 3, 75}
HANG_SECONDS = 60.0
"""Generous, for a slow machine under load."""


class _Hang(BaseException):
    """A hang; a BaseException, so that no code under test catches it."""


@pytest.fixture
def no_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Let a resume get as far as the supervisor, which is not started; raise crashes instead of writing a file."""

    def crashed(error: Exception) -> int:
        raise error

    monkeypatch.setattr(launcher, "_spawn", lambda *_: 0)
    monkeypatch.setattr(console, "_crashed", crashed)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("SLURM_JOB_ID", "4242")  # so that Slurm is not called
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.setattr(parser, "build_parser", functools.cache(parser.build_parser))
    monkeypatch.setattr(run_lock, "_PATIENCE", 0.0)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    umask = os.umask(0o077)
    yield
    os.umask(umask)


@contextlib.contextmanager
def deadline() -> Generator[None]:
    def ring(_number: int, _frame: object) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def trial(seed: int, template: Stock, folder: Path) -> None:
    """Run one trial; raises AssertionError with what is needed to repeat it."""
    rng = random.Random(seed)
    name = rng.choice(NAMES)
    home = template.lay_out(folder / f"home-{seed}", name)
    run = RunDir(home.runs_dir / name)
    alive = name == "alive"
    lock = run.acquire_lock() if alive else None
    description = f"seed {seed}: {name}/{mutate(rng, run)}"
    words, screen = command(rng, name, ended=name not in ("alive", "adrift")), rng.choice(list(SCREENS))
    description += f"\n  {' '.join(words)}; screen {screen}"
    try:
        with deadline():
            if rng.random() < 0.5:
                look(screen, home, name)
            code, out, err = _main("--home", str(home.path), *words)
            look(screen, home, name)
    except BaseException as error:
        error.add_note(description)
        raise
    finally:
        if lock is not None:
            os.close(lock)
        make_removable(home.path)
        shutil.rmtree(home.path)
    documented = code in CODES or (words[:2] == ["runs", "watch"] and 0 <= code <= 255)  # the run's own
    assert documented, f"{description}\n  exit code {code}\n{err}"
    assert "Traceback" not in out + err and "unexpected" not in err, f"{description}\n{err}"
    assert code == 0 or out or err, f"{description}\n  exit code {code} and no output"


def _main(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = console.main(words)
    return code, out.getvalue(), err.getvalue()


def test_commands_and_screens_survive_some_damage(template: Stock, folder: Path, no_starts: None) -> None:
    for seed in [int(SEED)] if SEED else range(FEW):
        trial(seed, template, folder)


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_commands_and_screens_survive_any_damage(part: int, template: Stock, folder: Path, no_starts: None) -> None:
    begin = int.from_bytes(os.urandom(4), "big") << 16
    for number in range(part, MANY, PARTS):
        trial(begin + number, template, folder)
