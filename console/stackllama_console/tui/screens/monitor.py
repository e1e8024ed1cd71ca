"""The monitor: one run, live or ended, read from its files alone; of a pipeline the stage that is shown."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from operator import is_
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid, Horizontal, Vertical

from stackllama_engine.contract.errors import StackllamaError
from stackllama_engine.contract.requests import PAUSED
from stackllama_engine.contract.run_dir import Home

from ...gpu_lines import ASCII, UNICODE, GpuView, Line, gpu_lines
from ...readers.chart_sets import MEMORY, ChartSet, charts_for, curves_of
from ...readers.machine import summary_of
from ...readers.protocol import Reader
from ...readers.series import Series
from ...request_texts import READ_ONLY
from ...sanitise import one_line, sanitise
from ..chart_board import shape
from ..clock import now
from ..keymap import as_bindings
from ..run_keys import is_mistaken, run_keys
from ..watched import Update, Watched, watch_directory, watch_run
from ..widgets.chart import Chart, Curve
from ..widgets.gpu_panel import GpuPanel
from ..widgets.health_lines import finding_lines
from ..widgets.log_panel import LogPanel
from ..widgets.outcome import OutcomePanel, advice_lines, cause_line, last_lines, outcome_lines
from ..widgets.panels import metric_lines, pipeline_line
from ..widgets.scroll_lines import ScrollLines
from ..widgets.status import head_line, headline_line, memory_text, pending_text, silence_text
from ..widgets.text_lines import TextLines
from .monitor_panels import CHARTS, MonitorPanels
from .text import TextScreen

if TYPE_CHECKING:
    from ..run_actions import RunActions

_GPU_LINES = ((42, 12), (36, 6), (24, 4))
"""Rows of the terminal → lines that the GPUs may take."""
_STATE_EDGES = 2  # cells beside the state: padding and scroll bar
_OF_OWN_RUNS = ("run(", "child(", "fix")
"""Actions that another trainer's run refuses."""
_OF_STAGE = frozenset({"samples", "chat", "clone", "fork"})
"""Actions that in a pipeline act on the stage shown."""
_REQUESTS = frozenset({"save", "pause", "sample", "change"})
"""Actions that in a pipeline act on the stage that runs."""


