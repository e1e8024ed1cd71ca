"""The last line of a screen: its keys. One widget, where Textual's own footer has one for each key.

Those have to be composed and styled before anything can be painted: a third of the time to the first screen.
"""

from typing import Any, ClassVar, cast

from rich.segment import Segment
from rich.style import Style
from textual.app import App
from textual.screen import Screen
from textual.signal import Signal
from textual.strip import Strip
from textual.widget import Widget

from ...sanitise import one_line

_Entry = tuple[str, str, str, bool]
"""Key, what it does, key to press when it is clicked, whether it works now."""


class KeyLine(Widget):
    """Keys of the screen and of what has the focus; where not all fit, those of the application stay.

    A screen that has a method ``shows_key`` decides which of them are offered now.
    """

    DEFAULT_CSS = """
    KeyLine {
        height: 1; dock: bottom; background: $footer-background;
        & > .key-line--key { color: $footer-key-foreground; text-style: bold; }
        & > .key-line--what { color: $footer-description-foreground; }
        & > .key-line--off { color: $footer-description-foreground; text-style: dim; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"key-line--key", "key-line--what", "key-line--off"}

    def __init__(self) -> None:
        super().__init__()
        self._own: list[_Entry] = []
        self._common: list[_Entry] = []

    def on_mount(self) -> None:
        """Follow the focus."""
        screen = cast("Screen[Any]", self.screen)  # pyright: ignore[reportUnknownMemberType]
        changed = cast("Signal[Screen[Any]]", screen.bindings_updated_signal)  # pyright: ignore[reportUnknownMemberType]
        changed.subscribe(self, self._changed)
        self._changed(screen)

    @property
    def plain(self) -> str:
        """All of it as text, whether it fits or not."""
        return "  ".join(f"{key} {what}" for key, what, _, _ in (*self._own, *self._common))

    def _changed(self, screen: Screen[Any]) -> None:
        app = cast("App[Any]", self.app)  # pyright: ignore[reportUnknownMemberType]
        if not self.is_attached or screen not in self.ancestors:
            return
        own: dict[str, _Entry] = {}
        common: dict[str, _Entry] = {}
        shows_key = getattr(screen, "shows_key", None)
        refusing: frozenset[str] = getattr(screen, "refusing_keys", frozenset())
        for node, binding, enabled, _ in screen.active_bindings.values():
            if binding.show and binding.id not in refusing and (shows_key is None or shows_key(binding)):
                key, what = app.get_key_display(binding), binding.description
                entry = (one_line(key), one_line(what), binding.key, enabled)
                (common if node is app else own).setdefault(binding.action, entry)
        if [*own.values()] != self._own or [*common.values()] != self._common:
            self._own, self._common = [*own.values()], [*common.values()]
            self.refresh()

    def render_line(self, y: int) -> Strip:
        """Render the line."""
        width = self.content_size.width
        room = width - sum(_length(entry) for entry in self._common)
        segments: list[Segment] = []
        for entry in self._own:
            room -= _length(entry)
            if room < 0:
                break
            segments += self._segments(entry)
        for entry in self._common:
            segments += self._segments(entry)
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def _segments(self, entry: _Entry) -> list[Segment]:
        key, what, press, enabled = entry
        style = self.get_component_rich_style
        click = Style.from_meta({"@click": f"app.simulate_key({press!r})"})
        return [
            Segment(f" {key} ", style("key-line--key" if enabled else "key-line--off") + click),
            Segment(f"{what} ", style("key-line--what" if enabled else "key-line--off") + click),
        ]


def _length(entry: _Entry) -> int:
    return Segment(f" {entry[0]} {entry[1]} ").cell_length
