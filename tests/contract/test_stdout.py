"""Standard output on a full disk: lost, counted, reported later, and never an error."""

import errno
import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from stackllama_engine.contract.child_environment import source_path
from stackllama_engine.contract.stdout import SurvivingOutput, surviving


class Disk(io.RawIOBase):
    """Takes so many bytes, and then fails."""

    def __init__(self, room: int, number: int = errno.ENOSPC) -> None:
        self.room = room
        self.number = number
        self.taken = b""

    def write(self, data: Any, /) -> int:
        part = bytes(data)[: self.room]
        if not part:
            raise OSError(self.number, os.strerror(self.number))
        self.taken += part
        self.room -= len(part)
        return len(part)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_lost_output_is_counted_and_reported_by_the_next_write(number: int) -> None:
    disk = Disk(6, number)
    output = SurvivingOutput(disk)
    assert [output.write(text) for text in (b"first\n", b"lost\n", b"lost as well\n")] == [6, 5, 13]
    assert (disk.taken, output.lost) == (b"first\n", 18)
    disk.room = 1000
    output.write(b"again\n")
    assert disk.taken == b"first\n\n18 bytes of output were lost while the disk was full.\nagain\n"
    output.write(b"more\n")
    assert disk.taken.endswith(b"again\nmore\n"), "said once"


def test_partly_written_output_counts_the_lost_part() -> None:
    disk = Disk(3)
    output = SurvivingOutput(disk)
    assert output.write(b"12345") == 5 and output.lost == 2


def test_closed_pipe_is_still_an_error() -> None:
    with pytest.raises(BrokenPipeError):
        SurvivingOutput(Disk(0, errno.EPIPE)).write(b"x")


def test_buffer_that_is_not_a_file_is_returned_unchanged() -> None:
    buffer = io.BytesIO()
    assert surviving(buffer) is buffer


EVERYTHING = """
    import logging, os, sys, traceback, warnings
    from stackllama_engine.contract.redact import redact_output
    redact_output()
    logging.basicConfig()
    logging.getLogger("library").warning("a library says something")
    warnings.warn("a warning")
    print("x" * 100_000, flush=True)
    sys.stderr.write("half a line, as of a progress bar\\r")
    sys.stderr.flush()
    try:
        1 / 0
    except ZeroDivisionError:
        traceback.print_exc()
    os.write(int(sys.argv[1]), b"it goes on")
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_process_finishes_when_its_output_does_not_fit() -> None:
    reader, writer = os.pipe()
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(EVERYTHING), str(writer)],
            stdout=full,
            stderr=full,
            pass_fds=[writer],
            env=os.environ | source_path(""),
            check=False,
        )
    os.close(writer)
    assert (done.returncode, os.read(reader, 100)) == (0, b"it goes on")
    os.close(reader)
