"""Help, made from the bindings that work where it was asked for; nothing in it is written by hand."""

import itertools
from collections.abc import Iterator
from typing import Any, ClassVar, cast

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.dom import DOMNode
from textual.keys import format_key
from textual.screen import ModalScreen, Screen
from textual.widgets import Static

from ...paths import keymap_file
from ..base_app import BaseApp

_OURS = "stackllama_console"


def actions_of(screen: Screen[Any]) -> list[tuple[Binding, DOMNode]]:
    """Return every binding that works on a screen now, each with its node; the screen's own first, the app's last."""
    actions: dict[str, tuple[Binding, DOMNode]] = {}
    refusing: frozenset[str] = getattr(screen, "refusing_keys", frozenset())
    for node in _nodes(screen):
        groups = node._bindings.key_to_bindings.values()  # pyright: ignore[reportPrivateUsage]
        for binding in sorted(itertools.chain(*groups), key=_rank):
            if binding.description and binding.id and not binding.system and binding.id not in refusing:
                actions.setdefault(binding.id, (binding, node))
    return list(actions.values())


def key_names(node: DOMNode, binding: Binding) -> str:
    """Return the keys of a binding as they are named on a keyboard, those of the person's keymap first of all."""
    app = cast("App[Any]", node.app)  # pyright: ignore[reportUnknownMemberType]
    keys = app._keymap.get(binding.id or "", _all_keys(node, binding))  # pyright: ignore[reportPrivateUsage]
    name = app.key_name if isinstance(app, BaseApp) else format_key
    # a word says enter better than an arrow
    return " ".join(dict.fromkeys(key if key == "enter" else name(key) for key in _split(keys)))


def _rank(binding: Binding) -> int:
    """Return the place of a binding: the screen's own, then those of screens with charts, then those of all."""
    return {"charts": 1, "screen": 2}.get((binding.id or "").partition(".")[0], 0)


def _nodes(screen: Screen[Any]) -> Iterator[DOMNode]:
    """Yield the screen, the focused widget, every other widget with keys of our own, the application."""
    application = cast("App[Any]", screen.app)  # pyright: ignore[reportUnknownMemberType]
    yield screen
    if screen.focused is not None:
        yield from (node for node in screen.focused.ancestors_with_self if node not in (screen, application))
    for widget in screen.query("*"):
        if type(widget).__module__.startswith(_OURS):
            yield widget
    yield application


def keys_text(screen: Screen[Any], width: int = 30) -> Text:
    """Return sections of ``keys  description``: the screen's, its widgets', the application's."""
    sections: dict[str, list[tuple[str, str, str]]] = {}
    for binding, node in actions_of(screen):
        name = binding.id or ""
        sections.setdefault(name.partition(".")[0], []).append((key_names(node, binding), binding.description, name))
    text = Text()
    for title, rows in sections.items():
        text.append(f"{title}\n", style="bold")
        for shown, description, name in rows:
            text.append(f"  {shown:<14} {description:<{width}} ")
            text.append(f"{name}\n", style="dim")
        text.append("\n")
    return text


def _all_keys(node: DOMNode, binding: Binding) -> str:
    keys = [
        key
        for key, bindings in node._bindings.key_to_bindings.items()  # pyright: ignore[reportPrivateUsage]
        if any(other.id == binding.id for other in bindings)
    ]
    return ",".join(keys)


def _split(keys: str) -> list[str]:
    return list(dict.fromkeys(key.strip() for key in keys.split(",") if key.strip()))


class HelpScreen(ModalScreen[None]):
    """The keys that work on the screen below it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark", "dismiss", "close help", id="help.close"),
        Binding("j,down", "scroll(1)", "down", id="help.down", show=False),
        Binding("k,up", "scroll(-1)", "up", id="help.up", show=False),
        Binding("g,home", "end(False)", "top", id="help.top", show=False),
        Binding("G,end", "end(True)", "bottom", id="help.bottom", show=False),
    ]

    def __init__(self, text: Text, title: str) -> None:
        super().__init__()
        self._text = text
        self._title = title

    @classmethod
    def of(cls, screen: Screen[Any]) -> "HelpScreen":
        """Return help for a screen as it is now."""
        return cls(keys_text(screen), getattr(screen, "HEADING", "") or "help")

    def compose(self) -> ComposeResult:
        """Compose a scrolling list."""
        with VerticalScroll(id="help") as scroll:
            scroll.border_title = "keys"
            scroll.border_subtitle = "esc closes"
            yield Static(self._text, markup=False)
            ways = (
                "Runs continue without the console; q quits only the console.\n"
                "A widget's keys work while it has the focus (tab, shift+tab).\n"
                f"To change keys, write `id: key` lines in {keymap_file()}"
            )
            yield Static(Text(ways, style="dim"), markup=False)

    def action_scroll(self, lines: int) -> None:
        """Scroll by lines."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)

    def action_end(self, bottom: bool) -> None:
        """Scroll to the first or the last line."""
        scroll = self.query_one(VerticalScroll)
        scroll.scroll_end(animate=False) if bottom else scroll.scroll_home(animate=False)

    async def action_dismiss(self, result: None = None) -> None:
        """Close."""
        self.dismiss(result)
