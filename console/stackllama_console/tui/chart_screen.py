"""What screens of charts share: each metric's own look, pins, the x axis, a search for metrics, export."""

import asyncio
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

from textual import on
from textual.binding import Binding, BindingType

from ..readers.protocol import Reader
from ..readers.x_axes import AXES, Places, XAxis
from .chart_board import Board, compiled
from .screen import ConsoleScreen
from .widgets.chart import Chart
from .widgets.chart_look import Look, Looks

_ALL = "*"
_TITLE, _PATTERN = "=", "/"


class ChartScreen(ConsoleScreen):
    """A screen with charts; it draws them itself (`show_charts`), and everything else about them is here."""

    X_AXES: ClassVar[tuple[XAxis, ...]] = AXES
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("m", "find", "find metric", id="charts.find", show=False, tooltip="By name or regular expression"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.places = Places()
        self._looks: Looks | None = None
        self._board: Board | None = None

    @property
    def looks(self) -> Looks:
        """How each metric is drawn."""
        self._looks = self._looks or Looks(self.console_app.settings)
        return self._looks

    @property
    def board(self) -> Board:
        """Which charts are in sight."""
        self._board = self._board or Board(self.console_app.settings.pinned)
        return self._board

    @abstractmethod
    def show_charts(self) -> None:
        """Draw the charts that the board has in sight."""

    @abstractmethod
    def charts_by_title(self) -> Mapping[str, str]:
        """Return the title of every chart there is, and the names of its metrics, separated by blanks."""

    @abstractmethod
    def chart_readers(self) -> Iterable[Reader]:
        """Return the runs that are drawn."""

    @abstractmethod
    def go_to_chart(self, title: str) -> None:
        """Bring a chart into sight and give it the keys."""

    @property
    @abstractmethod
    def shown_name(self) -> str:
        """The run or runs, for names of files."""

    def dress(self, chart: Chart, title: str) -> Look:
        """Tell a chart what it is to draw a metric with besides its curves; return the metric's look."""
        chart.x, chart.pinned = self.places.axis, title in self.board.pinned
        return self.looks.of(title)

    def on_unmount(self) -> None:
        """Persist how metrics are drawn."""
        if self._looks is not None and self._looks.store():
            self.console_app.remember()

    @on(Chart.Asked)
    def _asked(self, event: Chart.Asked) -> None:
        event.stop()
        chart = event.chart
        match event.what:
            case "log":
                self.looks.log_all(chart.look)
            case "smooth":
                self.looks.smooth_all(chart.look)
            case "x":
                self._next_axis()
                return
            case "pin":
                self._pin(chart)
                return
            case _:
                self.begin(self._export(), group="export", exclusive=True)
                return
        self.console_app.remember()
        for each in self.query(Chart):
            each.update(force=True)

    def _next_axis(self) -> None:
        """Choose the next x axis that a run has values for."""
        axes = self.X_AXES
        now = axes.index(self.places.axis)
        readers = list(self.chart_readers())
        others: list[XAxis] = [*axes[now + 1 :], *axes[:now]]
        drawable: list[XAxis] = [axis for axis in others if axis == "step" or self._has_axis(readers, axis)]
        axis = drawable[0] if drawable else self.places.axis
        if axis == self.places.axis:
            self.say("no times, tokens or episodes are recorded: only steps can be drawn")
            return
        self.places.choose(axis)
        self.looks.reset_views()
        self.redraw_charts()

    def _has_axis(self, readers: Iterable[Reader], axis: XAxis) -> bool:
        return any(self.places.of(reader, axis) is not None for reader in readers)

    def redraw_charts(self) -> None:
        """Draw all charts anew."""
        self.show_charts()

    def _pin(self, chart: Chart) -> None:
        title = chart.title
        pinned = self.board.pin(title)
        self.console_app.remember()
        self.redraw_charts()
        self.go_to_chart(title)
        self.say(f"{title}: {'stays in sight, on every page' if pinned else 'no longer pinned'}")

    def action_find(self) -> None:
        """Find a metric by name, or show only those that match a regular expression."""
        from ..readers.choices import Choice  # the budget and all that checks a launch come with it
        from .screens.pick import PickScreen

        charts = self.charts_by_title()
        if not charts:
            self.say("no metrics yet")
            return

        def typed(text: str) -> list[Choice]:
            pattern = compiled(text)
            if pattern is None:
                return [Choice(value="", title=text, facts="not a regular expression")]
            board = Board([])
            board.pattern = pattern
            count = sum(board.matches(title, names) for title, names in charts.items())
            return [Choice(value=_PATTERN + text, title=f"all that match {text}", facts=f"{count} of {len(charts)}")]

        choices = [Choice(value=_TITLE + title, title=title, facts=names) for title, names in charts.items()]
        if self.board.pattern is not None:
            choices.insert(0, Choice(value=_ALL, title="all metrics", facts=f"not only {self.board.pattern.pattern}"))
        hint = "words of its name, or a regular expression"
        dialog = PickScreen("find metric", choices, typed=typed, hint=hint, paths=False)
        self.console_app.push_screen(dialog, self._found)

    def _found(self, answer: str | None) -> None:
        if not answer:
            return
        if answer.startswith(_TITLE):
            title = answer.removeprefix(_TITLE)
            if not self.board.matches(title, self.charts_by_title().get(title, "")):
                self.board.pattern = None
            self.redraw_charts()
            self.go_to_chart(title)
            return
        pattern = compiled(answer.removeprefix(_PATTERN)) if answer != _ALL else None
        matching = Board([])
        matching.pattern = pattern
        if not any(matching.matches(title, names) for title, names in self.charts_by_title().items()):
            self.say(f"no metric matches {answer.removeprefix(_PATTERN)}")
            return
        self.board.pattern, self.board.page = pattern, 0
        self.redraw_charts()

    async def _export(self) -> None:
        from .chart_export import export

        charts = [drawn for chart in self.query(Chart) if chart.display and (drawn := chart.drawn()) is not None]
        if not charts:
            self.say("no chart with values is in sight")
            return
        try:
            files = await asyncio.to_thread(export, charts, self.shown_name, self.HEADING or "monitor")
        except OSError as error:
            self.say(f"{error.filename or 'export'} cannot be written: {error.strerror}", error=True)
            return
        self.say(f"saved {files[0]} and {files[1].name}")

    @property
    def board_note(self) -> str:
        """What is shown, where that is not all: for the heading."""
        pattern = self.board.pattern
        return f"only {pattern.pattern}" if pattern is not None else ""
