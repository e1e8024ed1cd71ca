"""The recipe form under keys: cursor, editing in place, errors below the field, filters, hostile text, small sizes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import ClassVar

import pytest
from rich.segment import Segment
from textual import events, on
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.color import Color
from textual.filter import Monochrome
from textual.pilot import Pilot
from textual.widgets import Input

from stackllama_console.readers.form import Form
from stackllama_console.readers.form_aliases import SHORT
from stackllama_console.readers.form_fields import fields_of
from stackllama_console.sanitise import sanitise
from stackllama_console.tui.widgets.form_list import FormList
from stackllama_console.tui.widgets.form_rows import matching
from stackllama_console.tui.widgets.recipe_form import RecipeForm
from stackllama_engine.contract.recipe_io import build_recipe, load_recipe
from stackllama_engine.contract.stages import Stage

HOSTILE = [
    "\x1b]52;c;aGVsbG8=\x07stolen",
    "\x9b2Jcleared",
    "x [/] [/INST] [@click=app.quit]markup[/]",
    "[bold red]not red[/bold red]",
    "\u202egnp.exe\u202c",
    "two\nlines\tand tabs",
    "漢字" * 60,
]


class FormApp(App[None]):
    """The widget alone, and what it posted."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "go_back", "back")]

    def __init__(self, form: Form, ascii_only: bool = False) -> None:
        super().__init__()
        self.form = form
        self.widget = RecipeForm(form, ascii=ascii_only)
        self.changes: list[dict[str, str]] = []
        self.highlights: list[str] = []
        self.escaped = 0

    def compose(self) -> ComposeResult:
        yield self.widget

    def on_mount(self) -> None:
        self.widget.focus()

    def action_go_back(self) -> None:
        self.escaped += 1

    @on(RecipeForm.Changed)
    def _changed(self, event: RecipeForm.Changed) -> None:
        assert event.form is self.form
        self.changes.append(event.form.differences())

    @on(RecipeForm.Highlighted)
    def _highlighted(self, event: RecipeForm.Highlighted) -> None:
        self.highlights.append(event.key)

    @property
    def input(self) -> Input:
        return self.widget.query_one("#form-input", Input)

    def lines(self) -> list[str]:
        """Return what the rows show, from top to bottom."""
        rows = self.widget.query_one(FormList)
        return [rows.render_line(y).text.rstrip() for y in range(rows.size.height)]

    def line(self, name: str) -> str:
        return next(line for line in self.lines() if f" {name} " in f"{line} ")

    def help(self) -> str:
        return str(self.widget.query_one("#form-help").render())


def drive(
    form: Form,
    steps: Callable[[FormApp, Pilot[None]], Awaitable[None]],
    size: tuple[int, int] = (80, 24),
    ascii_only: bool = False,
) -> FormApp:
    app = FormApp(form, ascii_only)

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await steps(app, pilot)

    asyncio.run(run())
    return app


async def press(pilot: Pilot[None], *keys: str) -> None:
    await pilot.press(*keys)
    await pilot.pause()


def sft() -> Form:
    form = Form(Stage.SFT)
    form.set("model_name_or_path", "demo")
    return form


@pytest.mark.parametrize("stage", list(Stage))
def test_every_field_of_every_stage_is_reached_by_key(stage: Stage) -> None:
    form = Form(stage)

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        keys = list(form.fields)
        assert app.widget.cursor_key == keys[0]
        rows = app.widget.query_one(FormList)
        seen = [app.widget.cursor_key]
        await press(pilot, "j", "down", "k", "up")
        assert app.widget.cursor_key == keys[0]
        for _ in keys:
            rows.move(1)
            seen.append(app.widget.cursor_key)
            assert 0 <= rows.cursor_line < rows.size.height
        assert seen == [*keys, keys[-1]]
        await pilot.pause()
        await press(pilot, "g")
        assert app.widget.cursor_key == keys[0] and app.lines()[0].startswith("── ")
        await press(pilot, "G")
        assert app.widget.cursor_key == keys[-1]

    app = drive(form, steps)
    assert app.changes == []
    assert app.highlights[:3] == [*list(form.fields)[:2], list(form.fields)[2]]


