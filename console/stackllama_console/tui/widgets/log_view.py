"""The log on the screen: follows its end, searches all of it, filters by level, and paints only rows that have changed.

Rows are drawn from the reader's bounded buffer, or from a page of the file around the place one has gone to, when they
are asked for; none is kept in another form. It scrolls by itself rather than as a `ScrollView`: that paints all of it,
and its bar, whenever the number of lines changes.

Levels are a letter in the first column (and a colour), the match that was jumped to has a ``>`` beside it.
"""

import asyncio
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, cast

from rich.segment import Segment
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from ...readers.log_file import LogFile, LogPage
from ...readers.log_levels import Level
from ...readers.logs import LogLine, LogReader
from ...readers.timeline import RunEvent
from ...sanitise import one_line
from ..base_app import BaseApp
from ..pager import open_in_pager
from .log_finder import LogFinder
from .log_layout import Layout, Span, Spot
from .log_rows import LogRows
from .log_strips import BLANK, GUTTER, PARTS, Row, strip_of

CYCLE: tuple[Level, ...] = ("debug", "info", "warning", "error")
_SIDEWAYS = 16
_WHEEL = 3


class _Wish(NamedTuple):
    """A part of the file that is to be read: around a line, at which the view then begins, scrolled by some rows."""

    place: int
    rows: int = 0
    direction: int = 0


