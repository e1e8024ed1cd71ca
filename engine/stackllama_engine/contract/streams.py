"""Descriptors 0, 1 and 2: open in every process of ours, whoever started it (``<&-``, ``>&-``, some service managers).

The next file that a process opens takes the lowest free number. Were that 0, the run's lock or a log would be where a
child expects its standard input, and be closed or replaced when the child is given one.
"""

import fcntl
import os
import sys

_STREAMS = (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_WRONLY), ("stderr", "w", os.O_WRONLY))


def open_standard_streams() -> None:
    """Open ``/dev/null`` for the standard streams that are closed; before anything else is opened."""
    for descriptor, (name, mode, flags) in enumerate(_STREAMS):  # ascending: the lowest free number is this one
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)
        if getattr(sys, name) is None:
            stream = open(descriptor, mode, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def above_standard(descriptor: int) -> int:
    """The same open file under a number above 2, close-on-exec; the given descriptor is closed where it was not."""
    if descriptor > 2:
        return descriptor
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)
