"""Opening the console: terminals without cursor or braille, and sizes beyond the terminal."""

import argparse
import os
from collections.abc import Callable
from typing import Any

import pytest

from stackllama_console.cli import console
from stackllama_console.tui import app


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[..., argparse.Namespace]:
    """Open the console, of which only the options are looked at, in a terminal of some size."""

    def show(size: tuple[int, int] = (80, 24), **environment: str) -> argparse.Namespace:
        monkeypatch.setattr(os, "isatty", lambda _: True)
        monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size(size))
        monkeypatch.setattr(console, "_speaks_utf8", lambda: True)
        monkeypatch.setattr(console.gc, "disable", lambda: None)
        for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24", **environment}.items():
            monkeypatch.setenv(name, value)
        options: list[app.Options] = []

        def run(chosen: app.Options) -> tuple[int, None]:
            options.append(chosen)
            return 0, None

        monkeypatch.setattr(app, "run_console", run)
        arguments = argparse.Namespace(home=None, ascii=False)
        assert console.show_console(arguments, None) == 0
        return argparse.Namespace(ascii=options[0].ascii, size=(os.environ.get("COLUMNS"), os.environ.get("LINES")))

    return show


Show = Callable[..., argparse.Namespace]


@pytest.mark.parametrize(
    ("term", "ascii_only"),
    [("linux", True), ("linux-16color", True), ("vt220", True), ("xterm", False), ("screen", False), ("tmux", False)],
)
def test_terminal_without_braille_gets_ascii(term: str, ascii_only: bool, shown: Show) -> None:
    assert shown(TERM=term).ascii is ascii_only


@pytest.mark.parametrize(
    ("asked", "real", "kept"),
    [
        (("100000", "100000"), (80, 24), (None, None)),
        (("100000", "24"), (0, 0), (None, "24")),  # a serial line: the terminal does not know
        (("60", "20"), (80, 24), ("60", "20")),
        (("abc", "-5"), (80, 24), ("abc", "-5")),  # which everybody ignores
    ],
)
def test_size_beyond_the_terminal_is_ignored(asked: Any, real: Any, kept: Any, shown: Show) -> None:
    assert shown(real, COLUMNS=asked[0], LINES=asked[1]).size == kept


@pytest.mark.parametrize(
    ("terminals", "term", "said"),
    [
        ((0, 2), "dumb", "TERM=dumb cannot"),
        ((0, 2), "", "TERM is not set"),
        ((2,), "xterm", "stdin is not one"),
        ((0,), "xterm", "stderr is not one"),
        ((), "xterm", "stdin and stderr are not"),
    ],
)
def test_console_names_the_missing_terminal(
    terminals: tuple[int, ...], term: str, said: str, run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "isatty", lambda number: number in terminals)
    monkeypatch.setenv("TERM", term)
    result = run_main()
    assert result.code == 2 and said in result.err and "runs watch" in result.err
