"""A real control group with a memory limit, and one inside it without one: limits nest."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stackllama_engine.launch.main_memory import cgroups

LIMIT = 2 << 30


@contextmanager
def small_cgroup() -> Iterator[Path]:
    """Create both groups, the outer one limited to 2 GiB without swap; skip the test where that is not possible.

    Yields:
        the inner group's folder.
    """
    if os.getuid() != 0:
        pytest.skip("making a control group takes root")
    chain = cgroups()
    if not chain:
        pytest.skip("no control group accounts for memory here")
    top = [cgroup for cgroup in chain if cgroup.version == chain[0].version][-1]
    outer = top.folder / f"stackllama-test-{os.getpid()}"
    inner = outer / "inner"
    try:
        outer.mkdir()
        (outer / ("memory.max" if top.version == 2 else "memory.limit_in_bytes")).write_text(str(LIMIT))
        if top.version == 2:
            (outer / "cgroup.subtree_control").write_text("+memory")
            swap = outer / "memory.swap.max"
            if swap.exists():
                swap.write_text("0")
        inner.mkdir()
    except OSError as error:
        if outer.is_dir():
            outer.rmdir()
        pytest.skip(f"no control group with a memory limit can be made here: {error}")
    try:
        yield inner
    finally:
        deadline = time.monotonic() + 60
        while (inner / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)  # a supervisor is about to end
        inner.rmdir()
        outer.rmdir()


def console_inside(cgroup: Path, *arguments: str) -> list[str]:
    """Return the command that runs `stackllama-console` inside a group."""
    script = f'echo $$ > "{cgroup}/cgroup.procs" && exec "$@"'
    return ["sh", "-c", script, "sh", sys.executable, "-m", "stackllama_console", *arguments]
