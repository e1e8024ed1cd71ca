"""Keys that arrive in one read, typed ahead or batched by a slow link, reach what they were meant for.

Textual hands all of them to the widget that has the focus at that moment, and runs a binding only when its key has
bubbled up to the application. Where a key opens an input, those after it would be lost, or run as commands. Here rows
and their input look at each key first and run its binding at once; what comes late to the one is done for the other.
"""

from collections.abc import Awaitable, Callable
from typing import cast

from textual import events
from textual.app import App
from textual.widget import Widget
from textual.widgets import Input

KeyTaker = Callable[[events.Key], Awaitable[None]]


class TypedAhead:
    """The two that take turns in having the focus.

    Args:
        owner: the widget around both; its bindings run at once too.
        rows: what has the focus while nothing is edited.
        field: what has it while something is.
        editing: whether something is.
    """

    def __init__(self, owner: Widget, rows: Widget, field: Input, editing: Callable[[], bool]) -> None:
        self.owner = owner
        self.rows = rows
        self.field = field
        self._editing = editing

    async def rows_key(self, event: events.Key) -> None:
        """Handle a key that reached the rows."""
        if self._editing() and event.is_printable and event.character:
            _stop(event)
            self.field.replace(event.character, *self.field.selection)
        else:
            await self._run_now(event)

    async def field_key(self, event: events.Key) -> None:
        """Handle a key that reached the field."""
        if not (self._editing() and event.is_printable):
            await self._run_now(event)

    def enter(self) -> None:
        """Show the field and give it the focus at once; ``focus()`` would wait, and keys go astray meanwhile."""
        self.field.display = True
        self.owner.screen.set_focus(self.field)

    def leave(self) -> None:
        """Give the rows the focus and hide the field."""
        self.owner.screen.set_focus(self.rows)
        self.field.display = False

    async def _run_now(self, event: events.Key) -> None:
        active = self.owner.screen.active_bindings.get(event.key)
        if active is not None and active.enabled and active.node in (self.owner, self.rows, self.field):
            app = cast("App[None]", self.owner.app)  # pyright: ignore[reportUnknownMemberType]
            if await app.run_action(active.binding.action, active.node):  # else the key means something further up
                _stop(event)


def _stop(event: events.Key) -> None:
    event.stop()
    event.prevent_default()
