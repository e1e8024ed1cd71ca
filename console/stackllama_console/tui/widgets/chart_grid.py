"""A grid of as many charts as there is room for, one per metric, a page at a time."""

from collections.abc import Callable, Sequence

from msgspec import Struct
from textual import events
from textual.app import ComposeResult
from textual.containers import Container

from stackllama_engine.contract.metrics import Unit

from ...readers.series import Series
from ..chart_board import Board
from ..widgets.chart import Chart, Curve
from ..widgets.chart_look import Look

_MOST = 9
_COLUMNS = 3
_LEAST_WIDTH = 52
_LEAST_HEIGHT = 10


class Overlay(Struct, frozen=True):
    """One metric: its name, title and unit, and a (label, series) of each run that has it."""

    metric: str
    title: str
    unit: Unit
    curves: tuple[tuple[str, Series], ...]


class ChartGrid(Container):
    """Charts of equal size, in reading order."""

    DEFAULT_CSS = """
    ChartGrid { layout: grid; grid-size: 1; width: 1fr; height: 1fr; grid-gutter: 0 1; }
    ChartGrid > Chart.hidden { display: none; }
    """

    def __init__(
        self, board: Board, dress: Callable[[Chart, str], Look], *, ascii_only: bool = False, id: str | None = None
    ) -> None:
        super().__init__(id=id)
        self.overlays: Sequence[Overlay] = ()
        self._board = board
        self._dress = dress
        self._charts = [Chart("", ascii=ascii_only) for _ in range(_MOST)]
        self._fits = 1
        self._shown: list[Overlay] = []

    def compose(self) -> ComposeResult:
        """Compose all charts there can be; those without room or metric are hidden."""
        for chart in self._charts:
            chart.add_class("hidden")
            yield chart

    @property
    def shown(self) -> Sequence[Overlay]:
        """The metrics of this page."""
        return tuple(self._shown)

    @property
    def pages(self) -> tuple[int, int]:
        """Number of this page, from 1, and of all pages."""
        return self._board.page + 1, self._board.pages

    def show_overlays(self, overlays: Sequence[Overlay]) -> None:
        """Show these metrics, the page staying where it is; charts whose series grew paint what changed."""
        self.overlays = overlays
        self._fill()

    def draw_anew(self) -> None:
        """Draw all charts, also those whose series are the same."""
        self._shown = []
        self._fill()

    def turn(self, pages: int) -> None:
        """Turn pages, round at the ends."""
        self._board.turn(pages)
        self._fill()

    def go_to(self, title: str) -> None:
        """Bring a metric's chart into sight and give it the keys."""
        self._board.show(title, self._fits)
        self._fill()
        for chart, overlay in zip(self._charts, self._shown, strict=False):
            if overlay.title == title:
                chart.focus()

    def focus_first(self) -> None:
        """Give the first chart the keys, unless one of them has them."""
        if self._shown and not any(chart.has_focus for chart in self._charts):
            self._charts[0].focus()

    def on_resize(self, event: events.Resize) -> None:
        """Show more or fewer charts."""
        columns = max(1, min(_COLUMNS, event.size.width // _LEAST_WIDTH))
        rows = max(1, min(_MOST // columns, event.size.height // _LEAST_HEIGHT))
        self.styles.grid_size_columns = columns
        self._fits = columns * rows
        self._fill()

    def _fill(self) -> None:
        by_title = {overlay.title: overlay for overlay in self.overlays}
        names = {title: overlay.metric for title, overlay in by_title.items()}
        page = [by_title[title] for title in self._board.arrange(names, self._fits)]
        before, self._shown = self._shown, page
        for index, chart in enumerate(self._charts):
            overlay = page[index] if index < len(page) else None
            chart.set_class(overlay is None, "hidden")
            if overlay is None:
                continue
            if index < len(before) and _same(before[index], overlay):
                chart.update()
                continue
            chart.title, chart.unit = overlay.title, overlay.unit
            curves = [Curve(label, series) for label, series in overlay.curves]
            chart.set_curves(curves, look=self._dress(chart, overlay.title))


def _same(before: Overlay, after: Overlay) -> bool:
    """Return whether both hold the same series in the same order, not merely equal ones."""
    return (before.metric, before.title) == (after.metric, after.title) and [
        (label, id(series)) for label, series in before.curves
    ] == [(label, id(series)) for label, series in after.curves]