def test_pages_and_sections() -> None:
    form = sft()

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        await press(pilot, "ctrl+d")
        below = list(form.fields).index(app.widget.cursor_key)
        assert below > 10
        await press(pilot, "pagedown", "pageup")
        assert abs(list(form.fields).index(app.widget.cursor_key) - below) <= 1  # a heading is stepped over
        await press(pilot, "ctrl+u")
        await press(pilot, "right_curly_bracket")
        assert app.widget.cursor_key == "dataset_name"
        await press(pilot, "down", "left_curly_bracket")
        assert app.widget.cursor_key == "dataset_name"
        await press(pilot, "left_curly_bracket")
        assert app.widget.cursor_key == "model_name_or_path"

    drive(form, steps)


def test_defaults_are_shown_and_what_differs_is_marked_without_colour() -> None:
    form = sft()
    form.set("dtype", "float32")

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        assert app.line("base_precision").startswith("   base_precision")
        assert app.line("base_precision").endswith("  auto")
        assert app.line("dtype").startswith(" ● dtype") and app.line("dtype").endswith("float32  default auto")
        assert app.line("model_revision").endswith("empty")
        assert "hub id, local directory" in app.help() and "needed" not in app.help()  # it is filled
        await press(pilot, "d")
        assert "needed" in app.help() and app.line("model_name_or_path").endswith("needed")
        app.widget.apply({"model_name_or_path": "demo"})
        await pilot.pause()
        await press(pilot, "j")
        assert app.help().splitlines()[0].startswith("model_revision  default empty · ")

    drive(form, steps)


def test_keys_without_effect_say_which_setting_makes_them_so() -> None:
    form = Form(Stage.PPO)

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        app.widget.move_to("num_generations")
        await pilot.pause()
        assert app.line("num_generations").endswith("4  no effect with advantage: gae")
        app.widget.apply({"advantage": "rloo"})
        await pilot.pause()
        assert app.line("num_generations").endswith("4")
        app.widget.move_to("lam")
        await pilot.pause()
        assert app.line("0.95").split() == ["›", "lam", "0.95", "no", "effect", "with", "advantage:", "rloo"]
        assert app.help().startswith("lam  no effect with advantage: rloo · ")

    drive(form, steps)


def test_editing_in_place_validates_and_tells_at_each_keystroke() -> None:
    form = sft()

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        app.widget.move_to("lora_r")
        await press(pilot, "e")
        rows = app.widget.query_one(FormList)
        assert app.widget.editing and app.input.has_focus and app.input.value == "16"
        assert app.input.region.y == rows.region.y + rows.cursor_line
        assert app.input.region.x == rows.region.x + rows.value_column
        assert not app.input.cursor_blink
        await press(pilot, "ctrl+u", "x")
        assert form.text("lora_r") == "x"
        above = app.lines().index(app.line("lora_r"))
        assert app.lines()[above + 1].strip() == "! expected a whole number"
        assert app.line("lora_r").startswith("›!")
        await press(pilot, "backspace", "8")
        assert form.text("lora_r") == "8" and form.errors() == {}
        await press(pilot, "enter")
        assert not app.widget.editing and rows.has_focus and not app.input.display

    app = drive(form, steps)
    assert [change.get("lora_r") for change in app.changes] == ["", "x", "", "8"]


def test_keys_that_arrive_all_at_once_go_where_they_were_meant_for() -> None:
    form = Form(Stage.SFT)
    name = "meta-llama/Llama-2-7b-hf"

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        keys = ["e", *name, "enter", "j", "e", *"main", "enter", "j", "space", "j", "space", "j", "j"]
        keys += ["slash", *"lora_r", "enter", "e", "ctrl+u", "8", "escape", "e", "0", "down"]
        for key in keys:  # as a driver posts what it read in one go
            app.post_message(events.Key(key, key if len(key) == 1 else " " if key == "space" else None))
        for _ in range(len(keys)):
            await pilot.pause()
        assert not app.widget.editing and app.widget.query_one(FormList).has_focus

    drive(form, steps)
    assert form.differences() == {
        "model_name_or_path": name,
        "model_revision": "main",
        "dtype": "float32",
        "base_precision": "dtype",
        "lora_r": "160",
    }