class MonitorScreen(MonitorPanels):
    """Charts, metrics, log and samples of one run.

    Args:
        opening: finds the run's files, in a thread; raises StackllamaError when there are none.
        title: what to call it until they are read.
        home: where the run can be acted on; None for another trainer's directory.
    """

    WIDGETS_WITH_KEYS: ClassVar[tuple[str, ...]] = ("Chart", "LogView", "LogPanel", "ScrollLines")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "run('stop')", "stop", id="monitor.stop"),
        Binding("w", "run('save')", "save checkpoint", id="monitor.save"),
        Binding("p", "run('pause')", "pause / continue", id="monitor.pause"),
        Binding("A", "run('sample')", "sample held-out prompts now", id="monitor.sample", show=False),
        Binding("V", "run('change')", "set value while running", id="monitor.change", show=False),
        Binding(
            "f",
            "fix",
            "fix",
            id="monitor.fix",
            tooltip="Edit a copy with the change that the cause or finding advises, or at the key that it names",
        ),
        Binding("r", "run('resume')", "resume", id="monitor.resume"),
        Binding("e", "run('clone')", "edit a copy", id="monitor.clone"),
        Binding("F", "run('fork')", "fork at a checkpoint", id="monitor.fork", show=False),
        Binding("a", "run('samples')", "samples", id="monitor.samples"),
        Binding("t", "run('chat')", "chat", id="monitor.chat"),
        Binding("D", "run('delete')", "delete", id="monitor.delete", show=False),
        Binding("left_square_bracket", "page(-1)", "previous charts", id="monitor.page_back", show=False),
        Binding("right_square_bracket", "page(1)", "next charts", id="monitor.page", key_display="]"),
        Binding("comma", "child(-1)", "pipeline: previous stage", id="monitor.child_back", show=False),
        Binding("full_stop", "child(1)", "pipeline: next stage", id="monitor.child", show=False),
        Binding("1", "panel(0)", "show only chart 1", id="monitor.panel_1"),
        Binding("2", "panel(1)", "show only chart 2", id="monitor.panel_2", show=False),
        Binding("3", "panel(2)", "show only chart 3", id="monitor.panel_3", show=False),
        Binding("4", "panel(3)", "show only chart 4", id="monitor.panel_4", show=False),
        Binding("5", "panel(4)", "show only the log", id="monitor.panel_5", show=False),
        Binding("6", "panel(5)", "show only the metrics", id="monitor.panel_6", show=False),
        Binding("d", "metrics", "all metrics as text", id="monitor.figures", show=False),
        Binding("u", "gpus", "show GPUs", id="monitor.gpus", show=False),
        Binding("slash", "search", "search log", id="monitor.search", key_display="/", show=False),
    ]
    DEFAULT_CSS = """
    MonitorScreen {
        #state { height: auto; max-height: 12; padding: 0 0 0 1; }
        #gpus { padding: 0 1; }
        #middle { height: 1fr; min-height: 3; }
        #charts { grid-size: 2; grid-gutter: 0 1; height: 1fr; width: 1fr; padding: 0 1; }
        #result { width: 1fr; height: 1fr; padding: 0 0 0 1; display: none; }
        &.-result #result { display: block; }
        &.-result #charts { display: none; }
        #side { width: 42; display: none; padding: 0 1; border-left: solid $panel; }
        #metrics { height: auto; max-height: 60%; }
        #sample { height: 1fr; margin-top: 1; }
        #log { height: 6; }
        &.-wide #side { display: block; }
        &.-result #side { display: none; }
        &.-tall #log { height: 10; }
        &.-low #log { display: none; }
        &.-low #state { max-height: 4; }
        &.-failed #middle { display: none; }
        &.-failed #log { height: 1fr; min-height: 3; }
        &.-failed.-tall.-curves #middle { display: block; }
        &.-failed.-tall #cause { max-height: 16; }
        &.-failed.-low OutcomePanel { height: 1fr; }
        &.-failed.-low #cause { height: 1fr; max-height: 100%; }
        &.-tiny #middle { display: none; }
        &.-tiny.-failed #state { max-height: 1; }
        &.-narrow #charts { grid-size: 1; }
        #charts.-three { grid-size: 3; }
        #charts.-one { grid-size: 1; }
        &.-only OutcomePanel { display: none; }
        &.-only-log #middle { display: none; }
        &.-only-log #log { height: 1fr; display: block; }
        &.-only-metrics #charts { display: none; }
        &.-only-metrics #side { display: block; width: 1fr; border: none; }
        &.-only-metrics #metrics { max-height: 100%; }
        &.-only-metrics #sample { display: none; }
        &.-only-metrics #log { display: none; }
    }
    """

    def __init__(self, opening: Callable[[], Watched], title: str, home: Home | None) -> None:
        super().__init__()
        self._opening = opening
        self._failed: str | None = None
        self._title = one_line(title)
        self._home = home
        self._sets: list[ChartSet] = []
        self._keys_for: object = None
        self._series_of: object = None
        self._drawn: list[Series] = []
        self._last_update: Update | str | None = None

    @classmethod
    def of_run(cls, home: Home, run_id: str) -> "MonitorScreen":
        """Return the monitor of a run of ours."""
        return cls(lambda: watch_run(home, run_id), run_id, home)

    @classmethod
    def of_directory(cls, path: Path) -> "MonitorScreen":
        """Return the monitor of another trainer's directory, read-only."""
        return cls(lambda: watch_directory(path), path.name or str(path), None)

    @cached_property
    def actions(self) -> "RunActions | None":
        """What keys do to the run; None for another trainer's directory."""
        from ..run_actions import RunActions  # long to import, and needed for keys alone

        return RunActions(self, self._home) if self._home else None

    def body(self) -> ComposeResult:
        """Compose empty panels; they are filled with what a thread has read."""
        yield ScrollLines(id="state")
        yield GpuPanel(id="gpus")
        yield OutcomePanel()
        with Horizontal(id="middle"):
            yield ScrollLines(id="result")
            with Grid(id="charts"):
                for index in range(CHARTS):
                    yield Chart("", id=f"chart-{index}", ascii=self.console_app.options.ascii)
            with Vertical(id="side"):
                yield ScrollLines(hang=7, id="metrics")
                yield TextLines(id="sample")
        yield LogPanel(id="log")

    def on_mount(self) -> None:
        """Say that it is being read."""
        self.set_heading(self._title)
        self.query_one("#state", TextLines).show([Text("reading …", style="dim")])
        self._arrange()

    # reading, in a thread

    def poll(self) -> Update | str | None:
        """Return what is new; a sentence where it cannot be read at all."""
        if self._failed:
            return None
        if self._watched is None:
            try:
                self._watched = self._opening()
            except (StackllamaError, OSError) as error:
                self._failed = one_line(str(error))
                return self._failed
        return self._watched.poll()

    # showing

    def render_update(self, update: Update | str) -> None:
        """Render what changed."""
        self._last_update = update
        if isinstance(update, str):
            self.query_one("#state", TextLines).show([Text(f"✗ {update}", style="bold")])
            return
        if update.run:
            self._show_panels()
        self._show_state(update)
        if update.log or update.run:
            self.query_one(LogPanel).show(self.watched.log, self.watched.events)

    @property
    def watched(self) -> Watched:
        """The files being watched.

        Raises:
            RuntimeError: nothing has been read yet; keys check for that.
        """
        if self._watched is None:
            raise RuntimeError("nothing is watched yet")
        return self._watched

    def _show_state(self, update: Update) -> None:
        watched, moment = self.watched, now()
        reader = watched.source if watched.pipeline and watched.shows_result else watched.reader
        colours = self.console_app.theme_variables
        error = getattr(watched.source, "error", None)
        lines: list[Text] = []
        if watched.pipeline:
            lines.append(pipeline_line(watched.pipeline, colours))
        lines.append(head_line(reader, colours, moment, watched.waiting))
        if (metrics := headline_line(reader, reader.stage)).plain:
            lines.append(metrics)
        gpus = self._gpu_lines(update.gpus)
        summary = summary_of(update.gpus.gpus) if update.gpus and not gpus else ""
        machine = "  ".join(filter(None, (summary, update.machine)))
        parts = [*filter(None, (machine, memory_text(reader, watched.predicted)))]
        if len("  ".join(parts)) <= self.size.width - _STATE_EDGES:
            parts = ["  ".join(parts)] if parts else []
        lines += map(Text, parts)
        there = getattr(watched.source, "elsewhere", "")
        silence, pending = silence_text(reader, moment), pending_text(watched.pending)
        notes = [*filter(None, (error, f"it is {there}" if there else "", pending, silence))]
        if self._is_paused:
            notes.append("p: continue")
        if reader.bad_lines:
            notes.append(f"{reader.bad_lines} lines of its events could not be read")
        state = watched.state
        findings = finding_lines(reader.history, colours, watched.fix)
        found = [finding.message for finding in reader.history.findings.values()]
        if (notices := getattr(reader, "notices", None)) and not (state and state.phase == "finished"):
            notes += [f"! {notices[-1]}"] if notices[-1] not in found else []
        notes += getattr(reader, "notes", [])
        said = [Text(one_line(note), style="italic") for note in notes]
        if watched.shows_failure and watched.run and state:
            quoted = [] if watched.has_log else last_lines(state)
            advice = advice_lines(watched.run, state, watched.fix)
            self.query_one(OutcomePanel).show([cause_line(state, colours)], [*advice, *findings, *said, *quoted])
        else:
            self.query_one(OutcomePanel).show([], [])
            lines += [*findings, *said, *outcome_lines(watched.run, state, colours)]
        self.query_one("#state", TextLines).show(lines)
        self.query_one(GpuPanel).show(gpus)
        pages = self._pages
        where = f"charts {self.board.page + 1} of {pages}" if pages > 1 and not watched.shows_result else ""
        stage = str(watched.source.stage or "another trainer")
        self.set_heading(watched.source.title, stage, watched.note, where, self.board_note)
        keys_for = self.refusing_keys, self._is_paused, pages > 1 or watched.shows_result, watched.fix
        if keys_for != self._keys_for:
            self._keys_for = keys_for
            self.refresh_bindings()

    def _gpu_lines(self, view: GpuView | None) -> list[Line]:
        """Return the GPUs in the lines that a terminal of this height can spare; none where they have no room."""
        height = self.size.height
        most = next((lines for least, lines in _GPU_LINES if height >= least), 0)
        glyphs = ASCII if self.console_app.options.ascii else UNICODE
        return gpu_lines(view, self.size.width - 2, most, glyphs) if view and most else []

    def shows_key(self, binding: Binding) -> bool:
        """Return whether the footer offers a key: only where it can do something to the run as it is."""
        watched = self._watched
        match binding.id:
            case "monitor.page":
                return watched is not None and not watched.shows_result and self._pages > 1 and not self._hides_charts
            case "monitor.panel_1":
                return bool(self._shown_sets) and self.has_class("-failed") and self._hides_charts
            case "monitor.pause":
                return self._is_paused
            case "monitor.resume":  # the same mistake again is not what is advised
                state = watched.state if watched else None
                return state is not None and not is_mistaken(state.phase, state.exit_code)
            case _:
                return True

    @property
    def refusing_keys(self) -> frozenset[str]:
        """Ids of the keys that can do nothing to the run as it is, or to another trainer's."""
        watched, working = self._watched, {*self._working_keys()}
        if watched is not None and watched.fix is not None:
            working.add("fix")
        if watched is not None and watched.pipeline and watched.pipeline.children:
            working |= {"child", "child_back"}
        names = [*(_acting_names() - working)]
        names += [f"panel_{index + 1}" for index in range(len(self._shown_sets), CHARTS)]
        return frozenset(f"monitor.{name}" for name in names)

    @property
    def _is_paused(self) -> bool:
        """Whether the run, or the stage shown of a pipeline, is paused and one can continue it."""
        watched = self._watched
        if watched is None or watched.state is None or watched.state.has_ended or self._home is None:
            return False
        return watched.reader.history.phase == PAUSED

    def _working_keys(self) -> frozenset[str]:
        """Return the actions that can do something: to the run, or of a pipeline to the stage that is shown."""
        watched = self._watched
        if watched is None or watched.state is None:  # not read yet, or of another trainer
            return frozenset()
        own = run_keys(watched.source.stage, watched.state.phase)
        if watched.pipeline and (running := watched.pipeline.at_work):  # requests are passed on to it
            own -= _REQUESTS - run_keys(running.state.stage, running.state.phase)
        shown = run_keys(watched.reader.stage, watched.reader.phase) if watched.shown_run else own & {"clone"}
        never_began = watched.state.phase == "stopped" and watched.state.started is None
        if watched.left_nothing or never_began:
            shown -= {"chat"}
        if not watched.has_checkpoint:
            shown -= {"fork"}
        if watched.shows_whole_pipeline:
            shown |= own & {"samples"}
        return (own - _OF_STAGE) | (shown & _OF_STAGE)

    def show_charts(self) -> None:
        """Find and draw the charts of this page."""
        self.update_classes(self._classes_of_charts())
        self._draw_charts()

    def _draw_charts(self) -> None:
        reader = self.watched.reader
        self.query_one("#result", TextLines).show([sanitise(line).expandtabs() for line in self.watched.result])
        by_title = {chart_set.title: chart_set for chart_set in self._sets}
        shown = [by_title[title] for title in self.board.arrange(self.charts_by_title(), self._per_page)]
        curves = [self._curves(chosen) for chosen in shown]
        drawn = [curve.series for several in curves for curve in several]
        same = len(drawn) == len(self._drawn) and all(map(is_, drawn, self._drawn))  # some begin anew under their name
        changed = shown != self._shown_sets or self._series_of is not reader or not same
        self._shown_sets, self._series_of, self._drawn = shown, reader, drawn
        for index, chart in enumerate(self._charts(len(shown))):
            chart.display = index < max(1, len(shown)) and (self._only not in range(CHARTS) or self._only == index)
            if changed and index < len(shown):
                self._fill(chart, shown[index], curves[index])
            elif changed:
                chart.title = "no metrics yet" if index == 0 else ""
                chart.set_curves([])
            else:
                chart.update()
        alone = self._only in range(CHARTS)
        three = not alone and len(shown) > 2 and self._grid[0] == 3
        one = alone or len(shown) <= 1
        self.query_one("#charts", Grid).update_classes({"-one": one, "-three": three})
        columns = 1 if one else 3 if three else 2
        for index, chart in enumerate(self.query(Chart)):  # the last one takes what its row has left
            left = -len(shown) % columns if index == len(shown) - 1 and not alone else 0
            chart.styles.column_span = 1 + left

    def _classes_of_charts(self) -> dict[str, bool]:
        reader = self.watched.reader
        self._sets = charts_for(reader.stage, reader.series, bool(reader.memory))
        return {"-result": self.watched.shows_result, "-curves": bool(self._sets)}

    def _charts(self, count: int) -> list[Chart]:
        """Return the charts, with those of a larger page added where they are wanted for the first time."""
        charts = list(self.query(Chart))
        ascii_only = self.console_app.options.ascii
        more = [Chart("", id=f"chart-{index}", ascii=ascii_only) for index in range(len(charts), count)]
        if more:
            self.query_one("#charts", Grid).mount_all(more)
        return charts + more

    def _fill(self, chart: Chart, chart_set: ChartSet, curves: Sequence[Curve]) -> None:
        chart.title, chart.unit = one_line(chart_set.title), chart_set.unit
        chart.set_curves(curves, look=self.dress(chart, chart_set.title))
        chart.set_reference("predicted", self.watched.predicted if chart_set.title == MEMORY else None)

    # sizes

    @property
    def _grid(self) -> tuple[int, int]:
        """Columns and rows of charts."""
        width, height = self.size
        if self.has_class("-narrow"):
            return 1, 1
        beside, below = 46 if self.has_class("-wide") else 2, 17 if self.has_class("-tall") else 13
        return shape(width - beside, height - below, (2, 2 if width >= 100 and height >= 28 else 1))

    @property
    def _per_page(self) -> int:
        columns, rows = self._grid
        return columns * rows

    @property
    def _pages(self) -> int:
        return self.board.pages

    def on_resize(self, event: events.Resize) -> None:
        """Arrange for the new size."""
        self._arrange()

    def _arrange(self) -> None:
        width, height = self.size
        self.update_classes(
            {
                "-wide": width >= 120,
                "-narrow": width < 56,
                "-tall": height >= 36,
                "-low": height < 18,
                "-tiny": height < 10,
            }
        )
        if self._watched is not None and self._series_of is not None:
            self.call_after_refresh(self.show_charts)
            self.call_after_refresh(self._show_side)
            self.call_after_refresh(self._focus_panel)
        self.call_after_refresh(self._wrap_again)

    def restyle(self) -> None:
        """Render state and progress in the theme's colours."""
        self._wrap_again()

    def _wrap_again(self) -> None:
        if isinstance(self._last_update, Update):
            self._show_state(self._last_update)
        elif self._last_update is not None:
            self.render_update(self._last_update)

    # keys

    def action_page(self, direction: int) -> None:
        """Go to the next or previous charts, round and round; of a result, scroll by a page."""
        if self._watched and self._watched.shows_result:
            self.query_one("#result", TextLines).scroll_relative(
                y=direction * max(1, self.query_one("#result").size.height - 1), animate=False
            )
            return
        if self._hides_charts:
            self.say("1 to 4: show a chart of this run")
            return
        self.board.turn(direction)
        if self._watched:
            self.redraw_charts()

    def action_child(self, direction: int) -> None:
        """Switch to another stage of a pipeline."""
        pipeline = self._watched.pipeline if self._watched else None
        if pipeline is None or not pipeline.children:
            self.say("only a pipeline has stages to switch between")
            return
        names = [child.name for child in pipeline.children]
        current = pipeline.chosen or (pipeline.at_work.name if pipeline.at_work else names[-1])
        position = names.index(current) if current in names else 0
        pipeline.chosen = names[(position + direction) % len(names)]
        self.board.page = 0

    def action_fix(self) -> None:
        """Open a copy in the launch form, with the change that the cause advises or at the key that it names."""
        fix = self._watched.fix if self._watched else None
        if fix is None:
            self.say("f works where a finding or the cause of a failure advises a change; e: edit a copy")
        else:
            self.console_app.open_launch(fix.run_id, fix.changes, at=fix.key)

    def action_gpus(self) -> None:
        """Open the view of the GPUs, with this run's memory told from that of others."""
        self.console_app.open_gpus(self._watched.shown_run if self._watched else None)

    def action_metrics(self) -> None:
        """Show every chart and metric as text."""
        if self._watched is None:
            return
        reader = self.watched.reader
        run, colours = self.watched.run, self.console_app.theme_variables
        outcome = outcome_lines(run, self.watched.state, colours, self.watched.fix)
        parts = ["\n".join(line.plain for line in outcome)] if outcome else []
        for chart_set in self._sets:
            chart = Chart(chart_set.title)
            chart.unit = chart_set.unit
            chart.set_curves([Curve(label, series) for label, series in curves_of(chart_set, reader)])
            parts.append(f"{chart_set.title}\n{chart.summary()}")
        if self.watched.shows_result:
            parts.append("\n".join(line.expandtabs() for line in self.watched.result))
        lines = [line.plain for line in metric_lines(reader, self.watched.evaluation, self.size.width)]
        self.console_app.push_screen(TextScreen(self._title, "\n\n".join([*parts, "\n".join(lines)])))

    def action_run(self, what: str) -> None:
        """Act on the run shown; for a pipeline on the pipeline, but samples, chat and copy are its stage's."""
        if self.actions is None:
            self.say(READ_ONLY)
            return
        if self._watched is None or self._watched.run is None:
            return
        of_stage = what in _OF_STAGE and not (what == "samples" and self._watched.shows_whole_pipeline)
        run = self._watched.shown_run if of_stage else self._watched.run
        if what == "clone":  # of a pipeline that failed before its first stage, itself
            run = run or self._watched.run
        if run is None:
            self.say("no stage has started yet")
        elif what == "delete":
            self.actions.delete(run.id, then=self.action_back)
        elif what == "pause":
            self.actions.pause(run.id, self._is_paused)
        else:
            getattr(self.actions, what)(run.id)

    # for `ChartScreen`

    def charts_by_title(self) -> Mapping[str, str]:
        """Return the title of every chart there is, and the names of its metrics."""
        return {chart_set.title: " ".join(name for name, _ in chart_set.metrics) for chart_set in self._sets}

    def chart_readers(self) -> list[Reader]:
        """Return the run that is drawn."""
        return [self._watched.reader] if self._watched else []

    def go_to_chart(self, title: str) -> None:
        """Bring a chart into sight and give it the keys."""
        self.board.show(title, self._per_page)
        self.redraw_charts()
        for chart in self.query(Chart):
            if chart.title == one_line(title) and chart.display:
                chart.focus()

    def redraw_charts(self) -> None:
        """Draw all charts anew, and say which they are."""
        self._shown_sets = []
        self.show_charts()
        self._wrap_again()

    @property
    def shown_name(self) -> str:
        """The run, for names of files."""
        return self._watched.reader.title if self._watched else self._title

    def _curves(self, chosen: ChartSet) -> list[Curve]:
        """Return the curves of one chart over the x axis; those of metrics without a place on it are left out."""
        reader = self.watched.reader
        over = [(label, self.places.over(series, reader)) for label, series in curves_of(chosen, reader)]
        return [Curve(label, series) for label, series in over if series is not None]


def _acting_names() -> frozenset[str]:
    """Return the names of the keys that act on a run, without their screen."""
    acting = (one for one in as_bindings(MonitorScreen.BINDINGS) if one.action.startswith(_OF_OWN_RUNS))
    return frozenset((one.id or "").removeprefix("monitor.") for one in acting)