class LogView(Widget, can_focus=True):
    """One log. ``show()`` a reader, ``update()`` after it was polled."""

    DEFAULT_CSS = """
    LogView {
        width: 1fr; height: 1fr; background: transparent;
        & > .log--error { color: $error; text-style: bold; }
        & > .log--warning { color: $warning; }
        & > .log--info { color: $text; }
        & > .log--other { color: $text; }
        & > .log--event { color: $text-accent; }
        & > .log--debug { color: $text-muted; }
        & > .log--mark { color: $text-muted; text-style: bold; }
        & > .log--match { color: $text; text-style: reverse; }
        & > .log--current { color: $text; text-style: bold reverse underline; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {f"log--{part}" for part in PARTS}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("g,home", "top", "top", id="log.top", show=False, tooltip="The log's first line"),
        Binding("G,end", "end", "follow newest line", id="log.end", show=False),
        Binding("j,down", "scroll(1)", "down", id="log.down", show=False),
        Binding("k,up", "scroll(-1)", "up", id="log.up", show=False),
        Binding("space,pagedown", "page(1)", "page down", id="log.page_down", show=False),
        Binding("b,pageup", "page(-1)", "page up", id="log.page_up", show=False),
        Binding("h,left", "sideways(-1)", "scroll left", id="log.left", show=False),
        Binding("l,right", "sideways(1)", "scroll right", id="log.right", show=False),
        Binding("v", "level", "minimum log level", id="log.level", show=False, tooltip="all, info, warning, error"),
        Binding("z", "wrap", "wrap lines", id="log.wrap", show=False),
        Binding("i", "events", "events among the lines", id="log.events", show=False),
        Binding("O", "pager", "open log in $PAGER", id="log.pager", show=False),
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
        self._seen: tuple[object, ...] = ()
        self._events: Sequence[RunEvent] = ()
        self._rows = LogRows()
        self._layout = Layout()
        self._finder = LogFinder()
        self._following = True
        self._top = Spot(0)
        self._wish: _Wish | None = None
        self._reading = False
        self._error = ""
        self._drawn: list[Row] = []
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
        """Lines of the whole log that match the search, as far as it has come, and pass the filter."""
        return len(self._finder)

    @property
    def match_position(self) -> int | None:
        """Position of the current match among them, from 1 on."""
        return self._finder.position

    @property
    def searching(self) -> bool:
        """Whether there may be matches that are not found yet."""
        return self._finder.is_searching

    @property
    def rows(self) -> list[str]:
        """The rows in sight as text, gutter included, before they are cut at the right edge."""
        return [row.gutter + row.text for row in self._drawn]

    @property
    def status(self) -> str:
        """Position, filter, matches and errors; sanitised, one line."""
        parts = [
            "" if self._following else self._position(),
            f"{self.minimum_level} and above" if self.minimum_level != "debug" else "",
            self._finder.status,
            "reading …" if self._reading else "",
            (self._reader and self._reader.error) or self._error,
        ]
        return ", ".join(filter(None, parts))

    def _position(self) -> str:
        reader, rows = self._reader, self._rows
        if rows.is_whole or reader is None or not len(rows):
            return f"line {min(self._top.line + 1, len(rows)):,} of {len(rows):,}"
        place = rows[min(self._top.line, len(rows) - 1)].place
        share = (place - reader.base) / max(1, reader.end - reader.base)
        return f"{min(1.0, max(0.0, share)):.0%} of the log"

    # what changes it

    def on_mount(self) -> None:
        """Show what the reader holds already."""
        self._rows.show_newest(self._reader, self._events)
        self.update()

    def show(self, reader: LogReader | None, events: Sequence[RunEvent] = ()) -> None:
        """Show this reader's log; another one than before begins at its end. Filter and search stay."""
        self._events = events
        if reader is not self._reader:
            self._reader = reader
            self._wish, self._error, self._seen = None, "", ()
            self._following, self._top, self._layout.left = True, Spot(0), 0
            self._rows.show_newest(reader, events)
            self._finder.follow(reader, self.minimum_level)
            self._repaint()
        self.update()

    def update(self) -> bool:
        """Take in what the reader has polled, and repaint what differs; return whether anything does."""
        reader = self._reader
        if reader is None or (reader.version, self._events) == self._seen:
            return False
        self._seen = reader.version, self._events
        place = self._place()
        if self._rows.page is not None and self._rows.page.start < reader.base:  # it is another file now
            self._wish = None
            self._rows.show_newest(reader, self._events)
        else:
            self._rows.update(reader, self._events)
        self._keep_place(place)
        if not self._finder.is_of(reader):
            self._finder.follow(reader, self.minimum_level)
        self._search_on()
        return self._repaint()

    def search(self, text: str) -> None:
        """Find a text in the whole log, mark it, and go to the nearest match that is not below what is in sight.

        The log is searched in a thread; :attr:`status` says how far it has come. An empty text ends the search.
        """
        below = None
        if self._reader is not None:
            below = self._reader.end + 1 if self._following else self._edge(1) + 1
        self._finder.begin(self._reader, text, self.minimum_level, below)
        self._repaint()
        self._search_on()

    def next_match(self) -> bool:
        """Go to the next matching line, after the last one to the first; False when there is none."""
        current = self._finder.current
        return self._go_to(self._finder.after(self._edge(-1) - 1 if current is None else current))

    def previous_match(self) -> bool:
        """Go to the matching line before, before the first one to the last; False when there is none."""
        current = self._finder.current
        return self._go_to(self._finder.before(self._edge(1) + 1 if current is None else current))

    def set_minimum_level(self, level: Level) -> None:
        """Show lines of this level and above. What was at the top stays there as far as it can."""
        if level == self._rows.minimum:
            return
        place = self._place()
        self._rows.minimum = level
        self._finder.follow(self._reader, level)
        self._search_on()
        if self._rows.page is None:
            self._rows.show_newest(self._reader, self._events)
            self._keep_place(place)
            self._repaint()
        else:
            self._read(_Wish(place))

    def action_top(self) -> None:
        """Go to the first line."""
        if self._rows.begins_log:
            self._top = Spot(0)
            self._following = self._following and self._top == self._last_top()
            self._repaint()
        elif self._reader is not None:
            self._read(_Wish(self._reader.base))

    def action_end(self) -> None:
        """Go to the newest line and follow it."""
        self._wish = None
        if self._rows.page is not None:
            self._rows.show_newest(self._reader, self._events)
        self._following = True
        self._repaint()

    def action_scroll(self, lines: int) -> None:
        """Scroll some rows down, or up when negative."""
        self._move(lines)

    def action_page(self, direction: int) -> None:
        """Scroll a page down or up, one row less than are in sight."""
        self._move(direction * max(1, self.content_size.height - 1))

    def action_sideways(self, direction: int) -> None:
        """Move long lines to the left or back."""
        layout = self._layout
        if layout.wraps:
            return
        longest = max((Segment(row.text).cell_length for row in self._drawn), default=0)
        farthest = max(layout.left if direction < 0 else 0, longest - layout.width)
        layout.left = max(0, min(layout.left + direction * _SIDEWAYS, farthest))
        self._repaint()

    def action_wrap(self) -> None:
        """Wrap long lines, or cut them at the right edge."""
        self._layout.wraps = not self._layout.wraps
        self._layout.left, self._top = 0, Spot(self._top.line)
        self._repaint()

    def action_events(self) -> None:
        """Show what happened to the run among the lines, or no longer."""
        place = self._place()
        self._rows.show_events(not self._rows.shows_events)
        self._keep_place(place)
        self._repaint()

    def action_pager(self) -> None:
        """Open the log's file in the person's pager."""
        path = self._reader.path if self._reader else None
        app = cast("BaseApp", self.app)  # pyright: ignore[reportUnknownMemberType]
        if error := open_in_pager(app, path) if path else "there is no log yet":
            app.notify(one_line(error), severity="error", markup=False)

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

    # the whole file, in threads

    def _search_on(self) -> None:
        if self._finder.is_waiting:
            self.run_worker(self._finder.run(self._show_found), group="log-search")

    def _show_found(self) -> None:
        if (place := self._finder.take_first()) is not None:
            self._go_to(place)
        else:
            self._repaint()

    def _go_to(self, place: int | None) -> bool:
        """Go to a match, wherever it is in the file; return whether there is one."""
        self._finder.current = place
        if place is not None and not self._rows.holds(place):
            self._read(_Wish(place, -(self.content_size.height // 2)))
            return True
        self._wish = None
        height = self.content_size.height
        shown = self._layout.rows(self._rows, self._top, height)
        if place is not None and not any(line.place == place for line, _ in shown):
            self._top = self._layout.moved(self._rows, Spot(self._rows.index_of(place)), -(height // 2))
            self._following = self._following and self._top >= self._last_top()
        self._repaint()
        return place is not None

    def _read(self, wish: _Wish) -> None:
        """Show the part of the file around a place, as soon as it has been read."""
        self._wish, self._following = wish, False
        if not self._reading:
            self._reading = True
            self.run_worker(self._read_wished(), group="log-page")
        self._repaint()

    async def _read_wished(self) -> None:
        try:
            while (wish := self._wish) is not None and (reader := self._reader) is not None:
                page = await asyncio.to_thread(_page, reader, wish, self.minimum_level)
                if wish is self._wish:
                    self._wish, self._error = None, ""
                    self._rows.show_page(page)
                    self._top = self._layout.moved(self._rows, Spot(self._rows.index_of(wish.place)), wish.rows)
        except OSError as error:
            self._wish, self._error = None, one_line(f"cannot read the log: {error.strerror or error}")
        finally:
            self._reading = False
            self._repaint()

    # scrolling

    def _move(self, rows: int) -> None:
        """Scroll down, or up when negative; at the edge of what is here, read on in the file."""
        if self._wish is not None:
            self._wish = self._wish._replace(rows=self._wish.rows + rows)
            return
        before, end = self._top, self._last_top()
        wanted = self._layout.moved(self._rows, before, rows)
        self._top = min(wanted, end)
        if self._rows.page is None:
            self._following = self._top == end and (self._following or rows > 0)
        at_edge = wanted >= end and self._rows.page is not None if rows > 0 else wanted == (0, 0)
        if at_edge and len(self._rows) and not (rows < 0 and self._rows.begins_log):
            self._read_on(before, rows)
        self._repaint()

    def _read_on(self, top: Spot, rows: int) -> None:
        """Scroll beyond what is here, from a row that was at the top."""
        place = self._rows[top.line].place
        if rows > 0 and place >= self._rows.first_kept:
            self._rows.show_newest(self._reader, self._events)
            self._top = Spot(self._rows.index_of(place), top.part)
            self._move(rows)
        else:
            self._read(_Wish(place, rows + top.part, -1 if rows < 0 else 1))

    def _last_top(self) -> Spot:
        """Return the top row when the newest line is in sight."""
        return self._layout.last_top(self._rows, self.content_size.height)

    def _place(self) -> int:
        """Return the place of the line at the top."""
        rows = self._rows
        return rows[min(self._top.line, len(rows) - 1)].place if len(rows) else 0

    def _edge(self, direction: int) -> int:
        """Return the place of the first line in sight, or of the last."""
        if direction < 0 or not len(self._rows):
            return self._place()
        return self._rows[self._layout.moved(self._rows, self._top, self.content_size.height - 1).line].place

    def _keep_place(self, place: int) -> None:
        """Put the line of this place at the top again."""
        index = self._rows.index_of(place)
        same = index < len(self._rows) and self._rows[index].place == place
        self._top = Spot(index, self._top.part if same else 0)

    # drawing

    def _repaint(self) -> bool:
        """Repaint the rows that show something else than they did; return whether any does."""
        width, height = self.content_size
        fits = bool(width and height)
        if not fits or self._drawn_for != (width, height):
            self._drawn_for = (-1, -1)
            self._say_status()
            if fits:
                self.refresh()
            return fits
        before, self._drawn = self._drawn, self._lay_out(width, height)
        self._say_status()
        changed = [
            Region(0, y, width, 1) for y, (old, new) in enumerate(zip(before, self._drawn, strict=True)) if old != new
        ]
        if changed:
            self.refresh(*changed)
        return bool(changed)

    def _lay_out(self, width: int, height: int) -> list[Row]:
        """Return what each row is to show."""
        lines, layout = self._rows, self._layout
        layout.width = max(1, width - GUTTER)
        end = layout.last_top(lines, height)
        self._top = end if self._following else min(self._top, end)
        shown = [self._row(line, cells) for line, cells in layout.rows(lines, self._top, height)]
        if not shown:
            everything = lines.minimum == "debug"
            text = "no lines" if everything else f"no lines at level {lines.minimum} or above"
            shown.append(Row("mark", text, (0, layout.width)))
        return [*shown, *[BLANK] * (height - len(shown))]

    def _row(self, line: LogLine, cells: Span) -> Row:
        finder, text, continues = self._finder, line.text, self._layout.wraps and cells[0] > 0
        if finder.pattern is None or line.level == "event":
            return Row(line.level, text, cells, continues=continues)
        matches = tuple(match.span() for match in finder.pattern.finditer(text))
        is_current = line.place == finder.current and line is not self._rows.open_line
        return Row(line.level, text, cells, matches, is_current, continues)

    def _say_status(self) -> None:
        if (status := self.status) != self._status:
            self._status = status
            self.post_message(self.StatusChanged(self))

    def render_line(self, y: int) -> Strip:
        """Render one row."""
        width, height = self.content_size
        if self._drawn_for != (width, height):
            self._drawn = self._lay_out(width, height)
            self._drawn_for = (width, height)
        if y >= len(self._drawn):
            return Strip.blank(width, self.rich_style)
        return strip_of(self._drawn[y], width, lambda part: self.get_component_rich_style(f"log--{part}"))


def _page(reader: LogReader, wish: _Wish, minimum: Level) -> LogPage:
    with LogFile.of(reader) as file:
        return file.page(wish.place, wish.direction, minimum)
