"""Launch: a model, a stage, a recipe as a form, what it will cost in memory; enter launches.

From 120 columns models, form and budget stand side by side; below that the form has the screen, with the model in a
line above it and a short budget below.
"""

import asyncio
import itertools
from typing import ClassVar

from msgspec import structs
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.widgets import Input

from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage

from ...readers.budget_inputs import Asked, Devices, Shapes, read_devices, read_shapes
from ...readers.budget_view import BudgetView, build_view
from ...readers.choices import RUN_KEYS, Choice, model_choice, model_folders, run_choices
from ...readers.draft import ADAPTER, Draft, LaunchForm, read_run
from ...readers.input_check import find_unusable
from ...readers.model_catalog import find_models
from ...sanitise import one_line
from ...settings import Settings
from ..screen import ConsoleScreen
from ..widgets.budget_panel import BudgetPanel
from ..widgets.model_list import ModelList
from ..widgets.recipe_form import RecipeForm
from ..widgets.text_lines import TextLines
from .launch_asks import LaunchAsks
from .launch_flow import LaunchFlow
from .launch_lines import STAGES, budget_title, command_lines, model_line, stage_line, trouble_lines, verdict_parts

_WIDE = 120
_LOW, _TINY = 18, 9
_BATCH = 25  # models shown at a time while they are being found
_PAUSE = 0.1  # seconds between a changed model name and the reading of its files
_MOVED = 0.02  # share of a device's memory below which a change is no news


