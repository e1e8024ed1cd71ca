"""A growing text file followed line by line: from near its end, over truncation and replacement, in bounded memory."""

import os
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from stackllama_engine.contract.user_files import open_regular

FIRST_BYTES = 8 << 20
CUT = " ... (cut)"

_BLOCK = 1 << 18


class LineFollower:
    """Terminated lines, as bytes without their ``\\n``, each returned once. With nothing new a poll costs one ``stat``.

    Args:
        path: the file; it may come later.
        first: bytes of its end that are read when it is seen for the first time.
        longest: bytes of a line; what is beyond is cut, and `CUT` put in its place.

    Attributes:
        rest: what follows the last ``\\n``, from its last carriage return on and cut as a line would be.
        opened: whether the file has been seen.
        restarts: how often it was found truncated or replaced; reading began anew each time.
        skipped: bytes that were passed over, at first and when too much was waiting.
        starts: offsets in the file at which the lines begin that were yielded last.
        end: offset behind the last line that is ended.
    """

    def __init__(self, path: Path, *, first: int = FIRST_BYTES, longest: int = 1 << 20) -> None:
        self.path = path
        self.rest = b""
        self.opened = False
        self.restarts = 0
        self.skipped = 0
        self.starts: list[int] = []
        self.end = 0
        self._first = first
        self._longest = longest
        self._offset = 0
        self._inode: int | None = None
        self._cut = False
        self._partial = False
        """Whether reading began within a line, whose remainder is of no use."""

    def read(self, most: int | None = None) -> Iterator[list[bytes]]:
        """Yield new lines, block by block; nothing while the file is missing.

        Args:
            most: if more bytes than that wait, the older ones are passed over.

        Raises:
            OSError: it is there and cannot be read.
        """
        try:
            status = os.stat(self.path)  # noqa: PTH116 - half the price of Path.stat
            if status.st_ino == self._inode and status.st_size == self._offset:
                return
            descriptor = open_regular(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            self._find_start(descriptor, most)
            while block := os.pread(descriptor, _BLOCK, self._offset):
                self._offset += len(block)
                if lines := self._split(block):
                    yield lines
        finally:
            os.close(descriptor)

    def finish(self) -> bytes | None:
        """Return the line that was never ended, once; None where there is none."""
        rest, self.rest = self._marked(self.rest, self._cut), b""
        self._cut = False
        return rest or None

    def _find_start(self, descriptor: int, most: int | None) -> None:
        status = os.fstat(descriptor)
        if self._inode not in (None, status.st_ino) or status.st_size < self._offset:
            self.restarts += 1
            self._begin(0)
        self._inode = status.st_ino
        waiting = status.st_size - self._offset
        if not self.opened:
            self.opened = True
            self._pass_over(descriptor, status.st_size, self._first)
        elif most is not None and waiting > most:
            self._pass_over(descriptor, status.st_size, min(most, self._first))

    def _pass_over(self, descriptor: int, end: int, kept: int) -> None:
        passed = end - self._offset - kept
        if passed > 0:
            self.skipped += passed
            self._begin(end - kept, descriptor)

    def _begin(self, offset: int, descriptor: int | None = None) -> None:
        self._offset, self.end, self.rest, self._cut = offset, offset, b"", False
        self._partial = descriptor is not None and os.pread(descriptor, 1, offset - 1) != b"\n"

    def _split(self, block: bytes) -> list[bytes]:
        head, *lines = block.split(b"\n")
        if not lines:
            self._extend(head)
            return []
        self._extend(head)
        first = self._marked(self.rest, self._cut)
        self.rest, self._cut = b"", False
        *middle, last = lines
        second = self._offset - len(block) + len(head) + 1
        self.starts = [self.end, *accumulate((len(line) + 1 for line in middle), initial=second)]
        self.end = self.starts.pop()
        if middle and max(map(len, middle)) > self._longest:
            middle = [shortened(line, self._longest) for line in middle]
        self._extend(last)
        if self._partial:
            self._partial = False
            del self.starts[0]
            return middle
        return [first, *middle]

    def _extend(self, piece: bytes) -> None:
        """Add to ``rest`` what has come of a line that is not ended yet."""
        line = self.rest + piece
        if (back := line.rstrip(b"\r").rfind(b"\r")) >= 0:  # the line was begun again: a progress bar
            line, self._cut = line[back + 1 :], False
        elif self._cut:
            line = self.rest.rstrip(b"\r") + b"\r" * line.endswith(b"\r")
        if not self._cut and len(line) > self._longest:
            self._cut = True
            line = _whole_characters(line[: self._longest]) + b"\r" * line.endswith(b"\r")
        self.rest = line

    @staticmethod
    def _marked(line: bytes, cut: bool) -> bytes:
        return line.rstrip(b"\r") + CUT.encode() if cut else line


def shortened(line: bytes, longest: int) -> bytes:
    """Return an ended line without what a carriage return took back, cut and marked if it is still too long."""
    if len(line) <= longest:
        return line
    line = line.rstrip(b"\r").rpartition(b"\r")[2]
    return line if len(line) <= longest else _whole_characters(line[:longest]) + CUT.encode()


def _whole_characters(data: bytes) -> bytes:
    """Return the bytes without the beginning of a UTF-8 character at their end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:  # where a character begins
            size = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data if back >= size else data[:-back]
    return data
