"""The monitor: one run, live or ended, read from its files alone; of a pipeline the stage that is shown."""

from collections.abc import Callable, Mapping, Sequence
from operator import is_
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid, Horizontal, Vertical

from stackllama_engine.contract.errors import StackllamaError
from stackllama_engine.contract.requests import PAUSED
from stackllama_engine.contract.run_dir import Home

from ...readers.chart_sets import MEMORY, ChartSet, charts_for, curves_of
from ...readers.protocol import Reader
from ...readers.series import Series
from ...sanitise import one_line, sanitise
from ..chart_board import shape
from ..chart_screen import ChartScreen
from ..run_actions import RunActions
from ..run_keys import run_keys
from ..watched import Update, Watched, watch_directory, watch_run
from ..widgets.chart import Chart, Curve
from ..widgets.log_panel import LogPanel
from ..widgets.log_view import LogView
from ..widgets.panels import metric_lines, pipeline_line, sample_lines
from ..widgets.status import head_line, headline_line, memory_text, now, outcome_lines, silence_text
from ..widgets.text_lines import TextLines
from .text import TextScreen

_CHARTS = 4
_WRAPPED = 4  # lines that one sentence may take
_OF_STAGE = frozenset({"samples", "chat", "clone"})
"""Actions that in a pipeline act on the stage shown."""


