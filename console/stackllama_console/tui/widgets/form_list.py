"""The scrolled rows of a recipe form with a cursor: one widget however many fields there are."""

from typing import ClassVar

from rich.style import Style
from textual import events
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from .form_rows import ASCII, Glyphs, Row, draw, value_column
from .typed_ahead import KeyTaker


class FormList(ScrollView, can_focus=True, inherit_bindings=False):
    """Draws rows and keeps the cursor on a field. It changes nothing of the form.

    Args:
        ascii: draw with ASCII alone.
        id: the widget's id.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"form--{name}"
        for name in ("heading", "note", "key", "value", "default", "changed", "error", "cursor", "cursor-blurred")
    }
    DEFAULT_CSS = """
    FormList {
        height: 1fr;
        overflow-x: hidden;
        overflow-y: auto;
        scrollbar-gutter: stable;
        scrollbar-size-vertical: 1;
        & .form--heading { color: $primary; text-style: bold; }
        & .form--note { color: $accent; }
        & .form--key { color: $foreground; }
        & .form--value { color: $foreground; }
        & .form--default { color: $foreground 65%; }
        & .form--changed { color: $accent; text-style: bold; }
        & .form--error { color: $error; text-style: bold; }
        & .form--cursor { color: $block-cursor-foreground; background: $block-cursor-background; }
        & .form--cursor-blurred { color: $foreground; background: $panel; }
        &:ansi .form--default { color: ansi_default; text-style: dim; }
    }
    """

    class Moved(Message):
        """The cursor moved to another field, or the rows moved under it."""

    class Chosen(Message):
        """The row under the cursor was clicked."""

    def __init__(self, *, ascii: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self.glyphs = ASCII if ascii else Glyphs()
        self.rows: list[Row] = []
        self.cursor = -1
        """Index of the field row under the cursor; -1 without fields."""
        self.take_key: KeyTaker | None = None

    @property
    def cursor_key(self) -> str:
        """The key under the cursor; empty without fields."""
        return self.rows[self.cursor].key if self.cursor >= 0 else ""

    @property
    def row_width(self) -> int:
        """Cells of a row."""
        return self.scrollable_content_region.width

    @property
    def value_column(self) -> int:
        """The column at which values begin."""
        return value_column(self.rows, self.row_width)

    @property
    def cursor_line(self) -> int:
        """The cursor's row on the widget; outside of its height while scrolled away."""
        return self.cursor - self.scroll_offset.y

    def show_rows(self, rows: list[Row], key: str = "") -> None:
        """Show these rows with the cursor on a key, or near where it was; redraw only what is another."""
        before, cursor_before = self.rows, self.cursor
        self.rows = rows
        self.cursor = self._row_of(key or (before[cursor_before].key if cursor_before >= 0 else ""))
        if len(rows) != len(before) or value_column(rows, 999) != value_column(before, 999):
            self.virtual_size = Size(self.row_width, len(rows))
            self.refresh()
            self.call_after_refresh(self.show_cursor)  # how far it can scroll is known then
        else:
            changed = {index for index, (old, new) in enumerate(zip(before, rows, strict=True)) if old != new}
            if cursor_before != self.cursor:
                changed |= {cursor_before, self.cursor}
            for index in changed:
                self.refresh_line(index)
        self.show_cursor()

    def move(self, fields: int) -> None:
        """Move the cursor by so many fields; it stops at the ends."""
        places = self._places()
        if places:
            here = places.index(self.cursor) if self.cursor in places else 0
            self.move_to(places[min(max(0, here + fields), len(places) - 1)])

    def move_page(self, direction: int) -> None:
        """Move the cursor by a screen of rows."""
        target = self.cursor + direction * max(1, self.size.height - 2)
        places = self._places()
        if places:
            self.move_to(min(places, key=lambda place: abs(place - target)))

    def move_section(self, direction: int) -> None:
        """Move the cursor to the first field of the next or of this or the previous section."""
        starts = [index + 1 for index, row in enumerate(self.rows) if row.kind == "heading"]
        ahead = [start for start in starts if (start > self.cursor if direction > 0 else start < self.cursor)]
        if ahead:
            self.move_to(ahead[0] if direction > 0 else ahead[-1])

    def move_to(self, index: int) -> None:
        """Put the cursor on a field row."""
        if index == self.cursor:
            return
        for line in (self.cursor, index):
            self.refresh_line(line)
        self.cursor = index
        self.show_cursor()
        self.post_message(self.Moved())

    def show_cursor(self) -> None:
        """Scroll as little as shows the cursor's row, its heading and what is wrong with it."""
        if self.cursor < 0 or not self.size.height:
            return
        first = self.cursor - (self.cursor > 0 and self.rows[self.cursor - 1].kind in ("heading", "note"))
        first = 0 if first <= 1 and self.rows[0].kind == "note" else first
        last = self.cursor
        while last + 1 < len(self.rows) and self.rows[last + 1].kind == "error":
            last += 1
        top = min(max(self.scroll_offset.y, last - self.size.height + 1), first)
        top = max(top, self.cursor - self.size.height + 1)  # more than fits: the field itself
        if top != self.scroll_offset.y:
            self.scroll_to(y=top, animate=False)

    def render_line(self, y: int) -> Strip:
        """Render one line of the screen."""
        index = y + self.scroll_offset.y
        width = self.row_width
        if not 0 <= index < len(self.rows):
            return Strip.blank(width, self._style("value"))
        return draw(self.rows[index], self.rows, width, index == self.cursor, self._style, self.glyphs)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Let what floats above the rows follow."""
        super().watch_scroll_y(old_value, new_value)
        self.post_message(self.Moved())

    async def on_key(self, event: events.Key) -> None:
        """Offer a key to the form first."""
        if self.take_key is not None:
            await self.take_key(event)

    def on_focus(self) -> None:
        """Redraw the cursor, which shows whether keys arrive here."""
        self.refresh_line(self.cursor)

    def on_blur(self) -> None:
        """Redraw the cursor as :meth:`on_focus` does."""
        self.refresh_line(self.cursor)

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the click; on the cursor's own row, open the field."""
        index = event.y + self.scroll_offset.y
        if not 0 <= index < len(self.rows) or self.rows[index].kind != "field":
            return
        if index == self.cursor:
            self.post_message(self.Chosen())
        else:
            self.move_to(index)

    def _places(self) -> list[int]:
        return [index for index, row in enumerate(self.rows) if row.kind == "field"]

    def _row_of(self, key: str) -> int:
        places = self._places()
        same = [place for place in places if self.rows[place].key == key]
        if same or not places:
            return same[0] if same else -1
        return min(places, key=lambda place: abs(place - self.cursor))

    def _style(self, name: str) -> Style:
        if name == "cursor" and not self.has_focus:
            name = "cursor-blurred"
        return self.get_component_rich_style(f"form--{name}")
