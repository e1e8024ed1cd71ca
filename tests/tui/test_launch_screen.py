"""The launch screen under keys: models, stages, the form with its budget, commands, refusals, launches, clones."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import PAYLOADS
from tests.tui.screens_kit import Driven, drive, isolate, make_run

from stackllama_console.paths import copy_file
from stackllama_console.readers.budget_inputs import Devices
from stackllama_console.readers.budget_view import Memory
from stackllama_console.readers.model_catalog import ModelEntry
from stackllama_console.settings import Settings, load_settings
from stackllama_console.tui.app import ConsoleApp, Options
from stackllama_console.tui.screens import launch_controller
from stackllama_console.tui.screens.confirm import ConfirmScreen
from stackllama_console.tui.screens.help import HelpScreen
from stackllama_console.tui.screens.launch import LaunchScreen
from stackllama_console.tui.screens.launch_confirm import CommandScreen
from stackllama_console.tui.screens.launch_lines import stage_line
from stackllama_console.tui.screens.pick import PickScreen
from stackllama_console.tui.screens.scopes import all_scopes
from stackllama_console.tui.widgets.budget_panel import BudgetPanel
from stackllama_console.tui.widgets.form_list import FormList
from stackllama_console.tui.widgets.model_list import ModelList
from stackllama_console.tui.widgets.recipe_form import RecipeForm
from stackllama_engine.contract.base import DEMO_BASE
from stackllama_engine.contract.errors import StackllamaError
from stackllama_engine.contract.recipe import SFTRecipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher

GIB = 1 << 30
SMALL = Devices((Memory("GPU 0", 8 * GIB, 8 * GIB),), Memory("RAM", 32 * GIB, 24 * GIB))
CONFIG_7B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "torch_dtype": "float16",
}
Script = Callable[[Driven], Awaitable[None]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Make a home without runs, a cache with one 7B model's configuration, and one GPU of 8 GiB."""
    snapshot = tmp_path / "hub" / "models--org--llama-7b" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(CONFIG_7B))
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch_controller, "read_devices", lambda: SMALL)
    return isolate(tmp_path, monkeypatch)


def show(
    home: Home, script: Script, size: tuple[int, int] = (80, 24), clone: str | None = None, **settings: Any
) -> ConsoleApp:
    return drive(home, lambda: LaunchScreen(home, Settings(**settings), clone=clone), script, size)


def form(driven: Driven) -> Any:
    return driven.screen.controller.draft.form


async def settled(driven: Driven) -> None:
    """Until models and shapes have been read."""
    await driven.until(lambda: driven.screen.controller.models and driven.screen.controller.budget is not None)
    await driven.until(lambda: driven.screen.controller.shapes is not None)


async def edit(driven: Driven, key: str, text: str) -> None:
    """Type a value into a field, as a person does."""
    await driven.until(lambda: driven.screen.query_one(FormList).has_focus)
    driven.screen.query_one(RecipeForm).move_to(key)
    await driven.press("e")
    await driven.until(lambda: driven.screen.query_one("#form-input").has_focus)
    await driven.press("ctrl+u", *text, "enter")
    await driven.until(lambda: not driven.screen.query_one(RecipeForm).editing)
    await driven.until(lambda: driven.screen.query_one(FormList).has_focus)


async def said(driven: Driven, text: str) -> None:
    """Until a notice says it."""
    await driven.until(lambda: any(text in notice.message for notice in driven.app._notifications))


# models and stages


