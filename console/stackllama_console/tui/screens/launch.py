"""Launch screen: a model, a stage, a recipe as a form, its memory budget; enter launches.

From 120 columns models, form and budget stand side by side; below that the form has the screen, with the model in a
line above it and a short budget below.
"""

import asyncio
import functools
from collections.abc import Callable, Mapping
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.widgets import Input

from stackllama_engine.contract.errors import FindingsError, StackllamaError, UsageError
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.data.kinds import DEMO

from ...readers.budget_inputs import Devices, NamedModels
from ...readers.draft import ADAPTER, LaunchForm, Source, read_file, read_run
from ...readers.queue_choices import alive_choices
from ...sanitise import one_line
from ...settings import Settings
from ..clock import now
from ..screen import ConsoleScreen
from ..widgets.budget_panel import BudgetPanel
from ..widgets.model_list import ModelList
from ..widgets.recipe_form import RecipeForm
from ..widgets.scroll_lines import ScrollLines
from ..widgets.text_lines import TextLines
from .confirm import ConfirmScreen
from .launch_confirm import CommandScreen
from .launch_controller import LaunchController, Summary, recipe_path
from .launch_dialogs import after_dialog, model_dialog, name_dialog, open_dialog, run_dialog, write_dialog
from .launch_lines import budget_title, command_lines, error_lines, model_line, stage_line, verdict_parts
from .pick import PickScreen

_WIDE = 120
_LOW, _TINY = 18, 9


