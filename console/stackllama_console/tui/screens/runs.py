"""All runs: states, steps, last metrics, pipelines as trees; the hub from which everything else is reached.

What the first paint does not need, reading and acting, is imported afterwards, where it is used first.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Input, Static

from stackllama_engine.contract.run_dir import Home

from ...readers.run_row import Row
from ...request_texts import READ_ONLY
from ...sanitise import one_line
from ..clock import now
from ..run_keys import SELECTION_ACTIONS, is_mistaken
from ..screen import ConsoleScreen
from ..widgets.run_lines import about_lines, keys_of
from ..widgets.runs_table import RunsTable, View
from ..widgets.text_lines import TextLines
from ..widgets.typed_ahead import TypedAhead
from ..widgets.value_input import ValueInput

if TYPE_CHECKING:
    from ...readers.foreign_index import ForeignIndex
    from ...readers.run_filter import RunFilter
    from ...readers.runs_index import RunsIndex
    from ..run_actions import RunActions
    from ..runs_view import RunsView
    from ..selection_actions import SelectionActions

_EMPTY = """\
No runs here yet.

  d   the demo: the whole recipe on a tiny model, in minutes, without a GPU
  n   launch your own: choose a model and a stage, see what memory it needs
  o   open another trainer's directory
  :   all commands, by name"""

_OF_DAMAGED = {"delete": "delete", "resume": "repair"}
"""Actions on a run whose state cannot be read: the key's → the one carried out."""
_ON_RUNS = SELECTION_ACTIONS | {"open", "clone", "samples", "chat", "select", "tag", "note", "rename", "fold", "fork"}
"""Names of the keys that act on runs."""
_ALIVE = frozenset({"queued", "starting", "running", "stalled", "stopping"})
_NVML_SECONDS = 2.0  # to wait for NVML before the heading says that it does not answer
_AGE_SECONDS = 60  # ages are brought up to date this often, and with every change


