"""Masking of secrets in logs that other processes write: output of a library, a child process or C code.

Each byte of a secret is overwritten by ``*`` in place, so that offsets stay valid for writers and readers. The worker
writes its log directly, not through a pipe: a worker that outlives its supervisor loses no output.
"""

import os
from pathlib import Path

from ..contract.redact import Redactor

_BLOCK = 1 << 20


class Scrubber:
    """Masks secrets in one file that grows.

    Args:
        path: the file; it need not exist yet.
        redactor: knows the secrets.
    """

    def __init__(self, path: Path, redactor: Redactor) -> None:
        self.path = path
        self._redactor = redactor
        self._position = 0

    def scrub(self) -> int:
        """Mask what was written since the last call; return the number of secrets.

        Raises:
            OSError: the file cannot be read or written.
        """
        if not self._redactor.longest:
            return 0
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return 0
        try:
            return self._scrub(descriptor)
        finally:
            os.close(descriptor)

    def _scrub(self, descriptor: int) -> int:
        count = 0
        if os.fstat(descriptor).st_size < self._position:  # truncated meanwhile
            self._position = 0
        while block := os.pread(descriptor, _BLOCK + self._redactor.longest, self._position):
            spans = self._redactor.spans(block)
            for start, end in spans:
                os.pwrite(descriptor, b"*" * (end - start), self._position + start)
            count += len(spans)
            if len(block) < _BLOCK + self._redactor.longest:
                self._position += max(0, len(block) - self._redactor.longest + 1)  # a secret may be half written
                break
            self._position += _BLOCK
        return count


def scrub_folder(folder: Path, redactor: Redactor) -> None:
    """Mask secrets in every text file of an attempt's folder.

    Raises:
        OSError: a file cannot be read or written.
    """
    for path in sorted(folder.glob("*.txt")):
        Scrubber(path, redactor).scrub()
