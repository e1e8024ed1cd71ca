"""The console on a home with several damaged runs: no screen of any run crashes.

``STACKLLAMA_DAMAGE_SEED=7`` repeats trial 7; a failing one prints its seed.
"""

import os
import random
from pathlib import Path

import pytest
from tests.damage.mutations import mutate
from tests.damage.stock import NAMES, Stock
from tests.tui.app_kit import Shown, run_app
from tests.tui.screens_kit import isolate

from stackllama_engine.contract.run_dir import RunDir

SEED = os.environ.get("STACKLLAMA_DAMAGE_SEED")
MANY = 25
KEYS = ("enter", "a", "e", "t", "h")
"""Monitor, samples, launch form, chat, and an unbound key."""


async def visit(shown: Shown, rng: random.Random) -> None:
    """Visit two screens of every run in the list, then compare two runs."""
    await shown.until(lambda: len(shown.front.index.rows) >= len(NAMES))
    await shown.press("g")
    for _ in range(len(NAMES) + 2):
        for key in rng.sample(KEYS, 2):
            await shown.press(key)
            shown.assert_clean()
            await back(shown)
        await shown.press("space")
    await shown.press("c")
    shown.assert_clean()
    await back(shown)


async def back(shown: Shown) -> None:
    """Go back to the list, from any depth."""
    for _ in range(8):
        if shown.name == "RunsScreen":
            return
        await shown.press("escape")
    assert shown.name == "RunsScreen"


def trial(seed: int, template: Stock, folder: Path) -> None:
    rng = random.Random(seed)
    home = template.lay_out(folder / f"home-{seed}")
    description = f"seed {seed}: " + "; ".join(
        f"{name}/{mutate(rng, RunDir(home.runs_dir / name))}" for name in rng.sample(NAMES, 3)
    )
    lock = RunDir(home.runs_dir / "whole").acquire_lock()
    try:
        run_app(home, lambda shown: visit(shown, rng))
    except BaseException as error:
        error.add_note(description)
        raise
    finally:
        os.close(lock)


def test_the_console_survives_some_damage(
    template: Stock, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(tmp_path, monkeypatch)
    trial(int(SEED or 0), template, folder)


@pytest.mark.long
@pytest.mark.timeout(1500)  # ten seconds a trial beside other tests
def test_the_console_survives_any_damage(
    template: Stock, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(tmp_path, monkeypatch)
    begin = int.from_bytes(os.urandom(4), "big") << 8
    for number in range(MANY):
        trial(begin + number, template, folder)
