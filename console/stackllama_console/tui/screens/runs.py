"""All runs: states, steps, last metrics, pipelines as trees; the hub from which everything else is reached."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Input, Static

from stackllama_engine.contract.base import DEMO_BASE
from stackllama_engine.contract.run_dir import Home

from ...readers.runs_index import Row, RunsIndex
from ...sanitise import one_line
from ...units import age, cut, number
from ..run_actions import RunActions
from ..run_keys import advice_of_run, run_keys
from ..screen import ConsoleScreen
from ..state_style import state_text
from ..widgets.status import now
from ..widgets.text_lines import TextLines
from ..widgets.typed_ahead import KeyTaker, TypedAhead
from ..widgets.value_input import ValueInput
from .confirm import AskScreen

_EMPTY = """\
No runs here yet.

  n   launch the first one: choose a model and a stage, see what memory it needs
  o   open another trainer's directory
  :   all commands, by name

`stackllama-console demo` runs the whole recipe in minutes, without a GPU."""

_OF_DAMAGED = {"delete": "delete", "resume": "repair"}
"""Actions on a run whose state cannot be read: the key's → the one carried out."""
_LEAST = {"state": 10, "step": 7, "age": 4, "last": 16}  # room to grow, so that columns seldom move
_NVML_SECONDS = 2.0  # to wait for NVML before the heading says that it does not answer
_AGE_SECONDS = 60  # ages are brought up to date this often, and with every change


def model_label(model: str) -> str:
    """Return a base model for a cell: `demo`, a hub id, or the end of a path."""
    if model == str(DEMO_BASE):
        return "demo"
    return "/".join(Path(model).parts[-2:]) if model.startswith("/") else model


def _widths(columns: tuple[str, ...], rows: Iterable[tuple[Text, ...]]) -> tuple[int, ...]:
    """Return the cells each column takes; Textual measures after painting, and what was painted before it stays."""
    widths = [max(len(name), _LEAST.get(name, 0)) for name in columns]
    for row in rows:
        widths = [max(width, cell.cell_len) for width, cell in zip(widths, row, strict=True)]
    return tuple(widths)


