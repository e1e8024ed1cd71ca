"""The key that forks: it asks for a step and keys, says what is wrong with them, and shows the new run."""

from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.launch.conftest import fake_command, wait_for_phase
from tests.launch.forkable import make_forkable
from tests.tui.app_kit import Shown, run_app
from tests.tui.screens_kit import make_run

from stackllama_engine.contract.run_dir import ForkedFrom, Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_a_run_is_forked_from_the_list(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "build_command", lambda _recipe, run_dir, _gpus: fake_command(run_dir, "finish"))
    source = make_forkable(home)
    source.write_state(replace(source.read_state(), phase="stopped", attempt=1, exit_code=75))

    async def script(shown: Shown) -> None:
        await shown.shows("source")
        await shown.press("F")
        await shown.reaches("AskScreen")
        await shown.shows("checkpoint of step 10 or 20")
        await shown.fill("10 lora_r=3")
        await shown.press("enter")
        await shown.shows("! step-000010 depends on what changes: `lora_r`")
        await shown.fill("10 warmup_steps=3")
        await shown.press("enter")
        await shown.reaches("RunsScreen")
        await shown.notified("source-at-10 continues from step 10 of source")
        await shown.until(lambda: shown.front.row_id == "source-at-10")
        await shown.shows("└ at-10")
        wait_for_phase(home.run("source-at-10"), "finished")

    run_app(home, script, (120, 30))
    assert home.run("source-at-10").read_launch().forked_from == ForkedFrom(run="source", step=10)


def test_where_nothing_was_saved_the_key_says_so(home: Home) -> None:
    make_run(home, Stage.SFT, "young")

    async def script(shown: Shown) -> None:
        await shown.shows("young")
        await shown.press("F")
        await shown.notified("young has no checkpoint to fork at")

    run_app(home, script)
