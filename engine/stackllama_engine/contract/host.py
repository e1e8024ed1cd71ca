"""Which machine this is, and how long ago something was done on it, without comparing two wall clocks.

A boot id names one boot of one kernel: containers of a machine share it whatever they call themselves. A host name
alone names the machine over its reboots.
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
        boot_id: of the kernel that ran then; empty where a run of before 0.2 does not say.
        clock: seconds since that boot, suspended time included (``CLOCK_BOOTTIME``): a clock that nobody sets.
    """

    name: str
    boot_id: str = ""
    clock: float = 0.0

    @property
    def is_this_kernel(self) -> bool:
        """Whether this process runs on the same kernel: its locks and processes are seen from here."""
        return bool(self.boot_id) and self.boot_id == boot_id()

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is another machine, of which nothing but files is seen from here."""
        return not self.is_this_kernel and self.name != socket.gethostname()

    def within(self, seconds: float) -> bool:
        """Whether this moment is at most so long ago; never of another boot, nor of a clock that says `later`."""
        return self.is_this_kernel and 0.0 <= _clock() - self.clock <= seconds


def this_host() -> Host:
    """This machine, now."""
    return Host(name=socket.gethostname(), boot_id=boot_id(), clock=round(_clock(), 3))


@functools.cache
def boot_id() -> str:
    """The id of this boot."""
    return _BOOT_ID.read_text(encoding="ascii").strip()


def _clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
