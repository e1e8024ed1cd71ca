"""The memory budget of what is about to be launched; a number key applies the change that it offers."""

from typing import ClassVar, cast

from rich.style import Style
from textual import events
from textual.app import App
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from ...readers.budget_view import BudgetView
from ..driver import guarded
from .budget_bar import ASCII, COLOURS, Glyphs
from .budget_lines import OFFERS, budget_lines
from .cells import strip_of
from .typed_ahead import KeyTaker


class BudgetPanel(Widget, can_focus=True):
    """Draws a :class:`BudgetView`, and only the lines of it that changed.

    Args:
        ascii: draw with ASCII alone.
        id: the widget's id.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(f"{number}", f"apply({number})", f"apply change {number}", id=f"budget.apply_{number}", show=False)
        for number in range(1, OFFERS + 1)
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"budget--{name}"
        for name in (
            *("text", "title", "dim", "mark", "rule", "capacity", "key", "yes", "tight", "no", "unknown"),
            *(f"part-{number}" for number in range(1, COLOURS + 1)),
        )
    }
    DEFAULT_CSS = """
    BudgetPanel {
        & .budget--text { color: $foreground; }
        & .budget--title { color: $foreground; text-style: bold; }
        & .budget--dim { color: $foreground 65%; }
        & .budget--mark { color: $foreground; text-style: bold; }
        & .budget--rule { color: $foreground 65%; }
        & .budget--capacity { color: $error; text-style: bold; }
        & .budget--key { color: $block-cursor-foreground; background: $block-cursor-background; text-style: bold; }
        & .budget--yes { color: $success; text-style: bold; }
        & .budget--tight { color: $warning; text-style: bold; }
        & .budget--no { color: $error; text-style: bold; }
        & .budget--unknown { color: $primary; text-style: bold; }
        & .budget--part-1 { color: $primary; }
        & .budget--part-2 { color: $accent; }
        & .budget--part-3 { color: $success; }
        & .budget--part-4 { color: $secondary; }
        & .budget--part-5 { color: $error; }
        & .budget--part-6 { color: $warning; }
        &:ansi .budget--dim, &:ansi .budget--rule { color: ansi_default; text-style: dim; }
    }
    """

    class Apply(Message):
        """A change was chosen."""

        def __init__(self, changes: dict[str, str]) -> None:
            self.changes = changes
            """Form keys → what would be typed."""
            super().__init__()

    def __init__(self, *, ascii: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self.view: BudgetView | None = None
        self.take_key: KeyTaker | None = None
        self._glyphs = ASCII if ascii else Glyphs()
        self._strips: list[Strip] = []
        self._drawn_for: object = None

    async def on_key(self, event: events.Key) -> None:
        """Offer a key to the form first."""
        if self.take_key is not None:
            await self.take_key(event)

    def show(self, view: BudgetView | None) -> None:
        """Draw another budget; an equal one changes nothing."""
        if view == self.view:
            return
        before = self._strips
        self.view = view
        self._drawn_for = None
        after = self._lines()
        for y in range(max(len(before), len(after))):
            if before[y : y + 1] != after[y : y + 1]:
                self.refresh(Region(0, y, self.size.width, 1))

    def apply(self, number: int) -> bool:
        """Post the change with this number; returns whether there is one."""
        if not self._has(number) or self.view is None:
            return False
        self.post_message(self.Apply(dict(self.view.offers[number - 1].changes)))
        return True

    def action_apply(self, number: int) -> None:
        """Apply the change of a number key."""
        self.apply(number)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Allow the numbers that are offered."""
        return self._has(parameters[0]) if action == "apply" and parameters else True

    def render_line(self, y: int) -> Strip:
        """Render one line of the panel."""
        lines = self._lines()
        return lines[y] if y < len(lines) else strip_of([], self.size.width, self._style("text"))

    def _has(self, number: object) -> bool:
        return self.view is not None and number in range(1, min(OFFERS, len(self.view.offers)) + 1)

    def _lines(self) -> list[Strip]:
        """Return the drawn lines; drawn again only for another view, size or theme."""
        app = cast("App[None]", self.app)  # pyright: ignore[reportUnknownMemberType]
        drawn_for = (id(self.view), self.size, app.theme, self.background_colors)
        if drawn_for != self._drawn_for:
            width, height = self.size
            lines = budget_lines(self.view, width, height, self._style, self._glyphs) if self.view and width else []
            self._strips = [self._plain(strip) for strip in lines] if not self._glyphs.patterns else lines
            self._drawn_for = drawn_for
        return self._strips

    def _plain(self, strip: Strip) -> Strip:
        pieces = [(guarded(text, ascii_only=True), style or Style()) for text, style, _ in strip]
        return strip_of(pieces, strip.cell_length, self._style("text"))

    def _style(self, name: str) -> Style:
        return self.get_component_rich_style(f"budget--{name}")