@pytest.mark.slow
@pytest.mark.parametrize("size", [(80, 24), (140, 40)])
def test_a_name_that_cannot_be_launched_is_said_as_soon_as_it_is_typed(home: Home, size: tuple[int, int]) -> None:
    make_run(home, Stage.SFT, "unfinished", phase="failed")

    async def script(driven: Driven) -> None:
        await driven.press("m", *"no/such/id/x")
        await driven.until(lambda: "is not found here" in " ".join(driven.text.split()))
        assert "would be downloaded" not in driven.text
        await driven.press("enter")
        await driven.shows("✗ fix model_name_or_path")
        assert "✓ ready" not in driven.text and "would be downloaded" not in driven.text
        assert "is not found here: give" in driven.screen.controller.problem()
        await edit(driven, "lora_r", "4")  # another value does not make it usable
        await driven.shows("✗ fix model_name_or_path")
        await edit(driven, "model_name_or_path", "demo")
        await driven.shows("✓ ready")
        await edit(driven, "dataset_name", "demo")
        await edit(driven, "dataset_train_split", "evaluatio")
        await driven.shows("✗ fix dataset_train_split")
        await driven.press("]", "]", "]")
        assert driven.screen.controller.draft.stage is Stage.PPO
        await edit(driven, "reward_model_path", "a b c")
        await edit(driven, "policy_adapter_path", "unfinished")
        await driven.shows("✗ fix reward_model_path, policy_adapter_path")
        assert "that run is failed, not finished" in driven.screen.controller.problem()

    show(home, script, size)


