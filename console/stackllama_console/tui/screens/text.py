"""A text to read: metrics of charts, a command, a recipe."""

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from ...sanitise import one_line, sanitise


class TextScreen(ModalScreen[None]):
    """Plain text, scrolled; `Y` copies it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "leave", "close", id="text.close"),
        Binding("Y", "copy", "copy", id="text.copy"),
        Binding("j,down", "scroll(1)", "down", id="text.down", show=False),
        Binding("k,up", "scroll(-1)", "up", id="text.up", show=False),
        Binding("g,home", "end(False)", "top", id="text.top", show=False),
        Binding("G,end", "end(True)", "bottom", id="text.bottom", show=False),
        Binding("space,pagedown", "scroll(15)", "page down", id="text.page_down", show=False),
        Binding("pageup", "scroll(-15)", "page up", id="text.page_up", show=False),
    ]
    DEFAULT_CSS = """
    TextScreen > VerticalScroll {
        width: 100%; max-width: 110; height: 90%; border: round $primary; background: $surface; padding: 0 1;
    }
    """

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title = one_line(title)
        self._text = sanitise(text)

    def compose(self) -> ComposeResult:
        """Compose the text in a frame."""
        with VerticalScroll() as scroll:
            scroll.border_title = Text(self._title).markup
            scroll.border_subtitle = "esc closes, Y copies"
            yield Static(Text(self._text), markup=False)

    def action_scroll(self, lines: int) -> None:
        """Scroll by lines."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)

    def action_end(self, bottom: bool) -> None:
        """Scroll to the first or the last line."""
        scroll = self.query_one(VerticalScroll)
        scroll.scroll_end(animate=False) if bottom else scroll.scroll_home(animate=False)

    def action_copy(self) -> None:
        """Copy to the clipboard and a file."""
        self.app.copy_to_clipboard(self._text)  # pyright: ignore[reportUnknownMemberType]

    def action_leave(self) -> None:
        """Close."""
        self.dismiss(None)
