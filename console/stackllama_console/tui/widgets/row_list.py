"""A list of any length with a cursor: only rows in sight are drawn, by whoever knows them."""

from collections.abc import Callable
from typing import ClassVar

from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from .cells import strip_of

Pieces = list[tuple[str, str]]
"""(text, name of a style) from left to right; the text sanitised and without line ends."""


class RowList(ScrollView, can_focus=True, inherit_bindings=False):
    """Rows under a heading that stays.

    Attributes:
        draw: gives a row by its index and the width; called for rows in sight alone.
        heading: gives the titles of the columns for a width.
        count: how many rows there are.
        cursor: index of the selected row; 0 without rows.
    """

    DEFAULT_CSS = """
    RowList {
        width: 1fr; height: 1fr; overflow-x: hidden; overflow-y: auto; scrollbar-size: 0 1; scrollbar-gutter: stable;
        & > .rows--heading { color: $text; text-style: bold; background: $panel; }
        & > .rows--focused { color: $text; text-style: bold underline; background: $panel; }
        & > .rows--plain { color: $text; }
        & > .rows--dim { color: $text-muted; }
        & > .rows--up { color: $success; }
        & > .rows--down { color: $error; }
        & > .rows--cursor { color: $block-cursor-foreground; background: $block-cursor-background; }
        & > .rows--blurred { color: $text; background: $panel; text-style: bold; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"rows--{name}" for name in ("heading", "focused", "plain", "dim", "up", "down", "cursor", "blurred")
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "move(1)", "next row", id="rows.down", show=False),
        Binding("k,up", "move(-1)", "previous row", id="rows.up", show=False),
        Binding("pagedown,ctrl+d", "page(1)", "page down", id="rows.page_down", show=False),
        Binding("pageup,ctrl+u", "page(-1)", "page up", id="rows.page_up", show=False),
        Binding("g,home", "end(False)", "first row", id="rows.first", show=False),
        Binding("G,end", "end(True)", "last row", id="rows.last", show=False),
    ]

    class Moved(Message):
        """Another row is selected, or others are in sight."""

    def __init__(self, draw: Callable[[int, int], Pieces], *, id: str | None = None) -> None:  # Textual's name
        super().__init__(id=id)
        self.draw = draw
        self.heading: Callable[[int], str] = lambda _: ""
        self.count = 0
        self.cursor = 0

    def show_rows(self, count: int, cursor: int, heading: Callable[[int], str], *, keep: bool) -> None:
        """Show so many rows, the cursor on one of them.

        Args:
            count: how many rows there are now.
            cursor: index of the selected row.
            heading: gives the titles of the columns for a width, which a hidden list does not have yet.
            keep: the selected row is the same as before: it stays on its line of the screen.
        """
        line = self.cursor - self.scroll_offset.y
        self.count, self.heading = count, heading
        self.cursor = max(0, min(cursor, count - 1))
        self.virtual_size = Size(0, count + 1)
        if keep:
            self.scroll_to(y=max(0, self.cursor - line), animate=False, force=True, immediate=True)
        self._show_cursor()
        self.refresh()
        self.post_message(self.Moved())

    @property
    def in_sight(self) -> range:
        """Indices of the rows on the screen."""
        top = self.scroll_offset.y
        return range(min(top, self.count), min(self.count, top + max(1, self.size.height - 1)))

    def repaint(self) -> None:
        """Repaint rows whose texts are known by now."""
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Render the heading, or one row below it."""
        width = self.scrollable_content_region.width
        if y == 0:
            style = self._style("focused" if self.has_focus else "heading")
            return strip_of([(self.heading(width), style)], width, self._style("heading"))
        index = y - 1 + self.scroll_offset.y
        if index >= self.count:
            return Strip.blank(width, self._style("plain"))
        pieces = self.draw(index, width)
        if index == self.cursor:
            style = self._style("cursor" if self.has_focus else "blurred")
            return strip_of([(text, style) for text, _ in pieces], width, style)
        return strip_of([(text, self._style(name)) for text, name in pieces], width, self._style("plain"))

    def move_to(self, index: int) -> None:
        """Select a row; beyond an end, the one there."""
        index = max(0, min(index, self.count - 1))
        if index == self.cursor:
            return
        before, self.cursor = self.cursor, index
        self._show_cursor()
        for row in (before, index):
            self.refresh(Region(0, row + 1 - self.scroll_offset.y, self.size.width, 1))
        self.post_message(self.Moved())

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Report that other rows are in sight."""
        super().watch_scroll_y(old_value, new_value)
        self.post_message(self.Moved())

    def on_resize(self, event: events.Resize) -> None:
        """Keep the selected row in sight."""
        self._show_cursor()
        self.post_message(self.Moved())

    def on_click(self, event: events.Click) -> None:
        """Select the row under the pointer."""
        if event.y > 0:
            self.move_to(event.y - 1 + self.scroll_offset.y)

    def on_focus(self) -> None:
        """Show by cursor and heading that keys go here."""
        self.refresh()

    def on_blur(self) -> None:
        """Repaint; see :meth:`on_focus`."""
        self.refresh()

    def action_move(self, rows: int) -> None:
        """Select another row."""
        self.move_to(self.cursor + rows)

    def action_page(self, direction: int) -> None:
        """Move by a page."""
        self.move_to(self.cursor + direction * max(1, self.size.height - 2))

    def action_end(self, last: bool) -> None:
        """Go to the first or the last row."""
        self.move_to(self.count - 1 if last else 0)

    def _show_cursor(self) -> None:
        """Scroll as little as brings the cursor into sight."""
        height = max(1, self.size.height - 1)
        top = self.scroll_offset.y
        wanted = min(max(top, self.cursor - height + 1), self.cursor)
        if wanted != top:
            self.scroll_to(y=wanted, animate=False, force=True, immediate=True)

    def _style(self, name: str) -> Style:
        return self.get_component_rich_style(f"rows--{name}")
