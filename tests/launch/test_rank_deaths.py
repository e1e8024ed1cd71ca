"""The rank that ended first, as the supervisor sees it: real processes below this one, in the launcher's place."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stackllama_engine.launch.ranks import Ranks

from .conftest import Clock, wait_for

HERE = socket.gethostname()
TABLE = """
W1130 03:23:11.883000 31891 torch/distributed/elastic/multiprocessing/api.py:1028] Sending process {0} closing signal
E1130 03:23:12.554000 31891 torch/distributed/elastic/multiprocessing/api.py:1] failed (exitcode: {3}) local_rank: 1 \
(pid: {1}) of binary: /usr/bin/python
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : {2} (pid: {0})  (SIGTERM)
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : {3} (pid: {1})  (SIGKILL)
"""


class Below:
    """Processes of a run, and those that watch them."""

    def __init__(self, run: Path, clock: Clock, count: int) -> None:
        run.mkdir(exist_ok=True)
        self.run = run
        self.clock = clock
        self.ranks = Ranks(run, count, clock)
        self.processes = [self._start(str(rank) if count > 1 else None) for rank in range(count)]
        wait_for(lambda: self._look() == count, seconds=60)

    def end(self, number: int, sent: signal.Signals) -> None:
        process = self.processes[number]
        process.send_signal(sent)
        before = len(self.ranks.descriptors)
        wait_for(lambda: self._look() < before, seconds=60)
        process.wait()

    def log(self, *codes: int) -> str:
        return TABLE.format(*(process.pid for process in self.processes), *codes)

    def says(self, rank: int, at: float) -> None:
        path = self.run / f"cause-rank-{rank}.txt"
        path.write_text("RuntimeError in phase train: Connection closed by peer")
        os.utime(path, (at, at))

    def first(self, log: str, code: int = 1) -> str:
        return str(self.ranks.first_killed(log, self.run, code))

    def _look(self) -> int:
        self.clock.now += 0.1
        self.ranks.poll(os.getpid())
        return len(self.ranks.descriptors)

    def _start(self, rank: str | None) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if name != "RANK"}
        environment |= {} if rank is None else {"RANK": rank}
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", str(self.run)], env=environment)


@pytest.fixture
def below(tmp_path: Path, clock: Clock) -> Iterator[Below]:
    found = Below(tmp_path / "with a space", clock, 2)
    yield found
    found.ranks.close()
    for process in found.processes:
        process.kill()
        process.wait()


def test_first_killed_is_the_rank_that_was_killed_not_its_peers(below: Below) -> None:
    below.end(1, signal.SIGKILL)
    below.says(0, below.clock.now - 0.05)  # a moment before its peer's end was noticed
    below.end(0, signal.SIGTERM)
    log = below.log(-15, -9)
    assert below.first(log) == f"rank 1 on {HERE} was killed by SIGKILL"
    killed = below.ranks.first_killed(log, below.run, 1)
    assert killed is not None and killed.held > 2 << 20, "what both held"


def test_first_killed_is_none_after_a_rank_that_wrote_a_cause(below: Below) -> None:
    """Later, torchelastic kills the ranks that have not ended."""
    below.says(1, below.clock.now)
    below.clock.now += 120
    below.end(0, signal.SIGKILL)
    below.end(1, signal.SIGTERM)
    assert below.first(below.log(-9, 1)) == "None"


def test_first_killed_is_none_after_a_rank_that_exited_with_an_error(below: Below) -> None:
    below.end(1, signal.SIGTERM)  # stands for an exit with 3
    below.end(0, signal.SIGTERM)
    assert below.first(below.log(-15, 3)) == "None"


def test_first_killed_without_an_exit_code_names_an_unknown_signal(below: Below) -> None:
    below.end(1, signal.SIGKILL)
    assert below.first("nothing of the kind") == f"rank 1 on {HERE} was killed by an unknown signal"


def test_first_killed_of_one_poll_is_not_the_rank_that_nccls_watchdog_ended(below: Below) -> None:
    for process in below.processes:
        process.kill()
        process.wait()
    below.ranks.poll(os.getpid())
    assert below.first(below.log(-6, -11)) == f"rank 1 on {HERE} was killed by SIGSEGV"


@pytest.mark.parametrize(("code", "said"), [(137, "SIGKILL"), (139, "SIGSEGV"), (1, None), (75, None), (-15, None)])
def test_first_killed_of_one_process_follows_the_launchers_exit_code(
    tmp_path: Path, clock: Clock, code: int, said: str | None
) -> None:
    below = Below(tmp_path, clock, 1)
    below.end(0, signal.SIGKILL)
    assert below.first("", code) == (f"the worker on {HERE} was killed by {said}" if said else "None")