class LaunchScreen(ConsoleScreen):
    """Prepares one launch.

    Args:
        home: where the run will live.
        settings: last stage and model; brought up to date by a launch.
        clone: a run whose recipe fills the form.
        changes: values to set in the copy, where the cursor then is.
        at: the key that the cursor is on at first, where nothing is changed.
        read: reads another recipe that fills the form.
    """

    HEADING = "launch"
    INTERVAL = 2.0
    WIDGETS_WITH_KEYS: ClassVar[tuple[str, ...]] = ("RecipeForm", "BudgetPanel", "ModelList", "ScrollLines")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,L,ctrl+l", "launch", "launch", id="launch.launch"),
        Binding("right_square_bracket", "stage(1)", "next stage", id="launch.next_stage", key_display="]"),
        Binding(
            "left_square_bracket",
            "stage(-1)",
            "previous stage",
            id="launch.previous_stage",
            key_display="[",
            show=False,
        ),
        Binding("m", "ask_model", "model", id="launch.model"),
        Binding("r", "ask_run", "choose run", id="launch.run", show=False),
        Binding("b", "budget", "budget", id="launch.budget"),
        Binding("slash", "filter", "filter", id="form.filter"),  # the form's own key, wherever the focus is
        Binding("y", "copy", "copy command", id="launch.copy", show=False),
        Binding("C", "commands", "show commands", id="launch.commands", show=False),
        Binding("N", "ask_name", "name run", id="launch.name", show=False),
        Binding("A", "ask_after", "start after another run", id="launch.after", show=False),
        Binding("o", "ask_open", "open recipe", id="launch.open", show=False),
        Binding("w", "ask_write", "write recipe", id="launch.write", show=False),
        Binding("u", "gpus", "show GPUs", id="launch.gpus", show=False),
        Binding("X", "clear", "reset all values", id="launch.clear", show=False),
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
        #launch-error { max-height: 4; padding: 0 0 0 1; }
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

    def __init__(
        self,
        home: Home,
        settings: Settings,
        clone: str | None = None,
        changes: Mapping[str, str] | None = None,
        at: str = "",
        read: Callable[[], Source] | None = None,
    ) -> None:
        super().__init__()
        self.controller = LaunchController(home, settings)
        self._changes = dict(changes or {})
        self._at = at
        self._source = functools.partial(read_run, home, clone) if clone is not None else read
        self._planning = False
        self._picker: PickScreen | None = None

    def body(self) -> ComposeResult:
        """Lay out stage and model, then models, form and budget, then the error and the command."""
        drawn = self.console_app.options.ascii
        yield TextLines(id="launch-top")
        with Container(id="launch-main"):
            with Container(id="launch-models", classes="panel") as models:
                models.border_title = "models"
                models_found = ModelList(id="launch-list")
                yield models_found
            form = RecipeForm(self.controller.draft.form, ascii=drawn, id="launch-form")
            form.border_title = "recipe"
            yield form
            panel = BudgetPanel(ascii=drawn, id="launch-budget")
            panel.border_title = "memory"
            yield panel
            models_found.take_key = panel.take_key = self._take_key
        yield ScrollLines(hang=2, id="launch-error")
        yield TextLines(id="launch-command")

    def on_mount(self) -> None:
        """Start reading: devices, models, the run to clone."""
        self.query_one(RecipeForm).focus()
        self._arrange()
        self._refresh()
        self.begin(self._find(), group="models")
        if self._source is not None:
            self._load(self._source)

    def restyle(self) -> None:
        """Render everything in the theme's colours."""
        self._refresh()

    def on_resize(self, event: events.Resize) -> None:
        """Arrange the panels side by side, or one above the other."""
        self._arrange()
        self._refresh()

    # reading

    def poll(self) -> Devices | None:
        """Return this machine's memory where it changed enough to matter."""
        return self.controller.poll_devices()

    def render_update(self, update: Devices) -> None:
        """Render the budget against it."""
        self.controller.take_devices(update)
        self._show_budget()

    async def _find(self) -> None:
        async for _ in self.controller.find_models():
            self._show_list()
            if self._picker is not None:
                self._picker.add(self.controller.models)

    async def _find_adapters(self) -> None:
        await self.controller.find_adapters()
        self._show_list()

    async def _read_shapes(self, models: NamedModels) -> None:
        if await self.controller.read_shapes(models):
            self._show_top()
            self._show_budget()

    async def _look_up(self, form: LaunchForm) -> None:
        async for is_over in self.controller.look_up(form):
            if is_over:
                self.query_one(RecipeForm).redraw()
                self._refresh()
            else:
                self._show_verdict()

    async def _read(self, read: Callable[[], Source]) -> None:
        try:
            source = await self.controller.load(read)
        except UsageError as error:
            self._tell(str(error))
            return
        self._show_form()
        if changes := self._changes:
            self._changes = {}
            form = self.query_one(RecipeForm)
            form.apply(changes)
            form.move_to(next(iter(changes)))
        elif self._at:
            self.query_one(RecipeForm).move_to(self._at)
            self._at = ""
        if source.notes:
            self.say("; ".join(note.rstrip(".") for note in source.notes))

    async def _write(self, name: str, text: str) -> None:
        try:
            file = await self.controller.write(name, text)
        except UsageError as error:
            self.say(str(error), error=True)
        else:
            self.say(f"recipe written to {file}")

    # launching

    async def _launch(self) -> None:
        recipe = self.controller.draft.form.recipe()
        if recipe is None:
            self._show_errors()
            return
        self._plans(True)
        try:
            run = await self.controller.launch(recipe, self._confirm)
        except FindingsError as error:
            self._plans(False)
            self._refuse(error.findings)
            if await self._allowed(error):
                self.action_launch()
            return
        except StackllamaError as error:
            self._refuse(str(error))
            return
        finally:
            self._plans(False)
        if run is None:
            self.controller.draft.allow = ()  # what was allowed is no longer what is launched next
        else:
            self.console_app.remember()
            self.console_app.launched = run.id
            self.console_app.dismiss_notices()  # it is no longer being launched, and escape leaves the monitor at once
            self._follow_run(run)

    def _plans(self, planning: bool) -> None:
        self._planning = planning
        self._show_verdict()

    async def _confirm(self, summary: Summary) -> bool:
        self._plans(False)
        if not self._on_top:
            self.say(f"{summary.run} not launched: this screen was left")
            return False
        if not await self.console_app.push_screen_wait(CommandScreen(summary, ask=True)):
            return False
        self.say(f"launching {summary.run} …")
        return True

    async def _allowed(self, error: FindingsError) -> bool:
        """Ask whether to launch in spite of findings; a yes allows them for this launch."""
        if not self._on_top:
            return False
        if not await self.console_app.push_screen_wait(
            ConfirmScreen(f"{error.findings}\n\nLaunch all the same?", "allow and launch")
        ):
            return False
        self.controller.allow(error.names)
        return True

    @property
    def _on_top(self) -> bool:
        """Whether no other screen is shown; Textual's ``is_current`` is true behind a modal one as well."""
        return self.console_app.screen is self

    async def _describe(self) -> None:
        summary = await self.controller.describe()
        if self.is_current:
            self.console_app.push_screen(CommandScreen(summary, ask=False))

    def _follow_run(self, run: RunDir) -> None:
        """Open the monitor in this screen's place, unless somebody went elsewhere meanwhile."""
        app = self.console_app
        if not self._on_top:
            app.notify(one_line(f"launched {run.id}"), markup=False)
            return
        app.pop_screen()
        app.open_run(run.id)

    # rendering

    def set_value(self, key: str, value: str) -> None:
        """Put a value that was chosen into the form."""
        form = self.query_one(RecipeForm)
        if key in self.controller.draft.form.fields:
            form.apply({key: value})
        self._show_list()
        form.focus()

    def _say_demo(self, form: RecipeForm) -> None:
        """Show the values that the demo brought, or that went with it."""
        form.redraw()
        if self.controller.draft.model == DEMO and not form.editing:
            self.say("the demo's data set and settings are filled in (a shows them)")

    def _refuse(self, message: str) -> None:
        """Show why nothing was launched: whole below the form, and beside the key that it names."""
        key = self.controller.refuse(message)
        form = self.query_one(RecipeForm)
        form.move_to(key) if key else form.redraw()
        self._refresh()

    def _tell(self, message: str) -> None:
        """Show what went wrong whole, until something changes."""
        self.controller.message = message
        self._refresh()

    def _show_errors(self) -> None:
        """Put the cursor on the first key that is wrong."""
        wrong = next((key for key in self.controller.draft.form.errors() if key), "")
        form = self.query_one(RecipeForm)
        form.filter("")
        form.move_to(wrong)
        form.focus()
        self.say(f"fix {wrong} first" if wrong else self.controller.problem(), error=True)

    def _show_form(self) -> None:
        """Render another form, or other values in it."""
        controller = self.controller
        self.query_one(RecipeForm).show(controller.draft.form)
        self._refresh()
        self._show_list()
        if controller.draft.stage is Stage.MERGE and controller.adapters is None:
            self.begin(self._find_adapters(), group="adapters", exclusive=True)

    def _arrange(self) -> None:
        width, height = self.size
        self.update_classes({"-wide": width >= _WIDE, "-low": height < _LOW, "-tiny": height < _TINY})

    def _refresh(self) -> None:
        """Render everything but the form itself."""
        controller, draft = self.controller, self.controller.draft
        if controller.shapes is None:
            self.begin(self._read_shapes(controller.named_models), group="shapes", exclusive=True)
        if not draft.form.looked_up:
            self.begin(self._look_up(draft.form), group="inputs", exclusive=True)
        self._show_top()
        self._show_budget()
        self._show_verdict()
        width, variables = self.size.width - 2, self.console_app.theme_variables
        error = controller.message or one_line(draft.form.errors().get("", ""))
        self.query_one("#launch-error", TextLines).show(error_lines(error, width, variables))
        lines = command_lines(draft.command(), width, 2 if self.has_class("-wide") else 1)
        self.query_one("#launch-command", TextLines).show(lines)

    def _show_verdict(self) -> None:
        controller, variables = self.controller, self.console_app.theme_variables
        waits_for = controller.waits_for
        self.set_heading(*verdict_parts(controller.draft, variables, waits_for=waits_for, planning=self._planning))

    def _show_top(self) -> None:
        width, draft = self.size.width - 2, self.controller.draft
        stages = stage_line(draft.stage, width, self.console_app.theme_variables)
        self.query_one("#launch-top", TextLines).show([stages, model_line(draft, self.controller.shapes, width)])

    def _show_budget(self) -> None:
        budget = self.controller.estimate()
        panel = self.query_one(BudgetPanel)
        panel.show(budget)
        title = "memory" if self.has_class("-wide") else budget_title(budget, self.size.width - 8)
        if panel.border_title != title:
            panel.border_title = title

    def _show_list(self) -> None:
        draft = self.controller.draft
        self.query_one("#launch-models").border_title = "adapters" if draft.stage is Stage.MERGE else "models"
        self.query_one(ModelList).show(self.controller.choices, draft.model)

    # messages of widgets

    @on(RecipeForm.Changed)
    def _changed(self, event: RecipeForm.Changed) -> None:
        event.stop()
        self.controller.draft.touch()
        if self.controller.draft.follow_model():
            self._say_demo(self.query_one(RecipeForm))
        self._tell("")

    @on(BudgetPanel.Apply)
    def _apply(self, event: BudgetPanel.Apply) -> None:
        event.stop()
        changes = {key: text for key, text in event.changes.items() if key in self.controller.draft.form.fields}
        self.query_one(RecipeForm).apply(changes)

    @on(ModelList.Chosen)
    def _model_chosen(self, event: ModelList.Chosen) -> None:
        event.stop()
        self.set_value(self.controller.draft.model_key, event.choice.value)

    # actions

    def action_launch(self) -> None:
        """Plan, ask for confirmation, launch."""
        self.begin(self._launch(), group="launch")

    def action_commands(self) -> None:
        """Show this program's command and the worker's, launchable or not."""
        self.begin(self._describe(), group="commands", exclusive=True)

    def action_stage(self, direction: int) -> None:
        """Go to the next or previous stage; every stage keeps what was typed."""
        self.controller.switch(direction)
        self._show_form()

    def action_offer(self, number: int) -> None:
        """Apply a change that the budget offers."""
        if not self.query_one(BudgetPanel).apply(number):
            self.say(f"the budget offers no change {number}")

    def action_budget(self) -> None:
        """Go to the budget and back; below the form, give it the whole screen."""
        panel, form = self.query_one(BudgetPanel), self.query_one(RecipeForm)
        if not self.has_class("-wide"):
            self.toggle_class("-budget")
        if panel.has_focus or not (self.has_class("-wide") or self.has_class("-budget")):
            form.focus()
        else:
            panel.focus()

    async def _take_key(self, event: events.Key) -> None:
        """Bring the form into view for a key of its filter."""
        if event.key == "slash":
            self.remove_class("-budget")
        await self.query_one(RecipeForm).take_key(event)

    def action_filter(self) -> None:
        """Filter the form's keys, wherever the focus is."""
        self.remove_class("-budget")
        self.query_one(RecipeForm).action_filter()

    def action_copy(self) -> None:
        """Copy this program's command."""
        self.console_app.copy_to_clipboard(self.controller.draft.command())

    def action_ask_model(self) -> None:
        """Ask which model; of a merge, which adapter."""
        if self.controller.draft.stage is Stage.MERGE:
            self._ask_run(ADAPTER)
        else:
            self._pick(model_dialog(self.controller), self.controller.draft.model_key, grows=True)

    def action_ask_run(self) -> None:
        """Ask which finished run, for the key under the cursor or the stage's first key that takes one."""
        key = self.controller.run_key(self.query_one(RecipeForm).cursor_key)
        if key:
            self._ask_run(key)
        else:
            stage = self.controller.draft.stage
            self.say(f"no key of the {stage} recipe takes a run; m lists merged models")

    def action_ask_name(self) -> None:
        """Ask for the run's name."""

        def named(text: str | None) -> None:
            if text is not None:
                self.controller.rename(text)
                self._refresh()

        self.console_app.push_screen(name_dialog(self.controller), named)

    def action_ask_after(self) -> None:
        """Ask for the run that this one is to start after."""
        self.begin(self._ask_after(), group="after", exclusive=True)

    async def _ask_after(self) -> None:
        def chosen(run_id: str | None) -> None:
            if run_id is not None:
                self.controller.draft.after = run_id or None
                self._refresh()

        try:
            runs = await asyncio.to_thread(alive_choices, self.controller.home, now())
        except OSError as error:
            self.say(str(error), error=True)
            return
        self.console_app.push_screen(after_dialog(self.controller, runs), chosen)

    def action_ask_write(self) -> None:
        """Ask for the new file that takes the recipe: what differs from the defaults."""
        text = self.controller.draft.form.to_yaml()

        def answered(name: str | None) -> None:
            if name and name.strip():
                self.begin(self._write(name.strip(), text), group="write")

        self.console_app.push_screen(write_dialog(self.controller), answered)

    def action_ask_open(self) -> None:
        """Ask for the recipe file that fills the form."""
        stage = self.controller.draft.stage

        def answered(name: str | None) -> None:
            if not name or not name.strip():
                return
            load = functools.partial(self._load, functools.partial(read_file, recipe_path(name), stage))
            if self.controller.draft.touched:
                self._sure("Replace the values typed into the form?", "replace", load)
            else:
                load()

        self.console_app.push_screen(open_dialog(self.controller), answered)

    def action_clear(self) -> None:
        """Put every default back, after asking."""

        def clear() -> None:
            self.controller.clear()
            self._show_form()

        self._sure("Reset every value to its default? The model stays.", "reset", clear)

    def action_back(self) -> None:
        """Go back to the form, or to the screen before; asks where typed values would be lost."""
        if self.has_class("-budget") and not self.has_class("-wide"):
            self.action_budget()
        elif self.controller.launching:
            self.say("launching, please wait")
        elif self.controller.draft.touched:
            self._sure("Leave? The values typed into the form will be lost.", "leave", super().action_back)
        else:
            super().action_back()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Leave enter, numbers and the slash to the input while something is typed."""
        return not (action in ("launch", "offer", "filter") and isinstance(self.focused, Input))

    # dialogs

    def _load(self, read: Callable[[], Source]) -> None:
        self.begin(self._read(read), group="load", exclusive=True)

    def _ask_run(self, key: str) -> None:
        self.begin(self._choose_run(key), group="runs", exclusive=True)

    async def _choose_run(self, key: str) -> None:
        runs = await self.controller.find_runs(key)
        if self.is_current:
            self._pick(run_dialog(self.controller, key, runs), key)

    def _pick(self, picker: PickScreen, key: str, *, grows: bool = False) -> None:
        """Put what is picked into the form; ``grows``: more models are added to its list as they are found."""
        self._picker = picker if grows else None

        def picked(value: str | None) -> None:
            self._picker = None
            if value is not None:
                self.set_value(key, value)

        self.console_app.push_screen(picker, picked)

    def _sure(self, question: str, action: str, then: Callable[[], None]) -> None:
        self.console_app.push_screen(ConfirmScreen(question, action), lambda yes: then() if yes else None)
