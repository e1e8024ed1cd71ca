"""The log with a line above it that says where one is, and a line to type a search on."""

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input

from ...readers.logs import LogReader
from ...readers.timeline import RunEvent
from .log_view import LogView
from .text_lines import TextLines


class LogPanel(Vertical):
    """Title, search and :class:`LogView`."""

    DEFAULT_CSS = """
    LogPanel {
        height: 1fr; padding: 0 1;
        #log-status { color: $text-muted; }
        #log-search { height: 1; border: none; display: none; background: $panel; }
        #log-search.-open { display: block; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close_search", "close search", id="log.close", show=False),
    ]

    def compose(self) -> ComposeResult:
        """Compose status, search line and log."""
        yield TextLines(id="log-status")
        line = Input(id="log-search", placeholder="search log; enter: next match, escape: close", compact=True)
        line.cursor_blink = False
        yield line
        yield LogView(id="log-view")

    def show(self, reader: LogReader | None, events: Sequence[RunEvent] = ()) -> None:
        """Show a reader that was polled, another one than before replaces it, and what happened to its run."""
        self.query_one(LogView).show(reader, events)
        self._say()

    def ask(self) -> None:
        """Open the line to search on."""
        line = self.query_one("#log-search", Input)
        line.add_class("-open")
        line.focus()

    @on(LogView.StatusChanged)
    def _say(self) -> None:
        status = self.query_one(LogView).status
        self.query_one("#log-status", TextLines).show([f"log  {status}"])

    @on(Input.Changed, "#log-search")
    def _typed(self, event: Input.Changed) -> None:
        self.query_one(LogView).search(event.value)
        self._say()

    @on(Input.Submitted, "#log-search")
    def _submitted(self, event: Input.Submitted) -> None:
        """Go to the next match, or to the first as soon as it is found; text without a match stays to be changed."""
        view = self.query_one(LogView)
        if view.next_match() or view.searching:
            view.focus()
        self._say()

    def action_close_search(self) -> None:
        """Close the search; where none was open the key goes on to the screen."""
        line = self.query_one("#log-search", Input)
        if not line.has_class("-open"):
            self.screen.run_worker(self.screen.run_action("back"))
            return
        line.value = ""
        line.remove_class("-open")
        self.query_one(LogView).focus()
