"""GPUs as lines, in the theme's colours; only lines that changed are painted again."""

from collections.abc import Sequence
from typing import ClassVar

from rich.style import Style
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from ...gpu_lines import STYLES, Line
from .cells import strip_of


class GpuPanel(ScrollView, can_focus=False):
    """Lines of :mod:`...gpu_lines`, cut at the right edge; hidden while there are none."""

    DEFAULT_CSS = """
    GpuPanel {
        height: auto; background: transparent; overflow-x: hidden; scrollbar-size: 0 1;
        & .gpu--dim { color: $foreground 65%; }
        & .gpu--bold { text-style: bold; }
        & .gpu--busy { color: $primary; }
        & .gpu--ours { color: $success; }
        & .gpu--others { color: $secondary; }
        & .gpu--warning { color: $warning; text-style: bold; }
        & .gpu--error { color: $error; text-style: bold; }
        &:ansi .gpu--dim { color: ansi_default; text-style: dim; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {f"gpu--{name}" for name in STYLES if name}

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.lines: list[Line] = []

    def show(self, lines: Sequence[Line]) -> None:
        """Replace the lines; their texts must be sanitised."""
        before, self.lines = self.lines, list(lines)
        self.display = bool(self.lines)
        if len(before) != len(self.lines):
            self.virtual_size = Size(0, len(self.lines))
            self.refresh(layout=True)
            return
        changed = [y for y, (old, new) in enumerate(zip(before, self.lines, strict=True)) if old != new]
        if changed:
            self.refresh(*(Region(0, y - self.scroll_offset.y, self.size.width, 1) for y in changed))

    @property
    def plain(self) -> str:
        """All of it as text."""
        return "\n".join("".join(text for text, _ in line).rstrip() for line in self.lines)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return one row per line."""
        return len(self.lines)

    def render_line(self, y: int) -> Strip:
        """Render one line."""
        index = y + self.scroll_offset.y
        line = self.lines[index] if index < len(self.lines) else []
        pieces = [(text, self._style(name)) for text, name in line]
        return strip_of(pieces, self.scrollable_content_region.width, self.rich_style)

    def _style(self, name: str) -> Style:
        return self.rich_style + self.get_component_rich_style(f"gpu--{name}") if name else self.rich_style


class GpuList(GpuPanel, can_focus=True):
    """The same, scrolled by keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "move(1)", "down", id="gpus.down", show=False),
        Binding("k,up", "move(-1)", "up", id="gpus.up", show=False),
        Binding("ctrl+d,pagedown,space", "page(1)", "page down", id="gpus.page_down", show=False),
        Binding("ctrl+u,pageup", "page(-1)", "page up", id="gpus.page_up", show=False),
        Binding("g,home", "end(False)", "top", id="gpus.top", show=False),
        Binding("G,end", "end(True)", "bottom", id="gpus.bottom", show=False),
    ]

    def action_move(self, lines: int) -> None:
        """Scroll by lines."""
        self.scroll_relative(y=lines, animate=False)

    def action_page(self, direction: int) -> None:
        """Scroll by a page."""
        self.scroll_relative(y=direction * max(1, self.size.height - 1), animate=False)

    def action_end(self, last: bool) -> None:
        """Scroll to an end."""
        self.scroll_to(y=self.max_scroll_y if last else 0, animate=False)