class MonitorScreen(ChartScreen):
    """Charts, metrics, log and samples of one run.

    Args:
        opening: finds the run's files, in a thread; raises StackllamaError when there are none.
        title: what to call it until they are read.
        home: where the run can be acted on; None for another trainer's directory.
    """

    WIDGETS_WITH_KEYS: ClassVar[tuple[str, ...]] = ("Chart", "LogView", "LogPanel")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "run('stop')", "stop", id="monitor.stop"),
        Binding("w", "run('save')", "save checkpoint", id="monitor.save"),
        Binding("p", "run('pause')", "pause / continue", id="monitor.pause", show=False),
        Binding("A", "run('sample')", "sample held-out prompts now", id="monitor.sample", show=False),
        Binding("V", "run('change')", "set value while running", id="monitor.change", show=False),
        Binding("r", "run('resume')", "resume", id="monitor.resume"),
        Binding("e", "run('clone')", "edit a copy", id="monitor.clone"),
        Binding("a", "run('samples')", "samples", id="monitor.samples"),
        Binding("t", "run('chat')", "chat", id="monitor.chat"),
        Binding("D", "run('delete')", "delete", id="monitor.delete", show=False),
        Binding("left_square_bracket", "page(-1)", "previous charts", id="monitor.page_back", show=False),
        Binding("right_square_bracket", "page(1)", "next charts", id="monitor.page", key_display="]"),
        Binding("comma", "child(-1)", "pipeline: previous stage", id="monitor.child_back", show=False),
        Binding("full_stop", "child(1)", "pipeline: next stage", id="monitor.child", show=False),
        Binding("1", "panel(0)", "show only chart 1", id="monitor.panel_1", show=False),
        Binding("2", "panel(1)", "show only chart 2", id="monitor.panel_2", show=False),
        Binding("3", "panel(2)", "show only chart 3", id="monitor.panel_3", show=False),
        Binding("4", "panel(3)", "show only chart 4", id="monitor.panel_4", show=False),
        Binding("5", "panel(4)", "show only the log", id="monitor.panel_5", show=False),
        Binding("6", "panel(5)", "show only the metrics", id="monitor.panel_6", show=False),
        Binding("d", "metrics", "all metrics as text", id="monitor.figures", show=False),
        Binding("slash", "search", "search log", id="monitor.search", key_display="/", show=False),
    ]
    DEFAULT_CSS = """
    MonitorScreen {
        #state { max-height: 14; padding: 0 1; }
        #middle { height: 1fr; min-height: 3; }
        #charts { grid-size: 2; grid-gutter: 0 1; height: 1fr; width: 1fr; padding: 0 1; }
        #result { width: 1fr; height: 1fr; padding: 0 1; display: none; }
        &.-result #result { display: block; }
        &.-result #charts { display: none; }
        #side { width: 42; display: none; padding: 0 1; border-left: solid $panel; }
        #metrics { height: auto; max-height: 60%; }
        #sample { height: 1fr; margin-top: 1; }
        #log { height: 6; }
        &.-wide #side { display: block; }
        &.-tall #log { height: 10; }
        &.-low #log { display: none; }
        &.-low #state { max-height: 4; }
        &.-tiny #middle { display: none; }
        &.-narrow #charts { grid-size: 1; }
        #charts.-three { grid-size: 3; }
        #charts.-one { grid-size: 1; }
        &.-only-log #middle { display: none; }
        &.-only-log #log { height: 1fr; display: block; }
        &.-only-metrics #charts { display: none; }
        &.-only-metrics #side { display: block; width: 1fr; border: none; }
        &.-only-metrics #log { display: none; }
    }
    """

    def __init__(self, opening: Callable[[], Watched], title: str, home: Home | None) -> None:
        super().__init__()
        self._opening = opening
        self._watched: Watched | None = None
        self._failed: str | None = None
        self._title = one_line(title)
        self.actions = RunActions(self, home) if home else None
        self._sets: list[ChartSet] = []
        self._shown_sets: list[ChartSet] = []
        self._only: int | None = None
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

    def body(self) -> ComposeResult:
        """Compose empty panels; they are filled with what a thread has read."""
        yield TextLines(id="state")
        with Horizontal(id="middle"):
            yield TextLines(id="result")
            with Grid(id="charts"):
                for index in range(_CHARTS):
                    yield Chart("", id=f"chart-{index}", ascii=self.console_app.options.ascii)
            with Vertical(id="side"):
                yield TextLines(id="metrics")
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
            self.query_one("#state", TextLines).show(self._wrapped([Text(f"✗ {update}", style="bold")]))
            return
        if update.run:
            self.show_charts()
            self._show_side()
        self._show_state(update)
        if update.log:
            self.query_one(LogPanel).show(update.log)

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
        lines += self._wrapped([head_line(reader, colours, moment)])
        if (metrics := headline_line(reader, reader.stage)).plain:
            lines += self._wrapped([metrics])
        machine = "  ".join(filter(None, (update.machine, memory_text(reader, watched.predicted))))
        if machine:
            lines += self._wrapped([Text(machine)])
        there = getattr(watched.source, "elsewhere", "")
        notes = [*filter(None, (error, f"it is {there}" if there else "", silence_text(reader, moment)))]
        if reader.bad_lines:
            notes.append(f"{reader.bad_lines} lines of its events could not be read")
        state = watched.state
        if (notices := getattr(reader, "notices", None)) and not (state and state.phase == "finished"):
            notes.append(f"! {notices[-1]}")
        lines += [Text(one_line(note), style="italic") for note in notes]
        lines += self._wrapped(outcome_lines(watched.run, watched.state, colours))
        lines += self._wrapped([Text(one_line(note), style="italic") for note in getattr(reader, "notes", [])])
        self.query_one("#state", TextLines).show(lines)
        pages = self._pages
        where = f"charts {self.board.page + 1} of {pages}" if pages > 1 and not watched.shows_result else ""
        stage = str(watched.source.stage or "another trainer")
        self.set_heading(watched.source.title, stage, watched.note, where, self.board_note)
        keys_for = self._working_keys(), pages > 1 or watched.shows_result
        if keys_for != self._keys_for:
            self._keys_for = keys_for
            self.refresh_bindings()

    def shows_key(self, binding: Binding) -> bool:
        """Return whether the footer offers a key: only where it can do something to the run as it is."""
        watched = self._watched
        match binding.id:
            case "monitor.page":
                return watched is not None and not watched.shows_result and self._pages > 1
            case (
                "monitor.stop"
                | "monitor.save"
                | "monitor.resume"
                | "monitor.clone"
                | "monitor.samples"
                | "monitor.chat"
            ):
                return binding.id.removeprefix("monitor.") in self._working_keys()
            case _:
                return True

    def _working_keys(self) -> frozenset[str]:
        """Return the actions that can do something: to the run, or of a pipeline to the stage that is shown."""
        watched = self._watched
        if watched is None or watched.state is None:  # not read yet, or of another trainer
            return frozenset()
        own = run_keys(watched.source.stage, watched.state.phase)
        shown = run_keys(watched.reader.stage, watched.reader.phase) if watched.shown_run else frozenset[str]()
        if watched.shows_whole_pipeline:
            shown |= own & {"samples"}
        return (own - _OF_STAGE) | (shown & _OF_STAGE)

    def _wrapped(self, lines: Sequence[Text]) -> list[Text]:
        """Return lines that must not be cut, each wrapped over at most some lines."""
        console = self.console_app.console
        width = max(10, self.size.width - 3)
        return [part for line in lines for part in line.wrap(console, width)[:_WRAPPED]]

    def show_charts(self) -> None:
        """Draw the charts of this page."""
        reader = self.watched.reader
        self.set_class(self.watched.shows_result, "-result")
        self.query_one("#result", TextLines).show([sanitise(line).expandtabs() for line in self.watched.result])
        self._sets = charts_for(reader.stage, reader.series, bool(reader.memory))
        by_title = {chart_set.title: chart_set for chart_set in self._sets}
        shown = [by_title[title] for title in self.board.arrange(self.charts_by_title(), self._per_page)]
        curves = [self._curves(chosen) for chosen in shown]
        drawn = [curve.series for several in curves for curve in several]
        same = len(drawn) == len(self._drawn) and all(map(is_, drawn, self._drawn))  # some begin anew under their name
        changed = shown != self._shown_sets or self._series_of is not reader or not same
        self._shown_sets, self._series_of, self._drawn = shown, reader, drawn
        for index, chart in enumerate(self._charts(len(shown))):
            chart.display = index < max(1, len(shown)) and (self._only is None or self._only == index)
            if changed and index < len(shown):
                self._fill(chart, shown[index], curves[index])
            elif changed:
                chart.title = "no metrics yet" if index == 0 else ""
                chart.set_curves([])
            else:
                chart.update()
        grid = self.query_one("#charts", Grid)
        grid.set_class(self._only is not None or len(shown) <= 1, "-one")
        grid.set_class(self._only is None and len(shown) > 2 and self._grid[0] == 3, "-three")

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

    def _show_side(self) -> None:
        watched = self.watched
        self.query_one("#metrics", TextLines).show(metric_lines(watched.reader, watched.evaluation))
        side = self.query_one("#sample", TextLines)
        side.show(sample_lines(watched.newest_samples, max(20, side.size.width - 1), side.size.height))

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
        self.set_class(width >= 120, "-wide")
        self.set_class(width < 56, "-narrow")
        self.set_class(height >= 36, "-tall")
        self.set_class(height < 18, "-low")
        self.set_class(height < 10, "-tiny")
        if self._watched is not None and self._series_of is not None:
            self.call_after_refresh(self.show_charts)
            self.call_after_refresh(self._focus_something)
        self.call_after_refresh(self._wrap_again)

    def _wrap_again(self) -> None:
        if isinstance(self._last_update, Update):
            self._show_state(self._last_update)
        elif self._last_update is not None:
            self.render_update(self._last_update)

    def _focus_something(self) -> None:
        """Give a chart the focus again after all were hidden in a terminal of a few lines."""
        if self.focused is None and self.is_current:
            self.focus_next(Chart)

    # keys

    def action_page(self, direction: int) -> None:
        """Go to the next or previous charts, round and round; of a result, scroll by a page."""
        if self._watched and self._watched.shows_result:
            self.query_one("#result", TextLines).scroll_relative(
                y=direction * max(1, self.query_one("#result").size.height - 1), animate=False
            )
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

    def action_panel(self, index: int) -> None:
        """Show one panel alone; the same key again brings the others back."""
        if len(self._shown_sets) <= index < _CHARTS:
            more = "]: next charts, " if self._pages > 1 else ""
            self.say(f"no chart {index + 1} here; {more}5: log, 6: metrics")
            return
        self._only = None if self._only == index else index
        self.set_class(self._only == _CHARTS, "-only-log")
        self.set_class(self._only == _CHARTS + 1, "-only-metrics")
        if self._only is not None and self._only >= _CHARTS:
            self._only, panel = None, self._only
            self.show_charts() if self._watched else None
            self._only = panel
        elif self._watched:
            self.show_charts()
        if index == _CHARTS and self._only is not None:
            self.query_one(LogView).focus()
        else:
            self.query_one(f"#chart-{index if index < _CHARTS else 0}", Chart).focus()

    def action_search(self) -> None:
        """Search the log."""
        self.query_one(LogPanel).ask()

    def action_metrics(self) -> None:
        """Show every chart and metric as text."""
        if self._watched is None:
            return
        reader = self.watched.reader
        parts: list[str] = []
        for chart_set in self._sets:
            chart = Chart(chart_set.title)
            chart.unit = chart_set.unit
            chart.set_curves([Curve(label, series) for label, series in curves_of(chart_set, reader)])
            parts.append(f"{chart_set.title}\n{chart.summary()}")
        if self.watched.shows_result:
            parts.append("\n".join(line.expandtabs() for line in self.watched.result))
        lines = [line.plain for line in metric_lines(reader, self.watched.evaluation)]
        self.console_app.push_screen(TextScreen(self._title, "\n\n".join([*parts, "\n".join(lines)])))

    def action_run(self, what: str) -> None:
        """Act on the run shown; for a pipeline on the pipeline, but samples, chat and copy are its stage's."""
        if self.actions is None:
            self.say("read-only: this run was started by another trainer")
            return
        if self._watched is None or self._watched.run is None:
            return
        of_stage = what in _OF_STAGE and not (what == "samples" and self._watched.shows_whole_pipeline)
        run = self._watched.shown_run if of_stage else self._watched.run
        if run is None:
            self.say("no stage has started yet")
        elif what == "delete":
            self.actions.delete(run.id, then=self.action_back)
        elif what == "pause":
            self.actions.pause(run.id, self._watched.reader.history.phase == PAUSED)
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
