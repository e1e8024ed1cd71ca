"""Lines of text of which only the changed parts are painted again."""

from collections.abc import Sequence

from rich.segment import Segment
from rich.text import Text
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip


class TextLines(ScrollView, can_focus=False):
    """Plain or styled lines, cut at the right edge; scrolls where there are more than fit.

    Texts must be sanitised; they are never read as markup.
    """

    DEFAULT_CSS = """
    TextLines { height: auto; background: transparent; overflow-x: hidden; scrollbar-size: 0 1; }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.lines: list[Text] = []

    def show(self, lines: Sequence[Text | str]) -> None:
        """Replace the lines; what is displayed already is not painted again."""
        new = [Text(line) if isinstance(line, str) else line for line in lines]
        old, self.lines = self.lines, new
        if len(old) != len(new):
            self.virtual_size = Size(0, len(new))
            self.refresh(layout=True)
            return
        width = self.size.width
        regions: list[Region] = []
        for y, (before, after) in enumerate(zip(old, new, strict=True)):
            if before.plain == after.plain and before.spans == after.spans and before.style == after.style:
                continue
            start = _same(before, after)
            regions.append(Region(start, y - self.scroll_offset.y, max(1, width - start), 1))
        if regions:
            self.refresh(*regions)

    @property
    def plain(self) -> str:
        """All of it as text."""
        return "\n".join(line.plain for line in self.lines)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return one row per line."""
        return len(self.lines)

    def render_line(self, y: int) -> Strip:
        """Render one line, padded to the width."""
        index = y + self.scroll_offset.y
        style = self.rich_style
        width = self.scrollable_content_region.width
        if index >= len(self.lines):
            return Strip([Segment(" " * width, style)], width)
        text = self.lines[index].copy()
        text.no_wrap = True
        text.truncate(width, overflow="ellipsis")
        segments = [
            Segment(segment.text, style + segment.style if segment.style else style)
            for segment in text.render(self.app.console, end="")  # pyright: ignore[reportUnknownMemberType]
        ]
        return Strip(segments).adjust_cell_length(width, style)


def _same(before: Text, after: Text) -> int:
    """Return how many cells at the start look the same; only plain one-cell characters count."""
    limit = min((span.start for span in {*before.spans} ^ {*after.spans}), default=len(after.plain))
    count = 0
    for left, right in zip(before.plain[:limit], after.plain[:limit], strict=False):
        if left != right or not left.isascii():
            break
        count += 1
    return count
