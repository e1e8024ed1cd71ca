"""Lines of text that are wrapped, never cut, and scrolled by keys where there are more than fit."""

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.geometry import Size

from ...units import NO_BREAK, unbroken
from .text_lines import TextLines


class ScrollLines(TextLines, can_focus=True):
    """As :class:`TextLines`, wrapped at its width; takes the focus while there is something to scroll.

    Args:
        hang: cells that the rows after a line's first are indented by, where there is room; a line's own indentation
            counts where it is more.
    """

    DEFAULT_CSS = """
    ScrollLines { scrollbar-gutter: stable; }
    ScrollLines:focus { scrollbar-color: $primary; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space,pagedown,ctrl+d", "page(1)", "page down", id="lines.page_down", key_display="space"),
        Binding("pageup,ctrl+u", "page(-1)", "page up", id="lines.page_up", show=False),
        Binding("j,down", "scroll(1)", "down", id="lines.down", show=False),
        Binding("k,up", "scroll(-1)", "up", id="lines.up", show=False),
        Binding("g,home", "end(False)", "top", id="lines.top", show=False),
        Binding("G,end", "end(True)", "bottom", id="lines.bottom", show=False),
    ]

    def __init__(self, *, hang: int = 0, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._hang = hang
        self._source: list[Text] = []
        self._wrapped_at = 0

    @property
    def plain(self) -> str:
        """All of it as text, as it was before it was wrapped."""
        return "\n".join(line.plain for line in self._source)

    def show(self, lines: Sequence[Text | str]) -> None:
        """Replace the lines; what is displayed already is not painted again."""
        self._source = [Text(line) if isinstance(line, str) else line for line in lines]
        self._wrap(self._wrapped_at)

    def allow_focus(self) -> bool:
        """Return whether there is more than fits."""
        height, width = self.size.height, self.scrollable_content_region.width
        return super().allow_focus() and 0 < height < self._height(max(1, width))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return one row per line, at this width."""
        return self._height(max(1, width - self.scrollbar_gutter.width))

    def on_resize(self) -> None:
        """Wrap for another width."""
        width = self.scrollable_content_region.width
        if width and width != self._wrapped_at:
            self._wrap(width)

    def action_scroll(self, lines: int) -> None:
        """Scroll by lines."""
        self.scroll_relative(y=lines, animate=False)

    def action_page(self, direction: int) -> None:
        """Scroll by a page, a line less than are in sight."""
        self.scroll_relative(y=direction * max(1, self.size.height - 1), animate=False)

    def action_end(self, bottom: bool) -> None:
        """Scroll to an end."""
        self.scroll_to(y=self.max_scroll_y if bottom else 0, animate=False)

    def _height(self, width: int) -> int:
        return sum(len(self._parts(line, width)) for line in self._source)

    def _wrap(self, width: int) -> None:
        self._wrapped_at = width
        wide = max(1, width)
        super().show([part for line in self._source for part in self._parts(line, wide)] if width else self._source)

    def _parts(self, line: Text, width: int) -> list[Text]:
        """Return a line wrapped."""
        if line.cell_len <= width:
            return [line]
        plain = line.plain
        indent = max(len(plain) - len(plain.lstrip()), self._hang)
        indent = indent if indent <= width // 4 else 0
        console = self.app.console  # pyright: ignore[reportUnknownMemberType]
        body = line[indent:]
        body.plain = unbroken(body.plain)
        first, *others = wrapped = body.wrap(console, width - indent)
        for part in wrapped:
            part.plain = part.plain.replace(NO_BREAK, " ")
        return [line[:indent] + first, *(Text(" " * indent) + part for part in others)]
