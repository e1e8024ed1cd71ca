"""The launch form: a run that starts after another one."""

import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from tests.tui.screens_kit import Driven, isolate, make_run
from tests.tui.screens_kit import drive as drive_screen

from stackllama_console.readers.queue_choices import alive_choices
from stackllama_console.settings import Settings
from stackllama_console.tui.screens.launch import LaunchScreen
from stackllama_console.tui.screens.launch_confirm import CommandScreen
from stackllama_console.tui.screens.pick import PickScreen
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher


@pytest.fixture
def home(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Home:
    return isolate(tmp_path, monkeypatch)


def test_a_launch_can_wait_for_a_run_that_is_alive(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = make_run(home, Stage.PPO, "night-run", phase="running")
    make_run(home, Stage.SFT, "ended")
    lock = alive.acquire_lock()
    planned: list[str | None] = []
    plan: Callable[..., Any] = launcher.plan

    def record(*words: Any, **options: Any) -> Any:
        planned.append(options["after"])
        return plan(*words, **options)

    monkeypatch.setattr(launcher, "plan", record)

    async def script(driven: Driven) -> None:
        await driven.shows("✓ ready")
        await driven.press("A")
        await driven.until(lambda: isinstance(driven.app.screen, PickScreen))
        await driven.shows("at once", "night-run", "ppo · running · for")
        assert "ended" not in driven.text
        await driven.press(*"night", "enter")
        await driven.shows("after night-run")
        await driven.press("enter")
        await driven.until(lambda: isinstance(driven.app.screen, CommandScreen))
        await driven.shows("night-run, when it has ended and the GPUs have room", "--after night-run")
        assert planned == ["night-run"]
        await driven.press("escape", "A")
        await driven.until(lambda: isinstance(driven.app.screen, PickScreen))
        await driven.press(*"once", "enter")
        await driven.until(lambda: driven.screen.controller.draft.after is None)
        assert "--after" not in driven.screen.controller.draft.command()

    settings = Settings(model="demo")
    drive_screen(home, lambda: LaunchScreen(home, settings), script)
    os.close(lock)


def test_a_run_that_waits_itself_can_be_waited_for(home: Home) -> None:
    run = make_run(home, Stage.SFT, "second", phase="queued")
    run.write_state(msgspec.structs.replace(run.read_state(), waiting="waiting for first to end"))
    once, second = alive_choices(home, 1_700_000_000.0 + 7200)
    assert once.value == "" and second.value == "second"
    assert second.facts == "sft · waiting for first to end · for 1 hour"
