"""Following a file of JSON lines that somebody appends to, in blocks rather than line by line.

An unterminated tail is kept for later, endless lines are skipped, truncation and replacement are noticed, and what
cannot be decoded is counted. What is found does not depend on the portions in which the file grew.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from .run_files import UNDECODABLE, open_file

MAX_LINE = 1 << 20  # longer lines are nobody's record; they are counted as bad
_BLOCK = 1 << 18  # read at once; what was made of a block still lies in the processor's cache when it is used
_FEW = 1 << 13  # bytes; so little is decoded line by line once it is known to hold a bad line

T = TypeVar("T")


class LineReader:
    """Follows one file from where it last stopped. Without news a look costs one ``stat``.

    Attributes:
        bad_lines: lines that could not be decoded.
        restarts: how often the file was found truncated or replaced; reading began anew each time.
        inode: of the file that was last read; None before.
        position: where in the file the block that was returned last begins, in bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bad_lines = 0
        self.restarts = 0
        self.inode: int | None = None
        self.position = 0
        self._offset = 0
        self._tail = b""
        self._skipping = False

    def blocks(self) -> Iterator[bytes]:
        """Terminated lines that were not returned before, many at a time; none while the file is missing.

        Raises:
            OSError: it is there and cannot be read.
        """
        try:
            status = os.stat(self.path)  # noqa: PTH116 - half the price of Path.stat
            if status.st_ino == self.inode and status.st_size == self._offset:
                return
            file = os.fdopen(open_file(self.path), "rb")
        except (FileNotFoundError, NotADirectoryError):
            return
        with file:
            status = os.fstat(file.fileno())
            if self.inode not in (None, status.st_ino) or status.st_size < self._offset:
                self.restarts += 1
                self._offset, self._tail, self._skipping = 0, b"", False
            self.inode = status.st_ino
            file.seek(self._offset)
            while block := file.read(_BLOCK):
                self._offset += len(block)
                if lines := self._cut(block):
                    yield lines

    def decode(self, decoder: msgspec.json.Decoder[T], lines: bytes) -> list[T | None]:
        """A value for each of some terminated lines; None for an empty one, and for a bad one, which is counted.

        ``decode_lines`` takes any values with white space between them. Where each line begins with ``{`` and ends
        with ``}``, no value can go on in the next line, so as many values as lines are one in each.
        """
        count = lines.count(b"\n")
        if lines.startswith(b"{") and lines.count(b"}\n{") == count - 1:
            try:
                values = decoder.decode_lines(lines)
            except UNDECODABLE:
                values = []
            if len(values) == count:
                return [*values]
        middle = lines.rfind(b"\n", 0, len(lines) // 2) + 1
        if len(lines) > _FEW and middle:
            return self.decode(decoder, lines[:middle]) + self.decode(decoder, lines[middle:])
        return [self._decode_one(decoder, line) for line in lines.split(b"\n")[:-1]]

    def _decode_one(self, decoder: msgspec.json.Decoder[T], line: bytes) -> T | None:
        if not line:
            return None
        try:
            return decoder.decode(line)
        except UNDECODABLE:
            self.bad_lines += 1
            return None

    def _cut(self, block: bytes) -> bytes:
        """The terminated lines of what was left over and of a block; the rest is left over for the next one."""
        if self._skipping:  # the rest of an endless line, counted when it began
            _, newline, block = block.partition(b"\n")
            self._skipping = not newline
        first, end = block.find(b"\n"), block.rfind(b"\n") + 1
        lines, rest = b"", self._tail + block
        if end:
            too_long = len(self._tail) + first > MAX_LINE
            self.bad_lines += too_long
            lines, rest = block[first + 1 : end] if too_long else self._tail + block[:end], block[end:]
        self.position = self._offset - len(rest) - len(lines)
        if len(rest) > MAX_LINE:
            self.bad_lines += 1
            self._skipping, rest = True, b""
        self._tail = rest
        return lines