def test_escape_takes_an_edit_back_to_what_was_typed_before_or_to_the_default() -> None:
    form = sft()
    form.set("lora_alpha", "64")

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        for key, before in (("lora_alpha", "64"), ("lora_r", None)):
            app.widget.move_to(key)
            await press(pilot, "e", "9", "9", "escape")
            assert form.differences().get(key) == before
            assert not app.widget.editing
        assert app.changes[-1] == {"model_name_or_path": "demo", "lora_alpha": "64"}

    app = drive(form, steps)
    assert app.escaped == 0


def test_moving_on_keeps_the_edit() -> None:
    form = sft()

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        app.widget.move_to("lora_r")
        await press(pilot, "e", "0", "down")
        assert app.widget.cursor_key == "lora_alpha" and not app.widget.editing
        await press(pilot, "e", "0", "pagedown")
        assert not app.widget.editing

    drive(form, steps)
    assert form.differences() == {"model_name_or_path": "demo", "lora_r": "160", "lora_alpha": "320"}


def test_flags_toggle_and_choices_cycle_both_ways() -> None:
    form = sft()

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        app.widget.move_to("bf16")
        await press(pilot, "space")
        assert form.text("bf16") == "true"
        await press(pilot, "e")
        assert form.text("bf16") == "false" and not app.widget.editing
        app.widget.move_to("dtype")
        await press(pilot, "space")
        assert form.text("dtype") == "float32"
        await press(pilot, "backspace", "backspace")
        assert form.text("dtype") == "float16"
        await press(pilot, "space")
        assert not form.differs("dtype")
        app.widget.move_to("lora_r")
        await press(pilot, "backspace", "enter")  # enter is the screen's
        assert not form.differs("lora_r") and not app.widget.editing
        await press(pilot, "space")
        assert not form.differs("lora_r") and app.widget.editing

    assert len(drive(form, steps).changes) == 6


def test_a_wrong_choice_in_a_loaded_form_cycles_to_the_first() -> None:
    form = sft()
    form.set("dtype", "int3")

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        app.widget.move_to("dtype")
        await press(pilot, "space")

    drive(form, steps)
    assert form.text("dtype") == "auto"


def test_d_resets_to_the_default() -> None:
    form = sft()
    form.set("lora_r", "8")

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        app.widget.move_to("lora_r")
        await press(pilot, "d")
        assert not form.differs("lora_r")
        await press(pilot, "d")

    assert len(drive(form, steps).changes) == 1


def test_keys_that_exclude_each_other_are_both_marked_and_said_once_where_it_was_done() -> None:
    form = sft()
    form.set("bf16", "true")

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        app.widget.move_to("fp16")
        await press(pilot, "space")
        lines = app.lines()
        said = [index for index, line in enumerate(lines) if line.startswith("    ! ")]
        assert len(said) == 1 and lines[said[0] - 1].startswith("›! fp16")
        assert app.line("bf16").startswith(" ! bf16")
        assert "both true; choose one" in " ".join(lines[said[0]].split())
        await press(pilot, "k", "space")
        assert not any("!" in line for line in app.lines())

    drive(form, steps)


def test_slash_filters_by_key_and_help_as_it_is_typed() -> None:
    form = Form(Stage.PPO)

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        await press(pilot, "slash", *"lora")
        assert app.lines()[0].startswith("/ lora")
        assert app.lines()[2].startswith("›  ") and app.input.region.y == 0
        names = [row.text for row in app.widget.query_one(FormList).rows if row.kind == "field"]
        assert "lora_alpha" in names and "seed" not in names
        await press(pilot, "enter", "G")
        assert not app.widget.editing and app.widget.cursor_key in form.fields
        assert app.line("lora_alpha")
        await press(pilot, "escape")
        assert len([row for row in app.widget.query_one(FormList).rows if row.kind == "field"]) == len(form.fields)
        app.widget.filter("no such key [/] \x1b[2J")
        await pilot.pause()
        assert app.widget.cursor_key == "" and app.lines()[0] == f"/ no such key [/]  0 of {len(form.fields)} keys"
        await press(pilot, "j", "enter", "space", "d", "G", "ctrl+d", "right_curly_bracket")
        assert not app.widget.editing
        await press(pilot, "slash", "escape")
        assert app.widget.cursor_key

    app = drive(form, steps)
    assert app.changes == [] and app.escaped == 0


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("lr", "learning_rate"),
        ("batch size", "per_device_train_batch_size"),
        ("grad accum", "gradient_accumulation_steps"),
        ("epochs", "num_train_epochs"),
        ("seq len", "max_length"),
        ("max_grad_norm", "max_grad_norm"),
        ("cutoff_len", "max_length"),
        ("qlora", "base_precision"),
        ("wandb", "report_to"),
    ],
)
def test_the_filter_knows_other_names_of_a_key(words: str, key: str) -> None:
    form = sft()
    assert key in {field.key for field in matching(form, words)} and len(matching(form, words)) < 12
    assert matching(form, words)[0].key == key
    assert matching(form, "steps")[0].key == "max_steps"
    named = {field.name for stage in Stage for field in fields_of(stage).values()}
    assert set(SHORT) <= named


