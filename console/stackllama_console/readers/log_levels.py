"""Level of a log line, from its text alone.

Known: Python's ``logging`` (``ERROR``, ``WARNING:root:``, ``[INFO|trainer.py:12]``), ``warnings`` (``UserWarning:``),
glog (``E0102 …``), tracebacks with or without torchrun's rank in front, and what kernels and shells say of a dead
process. The first such word decides: an ``INFO`` line that speaks of an error is an ``INFO`` line.
"""

import re
from typing import Literal

Level = Literal["debug", "other", "info", "warning", "error", "mark", "event"]
"""``other`` names none; ``mark`` is a divider of our own and ``event`` of the run, both shown whatever the filter."""

RANK: dict[Level, int] = {"debug": 0, "other": 1, "info": 1, "warning": 2, "error": 3, "mark": 4, "event": 4}
LETTER: dict[Level, str] = {
    "debug": "D",
    "other": " ",
    "info": "I",
    "warning": "W",
    "error": "E",
    "mark": " ",
    "event": "*",
}

_LOOKED_AT = 240
_GLOG: dict[str, Level] = {"I": "info", "W": "warning", "E": "error", "F": "error"}
_NAMES: tuple[tuple[str, Level], ...] = (
    ("INFO", "info"),
    ("WARNING", "warning"),
    ("ERROR", "error"),
    ("DEBUG", "debug"),
    ("WARN", "warning"),
    ("CRITICAL", "error"),
    ("FATAL", "error"),
)
_PHRASES = re.compile(
    r"""
      (?P<error>   \b[Ee]rror: | \b[Ff]atal: | \bfatal\ error\b
                 | \b[A-Z][\w.]*(?:Error|Exception)(?::|$) | \b[a-z]\w*\.[\w.]*(?:Error|Exception)(?::|$)
                 | \bTraceback\ \(most\ recent | \bpanic: | \bSegmentation\ fault | \bKilled$ | \bKeyboardInterrupt$ )
    | (?P<warning> \b[Ww]arning: | \b[A-Z]\w*Warning: )
    | (?P<info>    ^info: )
    | (?P<debug>   ^debug: )
    """,
    re.VERBOSE,
)
_RANK_PREFIX = re.compile(r"\[\w{1,24}\]: ?")


class Levels:
    """Levels of the lines of one log, told in order: a traceback is one error, from its head to its last line."""

    def __init__(self) -> None:
        self._traceback = False

    def of(self, text: str) -> Level:
        """Return the level of the next line."""
        if self._traceback:
            return self._within(text)
        head = text[:_LOOKED_AT]
        if head[1:5].isdigit() and head[:1] in _GLOG and head[5:6] == " ":
            return _GLOG[head[0]]
        level, at = _named(head)
        if _may_hold_phrase(head) and (match := _PHRASES.search(head, 0, at)):
            self._traceback = match[0].startswith("Traceback")
            return _LEVELS[match.lastgroup or ""]
        return level

    def _within(self, text: str) -> Level:
        """Return the level inside a traceback: frames are indented or empty; the first other line ends it."""
        prefix = _RANK_PREFIX.match(text)
        rest = text[prefix.end() :] if prefix else text
        self._traceback = not rest or rest[0] in " \t"
        return "error"


_LEVELS: dict[str, Level] = {"error": "error", "warning": "warning", "info": "info", "debug": "debug"}


def _named(text: str) -> tuple[Level, int]:
    """Return the level that is written out first, and where.

    One pattern that is tried at every letter would take ten times as long.
    """
    level, first = "other", len(text)
    for name, means in _NAMES:
        at = text.find(name, 0, first)
        if at >= 0 and not _in_word(text, at - 1) and not _in_word(text, at + len(name)):
            level, first = means, at
    return level, first


def _in_word(text: str, at: int) -> bool:
    return 0 <= at < len(text) and (text[at].isalnum() or text[at] == "_")


def _may_hold_phrase(text: str) -> bool:
    """Return whether `_PHRASES` are worth asking; written out because it is asked of every line."""
    return (
        "rror" in text
        or "arning:" in text
        or "xception" in text
        or "raceback" in text
        or "atal" in text
        or "panic:" in text
        or "fault" in text
        or "Killed" in text
        or "Interrupt" in text
        or text.startswith(("info:", "debug:"))
    )
