"""Standard output that survives a full disk: what finds no room is dropped, counted, and said when there is room.

A worker's output goes into ``attempts/NNN/log.txt`` on the disk of its run. Whatever prints there, ourselves, a
library, a warning, a progress bar or a traceback, would otherwise be ended by a text that nobody can read.
"""

import errno
import io
from typing import Any

from .disk_space import FULL

_LOST = FULL | {errno.EIO, errno.EFBIG, errno.ESTALE, errno.EAGAIN}


class SurvivingOutput(io.RawIOBase):
    """The raw layer of a stream. A closed pipe is an error as ever: there somebody has gone on purpose.

    Args:
        raw: the descriptor's own.

    Attributes:
        lost: bytes that were dropped and not spoken of yet.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        self.lost = 0
        self._raw = raw

    def write(self, data: Any, /) -> int:
        """Write what there is room for; returns the number of bytes given.

        Raises:
            OSError: for another reason than the disk's.
        """
        given = bytes(data)
        if self.lost:
            notice = f"\n{self.lost} bytes of output were lost while the disk was full.\n".encode()
            if self._put(notice) < len(notice):
                self.lost += len(given)
                return len(given)
            self.lost = 0
        self.lost += len(given) - self._put(given)
        return len(given)

    def _put(self, data: bytes) -> int:
        """How many of the bytes found room."""
        done = 0
        while done < len(data):
            try:
                written = self._raw.write(data[done:])
            except OSError as error:
                if error.errno not in _LOST:
                    raise
                break
            if not written:  # a full pipe that does not block
                break
            done += written
        return done

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The descriptor, for who writes past this."""
        return self._raw.fileno()

    def isatty(self) -> bool:
        """Whether the descriptor is a terminal."""
        return self._raw.isatty()

    def close(self) -> None:
        """Close the descriptor."""
        if not self.closed:
            super().close()
            self._raw.close()


def surviving(buffer: Any) -> Any:
    """A text stream's buffer, on a raw layer that survives; one that is no file is returned as it is."""
    if isinstance(buffer, io.BufferedWriter):
        raw = buffer.detach()
    elif isinstance(buffer, io.RawIOBase):  # `python -u`
        raw = buffer
    else:
        return buffer
    return io.BufferedWriter(SurvivingOutput(raw))