def test_a_filled_form_shows_what_differs_from_its_source() -> None:
    form = sft()
    form.load(build_recipe(Stage.SFT, {"model_name_or_path": "demo", "lora_r": 4, "seed": 7}))
    form.set("lora_r", "8")
    form.reset("seed")
    form.set("packing", "false")

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        app.widget.move_to("lora_r")
        await pilot.pause()
        assert app.line("lora_r").startswith("›Δ lora_r")
        assert app.line("lora_r").endswith("8  was 4")
        await press(pilot, "a", "a")
        assert app.lines()[0] == f"3 of {len(form.fields)} keys that differ from the source"
        names = [row.text for row in app.widget.query_one(FormList).rows if row.kind == "field"]
        assert set(names) == {"seed", "packing", "lora_r"}
        assert app.line("seed").endswith("was 7") and app.line("packing").endswith("false  was true")
        await press(pilot, "a")
        assert len(app.widget.query_one(FormList).rows) > 20

    drive(form, steps)
    changed = {"lora_r": ("4", "8"), "seed": ("7", form.default_text("seed")), "packing": ("true", "false")}
    assert form.changes() == changed


def test_a_shows_only_what_differs_or_is_wrong() -> None:
    form = Form(Stage.SFT)
    form.set("seed", "3")

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        await press(pilot, "a")
        keys = [row.key for row in app.widget.query_one(FormList).rows if row.kind == "field"]
        assert keys == ["model_name_or_path", "seed"]
        await press(pilot, "a")
        assert len([row for row in app.widget.query_one(FormList).rows if row.kind == "field"]) == len(form.fields)

    drive(form, steps)


def test_escape_is_the_screens_when_there_is_nothing_to_cancel() -> None:
    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        await press(pilot, "escape")

    assert drive(sft(), steps).escaped == 1


def test_suggested_changes_are_applied_together() -> None:
    form = sft()

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        app.widget.apply({"base_precision": "nf4", "use_bnb_nested_quant": "true"})
        await pilot.pause()
        with pytest.raises(KeyError):
            app.widget.apply({"lora_r": "1", "no_such_key": "2"})
        assert not form.differs("lora_r")

    app = drive(form, steps)
    assert len(app.changes) == 1 and form.errors() == {} and form.text("base_precision") == "nf4"


def test_another_form_is_shown_from_its_beginning() -> None:
    other = Form(Stage.MERGE)

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        await press(pilot, "G", "k", "k", "k")
        app.widget.show(other)
        await pilot.pause()
        assert app.widget.cursor_key == "adapter_path" and app.widget.query_one(FormList).scroll_offset.y == 0
        assert "needed" in app.line("adapter_path")

    drive(sft(), steps)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_plain_in_rows_and_help_and_in_what_is_pasted(text: str) -> None:
    form = sft()
    form.load(load_recipe(Stage.SFT, None, ["model_name_or_path=demo"]))
    form.set("dataset_name", text)
    form.set("lora_r", text)

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        shown = "".join(app.lines()) + app.help()
        assert sanitise(shown) == shown
        app.widget.move_to("dataset_name")
        await press(pilot, "e")
        assert sanitise(app.input.value) == app.input.value and "\n" not in app.input.value
        await press(pilot, "ctrl+u")
        app.input.post_message(events.Paste(text))
        await pilot.pause()
        assert app.input.value == " ".join(sanitise(text).split())
        assert form.text("dataset_name") == app.input.value
        await press(pilot, "escape")
        assert form.text("dataset_name") == text.strip()  # opening and leaving changes nothing

    drive(form, steps)


