"""List of models or runs to choose from: a few lines each, a cursor, and a mark on the chosen one."""

from collections.abc import Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from ...readers.choices import Choice
from .cells import cut
from .typed_ahead import KeyTaker

_CHOSEN = "● "
_INDENT = "  "


class ModelList(OptionList):
    """A list of :class:`Choice`. Posts :class:`Chosen`; it changes nothing itself."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "cursor_down", "next", id="models.down", show=False),
        Binding("k,up", "cursor_up", "previous", id="models.up", show=False),
        Binding("g,home", "first", "first", id="models.top", show=False),
        Binding("G,end", "last", "last", id="models.bottom", show=False),
        Binding("space", "select", "select (same as enter)", id="models.take"),  # enter is OptionList's own
    ]
    DEFAULT_CSS = """
    ModelList { height: 1fr; border: none; padding: 0; background: transparent; scrollbar-size-vertical: 1; }
    ModelList:focus { border: none; background-tint: transparent; }
    ModelList > .option-list--option { padding: 0; }
    ModelList > .option-list--option-highlighted { background: $panel; color: $foreground; text-style: none; }
    ModelList:focus > .option-list--option-highlighted {
        background: $block-cursor-background; color: $block-cursor-foreground;
    }
    """

    class Chosen(Message):
        """A line was chosen."""

        def __init__(self, choice: Choice) -> None:
            self.choice = choice
            super().__init__()

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, markup=False)
        self.choices: list[Choice] = []
        self.chosen = ""
        self._drawn: list[Any] = []
        self.take_key: KeyTaker | None = None

    async def on_key(self, event: events.Key) -> None:
        """Offer a key to the form first."""
        if self.take_key is not None:
            await self.take_key(event)

    @property
    def current(self) -> Choice | None:
        """The choice under the cursor."""
        index = self.highlighted
        return self.choices[index] if index is not None and index < len(self.choices) else None

    def show(self, choices: Sequence[Choice], chosen: str = "", *, cursor: int | None = None) -> None:
        """Replace the lines; the cursor goes to ``cursor``, else to a newly chosen one, else stays on its choice."""
        before = self.current if chosen == self.chosen else None
        self.choices, self.chosen = list(choices), chosen
        drawn = [(choice, choice.value == chosen, self.scrollable_content_region.width) for choice in self.choices]
        if drawn != self._drawn:
            self._drawn = drawn
            self.set_options([Option(self._draw(choice)) for choice in self.choices])
        if cursor is None:
            wanted = (before.value if before else "", chosen)
            places = [i for name in wanted for i, choice in enumerate(self.choices) if choice.value == name]
            cursor = places[0] if places else 0
        self.highlighted = cursor if self.choices else None

    def on_resize(self, event: events.Resize) -> None:
        """Cut the lines to the new width."""
        self.show(self.choices, self.chosen)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Post the list's own message, with the choice in it."""
        event.stop()
        if event.option_index < len(self.choices):
            self.post_message(self.Chosen(self.choices[event.option_index]))

    def _draw(self, choice: Choice) -> Text:
        width = max(8, (self.scrollable_content_region.width or 40) - len(_INDENT))
        marked = choice.value == self.chosen
        text = Text(_CHOSEN if marked else _INDENT, no_wrap=True, end="")
        text.append(cut(choice.title, width, keep_end=True), style="bold" if marked else "")
        for said in (choice.facts, f"! {choice.warning}" if choice.warning else ""):
            if said:
                text.append(f"\n{_INDENT}{cut(said, width)}", style="dim")
        return text
