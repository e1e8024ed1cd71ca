"""Comparison of two or more runs: curves over each other, recipe differences, and metrics."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from msgspec import Struct
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.widgets import Static

from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.user_dirs import expanded

from ...readers.comparison import Comparison
from ...readers.comparison_rows import FactRow, chart_titles, metric_rows, recipe_rows, unit_among
from ...readers.foreign import open_foreign
from ...readers.protocol import Reader
from ...readers.series import Series
from ...readers.x_axes import OF_COMPARISON, XAxis
from ..chart_screen import ChartScreen
from ..widgets.chart_grid import ChartGrid, Overlay
from ..widgets.facts_table import FactsTable
from .confirm import AskScreen

_WIDE = 120
_NAMED = 3
"""Runs that the heading names."""
_PLACES: dict[XAxis, str] = {"progress": "number of steps", "time": "times", "tokens": "tokens", "episodes": "episodes"}

View = Literal["charts", "recipe", "metrics"]


class Compared(Struct, frozen=True, kw_only=True):
    """The result of one poll, ready to be rendered."""

    names: list[str]
    """Of the metrics."""
    recipe: list[FactRow]
    metrics: list[FactRow]
    errors: list[str]


class CompareScreen(ChartScreen):
    """Compare runs of one home."""

    HEADING = "compare"
    WIDGETS_WITH_KEYS = ("Chart", "FactsTable")
    X_AXES = OF_COMPARISON
    AUTO_FOCUS = None
    DEFAULT_CSS = """
    CompareScreen {
        #compare { layout: vertical; height: 1fr; }
        #tables { width: 1fr; height: 1fr; }
        #error { height: auto; max-height: 3; padding: 0 1; color: $error; }
        #error { text-wrap: nowrap; text-overflow: ellipsis; }
        #compare { padding-left: 1; }
        &.-wide #compare { layout: horizontal; }
        &.-wide #grid { width: 3fr; }
        &.-wide #tables { width: 2fr; margin-left: 1; }
        &.-wide #recipe { height: auto; max-height: 50%; }
        &.-wide #metrics { margin-top: 1; }
        &.-wide.-many #grid { width: 1fr; }
        &.-wide.-many #tables { width: 1fr; }
        &.-narrow.-charts #tables { display: none; }
        &.-narrow.-recipe #grid { display: none; }
        &.-narrow.-recipe #metrics { display: none; }
        &.-narrow.-metrics #grid { display: none; }
        &.-narrow.-metrics #recipe { display: none; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "view('charts')", "charts", id="compare.charts"),
        Binding("2", "view('recipe')", "recipe", id="compare.recipe"),
        Binding("3", "view('metrics')", "metrics", id="compare.figures"),
        Binding("right_square_bracket", "turn(1)", "next metrics", id="compare.next", key_display="]"),
        Binding("o", "add", "add another trainer's run", id="compare.add", show=False),
        Binding("left_square_bracket", "turn(-1)", "previous metrics", id="compare.previous", show=False),
        Binding("u", "gpus", "show GPUs", id="compare.gpus", show=False),
    ]

    def __init__(self, home: Home, run_ids: list[str]) -> None:
        super().__init__()
        self.comparison = Comparison(home, run_ids)
        self.view: View = "charts"
        self._polled = False

    def body(self) -> ComposeResult:
        """Compose charts and, beside or instead of them, the two tables."""
        ascii_only = self.console_app.options.ascii
        yield Static("", id="error", markup=False)
        with Container(id="compare"):
            yield ChartGrid(self.board, self.dress, ascii_only=ascii_only, id="grid")
            with Vertical(id="tables"):
                yield FactsTable("recipe", ascii_only=ascii_only, id="recipe")
                yield FactsTable("metrics", ascii_only=ascii_only, id="metrics")

    def on_mount(self) -> None:
        """Put the charts in front, empty at first."""
        self.add_class("-charts")
        self.set_class(len(self.comparison.sides) > 2, "-many")
        self.query_one("#error").display = False

    def on_resize(self, event: events.Resize) -> None:
        """Arrange side by side from 120 columns."""
        self.update_classes({"-wide": event.size.width >= _WIDE, "-narrow": event.size.width < _WIDE})

    def poll(self) -> Compared | None:
        """Read all runs' new events."""
        comparison = self.comparison
        if not comparison.poll() and self._polled:
            return None
        self._polled = True
        metrics = comparison.metrics()
        return Compared(
            names=metrics,
            recipe=recipe_rows(comparison),
            metrics=metric_rows(comparison, metrics),
            errors=comparison.errors,
        )

    def render_update(self, update: Any) -> None:
        """Render charts and tables; only what changed is painted."""
        compared: Compared = update
        grid = self.query_one(ChartGrid)
        grid.show_overlays(self._overlays(compared.names))
        names = self.comparison.names
        self.query_one("#recipe", FactsTable).show_facts(names, compared.recipe, "No recipe could be read.")
        self.query_one("#metrics", FactsTable).show_facts(names, compared.metrics)
        error = self.query_one("#error", Static)
        text = Text("\n".join(compared.errors[:3]))
        if not compared.names and not compared.errors:
            text = Text("The runs share no metrics yet; 2: recipe, 3: metrics.")
        if error.content != text:
            error.update(text)
            error.display = bool(text.plain)
        if self.focused is None:
            self._focus_view()
        self._head()

    def action_add(self) -> None:
        """Ask for another trainer's directory, and compare what it holds as well."""

        def check(text: str) -> str:
            try:
                open_foreign(Path(text.strip()))
            except UsageError as error:
                return str(error)
            return ""

        def add(text: str | None) -> None:
            if text is not None:
                self.comparison.add(expanded(Path(text.strip())).absolute())
                self._polled = False
                self.set_class(len(self.comparison.sides) > 2, "-many")

        question = "Directory of another trainer's run"
        self.console_app.push_screen(AskScreen(question, placeholder="/path/to/output_dir", check=check), add)

    def _overlays(self, metrics: Sequence[str]) -> list[Overlay]:
        sides = self.comparison.sides
        titles = chart_titles(metrics, sides)
        return [Overlay(name, titles[name], unit_among(name, sides), self._curves(name)) for name in metrics]

    def _curves(self, metric: str) -> tuple[tuple[str, Series], ...]:
        """Return a metric's curves over the x axis; runs that do not say where their steps lie on it are left out."""
        curves: list[tuple[str, Series]] = []
        for name, side in zip(self.comparison.names, self.comparison.sides, strict=True):
            if side.reader and metric in side.reader.series:
                series = self.places.over(side.reader.series[metric], side.reader)
                curves += [(name, series)] if series is not None else []
        return tuple(curves)

    def _left_out(self) -> str:
        """Return which runs are not drawn, because they do not say where their steps lie on the x axis."""
        axis, comparison = self.places.axis, self.comparison
        if axis == "step":
            return ""
        named = zip(comparison.names, comparison.sides, strict=True)
        names = [
            name for name, side in named if side.reader and side.reader.series and self.places.of(side.reader) is None
        ]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return f"no {_PLACES[axis]}, so not drawn: {', '.join(names[:_NAMED])}{more}" if names else ""

    # for `ChartScreen`

    def show_charts(self) -> None:
        """Draw the charts of this page, their curves over the x axis that is chosen now."""
        grid = self.query_one(ChartGrid)
        grid.overlays = self._overlays([overlay.metric for overlay in grid.overlays])
        grid.draw_anew()
        self._head()

    def charts_by_title(self) -> Mapping[str, str]:
        """Return the titles of the metrics there are, and their names."""
        return {overlay.title: overlay.metric for overlay in self.query_one(ChartGrid).overlays}

    def chart_readers(self) -> list[Reader]:
        """Return the runs that are drawn."""
        return [side.reader for side in self.comparison.sides if side.reader]

    def go_to_chart(self, title: str) -> None:
        """Bring a metric's chart into sight and give it the keys."""
        if self.view != "charts":
            self.action_view("charts")
        self.query_one(ChartGrid).go_to(title)
        self._head()

    @property
    def shown_name(self) -> str:
        """The runs, for names of files."""
        return "_".join(side.id for side in self.comparison.sides[:4])

    def action_view(self, view: View) -> None:
        """Bring one of the three to the front; where all are shown, give it the keys."""
        self.update_classes({f"-{each}": each == view for each in ("charts", "recipe", "metrics")})
        self.view = view
        self._focus_view(change=True)
        self._head()

    def action_turn(self, pages: int) -> None:
        """Go to the next or previous metrics."""
        if self.view != "charts":
            self.action_view("charts")
        self.query_one(ChartGrid).turn(pages)
        self._head()

    def _focus_view(self, *, change: bool = False) -> None:
        if self.view == "charts":
            if change:
                self.set_focus(None)
            self.query_one(ChartGrid).focus_first()
        else:
            self.query_one(f"#{self.view}", FactsTable).focus()

    def _head(self) -> None:
        comparison = self.comparison
        stages = list(dict.fromkeys(str(side.stage) for side in comparison.sides if side.stage))
        count = len(comparison.sides)
        parts = [f"{count} run{'s' * (count != 1)} · {', '.join(stages)}" if stages else f"{count} runs"]
        parts += filter(None, [self._left_out()])
        page, pages = self.query_one(ChartGrid).pages
        if pages > 1 and (self.view == "charts" or self.has_class("-wide")):
            parts.append(f"metrics {page}/{pages}")
        if self.board_note:
            parts.append(self.board_note)
        if count > 6:
            parts.append("colours repeat after the sixth run")
        self.set_heading(*parts)
