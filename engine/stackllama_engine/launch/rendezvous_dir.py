"""Rendezvous of the processes of one machine: files in a directory that no other user can enter.

torchrun and torch's process groups usually use a TCP server on all interfaces, without authentication. Here both use a
``FileStore``, protected by the directory's mode, 0700. It is on a tmpfs of this machine: torchrun reads its file every
second as long as the run lasts, and NCCL writes its own when it first needs a communicator, and neither may fail
because the run's home is full or its file system hangs.

The supervisor creates one for each attempt and removes it at the end. If the supervisor was killed, :mod:`.reconcile`
removes it: a link in the attempt's folder leads to it.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from ..contract.child_environment import RENDEZVOUS_DIR

_LINK = "meeting"
_PREFIX = "stackllama-"
_OURS = ("torchrun", "ranks-*")
_PROBE_BYTES = 1 << 16  # more than the files of a large run


def make_rendezvous_dir(attempt: Path) -> Path:
    """Create a directory, 0700, in which files can be locked and are large enough for a run.

    Args:
        attempt: the attempt's folder; the directory is there when neither /dev/shm nor the directory of temporary
            files is usable.

    Raises:
        OSError: the attempt's folder is not usable either.
    """
    place = _first_usable(_parents(attempt))
    (attempt / _LINK).symlink_to(place)
    return place


def rendezvous_environment(place: Path) -> dict[str, str]:
    """Return the environment of torchrun and the ranks; torchrun reads ``PET_…`` as its options."""
    return {
        RENDEZVOUS_DIR: str(place),
        "PET_RDZV_ENDPOINT": str(place / "torchrun"),
        "PET_LOCAL_ADDR": "localhost",  # else it looks up this machine's name, for nothing
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else it opens a server for the ranks, which have a file
    }


def remove_rendezvous_dir(attempt: Path) -> None:
    """Remove an attempt's directory with its files, if it has one and as far as possible.

    The link may have been made by anybody who could write there, and every command that reconciles a run calls this:
    nothing is removed but directories as `make_rendezvous_dir` creates them, and the files of torchrun and the ranks.
    """
    link = attempt / _LINK
    with contextlib.suppress(OSError):  # most attempts have none
        place = link.readlink()
        if place.name.startswith(_PREFIX) and place.parent in _parents(attempt):
            _remove_place(place)
        link.unlink()


def _parents(attempt: Path) -> list[Path]:
    return [Path("/dev/shm"), Path(tempfile.gettempdir()), attempt]  # noqa: S108 - mkdtemp chooses the name


def _remove_place(place: Path) -> None:
    with contextlib.suppress(OSError):
        facts = place.lstat()
        private = stat.S_ISDIR(facts.st_mode) and facts.st_mode & 0o777 == 0o700
        if not private or facts.st_uid != os.geteuid():
            return
        for pattern in _OURS:
            for file in place.glob(pattern):
                file.unlink()
        place.rmdir()


def _first_usable(candidates: Iterable[Path]) -> Path:
    problem: OSError | None = None
    for parent in candidates:
        try:
            place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        except OSError as error:
            problem = error
            continue
        try:
            _probe(place / "probe")
        except OSError as error:
            problem = error
            shutil.rmtree(place, ignore_errors=True)
        else:
            return place
    assert problem is not None
    raise problem


def _probe(file: Path) -> None:
    """Lock, write and remove a file."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, bytes(_PROBE_BYTES))
    finally:
        os.close(descriptor)
        file.unlink()