def test_a_click_moves_and_a_second_click_opens() -> None:
    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        await pilot.click(FormList, offset=(5, 4))
        await pilot.pause()
        assert app.widget.cursor_key == "dtype"
        app.widget.move_to("model_revision")
        await pilot.pause()
        y = app.widget.query_one(FormList).cursor_line
        await pilot.click(FormList, offset=(5, y))
        await pilot.pause()
        assert app.input.has_focus
        await pilot.click(FormList, offset=(5, 0))  # a heading

    drive(sft(), steps)


@pytest.mark.parametrize(
    "size", [(38, 8), *(pytest.param(size, marks=pytest.mark.slow) for size in ((40, 12), (20, 5), (10, 3), (1, 1)))]
)
@pytest.mark.parametrize("stage", [Stage.PPO, pytest.param(Stage.PIPELINE, marks=pytest.mark.slow)])
def test_small_sizes_keep_the_cursor_in_sight_and_crash_nowhere(size: tuple[int, int], stage: Stage) -> None:
    form = Form(stage)
    form.set("bf16", "true")
    form.set("fp16", "true")

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        rows = app.widget.query_one(FormList)
        for key in ("j", "j", "G", "k", "ctrl+u", "e", "1", "escape", "slash", "k", "enter", "a", "d", "g"):
            await press(pilot, key)
            if rows.size.height and rows.cursor >= 0:
                assert 0 <= rows.cursor_line < rows.size.height
            assert all(rows.render_line(y).cell_length == rows.row_width for y in range(rows.size.height))

    drive(form, steps, size)


def test_resizing_while_editing_moves_the_input_along() -> None:
    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        app.widget.move_to("lora_r")
        await press(pilot, "e", "0")
        await pilot.resize_terminal(40, 12)
        await pilot.pause()
        rows = app.widget.query_one(FormList)
        assert app.input.value == "160"
        assert app.input.region.y == rows.region.y + rows.cursor_line
        assert app.input.region.x == rows.region.x + rows.value_column

    drive(sft(), steps)


def test_ascii_draws_with_ascii_alone_and_every_segment_has_a_style() -> None:
    form = sft()
    form.set("bf16", "true")
    form.set("fp16", "true")
    form.set("dataset_name", "x" * 300)

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        assert all(line.isascii() for line in app.lines())
        assert any(line.startswith("> ") or line.startswith(">*") for line in app.lines())
        rows = app.widget.query_one(FormList)
        segments: list[Segment] = [segment for y in range(24) for segment in rows.render_line(y)]
        assert all(segment.style is not None for segment in segments)
        Monochrome().apply(segments, Color.parse("black"))

    drive(form, steps, ascii_only=True)


def test_every_binding_has_an_id_and_says_what_it_does() -> None:
    bindings = [binding for binding in RecipeForm.BINDINGS if not isinstance(binding, tuple)]
    assert len(bindings) == len(RecipeForm.BINDINGS)
    assert all((binding.id or "").startswith("form.") and binding.description for binding in bindings)
    assert len({binding.id for binding in bindings}) == len(bindings)


def test_a_keystroke_redraws_its_own_row_alone() -> None:
    form = sft()

    async def steps(app: FormApp, pilot: Pilot[None]) -> None:
        app.widget.move_to("lora_r")
        await press(pilot, "e")
        rows = app.widget.query_one(FormList)
        asked: list[int] = []
        whole: list[tuple[object, ...]] = []
        rows.refresh_line = asked.append  # type: ignore[method-assign]
        rows.refresh = lambda *regions, **_: whole.append(regions) or rows  # type: ignore[method-assign]
        await press(pilot, "0")
        assert set(asked) == {rows.cursor} and whole == []
        asked.clear()
        app.widget.redraw()
        assert asked == [] and whole == []

    drive(form, steps)
