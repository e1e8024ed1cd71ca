"""Standard output that survives a full disk: what does not fit is dropped, counted, and reported later.

A worker's output goes into ``attempts/NNN/log.txt`` on the disk of its run. Without this, a failed write of a log line,
warning, progress bar or traceback would end the worker.
"""

import errno
import io
from typing import Any

from .disk_space import FULL

_LOST = FULL | {errno.EIO, errno.EFBIG, errno.ESTALE, errno.EAGAIN}


class SurvivingOutput(io.RawIOBase):
    """Raw layer of a stream. A closed pipe is still an error: its reader ended on purpose.

    Args:
        raw: the original raw layer.

    Attributes:
        lost: bytes that were dropped and not reported yet.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        self.lost = 0
        self._raw = raw

    def write(self, data: Any, /) -> int:
        """Write as much as fits; return the number of bytes given.

        Raises:
            OSError: it failed for another reason than the disk.
        """
        output = bytes(data)
        if self.lost:
            notice = f"\n{self.lost} bytes of output were lost while the disk was full.\n".encode()
            if self._put(notice) < len(notice):
                self.lost += len(output)
                return len(output)
            self.lost = 0
        self.lost += len(output) - self._put(output)
        return len(output)

    def _put(self, data: bytes) -> int:
        """Write as much as fits; return the number of bytes written."""
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
        """Tell `io` that this is an output."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._raw.fileno()

    def isatty(self) -> bool:
        """Return whether the descriptor is a terminal."""
        return self._raw.isatty()

    def close(self) -> None:
        """Close the descriptor."""
        if not self.closed:
            super().close()
            self._raw.close()


def surviving(buffer: Any) -> Any:
    """Return a text stream's buffer on a :class:`SurvivingOutput`; a buffer that is not a file is returned as it is."""
    if isinstance(buffer, io.BufferedWriter):
        raw = buffer.detach()
    elif isinstance(buffer, io.RawIOBase):  # `python -u`
        raw = buffer
    else:
        return buffer
    return io.BufferedWriter(SurvivingOutput(raw))
