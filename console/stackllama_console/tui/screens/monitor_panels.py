"""Which of the monitor's panels are shown, and the keys that show one of them alone."""

from abc import abstractmethod

from rich.text import Text

from ...readers.chart_sets import ChartSet
from ..chart_screen import ChartScreen
from ..watched import Watched
from ..widgets.log_panel import LogPanel
from ..widgets.outcome import outcome_lines
from ..widgets.panels import metric_lines, sample_lines
from ..widgets.scroll_lines import ScrollLines
from ..widgets.status import memory_text
from ..widgets.text_lines import TextLines

CHARTS = 4
_EDGES = 3  # cells beside the metrics: padding and scroll bar
_LOG, _METRICS = CHARTS, CHARTS + 1  # panels, counted on from the charts


class MonitorPanels(ChartScreen):
    """The part of the monitor that arranges its panels."""

    def __init__(self) -> None:
        super().__init__()
        self._watched: Watched | None = None
        """What is watched; None until it has been read."""
        self._shown_sets: list[ChartSet] = []
        """The charts of this page."""
        self._only: int | None = None
        """The panel that is shown alone."""

    @property
    @abstractmethod
    def watched(self) -> Watched:
        """What is watched."""

    @property
    @abstractmethod
    def _pages(self) -> int:
        """Pages of charts."""

    @abstractmethod
    def _classes_of_charts(self) -> dict[str, bool]:
        """Find the charts of what is watched; return the classes of the screen that follow from them."""

    @abstractmethod
    def _draw_charts(self) -> None:
        """Draw the charts of this page, as :meth:`_classes_of_charts` found them."""

    @property
    def _hides_charts(self) -> bool:
        """Whether the charts give their place to the log."""
        return self._only in (_LOG, _METRICS) or (
            self.has_class("-failed") and not (self.has_class("-tall") and self.has_class("-curves"))
        )

    def _show_panels(self) -> None:
        """Render the panels that are shown: all of them, or one alone; of a failure the cause and the log."""
        before, only, watched = self.classes, self._only, self._watched
        classes = {  # at once: each change of a screen's classes restyles all that is on it
            "-only": only is not None,
            "-only-log": only == _LOG,
            "-only-metrics": only == _METRICS,
            "-failed": only is None and watched is not None and watched.shows_failure,
        }
        self.update_classes(classes | (self._classes_of_charts() if watched is not None else {}))
        if self.has_class("-failed") and "-failed" not in before:
            self.set_focus(None)  # the cause takes it where it is long, not a chart
        if watched is not None:
            self._draw_charts()
            self._show_side()
        if self.classes != before:
            self.call_after_refresh(self._focus_panel)

    def _show_side(self) -> None:
        watched = self.watched
        alone = self._only == _METRICS  # there is nothing beside them
        lines = metric_lines(watched.reader, watched.evaluation, self.size.width - _EDGES if alone else 0)
        if alone:
            outcome = outcome_lines(watched.run, watched.state, self.console_app.theme_variables, watched.fix)
            memory = memory_text(watched.reader, watched.predicted)
            nothing = Text(memory) if memory else Text("no metrics were recorded", style="dim")
            lines = [*outcome, *(lines or [nothing])]
        self.query_one("#metrics", ScrollLines).show(lines)
        side = self.query_one("#sample", TextLines)
        side.show(sample_lines(watched.newest_samples, max(20, side.size.width - 1), side.size.height))

    def _focus_panel(self) -> None:
        """Give the focus to the panel that is shown alone; else to the first one, unless another one has it."""
        chain = self.focus_chain
        alone = {_LOG: "#log-view", _METRICS: "#metrics"}
        if self._only is not None:
            names = [alone.get(self._only, f"#chart-{self._only}")]
        elif self.focused in chain:
            return
        else:
            names = ["#cause", "#result", "#chart-0", "#log-view"]
        wanted = next((widget for name in names if (widget := self.query_one(name)) in chain), None)
        self.set_focus(wanted)

    def action_panel(self, index: int) -> None:
        """Show one panel alone; the same key again brings the others back."""
        if len(self._shown_sets) <= index < CHARTS:
            more = "]: next charts, " if self._pages > 1 else ""
            self.say(f"no chart {index + 1} here; {more}5: log, 6: metrics")
            return
        self._only = None if self._only == index else index
        if self._only is None:
            self.set_focus(None)  # the first of those that come back takes it
        self._show_panels()

    def action_search(self) -> None:
        """Search the log, which is shown alone where there was no room for it."""
        panel = self.query_one(LogPanel)
        if not panel.region:
            self._only = _LOG
            self._show_panels()
        self.call_after_refresh(panel.ask)