class LaunchScreen(ConsoleScreen):
    """Prepares one launch.

    Args:
        home: where the run will live.
        settings: last stage and model; brought up to date by a launch.
        clone: a run whose recipe fills the form.
    """

    HEADING = "launch"
    INTERVAL = 2.0
    WIDGETS_WITH_KEYS: ClassVar[tuple[str, ...]] = ("RecipeForm", "BudgetPanel", "ModelList")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,L,ctrl+l", "launch", "launch", id="launch.launch", key_display="enter"),
        Binding("right_square_bracket", "stage(1)", "stage", id="launch.next_stage", key_display="]"),
        Binding(
            "left_square_bracket",
            "stage(-1)",
            "previous stage",
            id="launch.previous_stage",
            key_display="[",
            show=False,
        ),
        Binding("m", "ask('model')", "model", id="launch.model"),
        Binding("r", "ask('run')", "run for this key", id="launch.run", show=False),
        Binding("b", "budget", "budget", id="launch.budget"),
        Binding("y", "copy", "copy the command", id="launch.copy", show=False),
        Binding("C", "commands", "commands", id="launch.commands", show=False),
        Binding("N", "ask('name')", "name the run", id="launch.name", show=False),
        Binding("o", "ask('open')", "open a recipe file", id="launch.open", show=False),
        Binding("w", "ask('write')", "write a recipe file", id="launch.write", show=False),
        Binding("X", "clear", "every value back to its default", id="launch.clear", show=False),
        *(  # the panel's own keys, by the panel's own names, wherever the focus is
            Binding(f"{number}", f"offer({number})", f"apply change {number}", id=f"budget.apply_{number}", show=False)
            for number in range(1, 10)
        ),
    ]
    DEFAULT_CSS = """
    LaunchScreen {
        #launch-top { height: 2; padding: 0 1; }
        #launch-main { height: 1fr; }
        #launch-models { display: none; }
        RecipeForm, BudgetPanel, #launch-models {
            border-title-color: $foreground; border-title-style: bold; border-title-background: $background;
        }
        RecipeForm { height: 1fr; }
        BudgetPanel { height: 5; padding: 0 1; border-top: solid $panel; }
        BudgetPanel:focus { border-top: solid $primary; }
        #launch-trouble { max-height: 4; padding: 0 1; }
        #launch-command { padding: 0 1; }
        &.-budget RecipeForm { display: none; }
        &.-budget BudgetPanel { height: 1fr; }
        &.-wide #launch-main { layout: horizontal; }
        &.-wide #launch-models { display: block; width: 27%; height: 100%; padding: 0; }
        &.-wide RecipeForm { display: block; height: 100%; width: 1fr; border: round $panel; }
        &.-wide RecipeForm:focus-within { border: round $primary; }
        &.-wide BudgetPanel { height: 100%; width: 33%; border: round $panel; }
        &.-wide BudgetPanel:focus { border: round $primary; }
        &.-low BudgetPanel, &.-low #launch-command { display: none; }
        &.-low.-budget BudgetPanel { display: block; }
        &.-tiny #launch-top { display: none; }
    }
    """

    def __init__(self, home: Home, settings: Settings, clone: str | None = None) -> None:
        super().__init__()
        self.home = home
        self.settings = settings
        stage = Stage(settings.stage) if settings.stage in list(Stage) else Stage.SFT
        self.draft = Draft(home, stage, settings.model)
        self.budget: BudgetView | None = None
        self.models: list[Choice] = []
        self.flow = LaunchFlow(self)
        self.asks = LaunchAsks(self)
        self._clone = clone
        self._devices: Devices | None = None
        self._shapes: Shapes | None = None
        self._adapters: list[Choice] | None = None
        self._message = ""

    def body(self) -> ComposeResult:
        """Stage and model, then models, form and budget, then what is wrong and the command."""
        drawn = self.console_app.options.ascii
        yield TextLines(id="launch-top")
        with Container(id="launch-main"):
            with Container(id="launch-models", classes="panel") as models:
                models.border_title = "models"
                yield ModelList(id="launch-list")
            form = RecipeForm(self.draft.form, ascii=drawn, id="launch-form")
            form.border_title = "recipe"
            yield form
            panel = BudgetPanel(ascii=drawn, id="launch-budget")
            panel.border_title = "memory"
            yield panel
        yield TextLines(id="launch-trouble")
        yield TextLines(id="launch-command")

    def on_mount(self) -> None:
        """Begin to read: devices, models, the run to clone."""
        self.query_one(RecipeForm).focus()
        self._arrange()
        self._refresh()
        self.console_app.theme_changed_signal.subscribe(self, lambda _: self._refresh())
        self.begin(self._find(), group="models")
        if self._clone is not None:
            run_id = self._clone
            self.asks.load(lambda: read_run(self.home, run_id))

    def on_resize(self, event: events.Resize) -> None:
        """Side by side, or one above the other."""
        self._arrange()
        self._refresh()

    # what is read

    def poll(self) -> Devices | None:
        """Memory of this machine, where it changed enough to matter."""
        found = read_devices()
        return found if self._devices is None or _moved(self._devices, found) else None

    def render_update(self, update: Devices) -> None:
        """The budget against it."""
        self._devices = update
        self._show_budget()

    async def _find(self) -> None:
        recent = list(self.settings.recent_models)
        found = find_models(self.home, recent, model_folders(recent))
        while batch := await asyncio.to_thread(lambda: list(itertools.islice(found, _BATCH))):
            self.models = [*self.models, *map(model_choice, batch)]
            self._show_list()
            self.asks.more_models()

    async def _find_adapters(self) -> None:
        self._adapters = await asyncio.to_thread(run_choices, self.home, RUN_KEYS[ADAPTER])
        self._show_list()

    async def _read_shapes(self, asked: Asked) -> None:
        await asyncio.sleep(_PAUSE if self._shapes else 0)
        found = await asyncio.to_thread(read_shapes, self.home, asked)
        if found.asked == self._asked():
            self._shapes = found
            self._show_top()
            self._show_budget()

    async def _look_up(self, form: LaunchForm) -> None:
        """Whether a launch would take what the form names."""
        await asyncio.sleep(_PAUSE)
        inputs = form.inputs()
        found = await asyncio.to_thread(find_unusable, self.home, inputs, form.estimable())
        if form is self.draft.form and inputs == form.inputs():
            if form.take_unusable(inputs, found):
                self.query_one(RecipeForm).redraw()
            self._refresh()

    # what is shown

    def problem(self) -> str:
        """What is wrong, in one text; empty where nothing is."""
        errors = self.draft.form.errors()
        return self._message or errors.get("", "") or "; ".join(f"{key}: {text}" for key, text in errors.items())

    def refuse(self, message: str) -> None:
        """Show why nothing was launched: whole below the form, and beside the key that it names."""
        key = self.draft.form.refuse(message)
        form = self.query_one(RecipeForm)
        form.move_to(key) if key else form.redraw()
        self.tell(message)

    def tell(self, message: str) -> None:
        """Show what went wrong whole, until something changes."""
        self._message = message
        self._refresh()

    def show_errors(self) -> None:
        """The cursor on the first key that is wrong."""
        wrong = next((key for key in self.draft.form.errors() if key), "")
        form = self.query_one(RecipeForm)
        form.filter("")
        form.move_to(wrong)
        form.focus()
        self.say(f"first mend {wrong}" if wrong else self.problem(), trouble=True)

    def show_form(self) -> None:
        """Another form, or other values in it."""
        self._message = ""
        self.query_one(RecipeForm).show(self.draft.form)
        self._refresh()
        self._show_list()
        if self.draft.stage is Stage.MERGE and self._adapters is None:
            self.begin(self._find_adapters(), group="adapters", exclusive=True)

    def set_value(self, key: str, value: str) -> None:
        """Put a value that was chosen into the form."""
        form = self.query_one(RecipeForm)
        if key in self.draft.form.fields:
            form.apply({key: value})
        self._show_list()
        form.focus()

    def settle(self) -> None:
        """Something besides the form's values changed; what a launch refused is asked anew."""
        self.tell("")

    def _arrange(self) -> None:
        width, height = self.size
        for name, wanted in (("-wide", width >= _WIDE), ("-low", height < _LOW), ("-tiny", height < _TINY)):
            self.set_class(wanted, name)

    def _refresh(self) -> None:
        """Everything but the form itself."""
        asked = self._asked()
        if self._shapes is None or self._shapes.asked != asked:
            self.begin(self._read_shapes(asked), group="shapes", exclusive=True)
        if not self.draft.form.looked_up:
            self.begin(self._look_up(self.draft.form), group="inputs", exclusive=True)
        self._show_top()
        self._show_budget()
        width, variables = self.size.width - 2, self.console_app.theme_variables
        self.set_heading(*verdict_parts(self.draft, variables))
        said = self._message or one_line(self.draft.form.errors().get("", ""))
        self.query_one("#launch-trouble", TextLines).show(trouble_lines(said, width, variables))
        lines = command_lines(self.draft.command(), width, 2 if self.has_class("-wide") else 1)
        self.query_one("#launch-command", TextLines).show(lines)

    def _show_top(self) -> None:
        width = self.size.width - 2
        stages = stage_line(self.draft.stage, width, self.console_app.theme_variables)
        self.query_one("#launch-top", TextLines).show([stages, model_line(self.draft, self._known, width)])

    def _show_budget(self) -> None:
        shapes, devices = self._known, self._devices or Devices()
        recipe = self.draft.form.estimable()
        trouble = (shapes.trouble if shapes else "reading the model …") if recipe else "a value is wrong"
        self.budget = build_view(
            recipe,
            shapes.architecture if shapes else None,
            devices.gpus,
            devices.ram,
            model=shapes.entry.title if shapes and shapes.entry else self.draft.model,
            reward=shapes.reward if shapes else None,
            trouble=devices.trouble or (trouble if self.draft.model else ""),
            calibration=shapes.calibration if shapes else None,
        )
        if devices.trouble:
            self.budget = structs.replace(self.budget, note="the GPUs are not known")
        panel = self.query_one(BudgetPanel)
        panel.show(self.budget)
        title = "memory" if self.has_class("-wide") else budget_title(self.budget, self.size.width - 8)
        if panel.border_title != title:
            panel.border_title = title

    def _show_list(self) -> None:
        merge = self.draft.stage is Stage.MERGE
        self.query_one("#launch-models").border_title = "adapters" if merge else "models"
        self.query_one(ModelList).show(self._adapters or [] if merge else self.models, self.draft.model)

    @property
    def _known(self) -> Shapes | None:
        return self._shapes if self._shapes and self._shapes.asked == self._asked() else None

    def _asked(self) -> Asked:
        form = self.draft.form
        reward = form.text("reward_model_path") if self.draft.stage is Stage.PPO else ""
        return Asked(self.draft.stage, self.draft.model, reward)

    # what widgets say

    @on(RecipeForm.Changed)
    def _changed(self, event: RecipeForm.Changed) -> None:
        event.stop()
        self.draft.touch()
        self.tell("")

    @on(BudgetPanel.Apply)
    def _apply(self, event: BudgetPanel.Apply) -> None:
        event.stop()
        known = {key: text for key, text in event.changes.items() if key in self.draft.form.fields}
        self.query_one(RecipeForm).apply(known)

    @on(ModelList.Taken)
    def _taken(self, event: ModelList.Taken) -> None:
        event.stop()
        self.set_value(self.draft.model_key, event.choice.value)

    # actions

    def action_launch(self) -> None:
        """Check, ask, launch."""
        self.flow.begin()

    def action_commands(self) -> None:
        """This program's command and the worker's."""
        self.flow.show_commands()

    def action_stage(self, direction: int) -> None:
        """The next or previous stage; every stage keeps what was typed."""
        self.draft.switch(STAGES[(STAGES.index(self.draft.stage) + direction) % len(STAGES)])
        self.show_form()

    def action_offer(self, number: int) -> None:
        """A change that the budget offers."""
        self.query_one(BudgetPanel).apply(number)

    def action_budget(self) -> None:
        """Beside the form: to the budget and back. Below it: the whole screen for it and back."""
        panel, form = self.query_one(BudgetPanel), self.query_one(RecipeForm)
        if not self.has_class("-wide"):
            self.toggle_class("-budget")
        if panel.has_focus or not (self.has_class("-wide") or self.has_class("-budget")):
            form.focus()
        else:
            panel.focus()

    def action_copy(self) -> None:
        """This program's command."""
        self.console_app.copy_to_clipboard(self.draft.command())

    def action_ask(self, what: str) -> None:
        """Ask for a model, a run, a name, a file to write or to open."""
        getattr(self.asks, what)()

    def action_clear(self) -> None:
        """Every default again, after asking."""

        def clear() -> None:
            self.draft.clear()
            self.show_form()

        self.asks.sure("Put every value back to its default? The model stays.", "put them back", clear)

    def action_back(self) -> None:
        """The form again, or the screen before; asks where typed values would be lost."""
        if self.has_class("-budget") and not self.has_class("-wide"):
            self.action_budget()
        elif self.flow.launching:
            self.say("it is being launched; a moment")
        elif self.draft.touched:
            self.asks.sure("Leave? What was typed into the form is lost.", "leave", super().action_back)
        else:
            super().action_back()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys of changes only where the budget offers them; enter is the input's while something is typed."""
        if action != "offer":
            return not (action == "launch" and isinstance(self.focused, Input))
        offers = self.budget.offers if self.budget else ()
        return isinstance(number := parameters[0], int) and number <= len(offers)


def _moved(before: Devices, now: Devices) -> bool:
    pairs = [*zip(before.gpus, now.gpus, strict=False), *([(before.ram, now.ram)] if before.ram and now.ram else [])]
    return (len(before.gpus), bool(before.trouble)) != (len(now.gpus), bool(now.trouble)) or any(
        one.name != other.name or abs(one.free - other.free) > _MOVED * other.total for one, other in pairs
    )
