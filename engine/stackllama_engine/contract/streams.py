"""Standard streams, descriptors 0 to 2, kept open even if closed by the parent (``<&-``, some service managers).

The next file that a process opens gets the lowest free descriptor. If that were 0, the run's lock or a log would be in
the place of a child's standard input, and be closed or replaced when the child is given one.
"""

import fcntl
import os
import sys

_STREAMS = (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_WRONLY), ("stderr", "w", os.O_WRONLY))


def open_standard_streams() -> None:
    """Open ``/dev/null`` for closed standard streams; call it before anything else is opened."""
    for descriptor, (name, mode, flags) in enumerate(_STREAMS):  # ascending: the lowest free descriptor is this one
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)
        if getattr(sys, name) is None:
            stream = open(descriptor, mode, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def above_standard(descriptor: int) -> int:
    """Duplicate the descriptor to one above 2, close-on-exec, and close the original; one above 2 is returned."""
    if descriptor > 2:
        return descriptor
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)
