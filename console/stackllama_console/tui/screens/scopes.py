"""Scopes: keys that can be reached together, for the check of a person's own keymap. Imports every screen."""

from collections.abc import Iterable, Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from textual.binding import Binding, BindingType
from textual.screen import ModalScreen, Screen
from textual.widget import Widget

from ..keymap import Scope, as_bindings
from ..screen import ConsoleScreen


def all_scopes(application: Iterable[BindingType]) -> list[Scope]:
    """Return one scope per screen: its own and the application's bindings, and those of the widgets that it names.

    While a modal screen is shown, the application's own keys do not work.

    Args:
        application: bindings of the application itself.
    """
    shared = as_bindings(application)
    for package in ("screens", "widgets"):
        root = import_module(f"stackllama_console.tui.{package}")
        for module in iter_modules(root.__path__):
            import_module(f"{root.__name__}.{module.name}")
    widgets = {kind.__name__: _own(kind) for kind in _subclasses(Widget) if not issubclass(kind, Screen)}
    return [
        Scope(
            title=kind.__name__.removesuffix("Screen").lower(),
            bindings=[*_own(kind), *([] if ModalScreen in kind.__mro__ else shared)],
            widgets={name: widgets[name] for name in getattr(kind, "WIDGETS_WITH_KEYS", ()) if name in widgets},
        )
        for kind in _subclasses(Screen)
        if kind is not ConsoleScreen
    ]


def _subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    for child in kind.__subclasses__():
        if child.__module__.startswith("stackllama_console"):
            yield child
        yield from _subclasses(child)


def _own(kind: type[Any]) -> list[Binding]:
    """Return the bindings of a class and of those of our classes that it builds on."""
    return [
        binding
        for base in kind.__mro__
        if base.__module__.startswith("stackllama_console")
        for binding in as_bindings(vars(base).get("BINDINGS", ()))
    ]
