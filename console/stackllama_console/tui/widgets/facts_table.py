"""Keys with one column a run: long values are wrapped, so that nothing has to be opened to be read."""

from collections.abc import Sequence
from typing import ClassVar

from msgspec import Struct
from rich.cells import cell_len, chop_cells
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from ...readers.comparison_rows import FactRow
from .canvas import ASCII_MARKS, CURVES, MARKS
from .cells import cut, cut_middle, fit, strip_of

_LEAST = 14  # cells of a run's column
_MOST_LINES = 4  # of one value
_GAP = 2

Pieces = list[tuple[str, str]]


class Columns(Struct, frozen=True):
    """Layout of a width: the key's cells, a run's cells, and which runs there is room for."""

    key: int
    run: int
    first: int
    stop: int


class FactsTable(ScrollView, can_focus=True, inherit_bindings=False):
    """Rows of facts under the runs' names. Texts must be sanitised and are never read as markup."""

    DEFAULT_CSS = """
    FactsTable {
        width: 1fr; height: 1fr; overflow-x: hidden; overflow-y: auto; scrollbar-size: 0 1; scrollbar-gutter: stable;
        & > .facts--heading { color: $text; text-style: bold; background: $panel; }
        & > .facts--focused { color: $text; text-style: bold underline; background: $panel; }
        & > .facts--section { color: $text-muted; text-style: italic; }
        & > .facts--key { color: $text-muted; }
        & > .facts--plain { color: $text; }
        & > .facts--default { color: $text-disabled; }
        &:ansi > .facts--default { text-style: dim; }
        & > .facts--missing { color: $text-disabled; }
        & > .facts--best { color: $success; text-style: bold; }
        & > .facts--curve-1 { color: $curve-1; background: $panel; }
        & > .facts--curve-2 { color: $curve-2; background: $panel; }
        & > .facts--curve-3 { color: $curve-3; background: $panel; }
        & > .facts--curve-4 { color: $curve-4; background: $panel; }
        & > .facts--curve-5 { color: $curve-5; background: $panel; }
        & > .facts--curve-6 { color: $curve-6; background: $panel; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"facts--{name}"
        for name in (
            "heading",
            "focused",
            "section",
            "key",
            "plain",
            "default",
            "missing",
            "best",
            *(f"curve-{index}" for index in range(1, CURVES + 1)),
        )
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "move(1)", "down", id="facts.down", show=False),
        Binding("k,up", "move(-1)", "up", id="facts.up", show=False),
        Binding("ctrl+d,pagedown", "page(1)", "page down", id="facts.page_down", show=False),
        Binding("ctrl+u,pageup", "page(-1)", "page up", id="facts.page_up", show=False),
        Binding("g,home", "end(False)", "top", id="facts.top", show=False),
        Binding("G,end", "end(True)", "bottom", id="facts.bottom", show=False),
        Binding("l,right", "shift(1)", "scroll right", id="facts.right", show=False),
        Binding("h,left", "shift(-1)", "scroll left", id="facts.left", show=False),
    ]

    def __init__(self, title: str, *, ascii_only: bool = False, id: str | None = None) -> None:  # Textual's name
        super().__init__(id=id)
        self.title = title
        self.names: list[str] = []
        self.rows: list[FactRow] = []
        self.empty = "reading…"
        self._marks = ASCII_MARKS if ascii_only else MARKS
        self._first = 0
        self._lines: list[Pieces] = []
        self._drawn_for: tuple[int, int] | None = None

    def show_facts(self, names: Sequence[str], rows: Sequence[FactRow], empty: str = "") -> None:
        """Show these rows; only lines that differ are painted again."""
        new = list(names), list(rows), empty
        if new == (self.names, self.rows, self.empty):
            return
        heading = self.names != new[0]
        self.names, self.rows, self.empty = new
        before = self._lines
        self._lay_out()
        if heading or len(before) != len(self._lines):
            self.refresh(layout=True)
            return
        width = self.size.width
        for index, (old, line) in enumerate(zip(before, self._lines, strict=True)):
            if old != line:
                self.refresh(Region(0, index + 1 - self.scroll_offset.y, width, 1))

    @property
    def lines(self) -> list[str]:
        """The rows as text, as laid out for the width at hand."""
        return ["".join(text for text, _ in line) for line in self._lines]

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return the height of heading and lines."""
        return len(self._lines) + 1

    def columns(self) -> Columns:
        """Return how the width at hand is shared out."""
        width = self.scrollable_content_region.width
        longest = max((cell_len(row.key) for row in self.rows if row.cells), default=8)
        key = max(6, min(longest, max(width // 3, 10)))
        room = max(1, width - key)
        wanted = max(_LEAST, room // max(1, len(self.names)) - _GAP)
        shown = max(1, min(len(self.names), room // (wanted + _GAP)))
        first = min(self._first, max(0, len(self.names) - shown))
        return Columns(key, max(1, room // shown - _GAP), first, min(len(self.names), first + shown))

    def render_line(self, y: int) -> Strip:
        """Render the heading, which stays, or one line below it."""
        width = self.scrollable_content_region.width
        if self._drawn_for != (width, self._first):
            self._lay_out()
        style = self._style
        if y == 0:
            return strip_of([(text, style(name)) for text, name in self._heading()], width, style("heading"))
        index = y - 1 + self.scroll_offset.y
        pieces = self._lines[index] if index < len(self._lines) else []
        return strip_of([(text, style(name)) for text, name in pieces], width, style("plain"))

    def on_resize(self, event: events.Resize) -> None:
        """Wrap the lines for the new width."""
        self._lay_out()

    def on_focus(self) -> None:
        """Mark the heading: keys go here."""
        self.refresh(Region(0, 0, self.size.width, 1))

    def on_blur(self) -> None:
        """Unmark the heading; see :meth:`on_focus`."""
        self.on_focus()

    def action_move(self, lines: int) -> None:
        """Scroll by lines."""
        self.scroll_relative(y=lines, animate=False)

    def action_page(self, direction: int) -> None:
        """Scroll by a page."""
        self.scroll_relative(y=direction * max(1, self.size.height - 2), animate=False)

    def action_end(self, last: bool) -> None:
        """Scroll to an end."""
        self.scroll_to(y=self.max_scroll_y if last else 0, animate=False)

    def action_shift(self, runs: int) -> None:
        """Show the next run where not all have room."""
        columns = self.columns()
        most = len(self.names) - (columns.stop - columns.first)
        self._first = min(max(0, columns.first + runs), max(0, most))
        self._lay_out()
        self.refresh()

    def _heading(self) -> Pieces:
        columns = self.columns()
        pieces: Pieces = [(fit(self.title, columns.key), "focused" if self.has_focus else "heading")]
        for index in range(columns.first, columns.stop):
            pieces += [(" " * _GAP, "heading"), (f"{self._marks[index % CURVES]} ", f"curve-{index % CURVES + 1}")]
            more = "›" if index == columns.stop - 1 < len(self.names) - 1 else ""
            more = f"‹{more}" if index == columns.first > 0 else more
            name = cut_middle(self.names[index], columns.run - 2 - len(more))
            pieces.append((fit(name + (f" {more}" if more else ""), columns.run - 2), "heading"))
        return pieces

    def _lay_out(self) -> None:
        columns = self.columns()
        lines = [line for row in self.rows for line in _row_lines(row, columns)]
        self._lines = lines or [[(self.empty, "section")]]
        self._drawn_for = (self.scrollable_content_region.width, self._first)
        size = Size(0, len(self._lines) + 1)
        if self.virtual_size != size:
            self.virtual_size = size

    def _style(self, name: str) -> Style:
        return self.get_component_rich_style(f"facts--{name}")


def _row_lines(row: FactRow, columns: Columns) -> list[Pieces]:
    if not row.cells:
        return [[(row.key, "section")]]
    cells = row.cells[columns.first : columns.stop]
    wrapped = [_wrapped(cell.text, columns.run) for cell in cells]
    lines: list[Pieces] = []
    for index in range(max(map(len, wrapped), default=1)):
        pieces: Pieces = [(fit(row.key if index == 0 else "", columns.key), "key")]
        for cell, parts in zip(cells, wrapped, strict=True):
            pieces.append((" " * _GAP, "plain"))
            tone = "plain" if cell.tone == "best" and len(parts) > 1 and index == 0 else cell.tone
            pieces += _toned(fit(parts[index] if index < len(parts) else "", columns.run), tone)
        lines.append(pieces)
    return lines


def _toned(text: str, tone: str) -> Pieces:
    """Return a line of a cell; what stands before a double blank is the newest value, not the best one."""
    newest, gap, best = text.partition("  ")
    if tone == "best" and best.strip():
        return [(newest + gap, "plain"), (best, tone)]
    return [(text, tone)]


def _wrapped(text: str, width: int) -> list[str]:
    """Return the text in lines of so many cells, at most a few; broken at double blanks where it has them."""
    parts = [text] if cell_len(text) <= width else text.split("  ")
    lines = [line for part in parts for line in chop_cells(part, width) or [""]]
    if len(lines) <= _MOST_LINES:
        return lines
    return [*lines[: _MOST_LINES - 1], cut("".join(lines[_MOST_LINES - 1 :]), width)]