def test_the_form_is_there_before_any_file_has_been_read(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def slow(*_: object, **__: object) -> Iterator[ModelEntry]:
        gate.wait(20)
        yield ModelEntry(name="late", kind="recent")

    monkeypatch.setattr(launch_controller, "find_models", slow)

    async def script(driven: Driven) -> None:
        await driven.shows("model_name_or_path", "[SFT]", "none yet")
        assert driven.screen.controller.models == []
        gate.set()
        await driven.until(lambda: [choice.value for choice in driven.screen.controller.models] == ["late"])

    show(home, script)


def test_a_model_is_filtered_and_taken_and_its_files_are_described(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.until(lambda: len(driven.screen.controller.models) == 2)
        await driven.press("m", *"7b")
        assert isinstance(driven.app.screen, PickScreen)
        await driven.shows("llama · 6.74 B · HF cache")
        await driven.press("enter")
        assert form(driven).text("model_name_or_path") == "org/llama-7b"
        await settled(driven)
        await driven.shows("model  org/llama-7b", "llama · 6.74 B", "6.74 B parameters")
        assert driven.screen.query_one(FormList).has_focus

    show(home, script)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_where_no_change_makes_it_fit_that_is_said(home: Home, tmp_path: Path, size: tuple[int, int]) -> None:
    big = CONFIG_7B | {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64}
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "config.json").write_text(json.dumps(big))

    async def script(driven: Driven) -> None:
        await settled(driven)
        await driven.shows("enough alone, nor", "all together")  # in two lines where the panel is narrow
        lora = next((line for line in driven.lines if "int8 + LoRA" in line), "int8 + LoRA")
        assert "…" not in lora

    show(home, script, size, model=str(tmp_path / "big"))


def test_a_typed_hub_id_is_taken_as_it_is_and_escape_takes_nothing(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.press("m")
        await driven.press(*"some/model-3b")
        await driven.shows("not on this machine: it would be downloaded")
        await driven.press("escape")
        assert form(driven).text("model_name_or_path") == ""
        await driven.press("m", *"some/model-3b", "enter")
        assert form(driven).text("model_name_or_path") == "some/model-3b"
        await driven.shows("3 B parameters")  # as its name says, for the rules of thumb

    show(home, script)


def test_the_cursor_of_the_picker_moves_while_the_line_keeps_the_letters(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.until(lambda: len(driven.screen.controller.models) == 2)
        await driven.press("m", "down", "down", "up", "pagedown", "enter")
        assert form(driven).text("model_name_or_path") == "org/llama-7b"
        await driven.press("m")
        assert driven.app.screen.query_one(ModelList).current.value == "org/llama-7b"  # type: ignore[union-attr]
        await driven.press(*"no such", "escape")
        assert form(driven).text("model_name_or_path") == "org/llama-7b"

    show(home, script)


def test_beside_the_form_the_list_is_walked_and_marks_what_is_chosen(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.until(lambda: len(driven.screen.controller.models) == 2)
        rows = driven.screen.query_one(ModelList)
        rows.focus()
        await driven.press("j", "enter")
        assert form(driven).text("model_name_or_path") == "org/llama-7b"
        await driven.shows("● org/llama-7b")
        rows.focus()
        await driven.press("k", "space")
        await driven.shows("● demo")
        assert rows.current is not None and rows.current.value == "demo"

    show(home, script, size=(120, 40))


def test_stages_go_round_and_each_form_keeps_its_values(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await edit(driven, "lora_r", "4")
        seen: list[str] = []
        for _ in range(6):
            await driven.press("right_square_bracket")
            seen.append(str(driven.screen.controller.draft.stage))
            assert form(driven) is driven.screen.query_one(RecipeForm).form
        assert seen == ["reward", "preference", "ppo", "merge", "pipeline", "sft"]
        assert form(driven).text("lora_r") == "4"
        await driven.press("left_square_bracket")
        await driven.shows("[pipeline]")
        assert form(driven).text("model_name_or_path") == "demo"

    show(home, script, model="demo")


def test_settings_say_where_to_begin(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("[reward]", "model  org/llama-7b")

    show(home, script, stage="reward", model="org/llama-7b")
    show(home, lambda driven: driven.shows("[SFT]"), stage="of a newer version")


# the form and its budget


def test_what_is_wrong_stands_at_its_field_and_keeps_enter_from_launching(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await settled(driven)
        await edit(driven, "lora_r", "many")
        await driven.shows("expected a whole number", "✗ fix lora_r")
        driven.screen.query_one(RecipeForm).move_to("model_name_or_path")
        await driven.press("enter")
        assert driven.app.screen is driven.screen
        assert driven.screen.query_one(RecipeForm).cursor_key == "lora_r"
        await edit(driven, "lora_r", "8")
        await driven.shows("✓ ready")

    show(home, script, model="demo")


def test_what_no_field_is_named_in_stands_below_the_form(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(driven: Driven) -> None:
        monkeypatch.setattr(form(driven), "errors", lambda: {"": "the whole of it is wrong"})
        driven.screen._refresh()
        await driven.shows("! the whole of it is wrong", "✗ fix the recipe")

    show(home, script, model="demo")


def test_every_keystroke_redraws_the_budget(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await settled(driven)
        before = driven.screen.controller.budget.device
        driven.screen.query_one(RecipeForm).move_to("max_length")
        await driven.press("e", "ctrl+u", "8")
        assert "launch" not in driven.lines[-1]  # enter accepts what is typed
        assert driven.screen.controller.budget.verdict != "unknown" and driven.screen.controller.budget.device < before
        await driven.press("x")
        budget = driven.screen.controller.budget
        assert budget.verdict == "unknown" and "wrong" in budget.reason
        await driven.press("backspace", "0", "0", "0")
        assert driven.screen.controller.budget.device > before

    show(home, script, model="org/llama-7b")


def test_a_number_without_a_change_is_answered(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.press("9")
        await said(driven, "the budget offers no change 9")

    show(home, script, model="demo")


def test_footer_has_stage_model_and_budget_at_80_columns(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("launch  ] next stage  m model  b budget  ? help  q quit")

    show(home, script, model="demo")


@pytest.mark.parametrize("stage", list(Stage))
def test_what_a_stage_does_fits_80_columns(stage: Stage) -> None:
    assert stage_line(stage, 78, {}).plain.partition("pipeline")[2].strip(" ]")


def test_a_number_takes_the_change_that_the_budget_offers(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await settled(driven)
        await driven.until(lambda: driven.screen.controller.budget.offers)
        offer = driven.screen.controller.budget.offers[0]
        await driven.press("1")
        assert {key: form(driven).text(key) for key in offer.changes} == offer.changes
        assert driven.screen.controller.draft.touched and driven.screen.controller.budget.device[0] < 8 * GIB
        await driven.press("9")
        assert form(driven).errors() == {}

    show(home, script, size=(120, 40), model="org/llama-7b")


def test_without_a_gpu_one_line_says_so(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_controller, "read_devices", lambda: Devices((), Memory("RAM", 32 * GIB, 24 * GIB)))
    show(home, lambda driven: driven.shows("no GPU; showing CPU memory"), size=(160, 45), model="demo")


def test_b_gives_the_budget_the_screen_and_takes_it_back(home: Home) -> None:
    async def narrow(driven: Driven) -> None:
        await settled(driven)
        panel = driven.screen.query_one(BudgetPanel)
        assert panel.size.height == 4
        await driven.press("b")
        assert panel.size.height > 12 and panel.has_focus and not driven.screen.query_one(FormList).size.height
        await driven.press("escape")
        assert panel.size.height == 4 and driven.screen.query_one(FormList).has_focus

    async def wide(driven: Driven) -> None:
        await driven.press("b")
        assert driven.screen.query_one(BudgetPanel).has_focus
        await driven.press("b")
        assert driven.screen.query_one(FormList).has_focus

    show(home, narrow, model="demo")
    show(home, wide, size=(120, 40), model="demo")


def test_a_short_budget_names_the_first_change_that_it_offers(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.until(lambda: driven.screen.controller.budget and driven.screen.controller.budget.offers)
        await driven.shows(f"memory · 1 {driven.screen.controller.budget.offers[0].title[:20]}")

    show(home, script, model="org/llama-7b")


def test_another_theme_is_worn_at_once(home: Home) -> None:
    async def script(driven: Driven) -> None:
        before = driven.screen.query_one("#launch-top").lines[0].spans
        await driven.press("T")
        await driven.until(lambda: driven.screen.query_one("#launch-top").lines[0].spans != before)

    show(home, script, model="demo")


def test_memory_that_hardly_moved_is_no_news(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 8 * GIB

    def found() -> Devices:
        return Devices((Memory("GPU 0", 8 * GIB, free),))

    monkeypatch.setattr(launch_controller, "read_devices", found)

    async def script(driven: Driven) -> None:
        nonlocal free
        await driven.until(lambda: driven.screen.controller._devices is not None)
        free -= GIB // 100
        assert driven.screen.poll() is None
        free -= GIB
        assert driven.screen.poll() == found()

    show(home, script, model="demo")


# commands and files


def test_y_copies_the_command_and_the_command_screen_shows_both(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await edit(driven, "lora_r", "8")
        await driven.press("y")
        words = copy_file().read_text().split()
        assert words[:4] == ["stackllama-console", "launch", "sft", "model_name_or_path=demo"]
        assert {"lora_r=8", "dataset_name=demo", "max_steps=70"} < set(words)
        await driven.press("C")
        await driven.until(lambda: isinstance(driven.app.screen, CommandScreen))
        await driven.shows("command", "worker command", "accelerate_cli", "lora_r=8")
        await driven.press("Y")
        assert "accelerate_cli launch" in copy_file().read_text() and "RUN_ID" in copy_file().read_text()
        await driven.press("y", "enter")
        assert copy_file().read_text().startswith("stackllama-console launch sft")
        assert isinstance(driven.app.screen, CommandScreen)  # enter launches only where it was asked for
        await driven.press("escape")
        assert driven.app.screen is driven.screen

    show(home, script, size=(100, 30), model="demo")


def test_the_command_screen_says_what_is_still_missing(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.press("C")
        await driven.until(lambda: isinstance(driven.app.screen, CommandScreen))
        await driven.shows("model_name_or_path: needed", "stackllama-console launch sft")
        assert "worker command" not in driven.text

    show(home, script)


def test_a_run_is_named_and_a_wrong_name_stays_to_be_fixed(home: Home) -> None:
    make_run(home, Stage.SFT, "taken")

    async def script(driven: Driven) -> None:
        await driven.press("N", *"First", "enter")
        await driven.shows("'First' is not a run name")
        assert driven.screen.controller.draft.name is None and driven.app.focused.value == "First"  # type: ignore[union-attr]
        await driven.press("ctrl+u", *"taken")
        assert "is not a run name" not in driven.text
        await driven.press("enter")
        await driven.shows("A run taken exists already")
        await driven.press("ctrl+u", *"first", "enter")
        await driven.until(lambda: driven.app.screen is driven.screen)
        assert driven.screen.controller.draft.name == "first"
        await driven.shows("as first")
        assert driven.screen.controller.draft.command().endswith("--name first")
        await driven.press("N", *(["backspace"] * 5), "enter")
        await driven.until(lambda: driven.screen.controller.draft.name is None)
        await driven.press("N", *"x", "escape")
        assert driven.screen.controller.draft.name is None

    show(home, script, model="demo")


def test_a_recipe_is_written_and_read_back_and_never_over_another(home: Home, tmp_path: Path) -> None:
    async def script(driven: Driven) -> None:
        await edit(driven, "lora_r", "4")
        await driven.press("w", "enter")
        await driven.until(lambda: (tmp_path / "sft.yaml").is_file())
        written = (tmp_path / "sft.yaml").read_text()
        assert written.startswith("# stage: sft\nmodel_name_or_path: demo\n") and "\nlora_r: 4\n" in written
        await edit(driven, "lora_r", "64")
        await driven.press("w", "enter")
        await said(driven, "exists already")
        await driven.press("o", *"sft.yaml", "enter", "n")
        assert form(driven).text("lora_r") == "64"
        await driven.press("o", *"sft.yaml", "enter", "y")
        await driven.until(lambda: form(driven).text("lora_r") == "4")
        await driven.press("right_square_bracket", "o", *"sft.yaml", "enter")
        await driven.until(lambda: driven.screen.controller.draft.stage is Stage.SFT)
        assert form(driven).text("lora_r") == "4"
        await driven.shows("from ", "sft.yaml")

    show(home, script, model="demo")


def test_a_file_that_is_no_recipe_is_said_whole_and_changes_nothing(home: Home, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("lora_q: 4\n")

    async def script(driven: Driven) -> None:
        await edit(driven, "lora_r", "4")
        await driven.press("o", *"bad.yaml", "enter", "y")
        await driven.shows("Did you mean `lora_r`")
        assert form(driven).text("lora_r") == "4" and form(driven).errors() == {}

    show(home, script, size=(120, 40), model="demo")


def test_defaults_come_back_only_after_a_yes(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await edit(driven, "lora_r", "4")
        await driven.press("X", "n")
        assert form(driven).text("lora_r") == "4"
        await driven.press("X", "y")
        assert form(driven).differences() == {"model_name_or_path": "org/llama-7b"}

    show(home, script, model="org/llama-7b")


def test_leaving_asks_where_something_would_be_lost(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await edit(driven, "lora_r", "4")
        await driven.press("escape")
        assert isinstance(driven.app.screen, ConfirmScreen)
        await driven.shows("y  leave     n  cancel")
        await driven.press("n")
        assert driven.app.screen is driven.screen
        await driven.press("escape", "y")
        assert driven.screen not in driven.app.screen_stack

    async def untouched(driven: Driven) -> None:
        await driven.press("escape")
        assert driven.screen not in driven.app.screen_stack

    show(home, script, model="demo")
    show(home, untouched, model="demo")


# launching


class Launches:
    """Stands in for the launcher: makes the run's directory, starts nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: StackllamaError | None = None) -> None:
        self.calls: list[launcher.Plan] = []
        self.opened: list[str] = []
        self._error = error
        monkeypatch.setattr(launch_controller.launcher, "launch", self._launch)
        monkeypatch.setattr(ConsoleApp, "open_run", lambda _, run_id: self.opened.append(run_id))

    def _launch(self, planned: launcher.Plan) -> RunDir:
        self.calls.append(planned)
        if self._error:
            raise self._error
        return planned.home.create(planned.stage, planned.recipe_yaml, planned.name)


async def confirm(driven: Driven) -> None:
    await driven.press("enter")
    await driven.until(lambda: isinstance(driven.app.screen, CommandScreen))


def test_enter_asks_and_enter_again_launches_what_was_shown(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches(monkeypatch)

    async def script(driven: Driven) -> None:
        await settled(driven)
        await edit(driven, "lora_r", "8")
        await driven.press("N", *"first", "enter")
        await confirm(driven)
        await driven.shows("lora_r=8", "first", "memory", "enter  launch")
        assert launches.calls == []
        driven.screen.controller.rename("second")  # too late for what was confirmed
        await driven.press("enter")
        await driven.until(lambda: launches.opened)
        assert not driven.app._notifications  # escape has nothing else to take away
        assert driven.app.screen.HEADING == "runs"  # type: ignore[attr-defined]
        runs: Any = driven.app.screen
        await driven.until(lambda: runs.row_id == "first")  # not `another`, on which the cursor was

    make_run(home, Stage.SFT, "another")
    show(home, script, model="demo")
    (planned,) = launches.calls
    assert isinstance(planned.recipe, SFTRecipe) and (planned.recipe.lora_r, planned.name) == (8, "first")
    assert planned.recipe.model_name_or_path == str(DEMO_BASE)
    assert launches.opened == ["first"] and home.run("first").read_state().phase == "queued"


def test_plan_made_while_help_is_open_launches_nothing_and_says_so(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches(monkeypatch)
    gate, begun, plan = threading.Event(), threading.Event(), launcher.plan

    def slow(*arguments: Any, **options: Any) -> launcher.Plan:
        begun.set()
        gate.wait(20)
        return plan(*arguments, **options)

    monkeypatch.setattr(launch_controller.launcher, "plan", slow)

    async def script(driven: Driven) -> None:
        await settled(driven)
        await driven.press("N", *"first", "enter")
        await driven.until(lambda: driven.screen.controller.draft.name == "first" and driven.screen.is_current)
        await driven.press("enter")
        await driven.until(begun.is_set)
        await driven.press("question_mark")
        await driven.until(lambda: isinstance(driven.app.screen, HelpScreen))
        driven.screen.controller.rename("second")
        gate.set()
        await said(driven, "first not launched: this screen was left")
        assert not driven.screen.controller.busy

    show(home, script, model="demo")
    assert launches.calls == []


def test_a_launch_is_remembered(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches(monkeypatch)

    async def main() -> None:
        app = ConsoleApp(Options(home=home))
        async with app.run_test(size=(80, 24)) as pilot:
            app.settings.model, app.settings.stage = "demo", "reward"
            app.open_launch()
            driven = Driven(app, app.screen, pilot)  # type: ignore[arg-type]
            await driven.shows("[reward]")
            await confirm(driven)
            await driven.press("enter")
            await driven.until(lambda: launches.opened)

    asyncio.run(main())
    settings, _ = load_settings()
    assert (settings.stage, settings.model, settings.recent_models) == ("reward", "demo", ["demo"])


def test_escape_at_the_last_look_launches_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches(monkeypatch)

    async def script(driven: Driven) -> None:
        await edit(driven, "lora_r", "8")
        await confirm(driven)
        await driven.press("escape")
        assert driven.app.screen is driven.screen and form(driven).text("lora_r") == "8"
        await confirm(driven)  # and it can be asked again
        await driven.press("n")

    show(home, script, model="demo")
    assert launches.calls == []


def test_a_refusal_before_launch_stands_at_its_field_and_whole_below(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.press("enter")
        await driven.shows("is not found here", "✗ fix model_name_or_path")
        assert driven.app.screen is driven.screen
        assert driven.screen.query_one(RecipeForm).cursor_key == "model_name_or_path"
        below = driven.screen.query_one("#launch-error").plain
        assert "`stackllama-console runs ls` lists the runs" in " ".join(below.split())
        await driven.press("enter")  # another try is not barred
        await driven.until(lambda: not driven.screen.controller.busy)
        await edit(driven, "model_name_or_path", "demo")
        await driven.shows("✓ ready")
        assert driven.screen.query_one("#launch-error").plain == ""

    show(home, script, size=(100, 30), model="/no/such/model")


def test_a_finding_can_be_allowed_and_stands_on_the_last_page(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = Launches(monkeypatch)
    rows = (f'{{"question": "q {index}", "response_j": "a", "response_k": "b"}}\n' for index in range(40))
    (tmp_path / "pairs.jsonl").write_text("".join(rows))

    async def script(driven: Driven) -> None:
        await settled(driven)
        form(driven).set("dataset_name", str(tmp_path / "pairs.jsonl"))
        form(driven).set("dataset_train_split", "all")
        await driven.press("enter")
        await driven.until(lambda: isinstance(driven.app.screen, ConfirmScreen))
        await driven.shows("evaluation measures memory", "y  allow and launch")
        assert launches.calls == []
        await driven.press("y")
        await driven.until(lambda: isinstance(driven.app.screen, CommandScreen))
        await driven.shows("(allowed: eval-prompts)", "--allow eval-prompts")
        await driven.press("enter")
        await driven.until(lambda: launches.opened)

    show(home, script, model="demo", size=(140, 60))
    (planned,) = launches.calls
    assert planned.allow == ("eval-prompts",)


def test_a_name_that_is_taken_is_refused_and_nothing_is_lost(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await edit(driven, "lora_r", "8")
        await driven.press("N", *"taken", "enter")
        await driven.until(lambda: driven.screen.controller.draft.name == "taken")
        make_run(home, Stage.SFT, "taken")  # meanwhile, by somebody else
        await driven.press("enter")
        await driven.shows("A run `taken` exists already")
        assert form(driven).text("lora_r") == "8" and driven.screen.controller.draft.name == "taken"
        await driven.press("N", *"2", "enter")
        await driven.until(lambda: "exists already" not in driven.text)
        assert driven.screen.controller.draft.name == "2"  # typed over the old one, which is selected

    show(home, script, model="demo")


def test_a_supervisor_that_did_not_start_is_said_and_the_form_stays(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = Launches(monkeypatch, StackllamaError("Run `x`: The supervisor could not be started; see its log."))

    async def script(driven: Driven) -> None:
        await confirm(driven)
        await driven.press("enter")
        await driven.shows("The supervisor could not be started")
        assert driven.app.screen is driven.screen and launches.opened == []

    show(home, script, size=(100, 30), model="demo")


def test_nobody_leaves_while_a_run_is_being_made(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches(monkeypatch)
    gate, create = threading.Event(), launches._launch

    def slow(planned: launcher.Plan) -> RunDir:
        gate.wait(20)
        return create(planned)

    monkeypatch.setattr(launch_controller.launcher, "launch", slow)

    async def script(driven: Driven) -> None:
        await confirm(driven)
        await driven.press("enter")
        await driven.until(lambda: driven.screen.controller.launching)
        await driven.press("escape", "enter")
        assert driven.app.screen is driven.screen
        gate.set()
        await driven.until(lambda: launches.opened)

    show(home, script, model="demo")
    assert len(launches.calls) == 1


def test_run_made_while_help_is_open_is_said_and_help_stays(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches(monkeypatch)
    gate, create = threading.Event(), launches._launch

    def slow(planned: launcher.Plan) -> RunDir:
        gate.wait(20)
        return create(planned)

    monkeypatch.setattr(launch_controller.launcher, "launch", slow)

    async def script(driven: Driven) -> None:
        await confirm(driven)
        await driven.press("enter")
        await driven.until(lambda: driven.screen.controller.launching)
        await driven.press("question_mark")
        await driven.until(lambda: isinstance(driven.app.screen, HelpScreen))
        gate.set()
        await said(driven, "launched sft-")
        assert isinstance(driven.app.screen, HelpScreen) and launches.opened == []

    show(home, script, model="demo")


# runs as inputs, clones


def test_r_offers_the_finished_runs_that_a_key_takes(home: Home) -> None:
    make_run(home, Stage.REWARD, "judge")
    make_run(home, Stage.REWARD, "judge-failed", phase="failed")
    make_run(home, Stage.SFT, "tuned")

    async def script(driven: Driven) -> None:
        await driven.press("r")
        await driven.shows("judge")
        assert "judge-failed" not in driven.text and "tuned" not in driven.text
        await driven.press("enter")
        assert form(driven).text("reward_model_path") == "judge"
        driven.screen.query_one(RecipeForm).move_to("policy_adapter_path")
        await driven.press("r")
        await driven.shows("tuned")
        await driven.press("enter")
        assert form(driven).text("policy_adapter_path") == "tuned"
        await driven.press("left_square_bracket", "left_square_bracket", "r")
        await said(driven, "no key of the reward recipe takes a run")

    show(home, script, stage="ppo", model="demo")


def test_a_merge_lists_adapters_in_the_models_place(home: Home) -> None:
    make_run(home, Stage.SFT, "tuned")

    async def script(driven: Driven) -> None:
        await driven.press("right_square_bracket")
        await driven.shows("adapters", "tuned", "adapter  none yet")
        await driven.press("m")
        await driven.until(lambda: isinstance(driven.app.screen, PickScreen))
        await driven.press("enter")
        assert form(driven).text("adapter_path") == "tuned"
        await settled(driven)
        await driven.shows("on demo", "stackllama-console launch merge adapter_path=tuned")
        assert driven.screen.controller.budget.verdict == "yes"

    show(home, script, size=(120, 40), stage="ppo", model="demo")


def test_a_clone_is_filled_in_and_says_of_which_run(home: Home) -> None:
    make_run(home, Stage.REWARD, "p-reward", "lora_r=4", "learning_rate=3e-4")

    async def script(driven: Driven) -> None:
        await driven.shows("cloned from p-reward", "[reward]")
        assert form(driven).differences()["lora_r"] == "4" and form(driven).recipe() is not None
        await driven.press("escape")  # nothing was typed
        assert driven.screen not in driven.app.screen_stack

    show(home, script, clone="p-reward")


def test_a_clone_of_nothing_says_so(home: Home) -> None:
    show(home, lambda driven: driven.shows("No run `gone`"), clone="gone")


# everything foreign, every size, every key


@pytest.mark.parametrize("size", [(80, 24), pytest.param((160, 45), marks=pytest.mark.slow)])
def test_hostile_names_and_recipes_are_shown_plain(home: Home, tmp_path: Path, size: tuple[int, int]) -> None:
    folder = tmp_path / "person" / "models"
    for index, payload in enumerate(PAYLOADS):
        name = f"{index}{payload}".replace("/", "_").replace("\x00", "")
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(CONFIG_7B | {"model_type": payload}))
    run = make_run(home, Stage.SFT, "hostile", f"model_name_or_path={json.dumps(PAYLOADS[0])}")
    recipe = json.dumps({"model_name_or_path": PAYLOADS[0] + PAYLOADS[13], "dataset_name": PAYLOADS[12]})
    run.recipe_file.write_text(recipe)

    async def script(driven: Driven) -> None:
        await driven.until(lambda: len(driven.screen.controller.models) >= len(PAYLOADS))
        await driven.shows("cloned from hostile")
        driven.assert_clean()
        for keys in (["enter"], ["C"], ["escape"], ["m"], ["down"], ["escape"], ["b"], ["b"]):
            await driven.press(*keys)
            await driven.until(lambda: not driven.screen.controller.busy)
            driven.assert_clean()
        for choice in driven.screen.controller.models:
            driven.screen.set_value("model_name_or_path", choice.value)
            await driven.pilot.pause()
            driven.assert_clean()

    show(home, script, size=size, clone="hostile")


@pytest.mark.parametrize(
    "size", [(80, 24), *(pytest.param(size, marks=pytest.mark.slow) for size in ((20, 5), (120, 40), (160, 45)))]
)
def test_every_key_at_every_size(home: Home, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    launches = Launches(monkeypatch)
    make_run(home, Stage.REWARD, "judge")

    async def script(driven: Driven) -> None:
        for key in "]]]rbbyCNowXm1[[[":
            named = {"]": "right_square_bracket", "[": "left_square_bracket"}.get(key, key)
            await driven.press(named)
            await driven.pilot.pause(0.05)
            driven.assert_clean()
            while driven.app.screen is not driven.screen:
                await driven.press("escape")
        await driven.pilot.resize_terminal(20, 5)
        await driven.press("j", "G", "m", "escape", "enter")
        await driven.until(lambda: isinstance(driven.app.screen, CommandScreen))
        driven.assert_clean()
        await driven.pilot.resize_terminal(*size)
        await driven.press("escape")
        driven.assert_clean()

    show(home, script, size=size, model="demo")
    assert launches.calls == []


def test_no_key_of_the_screen_is_taken_by_a_widget_of_it() -> None:
    scope = next(scope for scope in all_scopes(ConsoleApp.BINDINGS) if scope.title == "launch")
    assert set(scope.widgets) == {"RecipeForm", "BudgetPanel", "ModelList", "ScrollLines"}
    for bindings in scope.widgets.values():
        for own in scope.bindings:
            for other in bindings:
                shared = set(own.key.split(",")) & set(other.key.split(","))
                # escape is the form's only while it has something to cancel
                assert own.id == other.id or shared <= {"escape"}, f"{own.id} and {other.id}: {shared}"
    assert all(binding.id and binding.description for binding in scope.bindings)
