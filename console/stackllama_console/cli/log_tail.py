"""Following an attempt's log file: the last lines first, then what is appended."""

import os
from collections.abc import Iterator

from stackllama_engine.contract.run_dir import RunDir

from ..readings import tail_lines

_BLOCK = 65536
_MAX_LINE = 1 << 20


class LogTail:
    """Complete lines, as text, each returned once.

    Args:
        run: whose log.
        attempt: which; None while the run has none yet, then its newest.
        count: how many of the lines that are there already.
    """

    def __init__(self, run: RunDir, attempt: int | None, count: int) -> None:
        self._run = run
        self._attempt = attempt
        self._count = count
        self._offset: int | None = None
        self._rest = b""

    def read(self, *, final: bool = False) -> Iterator[str]:
        """The new lines; with ``final`` also one that was never ended."""
        attempts = self._run.attempt_dirs()
        if not attempts:
            return
        folder = self._run.attempt_dir(self._attempt) if self._attempt else attempts[-1]
        try:
            with (folder / "log.txt").open("rb") as file:
                yield from self._first(file.fileno(), int(folder.name))
                yield from self._more(file.fileno())
        except FileNotFoundError:
            return
        if final and self._rest:
            yield self._rest.decode("utf-8", "replace")
            self._rest = b""

    def _first(self, descriptor: int, attempt: int) -> Iterator[str]:
        if self._offset is not None:
            return
        self._attempt = attempt
        size = os.fstat(descriptor).st_size
        lines = tail_lines(descriptor, self._count, size)
        ended = size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
        self._offset = size
        if lines and not ended:
            self._rest = lines.pop()
        yield from (line.decode("utf-8", "replace") for line in lines)

    def _more(self, descriptor: int) -> Iterator[str]:
        offset = self._offset or 0
        if os.fstat(descriptor).st_size < offset:  # truncated or replaced: begin anew
            offset, self._rest = 0, b""
        while block := os.pread(descriptor, _BLOCK, offset):
            offset += len(block)
            *lines, self._rest = (self._rest + block).split(b"\n")
            if len(self._rest) > _MAX_LINE:
                lines, self._rest = [*lines, self._rest], b""
            yield from (line.decode("utf-8", "replace") for line in lines)
        self._offset = offset
