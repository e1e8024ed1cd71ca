"""Requests from people and from the system, agreed on by all ranks at step boundaries."""

import signal
from types import FrameType

import torch
from torch import distributed

from ..contract.run_dir import RunDir


class Stopped(Exception):
    """The stage stopped as asked, after saving; the attempt ends with 75."""


class Requests:
    """Polls ``control/`` and remembers SIGTERM and SIGUSR1, both of which mean *save and stop*.

    Args:
        run: the run directory.
        device: where collectives run.
    """

    def __init__(self, run: RunDir, device: torch.device) -> None:
        self._run = run
        self._device = device
        self._signalled = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def poll(self) -> frozenset[str]:
        """What is asked for now, the same answer on every rank: any rank's wish is everybody's."""
        waiting = set(self._run.requests())
        flags = torch.tensor(
            [int(self._signalled or "stop" in waiting), int("save" in waiting)], device=self._device, dtype=torch.int32
        )
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
        stop, save = flags.tolist()
        return frozenset(name for name, wanted in (("stop", stop), ("save", save)) if wanted)

    def saved(self) -> None:
        """A checkpoint was written: a waiting ``save`` request is served."""
        self._run.served("save")
