"""Foreign text made safe for a terminal: the one place where it enters.

Questions, answers, log lines, run names, causes and paths come from data sets, models and other people's
programs. A terminal obeys what it is sent: OSC 52 sets the clipboard, CSI 2J clears the screen, C1 bytes do the
same in one character, and bidirectional controls make a line read as what it is not (CVE-2021-42574).

Sequences: ECMA-48 (https://ecma-international.org/publications-and-standards/standards/ecma-48/) and
https://invisible-island.net/xterm/ctlseqs/ctlseqs.html.
"""

import re

_STRING = r"[^\x00-\x08\x0a-\x1f\x7f-\x9f]*(?:\x07|\x1b\\|\x9c)"  # within a line, so that none hides what follows

_UNSAFE = re.compile(
    "|".join(
        (
            rf"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f]){_STRING}",  # OSC, DCS, SOS, PM, APC
            r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]",  # CSI
            r"\x1b[ -/]*[0-~]",  # other escapes
            r"[\x00-\x08\x0b-\x1f\x7f-\x9f]",  # what is left of C0 (without \t and \n), DEL, C1
            r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]",  # bidirectional controls
            r"[\u2028\u2029\ufff9-\ufffb\U000e0000-\U000e007f]",  # line separators, annotations, tags: invisible
        )
    )
)
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def sanitise(text: str) -> str:
    """Remove from a text all that a terminal would obey; ``\\n`` and ``\\t`` stay.

    A complete sequence goes as a whole. Of an unterminated one only the control characters go, so that nothing
    after it is swallowed. Lone surrogates, which no stream can encode, become U+FFFD. Idempotent.
    """
    if text.isprintable():  # no control or format character at all; the common case, under a microsecond
        return text
    return _SURROGATE.sub("\ufffd", _UNSAFE.sub("", text))


def one_line(text: str) -> str:
    """Sanitise a text and put every run of white space as one blank: for cells, headings and messages."""
    return " ".join(sanitise(text).split())


def log_line(text: str) -> str:
    """Return one line of a log as a terminal would leave it: after the last carriage return, sanitised.

    Progress bars rewrite their line with ``\\r``; only what they wrote last was ever to be read.
    """
    return sanitise(text.rstrip("\r\n").rsplit("\r", 1)[-1])