class RunsTable(DataTable[Text]):
    """A table of runs; its cursor keys have names of our own."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "next run", id="table.down", show=False),
        Binding("k", "cursor_up", "previous run", id="table.up", show=False),
        Binding("g", "scroll_top", "first run", id="table.top", show=False),
        Binding("G", "scroll_bottom", "last run", id="table.bottom", show=False),
        Binding("enter", "select_cursor", "open", id="runs.open"),
    ]
    take_key: KeyTaker | None = None

    async def on_key(self, event: events.Key) -> None:
        """Let the screen see a key first: what is typed ahead may be meant for the filter."""
        if self.take_key is not None:
            await self.take_key(event)


class RunsScreen(ConsoleScreen):
    """The first screen."""

    HEADING = "runs"
    WIDGETS_WITH_KEYS: ClassVar[tuple[str, ...]] = ("RunsTable",)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "launch", "launch", id="runs.launch"),
        Binding("x", "run('stop')", "stop", id="runs.stop"),
        Binding("w", "run('save')", "save checkpoint", id="runs.save", show=False),
        Binding("r", "run('resume')", "resume", id="runs.resume"),
        Binding("e", "run('clone')", "edit a copy", id="runs.clone", show=False),
        Binding("a", "run('samples')", "samples", id="runs.samples"),
        Binding("t", "run('chat')", "chat", id="runs.chat", show=False),
        Binding("space", "select", "select", id="runs.select"),
        Binding("c", "compare", "compare", id="runs.compare"),
        Binding("D", "run('delete')", "delete", id="runs.delete", show=False),
        Binding("z", "fold", "fold / unfold pipeline", id="runs.fold", show=False),
        Binding("o", "attach", "open another trainer's run", id="runs.attach", show=False),
        Binding("slash", "filter", "filter", id="runs.filter", key_display="/"),
    ]
    DEFAULT_CSS = """
    RunsScreen {
        #filter { dock: bottom; margin-bottom: 1; height: 1; border: none; display: none; background: $panel; }
        #table { height: 1fr; overflow-x: hidden; scrollbar-size-horizontal: 0; }
        #empty { padding: 1 2; display: none; }
        #about { height: auto; max-height: 4; padding: 0 1; }
        &.-low #about { display: none; }
        &.-empty #table { display: none; }
        &.-empty #empty { display: block; }
    }
    """

    def __init__(self, home: Home) -> None:
        super().__init__()
        self.actions = RunActions(self, home)
        self.index = RunsIndex(home)
        self.filter_text = ""
        self._typing = False
        self.selected: dict[str, None] = {}
        self.folded: set[str] = set()
        self._shown: list[Row] = []
        self._cells: dict[str, tuple[Text, ...]] = {}
        self._columns: tuple[str, ...] = ()
        self._widths: tuple[int, ...] = ()
        self._read = False
        self._minute = 0
        self._machine: str | None = None
        self._machine_known = False

    def body(self) -> ComposeResult:
        """Compose the table, or what to do without runs; the run under the cursor in words; the filter."""
        table = RunsTable(id="table", cursor_type="row", zebra_stripes=False, cell_padding=1)
        yield table
        yield Static(_EMPTY, id="empty", markup=False)
        yield TextLines(id="about")
        line = ValueInput(id="filter")
        line.placeholder = "filter: id, stage, state, model"
        turns = TypedAhead(self, table, line, lambda: self._typing)
        table.take_key, line.take_key, line.submitted = turns.rows_key, turns.field_key, self._filter_done
        yield line

    def on_mount(self) -> None:
        """Arrange for the size."""
        self._arrange()

    def poll(self) -> bool | None:
        """Return True when any run changed or a minute has passed, else None."""
        changed = self.index.poll()
        if self._read and not self._machine_known:  # after the first paint
            changed = self._read_gpus() or changed
        minute = int(now() // _AGE_SECONDS)
        minute_passed, self._minute = minute != self._minute, minute
        return True if changed or minute_passed or not self._read else None

    def _read_gpus(self) -> bool:
        """Name the machine's GPUs; a driver that does not respond is asked again. Return whether the text changed."""
        from stackllama_engine.contract.errors import RefusedError
        from stackllama_engine.launch.nvml import known_gpus

        before = self._machine
        try:
            gpus = known_gpus(_NVML_SECONDS)
        except RefusedError:
            self._machine = "GPUs unknown: NVML does not respond"
        else:
            self._machine_known = True
            self._machine = ", ".join(gpu.name for gpu in gpus) or "no GPU; runs use the CPU"
        return self._machine != before

    def render_update(self, update: Any) -> None:
        """Render rows and heading."""
        self._read = True
        self._fill()

    # the table

    def _fill(self) -> None:
        rows = [row for row in self.index.rows if self._passes(row)]
        self.set_class(not self.index.rows, "-empty")
        for name in [name for name in self.selected if all(row.id != name for row in self.index.rows)]:
            del self.selected[name]
        table = self.query_one(RunsTable)
        columns = self._choose_columns()
        under = self.row_id
        cells = {row.id: self._row_cells(row, columns) for row in rows}
        widths = _widths(columns, cells.values())
        self._fit(cells, rows, widths)
        same = [row.id for row in rows] == [row.id for row in self._shown] and columns == self._columns
        if not same or any(now > before for now, before in zip(widths, self._widths, strict=True)):
            self._columns, self._widths = columns, widths
            table.clear(columns=True)
            for name, width in zip(columns, widths, strict=True):
                table.add_column(name, key=name, width=width)
            for row in rows:
                table.add_row(*cells[row.id], key=row.id)
            if under in cells:
                table.move_cursor(row=list(cells).index(under), animate=False)
        else:
            for row in rows:
                before = self._cells.get(row.id)
                for name, old, new in zip(columns, before or (), cells[row.id], strict=False):
                    if old.plain != new.plain or old.style != new.style:
                        table.update_cell(row.id, name, new)
        self._shown, self._cells = rows, cells
        self._show_about()
        alive = sum(row.phase in ("queued", "starting", "running", "stalled", "stopping") for row in self.index.rows)
        parts = [str(len(self.index.rows)), f"{alive} alive" if alive else ""]
        parts += [f"{len(self.selected)} selected" if self.selected else ""]
        parts += [f"filter: {self.filter_text}" if self.filter_text else "", self.index.error or ""]
        parts += [self._machine or "", f"in {self.index.home.path}"]  # last what may be long
        self.set_heading(*parts)

    def _passes(self, row: Row) -> bool:
        if row.pipeline in self.folded and not self.filter_text:
            return False
        words = self.filter_text.lower().split()
        text = f"{row.id} {row.stage or ''} {row.phase} {row.model}".lower()
        return all(word in text for word in words)

    def _choose_columns(self) -> tuple[str, ...]:
        width = self.size.width
        names = ["run", "stage", "state", "step", "age", "last"]
        if width >= 110:
            names.insert(2, "model")
        if width < 78:
            names.remove("stage")
        if width < 60:
            names.remove("age")
        if width < 44:
            names.remove("step")
        return tuple(names)

    def _row_cells(self, row: Row, columns: tuple[str, ...]) -> tuple[Text, ...]:
        variables: Mapping[str, str] = self.console_app.theme_variables
        mark = "▸" if row.id in self.folded else " "
        mark = "■" if row.id in self.selected else mark
        name = row.id if not row.depth else f"└ {row.id.removeprefix(f'{row.pipeline}-')}"
        metric = f"{row.metric[0]} {number(row.metric[1])}" if row.metric else (f"at {row.at}" if row.at else "")
        metric = row.at if row.waits else metric
        if row.elsewhere:
            metric = "  ".join(filter(None, (row.elsewhere, metric)))
        name_style = "bold" if row.id in self.selected else ""
        step = f"{row.step:,}/{row.total_steps:,}" if row.total_steps else f"{row.step:,}" if row.step else ""
        cells = {
            "run": Text(f"{mark} {cut(name, max(12, self.size.width * 2 // 5))}", style=name_style),
            "stage": Text(str(row.stage or "")),
            "model": Text(cut(model_label(row.model), 28)),
            "state": state_text(row.phase, dict(variables)),
            "step": Text(step, justify="right"),
            "age": Text(age(row.age(now())) if row.created else "", justify="right"),
            "last": Text(one_line(row.error or metric)),
        }
        return tuple(cells[column] for column in columns)

    def _fit(self, cells: dict[str, tuple[Text, ...]], rows: list[Row], widths: Sequence[int]) -> None:
        """Show a metric's value alone where its name has no room: a number that is cut reads as another one."""
        room = self.size.width - sum(widths[:-1]) - 2 * len(widths)
        for row in rows:
            *others, last = cells[row.id]
            plain = not (row.error or row.elsewhere or row.waits)
            if row.metric and plain and last.cell_len > room:
                cells[row.id] = (*others, Text(cut(number(row.metric[1]), max(1, room))))

    @property
    def row(self) -> Row | None:
        """The run under the cursor."""
        position = self.query_one(RunsTable).cursor_row
        return self._shown[position] if 0 <= position < len(self._shown) else None

    @property
    def row_id(self) -> str | None:
        """The id of the run under the cursor."""
        return self.row.id if self.row else None

    @on(DataTable.RowHighlighted)
    def _moved(self, event: DataTable.RowHighlighted) -> None:
        self._show_about()

    def _show_about(self) -> None:
        row = self.row
        lines: list[Text | str] = []
        if row is not None:
            lines.append(
                Text("  ".join(filter(None, (row.id, str(row.stage or ""), model_label(row.model)))), style="dim")
            )
            if row.elsewhere:
                lines.append(Text(f"{row.phase} {row.elsewhere}: from here it can only be viewed and stopped"))
            if row.error:
                lines.append(Text(row.error))
            if row.cause and row.phase != "finished":
                lines.append(Text(f"cause: {row.cause}"))
            if hint := advice_of_run(row.stage, row.phase):
                lines.append(Text(hint, style="dim"))
        elif self.filter_text:
            lines.append(Text("no run matches the filter; esc clears it"))
        self.query_one("#about", TextLines).show(lines)
        self.refresh_bindings()

    def on_resize(self, event: events.Resize) -> None:
        """Choose columns for the new width."""
        self._arrange()
        if self._read:
            self._fill()

    def _arrange(self) -> None:
        self.set_class(self.size.height < 12, "-low")

    def shows_key(self, binding: Binding) -> bool:
        """Return whether the footer offers a key: only where it can do something to the run under the cursor."""
        row = self.row
        keys = run_keys(row.stage, row.phase) if row else frozenset[str]()
        match binding.id:
            case "runs.open" | "runs.samples" | "runs.stop" | "runs.resume":
                return binding.id.removeprefix("runs.") in keys
            case "runs.select":
                return row is not None
            case "runs.compare":
                return len(self.selected) > 1
            case _:
                return True

    # keys

    @on(DataTable.RowSelected)
    def _chosen(self, event: DataTable.RowSelected) -> None:
        self.action_open()

    def action_open(self) -> None:
        """Open the monitor."""
        if self.row and self.row.phase != "damaged":
            self.console_app.open_run(self.row.id)
        elif self.row:
            self.say(self.row.error or "", error=True)

    def action_launch(self) -> None:
        """Open the launch form."""
        self.console_app.open_launch()

    def action_run(self, what: str) -> None:
        """Act on the run under the cursor."""
        if self.row is None:
            self.say("no run is selected")
        elif self.row.phase == "damaged" and what not in _OF_DAMAGED:
            self.say(self.row.error or "", error=True)
        else:
            action = _OF_DAMAGED[what] if self.row.phase == "damaged" else what
            getattr(self.actions, action)(self.row.id)

    def action_select(self) -> None:
        """Select runs to compare; the cursor moves on."""
        if self.row is None:
            return
        if self.row.id in self.selected:
            del self.selected[self.row.id]
        else:
            self.selected[self.row.id] = None
        self._fill()
        self.query_one(RunsTable).action_cursor_down()

    def action_compare(self) -> None:
        """Compare two or more runs side by side."""
        if len(self.selected) < 2:
            self.say("select two or more runs with space, then compare them")
            return
        self.console_app.open_comparison(list(self.selected))

    def action_fold(self) -> None:
        """Fold or unfold a pipeline's stages."""
        pipeline = self.row.pipeline or self.row.id if self.row else None
        if pipeline and any(row.pipeline == pipeline for row in self.index.rows):
            self.folded ^= {pipeline}
            self._fill()

    def action_attach(self) -> None:
        """Open a directory of another trainer."""
        question = "Directory with trainer_state.json, trainer_log.jsonl or TensorBoard events (opened read-only):"

        def answered(path: str | None) -> None:
            if path and path.strip():
                self.console_app.open_foreign(Path(path.strip()))

        self.console_app.push_screen(AskScreen(question, placeholder="~/outputs/my-run"), answered)

    def action_filter(self) -> None:
        """Open the filter, which narrows the list as one types; escape clears it."""
        self._typing = True
        line = self.query_one("#filter", Input)
        line.display = True
        self.set_focus(line)

    @on(Input.Changed, "#filter")
    def _filter_typed(self, event: Input.Changed) -> None:
        self.filter_text = one_line(event.value)
        self._fill()

    def _filter_done(self) -> None:
        self._typing = False
        line = self.query_one("#filter", Input)
        self.set_focus(self.query_one(RunsTable))
        line.display = bool(line.value)

    def action_back(self) -> None:
        """Leave the filter, then clear the selection."""
        if self.filter_text or self._typing:
            self.query_one("#filter", Input).value = ""
            self._filter_done()
        elif self.selected:
            self.selected.clear()
            self._fill()
