"""Confirmation before a launch: what will run, under which name, whether it fits, and the exact commands."""

from typing import ClassVar, cast

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from ...sanitise import one_line
from ..state_style import rich_colour
from .launch_controller import Summary

_LABEL = 9
VERDICTS = {
    "yes": ("✓ fits", "success"),
    "tight": ("! tight", "warning"),
    "no": ("✗ does not fit", "error"),
    "unknown": ("? unknown", "primary"),
}


class CommandScreen(ModalScreen[bool]):
    """Shows the commands; True when the launch is confirmed.

    Args:
        summary: what is shown.
        ask: whether enter launches; else it only shows.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,L", "launch", "launch", id="command.launch"),
        Binding("y", "copy('command')", "copy command", id="command.copy"),
        Binding("Y", "copy('worker')", "copy worker command", id="command.copy_worker"),
        Binding("j,down", "scroll(1)", "down", id="command.down", show=False),
        Binding("k,up", "scroll(-1)", "up", id="command.up", show=False),
        Binding("escape,n,q", "leave", "cancel", id="command.leave"),
    ]
    DEFAULT_CSS = """
    CommandScreen #command {
        width: 100; max-width: 100%; height: auto; max-height: 100%;
        border: round $primary; background: $surface; padding: 0 1 0 2; scrollbar-size-vertical: 1;
    }
    CommandScreen .answers { dock: bottom; text-style: bold; height: 1; }
    """

    def __init__(self, summary: Summary, *, ask: bool) -> None:
        super().__init__()
        self.summary = summary
        self._ask = ask

    def compose(self) -> ComposeResult:
        """Lay out the summary, then what the keys do."""
        with VerticalScroll(id="command", can_focus=False) as box:
            box.border_title = self.summary.title
            yield Static(self._text(), markup=False)
            keys = ["enter  launch"] if self._ask else []
            keys += ["y  copy command", *(["Y  copy worker command"] if self.summary.worker else []), "esc  cancel"]
            yield Static("   ".join(keys), markup=False, classes="answers")

    def action_launch(self) -> None:
        """Confirm the launch."""
        if self._ask:
            self.dismiss(True)

    def action_leave(self) -> None:
        """Cancel."""
        self.dismiss(False)

    def action_scroll(self, lines: int) -> None:
        """Scroll by lines."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)

    def action_copy(self, which: str) -> None:
        """Copy one of the commands, also to a file."""
        if text := getattr(self.summary, which):
            cast("App[None]", self.app).copy_to_clipboard(text)  # pyright: ignore[reportUnknownMemberType]

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Allow confirming where it is asked, and copying the worker's command where there is one."""
        if action == "launch":
            return self._ask
        return bool(self.summary.worker) if (action, parameters) == ("copy", ("worker",)) else True

    def _text(self) -> Text:
        colours = cast("App[None]", self.app).theme_variables  # pyright: ignore[reportUnknownMemberType]
        text = Text()
        if self.summary.error:
            text.append(f"{one_line(self.summary.error)}\n\n", style=rich_colour(colours, "error"))
        for label, value in self.summary.rows:
            text.append(f"{label:<{_LABEL}} ", style="dim")
            text.append(f"{one_line(value)}\n")
        if self.summary.reason:
            word, colour = VERDICTS.get(self.summary.verdict, ("", "foreground"))
            text.append(f"{'memory':<{_LABEL}} ", style="dim")
            text.append(f"{word}{': ' if word else ''}", style=rich_colour(colours, colour))
            text.append(f"{one_line(self.summary.reason)}\n")
        for notice in self.summary.notices:
            text.append(f"{'note':<{_LABEL}} ", style="dim")
            text.append(f"{one_line(notice)}\n")
        for label, value in (("command", self.summary.command), ("worker command", self.summary.worker)):
            if value:
                text.append(f"\n{label}\n", style="dim")
                text.append(f"$ {one_line(value)}\n", style="bold" if label == "command" else "")
        return text
