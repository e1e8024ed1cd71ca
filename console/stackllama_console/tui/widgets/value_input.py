"""The input that opens on a row of a form."""

from collections.abc import Callable
from typing import ClassVar, cast

from textual import events
from textual.app import App
from textual.binding import BindingType
from textual.widgets import Input

from ...sanitise import one_line
from .typed_ahead import KeyTaker

MOST_TYPED = 4096
"""Characters."""


class ValueInput(Input, inherit_bindings=False):
    """The one input: compact, without a blinking cursor, and closed to control characters."""

    BINDINGS: ClassVar[list[BindingType]] = Input.BINDINGS  # without those of scrolling: up and down move on

    def __init__(self, id: str) -> None:
        super().__init__(id=id, compact=True, select_on_focus=False, max_length=MOST_TYPED)
        self.cursor_blink = False
        self.take_key: KeyTaker | None = None
        self.submitted: Callable[[], None] | None = None

    async def on_key(self, event: events.Key) -> None:
        """Let the form see a key first."""
        if self.take_key is not None:
            await self.take_key(event)

    async def action_submit(self) -> None:
        """Let the form close it at once, not when a message has come round."""
        if self.submitted is not None:
            self.submitted()

    def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()
        event.stop()
        self._insert(event.text)

    def action_paste(self) -> None:
        """Insert what was cut or copied in this application."""
        self._insert(cast("App[None]", self.app).clipboard)  # pyright: ignore[reportUnknownMemberType]

    def _insert(self, text: str) -> None:
        self.replace(one_line(text), *self.selection)
