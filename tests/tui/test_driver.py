"""The last guard: what Textual sends passes unchanged, whatever else would be obeyed by a terminal does not."""

import re

import pytest
from tests.cli.conftest import FORBIDDEN, PAYLOADS

from stackllama_console.tui.driver import announcement, guarded

FRAME = "\x1b[3;1H\x1b[38;2;200;208;232;48;2;22;24;31mloss 1.2\x1b[0m\x1b[10;20H⣿─│✓ 日本\x1b[1;38;5;12mx\x1b[0m"
MODES = [
    "\x1b[?1049h",
    "\x1b[?25l",
    "\x1b[?1004h",
    "\x1b[>25u",
    "\x1b[<u",
    "\x1b[?2026$p",
    "\x1b[?2048$p",
    "\x1b[?2004h",
    "\x1b[?7l",
    "\x1b[?2026h",
    "\x1b[?1000h",
    "\x1b[?1006l",
]


UNUSED = ["\x1b[2J", "\x1b[?1049$p", "\x1b[6n", "\x1b[c", "\x1b[?1h", "\x1b[>0q", "\x1b]0;t\x07", "\x1bc"]


def test_what_textual_sends_passes_unchanged() -> None:
    assert guarded(FRAME) == FRAME
    for mode in MODES:
        assert guarded(mode) == mode


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_nothing_a_terminal_would_obey_gets_through(payload: str) -> None:
    out = guarded(f"\x1b[3;1H\x1b[31m{payload}\x1b[0m")
    assert out.startswith("\x1b[3;1H\x1b[31m") and out.endswith("\x1b[0m")
    inside = out[len("\x1b[3;1H\x1b[31m") : -len("\x1b[0m")]
    rest = re.sub(r"\x1b\[(?:[0-9;:]*m|[0-9]+;[0-9]+H)", "", inside)
    assert not FORBIDDEN & set(rest)


@pytest.mark.parametrize("sequence", UNUSED)
def test_sequences_we_have_no_use_for_are_dropped(sequence: str) -> None:
    assert guarded(f"a{sequence}b") == "ab"


def test_ascii_draws_with_ascii_of_the_same_width_and_keeps_other_text() -> None:
    drawn = "╭─┬╮│█▓▒░⣿⠁●✓✗…→·▸└ Ünïcode 日本"
    out = guarded(drawn, ascii_only=True)
    assert len(out) == len(drawn)
    assert out.endswith(" Ünïcode 日本")
    assert out.removesuffix(" Ünïcode 日本").isascii()


@pytest.mark.parametrize(
    ("environment", "sent"),
    [
        ({"TERM": "xterm-kitty"}, "\x07\x1b]9;run a failed: b, c\x07"),
        ({"TERM": "foot"}, "\x07\x1b]777;notify;stackllama-console;run a failed: b, c\x07"),
        ({"TERM": "xterm", "VTE_VERSION": "7600"}, "\x07\x1b]777;notify;stackllama-console;run a failed: b, c\x07"),
        ({"TERM": "linux"}, "\x07"),
    ],
)
def test_announcements_are_sent_as_the_terminal_takes_them(environment: dict[str, str], sent: str) -> None:
    assert announcement("run a\x1b]0;x\x07 failed: b; c", environment) == sent
    assert len(announcement("x" * 999, environment)) < 300
