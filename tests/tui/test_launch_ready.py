"""What the launch form says before a launch: the demo is complete, and "ready" waits for the hub."""

import threading
from pathlib import Path

import pytest
from tests.tui.app_kit import Shown, run_app
from tests.tui.screens_kit import Driven, drive, isolate
from textual.events import Key

from stackllama_console.readers.budget_inputs import Devices
from stackllama_console.settings import Settings
from stackllama_console.tui.screens import launch_controller
from stackllama_console.tui.screens.launch import LaunchScreen
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Make an empty home on a machine without a model."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch_controller, "read_devices", Devices)
    return isolate(tmp_path, monkeypatch)


def test_the_first_line_of_an_empty_home_is_the_demo(home: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("No runs here yet.")
        lines = [line.split() for line in shown.text.splitlines() if line.strip()]
        first = lines.index(["No", "runs", "here", "yet."]) + 1
        assert lines[first][:3] == ["d", "the", "demo:"] and "d demo" in " ".join(lines[-1])
        await shown.press("d")
        await shown.reaches("LaunchScreen")
        await shown.shows("[pipeline]", "model  demo", "✓ ready", "the demo's recipe")
        assert shown.front.controller.draft.form.text("dataset_name") == "demo"

    run_app(home, script)


def test_the_demo_is_ready_with_its_own_data(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.press("m", *"demo", "enter")
        await driven.shows("✓ ready")
        form = driven.screen.controller.draft.form
        assert (form.text("model_name_or_path"), form.text("dataset_name")) == ("demo", "demo")
        assert "the demo's data set and settings are filled in" in driven.notices
        assert not driven.screen.controller.draft.touched
        driven.screen.set_value("model_name_or_path", "gpt2")
        await driven.until(lambda: form.text("dataset_name") != "demo")

    drive(home, lambda: LaunchScreen(home, Settings()), script)


def test_ready_waits_for_the_hub_and_a_second_try_asks_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, asked = threading.Event(), list[str]()
    refusal = {"": "`model_name_or_path: org/gated`: a gated model, and nobody is logged in: accept its licence."}

    def withheld(*_: object) -> dict[str, str]:
        asked.append("hub")
        assert answer.wait(20)
        return refusal

    monkeypatch.setattr(launch_controller, "find_withheld", withheld)

    async def script(driven: Driven) -> None:
        try:
            await driven.shows("… asking the hub for org/gated")
            await driven.press("j", "j")  # meanwhile every key works
            assert driven.screen.query_one("RecipeForm").cursor_key != "model_name_or_path"
        finally:
            answer.set()
        await driven.shows("✗ fix model_name_or_path", "a gated model, and nobody is logged in")
        assert asked == ["hub"]
        refusal.clear()
        await driven.press("enter")  # the launch asks the hub itself
        await driven.shows("enter  launch")
        await driven.press("escape")
        await driven.shows("✓ ready")

    def make() -> LaunchScreen:
        screen = LaunchScreen(home, Settings(model="org/gated"))
        screen.controller.draft.form.set("dataset_name", "demo")
        return screen

    drive(home, make, script)


def test_a_folder_without_weights_is_not_ready(home: Home, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")

    async def script(driven: Driven) -> None:
        await driven.shows("✗ fix model_name_or_path")
        assert "has no weights" in driven.screen.controller.problem()

    drive(home, lambda: LaunchScreen(home, Settings(stage=str(Stage.SFT), model=str(tmp_path / "half"))), script)


def test_slash_filters_the_form_wherever_the_focus_is(home: Home) -> None:
    async def narrow(driven: Driven) -> None:
        await driven.press("b")
        assert driven.screen.has_class("-budget")
        await driven.press("slash", *"lr", "enter")
        assert not driven.screen.has_class("-budget") and driven.app.screen is driven.screen
        await driven.shows("/ lr", "learning_rate")
        assert driven.screen.query_one("#form-rows").has_focus

    async def wide(driven: Driven) -> None:
        for widget in ("#launch-list", "#launch-budget"):
            driven.screen.query_one(widget).focus()
            await driven.pilot.pause()
            await driven.press("slash", *"lr", "enter")
            await driven.shows("/ lr", "learning_rate")
            await driven.press("escape")

    drive(home, lambda: LaunchScreen(home, Settings()), narrow)
    drive(home, lambda: LaunchScreen(home, Settings()), wide, size=(140, 40))


def test_keys_that_arrive_with_the_slash_are_the_filters(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.press("b")
        panel = driven.screen.query_one("#launch-budget")
        for key in ("slash", "l", "r"):  # all for the panel, as one read brings them
            panel.post_message(Key(key, "/" if key == "slash" else key))
        await driven.shows("/ lr", "learning_rate")

    drive(home, lambda: LaunchScreen(home, Settings()), script)


def test_tab_completes_a_path_in_the_form_and_in_the_dialogs(home: Home, tmp_path: Path) -> None:
    (tmp_path / "models" / "llama-7b").mkdir(parents=True)
    (tmp_path / "models" / "llama-13b").mkdir()

    async def script(driven: Driven) -> None:
        await driven.press("e", *"./mo", "tab")
        field = driven.screen.query_one("#form-input")
        await driven.until(lambda: field.value == "./models/" and field.has_focus)
        await driven.press("tab")
        await driven.until(lambda: field.value == "./models/llama-")
        await driven.shows("llama-13b/ · llama-7b/")
        await driven.press("escape", "o", *"mod", "tab")
        await driven.until(lambda: driven.app.focused is not None and driven.app.focused.value == "models/")  # type: ignore[attr-defined]
        await driven.press("tab")
        await driven.shows("llama-13b/ · llama-7b/", "tab  complete")
        await driven.press("escape", "m", *"./mod", "tab")
        await driven.until(lambda: driven.app.focused is not None and driven.app.focused.value == "./models/")  # type: ignore[attr-defined]
        await driven.press("escape")

    drive(home, lambda: LaunchScreen(home, Settings()), script)
