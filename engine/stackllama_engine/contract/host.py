"""Identity of a machine, and the age of a moment on it without comparing two wall clocks.

A boot id identifies one boot of one kernel: all containers of a machine share it, whatever their host names. A host
name alone identifies the machine across reboots.
"""

import functools
import socket
import time
from pathlib import Path

from msgspec import Struct

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Host(Struct, frozen=True, kw_only=True):
    """A machine at one moment.

    Attributes:
        name: its host name.
        boot_id: boot id of the kernel that ran then; empty in runs from before 0.2.
        clock: seconds since that boot, suspended time included (``CLOCK_BOOTTIME``); it is never set.
    """

    name: str
    boot_id: str = ""
    clock: float = 0.0

    @property
    def is_this_kernel(self) -> bool:
        """Whether this process runs on the same kernel, so that its locks and processes are visible from here."""
        return bool(self.boot_id) and self.boot_id == boot_id()

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is another machine, of which only files are visible from here."""
        return not self.is_this_kernel and self.name != socket.gethostname()

    def within(self, seconds: float) -> bool:
        """Return whether this moment is at most so long ago; false for another boot or a moment in the future."""
        return self.is_this_kernel and 0.0 <= _clock() - self.clock <= seconds


def this_host() -> Host:
    """Return this machine at this moment."""
    return Host(name=socket.gethostname(), boot_id=boot_id(), clock=round(_clock(), 3))


@functools.cache
def boot_id() -> str:
    """Return the id of this boot."""
    return _BOOT_ID.read_text(encoding="ascii").strip()


def _clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