class RunsScreen(ConsoleScreen):
    """The first screen."""

    HEADING = "runs"
    WIDGETS_WITH_KEYS: ClassVar[tuple[str, ...]] = ("RunsTable",)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "demo", "demo", id="runs.demo"),
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
        Binding("F", "run('fork')", "fork at a checkpoint", id="runs.fork", show=False),
        Binding("z", "fold", "fold / unfold stages and forks", id="runs.fold", show=False),
        Binding("o", "attach", "open another trainer's run", id="runs.attach", show=False),
        Binding("u", "gpus", "show GPUs", id="runs.gpus", show=False),
        Binding("slash", "filter", "filter", id="runs.filter", key_display="/"),
        Binding("S", "sort", "sort by a column", id="runs.sort", show=False),
        Binding("C", "columns", "choose columns", id="runs.columns", show=False),
        Binding("b", "group", "group: pipeline, stage, model", id="runs.group", show=False),
        Binding("number_sign", "tag", "tag", id="runs.tag", key_display="#", show=False),
        Binding("i", "note", "note", id="runs.note", show=False),
        Binding("R", "rename", "rename (title)", id="runs.rename", show=False),
    ]
    DEFAULT_CSS = """
    RunsScreen {
        #filter {
            dock: bottom; margin-bottom: 1; height: 1; padding: 0 1; border: none; display: none; background: $panel;
        }
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
        self._home = home
        self.filter_text = ""
        self._filter: RunFilter | None = None
        self._typing = False
        self.selected: dict[str, None] = {}
        self.folded: set[str] = set()
        self._read = False
        self._minute = 0
        self._machine: str | None = None
        self._machine_known = False

    @cached_property
    def index(self) -> "RunsIndex":
        """The runs of the home."""
        from ...readers.runs_index import RunsIndex

        return RunsIndex(self._home)

    @cached_property
    def foreign(self) -> "ForeignIndex":
        """The runs of other trainers."""
        from ...readers.foreign_index import ForeignIndex

        return ForeignIndex(lambda: self.console_app.settings.foreign_runs)

    @cached_property
    def view(self) -> "RunsView":
        """How the list is sorted and grouped, and what a person says of runs."""
        from ..runs_view import RunsView

        return RunsView(self, self._home, self._fill)

    @cached_property
    def actions(self) -> "RunActions":
        """What keys do to one run."""
        from ..run_actions import RunActions

        return RunActions(self, self._home)

    @cached_property
    def selection_actions(self) -> "SelectionActions":
        """What keys do to the selected runs."""
        from ..selection_actions import SelectionActions

        return SelectionActions(self, self._home, self._forget)

    def body(self) -> ComposeResult:
        """Compose the table, or what to do without runs; the run under the cursor in words; the filter."""
        table = RunsTable(id="table")
        yield table
        yield Static(_EMPTY, id="empty", markup=False)
        yield TextLines(id="about")
        line = ValueInput(id="filter")
        line.placeholder = "words, state:failed, stage:ppo, tag:x, reward>1, age<2d; - before one: not"
        turns = TypedAhead(self, table, line, lambda: self._typing)
        table.take_key, line.take_key, line.submitted = turns.rows_key, turns.field_key, self._filter_done
        yield line

    def on_mount(self) -> None:
        """Arrange for the size."""
        self._arrange()

    def poll(self) -> bool | None:
        """Return True when any run changed or a minute has passed, else None."""
        changed = self.index.poll()
        changed = (self._read and self.foreign.poll()) or changed  # after the first paint
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
            names = Counter(gpu.name for gpu in gpus)
            named = (f"{count} × {name}" if count > 1 else name for name, count in names.items())
            self._machine = ", ".join(named) or "no GPU; runs use the CPU"
        return self._machine != before

    def render_update(self, update: Any) -> None:
        """Render rows and heading."""
        self._read = True
        self._fill()

    # the table

    def _fill(self) -> None:
        from ...readers.run_columns import arranged, is_tree

        moment = now()
        everything = self._rows
        self.set_class(not everything, "-empty")
        there = {row.id for row in everything}
        for name in [name for name in self.selected if name not in there]:
            del self.selected[name]
        tree = is_tree(self.view.sort, self.view.group)
        passing = [row for row in everything if self._filter is None or self._filter.passes(row, moment)]
        shown = passing if self.filter_text or not tree else [row for row in passing if row.pipeline not in self.folded]
        rows = arranged(shown, self.view.sort, self.view.group, moment)
        table = self.query_one(RunsTable)
        view = View(
            width=self.size.width,
            height=self.size.height,
            now=moment,
            theme=self.console_app.theme,
            variables=self.console_app.theme_variables,
            columns=self.view.columns,
            group=self.view.group if self.view.group in ("stage", "model") else "",
            sort=self.view.sort.removeprefix("-"),
            tree=tree,
            selected=self.selected,
            folded=self.folded,
        )
        launched = self.console_app.launched if any(row.id == self.console_app.launched for row in rows) else None
        if launched:
            self.console_app.launched = None
        table.show(rows, view, launched)
        self._show_about()
        alive = sum(row.phase in _ALIVE for row in self.index.rows)
        parts = [str(len(self.index.rows)), f"{alive} alive" if alive else ""]
        parts += [f"{len(self.selected)} selected" if self.selected else ""]
        parts += [f"filter: {self.filter_text} ({len(passing)} of {len(everything)})" if self.filter_text else ""]
        parts += [self.view.words, f"no room for {table.left_out} columns" if table.left_out else ""]
        parts += [self.index.error or ""]
        parts += [self._machine or "", f"in {self.index.home.path}"]  # last what may be long
        self.set_heading(*parts)

    @property
    def row(self) -> Row | None:
        """The run under the cursor."""
        return self.query_one(RunsTable).current

    @property
    def _rows(self) -> list[Row]:
        """The runs of the home, then those of other trainers."""
        return [*self.index.rows, *self.foreign.rows]

    @property
    def _shown(self) -> list[Row]:
        return self.query_one(RunsTable).rows_shown

    @property
    def row_id(self) -> str | None:
        """The id of the run under the cursor."""
        return self.row.id if self.row else None

    @on(DataTable.RowHighlighted)
    def _moved(self, event: DataTable.RowHighlighted) -> None:
        self._show_about()

    def _show_about(self) -> None:
        row = self.row
        lines = about_lines(row, [*self.selected]) if row is not None else []
        if row is None and self.filter_text:
            lines.append(Text("no run matches the filter; esc clears it"))
        if self._filter and self._filter.error:
            lines.insert(0, Text(f"! {self._filter.error}", style="bold"))
        self.query_one("#about", TextLines).show(lines)
        self.refresh_bindings()

    def restyle(self) -> None:
        """Render the states in the theme's colours."""
        if self._read:
            self._fill()

    def on_resize(self, event: events.Resize) -> None:
        """Choose columns for the new width."""
        self._arrange()
        if self._read:
            self._fill()

    def _arrange(self) -> None:
        self.set_class(self.size.height < 12, "-low")

    def shows_key(self, binding: Binding) -> bool:
        """Return whether the footer offers a key that works: only where it is likely what one wants."""
        row = self.row
        match binding.id:
            case "runs.resume" if row and not self.selected:  # the line about the run says what the key does there
                return row.phase != "damaged" and not is_mistaken(row.phase, row.exit_code)
            case "runs.demo":
                return self._is_empty
            case "runs.compare":
                return len(self.selected) > 1
            case _:
                return True

    @property
    def refusing_keys(self) -> frozenset[str]:
        """Ids of the keys that can do nothing to the run under the cursor, or to any of the selection."""
        row = self.row
        if row is None and not self.selected:
            return frozenset(f"runs.{name}" for name in _ON_RUNS)
        from ...readers.run_columns import is_tree

        own = keys_of(row) if row else frozenset[str]()
        selected = [each for each in self._rows if each.id in self.selected] if self.selected else []
        several = {key for each in selected for key in keys_of(each)} if selected else own
        working = (own - SELECTION_ACTIONS) | (several & SELECTION_ACTIONS)
        if "repair" in several:
            working |= {"resume"}
        if row is not None:
            working |= {"select"} if row.is_foreign else {"select", "note", "rename"}
        if any(not each.is_foreign for each in selected or ([row] if row else [])):
            working |= {"tag"}
        root = row.pipeline or row.id if row else ""
        has_branches = any(each.pipeline == root for each in self.index.rows)
        working = (
            working | {"fold"} if has_branches and is_tree(self.view.sort, self.view.group) else working - {"fold"}
        )
        return frozenset(f"runs.{name}" for name in _ON_RUNS - working)

    # keys

    @on(DataTable.RowSelected)
    def _chosen(self, event: DataTable.RowSelected) -> None:
        self.action_open()

    def action_open(self) -> None:
        """Open the monitor."""
        if self.row and self.row.is_foreign:
            self.console_app.open_foreign(self.row.path)
        elif self.row and self.row.phase != "damaged":
            self.console_app.open_run(self.row.id)
        elif self.row:
            self.say(self.row.error or "", error=True)

    @property
    def _is_empty(self) -> bool:
        return self._read and not self.index.rows

    def action_demo(self) -> None:
        """Open the launch form with the demo's recipe in it."""
        self.console_app.open_demo()

    def action_launch(self) -> None:
        """Open the launch form."""
        self.console_app.open_launch()

    def action_run(self, what: str) -> None:
        """Act on the run under the cursor; stop, save, resume and delete act on the selection where there is one."""
        if what in SELECTION_ACTIONS and self.selected and [*self.selected] != [self.row_id]:
            self.selection_actions.act(what, [*self.selected])
        elif self.row is None:
            self.say("no run is selected")
        elif self.row.is_foreign:
            self._act_on_foreign(self.row, what)
        elif self.row.phase == "damaged" and what not in _OF_DAMAGED:
            self.say(self.row.error or "", error=True)
        else:
            action = _OF_DAMAGED[what] if self.row.phase == "damaged" else what
            getattr(self.actions, action)(self.row.id)

    def _act_on_foreign(self, row: Row, what: str) -> None:
        """Forget another trainer's run; everything else is refused."""
        if what != "delete":
            self.say(READ_ONLY)
            return
        self._forget([row.id])

    def _forget(self, row_ids: Sequence[str]) -> None:
        """Forget directories of other trainers; their files stay."""
        names = [row.name for row in self.foreign.rows if row.id in row_ids]
        for row_id in row_ids:
            self.console_app.settings.forget_foreign(row_id)
        self.console_app.remember()
        self.foreign.poll()
        self._fill()
        self.say(f"{', '.join(names)} forgotten; {'its' if len(names) == 1 else 'their'} files stay")

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
        """Fold or unfold a pipeline's stages, or a run's forks."""
        from ...readers.run_columns import is_tree

        pipeline = self.row.pipeline or self.row.id if self.row else None
        if not is_tree(self.view.sort, self.view.group):
            self.say("stages and forks fold where runs are grouped by pipeline (b) and not sorted (S)")
        elif pipeline and any(row.pipeline == pipeline for row in self.index.rows):
            self.folded ^= {pipeline}
            self._fill()

    def action_sort(self) -> None:
        """Choose the column that runs are sorted by."""
        self.view.choose_sort()

    def action_columns(self) -> None:
        """Choose the columns."""
        from ...readers.run_columns import default_columns

        self.view.choose_columns(default_columns(self.size.width))

    def action_group(self) -> None:
        """Group by the next of pipeline, stage, model and nothing."""
        self.view.next_group()

    def action_tag(self) -> None:
        """Tag the selected runs, or the one under the cursor."""
        rows = [row for row in self._rows if row.id in self.selected] or ([self.row] if self.row else [])
        if own := self._own(rows):
            self.view.tag(own)

    def _own(self, rows: list[Row]) -> list[Row]:
        """Return the runs that are not another trainer's, whose directory is never written to."""
        if any(row.is_foreign for row in rows):
            self.say(READ_ONLY)
        return [row for row in rows if not row.is_foreign]

    def action_note(self) -> None:
        """Write a note on the run under the cursor."""
        for row in self._own([self.row] if self.row else []):
            self.view.note(row)

    def action_rename(self) -> None:
        """Give the run under the cursor a title."""
        for row in self._own([self.row] if self.row else []):
            self.view.rename(row)

    def action_attach(self) -> None:
        """Open a directory of another trainer."""
        from .confirm import AskScreen

        question = "Directory with trainer_state.json, trainer_log.jsonl or TensorBoard events (opened read-only):"

        def answered(path: str | None) -> None:
            if path and path.strip():
                self.console_app.open_foreign(Path(path.strip()))

        self.console_app.push_screen(AskScreen(question, placeholder="~/outputs/my-run", path=True), answered)

    def action_filter(self) -> None:
        """Open the filter, which narrows the list as one types; escape clears it."""
        self._typing = True
        line = self.query_one("#filter", Input)
        line.display = True
        self.set_focus(line)

    @on(Input.Changed, "#filter")
    def _filter_typed(self, event: Input.Changed) -> None:
        from ...readers.run_filter import parse_filter

        self.filter_text = one_line(event.value)
        self._filter = parse_filter(self.filter_text)
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
