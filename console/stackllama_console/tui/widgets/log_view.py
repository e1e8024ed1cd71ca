"""The log on the screen: follows its end, searches, filters by level, and paints only rows that have changed.

Rows are drawn from the reader's bounded buffer when they are asked for; none is kept in another form. It scrolls by
itself rather than as a `ScrollView`: that paints all of it, and its bar, whenever the number of lines changes.

Levels are a letter in the first column (and a colour), the match that was jumped to has a ``>`` beside it.
"""

from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from ...readers.log_levels import LETTER, Level
from ...readers.logs import LogLine, LogReader
from ...sanitise import one_line
from .log_rows import LogRows

CYCLE: tuple[Level, ...] = ("debug", "info", "warning", "error")
_GUTTER = 2
_SIDEWAYS = 16
_WHEEL = 3
_Row = tuple[Level, str, bool]
"""One row: level, text, whether it is the current match."""
_BLANK: _Row = ("other", "", False)


class LogView(Widget, can_focus=True):
    """One log. ``show()`` a reader, ``update()`` after it was polled."""

    DEFAULT_CSS = """
    LogView {
        width: 1fr; height: 1fr; background: transparent;
        & > .log--error { color: $error; text-style: bold; }
        & > .log--warning { color: $warning; }
        & > .log--info { color: $text; }
        & > .log--other { color: $text; }
        & > .log--debug { color: $text-muted; }
        & > .log--mark { color: $text-muted; text-style: bold; }
        & > .log--match { color: $text; text-style: reverse; }
        & > .log--current { color: $text; text-style: bold reverse underline; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {f"log--{part}" for part in (*LETTER, "match", "current")}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("g,home", "top", "top", id="log.top", show=False, tooltip="The oldest line kept"),
        Binding("G,end", "end", "follow newest line", id="log.end", show=False),
        Binding("j,down", "scroll(1)", "down", id="log.down", show=False),
        Binding("k,up", "scroll(-1)", "up", id="log.up", show=False),
        Binding("space,pagedown", "page(1)", "page down", id="log.page_down", show=False),
        Binding("b,pageup", "page(-1)", "page up", id="log.page_up", show=False),
        Binding("h,left", "sideways(-1)", "scroll left", id="log.left", show=False),
        Binding("l,right", "sideways(1)", "scroll right", id="log.right", show=False),
        Binding("v", "level", "minimum log level", id="log.level", show=False, tooltip="all, info, warning, error"),
        Binding("n", "next", "next match", id="log.next", show=False),
        Binding("N", "previous", "previous match", id="log.previous", show=False),
    ]

    class StatusChanged(Message):
        """:attr:`LogView.status` says something else now."""

        def __init__(self, view: "LogView") -> None:
            super().__init__()
            self.view = view

        @property
        def control(self) -> "LogView":
            """The view, for selectors of handlers."""
            return self.view

    def __init__(self, reader: LogReader | None = None, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._reader = reader
        self._seen: int = -1
        self._rows = LogRows()
        self._following = True
        self._top = 0
        self._left = 0
        self._current: int | None = None
        self._searched = ""
        self._drawn: list[_Row] = []
        self._drawn_for = (-1, -1)
        self._status = ""

    # what it says

    @property
    def following(self) -> bool:
        """Whether the newest line stays in sight."""
        return self._following

    @property
    def minimum_level(self) -> Level:
        """The least serious level shown; ``debug``: every line."""
        return self._rows.minimum

    @property
    def match_count(self) -> int:
        """Lines that match the search, of those that are kept and shown."""
        return len(self._rows.matches)

    @property
    def match_position(self) -> int | None:
        """Position of the current match among them, from 1 on."""
        return None if self._current is None else self._rows.match_position(self._current)

    @property
    def rows(self) -> list[str]:
        """The rows in sight as text, gutter included, before they are cut at the right edge."""
        return [_gutter(level, current) + text for level, text, current in self._drawn]

    @property
    def status(self) -> str:
        """Position, filter, matches and errors; sanitised, one line."""
        reader, parts = self._reader, list[str]()
        if not self._following:
            parts.append(f"line {min(self._top + 1, len(self._rows))} of {len(self._rows)}")
        if self.minimum_level != "debug":
            parts.append(f"{self.minimum_level} and above")
        if self._searched:
            count, position = self.match_count, self.match_position
            match_text = f"match {position} of {count}" if position else f"{count} matches" if count else "no match"
            parts.append(f"{match_text}: {self._searched}")
        if reader is not None and reader.dropped:
            parts.append(f"{reader.dropped} lines skipped (too fast)")
        if reader is not None and reader.error:
            parts.append(reader.error)
        return ", ".join(parts)

    # what changes it

    def on_mount(self) -> None:
        """Show what the reader holds already."""
        self.update()

    def show(self, reader: LogReader | None) -> None:
        """Show this reader's log; another one than before begins at its end. Filter and search stay."""
        if reader is not self._reader:
            self._reader = reader
            self._current = None
            self._following, self._top, self._left = True, 0, 0
            self._rows.filter(reader, self._rows.minimum)
            self._seen = -1
            self._repaint(force=True)
        self.update()

    def update(self) -> bool:
        """Take in what the reader has polled, and repaint what differs; return whether anything does."""
        reader = self._reader
        if reader is None or reader.version == self._seen:
            return False
        self._seen = reader.version
        self._top = max(0, self._top - self._rows.update(reader))
        return self._repaint()

    def search(self, text: str) -> int:
        """Find a text in the lines shown, mark it, and go to the newest match that is not below what is in sight.

        Returns:
            how many lines match; 0 for an empty text, which ends the search.
        """
        self._searched = one_line(text)
        self._rows.search(text)
        bottom = self._top + self.content_size.height
        below = self._rows[bottom].number if bottom < len(self._rows) else self._last_number() + 1
        self._current = self._rows.match_before(below)
        self._show_current(force=True)
        return self.match_count

    def next_match(self) -> bool:
        """Go to the next matching line, after the last one to the first; False when there is none."""
        self._current = self._rows.match_after(self._here(-1))
        return self._show_current()

    def previous_match(self) -> bool:
        """Go to the matching line before, before the first one to the last; False when there is none."""
        self._current = self._rows.match_before(self._here(1))
        return self._show_current()

    def set_minimum_level(self, level: Level) -> None:
        """Show lines of this level and above. What was at the top stays there as far as it can."""
        if level == self._rows.minimum:
            return
        top = self._rows[self._top].number if self._top < len(self._rows) else self._last_number()
        self._rows.filter(self._reader, level)
        self._top = self._rows.index_of(top)
        self._repaint(force=True)

    def action_top(self) -> None:
        """Go to the oldest line kept."""
        self._move_to(0)

    def action_end(self) -> None:
        """Go to the newest line and follow it."""
        self._following = True
        self._repaint()

    def action_scroll(self, lines: int) -> None:
        """Scroll some lines down, or up when negative."""
        self._move_to(self._top + lines)

    def action_page(self, direction: int) -> None:
        """Scroll a page down or up, one line less than are in sight."""
        self._move_to(self._top + direction * max(1, self.content_size.height - 1))

    def action_sideways(self, direction: int) -> None:
        """Move long lines to the left or back."""
        width = self.content_size.width - _GUTTER
        longest = max((Segment(text).cell_length for _, text, _ in self._drawn), default=0)
        farthest = max(self._left if direction < 0 else 0, longest - width)
        left = max(0, min(self._left + direction * _SIDEWAYS, farthest))
        if left != self._left:
            self._left = left
            self._repaint(force=True)

    def action_level(self) -> None:
        """Choose the next minimum level."""
        self.set_minimum_level(CYCLE[(CYCLE.index(self._rows.minimum) + 1) % len(CYCLE)])

    def action_next(self) -> None:
        """Go to the next match."""
        self.next_match()

    def action_previous(self) -> None:
        """Go to the previous match."""
        self.previous_match()

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Scroll down."""
        event.stop()
        self.action_scroll(_WHEEL)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Scroll up."""
        event.stop()
        self.action_scroll(-_WHEEL)

    def _here(self, direction: int) -> int:
        """Return where a search for a match begins: at the current one, else at the edge of what is in sight."""
        if self._current is not None:
            return self._current
        row = self._top if direction < 0 else self._top + self.content_size.height - 1
        row = min(row, len(self._rows) - 1)
        return self._rows[row].number + direction if row >= 0 else 0

    def _last_number(self) -> int:
        return self._rows.lines[-1].number if self._rows.lines else 0

    def _show_current(self, *, force: bool = False) -> bool:
        number = self._current
        height = self.content_size.height
        if number is not None:
            index = self._rows.index_of(number)
            if not self._top <= index < self._top + height:
                self._top = self._within(index - height // 2)
            self._following = self._following and self._top >= self._within(len(self._rows))
        self._repaint(force=force)
        return number is not None

    def _move_to(self, top: int) -> None:
        before, end = self._top, self._within(len(self._rows))
        self._top = self._within(top)
        self._following = self._top == end and (self._following or top > before)
        self._repaint()

    def _within(self, top: int) -> int:
        return max(0, min(top, len(self._rows) - self.content_size.height))

    # drawing

    def _repaint(self, *, force: bool = False) -> bool:
        """Repaint the rows that show something else than they did; all of them with ``force``."""
        width, height = self.content_size
        self._say_status()
        if not (width and height):
            self._drawn_for = (-1, -1)
            return False
        if force or self._drawn_for != (width, height):
            self._drawn_for = (-1, -1)
            self.refresh()
            return True
        before, self._drawn = self._drawn, self._layout(height)
        changed = [
            Region(0, y, width, 1) for y, (old, new) in enumerate(zip(before, self._drawn, strict=True)) if old != new
        ]
        if changed:
            self.refresh(*changed)
        return bool(changed)

    def _layout(self, height: int) -> list[_Row]:
        """Return what each row is to show."""
        rows = self._rows
        self._top = self._within(len(rows) if self._following else self._top)
        lines = [rows[index] for index in range(self._top, min(len(rows), self._top + height))]
        shown = [self._row(line) for line in lines]
        if not shown:
            everything = rows.minimum == "debug"
            shown.append(("mark", "no lines" if everything else f"no lines at level {rows.minimum} or above", False))
        return [*shown, *[_BLANK] * (height - len(shown))]

    def _row(self, line: LogLine) -> _Row:
        return line.level, line.text, line.number == self._current and line is not self._rows.open_line

    def _say_status(self) -> None:
        if (status := self.status) != self._status:
            self._status = status
            self.post_message(self.StatusChanged(self))

    def render_line(self, y: int) -> Strip:
        """Render one row."""
        width, height = self.content_size
        if self._drawn_for != (width, height):
            self._drawn = self._layout(height)
            self._drawn_for = (width, height)
        if y >= len(self._drawn):
            return Strip.blank(width, self.rich_style)
        level, text, current = self._drawn[y]
        style = self.get_component_rich_style(f"log--{level}")
        gutter = Strip([Segment(_gutter(level, current), style)], _GUTTER)
        body = Strip(self._pieces(text, style, current)).crop(self._left, self._left + max(0, width - _GUTTER))
        return Strip.join([gutter, body]).adjust_cell_length(width, style)

    def _pieces(self, text: str, style: Style, current: bool) -> list[Segment]:
        pattern = self._rows.pattern
        if pattern is None:
            return [Segment(text, style)]
        match_style = self.get_component_rich_style("log--current" if current else "log--match")
        pieces: list[Segment] = []
        end = 0
        for match in pattern.finditer(text):
            pieces += [Segment(text[end : match.start()], style), Segment(match[0], match_style)]
            end = match.end()
        return [piece for piece in (*pieces, Segment(text[end:], style)) if piece.text]


def _gutter(level: Level, current: bool) -> str:
    return LETTER[level] + (">" if current else " ")
