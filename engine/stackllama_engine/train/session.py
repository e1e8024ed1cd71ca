"""One process of a stage: its device, its rank, its reporter and its requests."""

import gc
import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import InitProcessGroupKwargs
from torch import distributed

from ..contract.errors import StageError
from ..contract.run_dir import RunDir
from .control import Requests
from .exchange import gather_rows
from .rendezvous import TIMEOUT, meet
from .reporting import Reporter
from .restart import Restarts
from .signals import Signals

SCRATCH = "scratch"
CACHE = "cache"


class Session:
    """Everything a stage needs besides its recipe.

    Args:
        run: the run directory.
        reporter: rank 0's writer of events.
        signals: of this process.
        restarts: of this attempt.
        use_cpu: stay on the CPU.
        report_to: trackers besides our own events (tensorboard, wandb, trackio), through their own packages.

    Raises:
        StageError: another number of processes started than was asked for.
    """

    def __init__(
        self,
        run: RunDir,
        reporter: Reporter,
        signals: Signals,
        restarts: Restarts,
        use_cpu: bool,
        report_to: Sequence[str] = (),
    ) -> None:
        self.run = run
        self.restarts = restarts
        self.reporter = reporter
        meet(restarts.now.count, use_cpu)  # before accelerate does, which would listen on all interfaces
        # an Accelerator before any Trainer: it fixes CPU or GPU for the whole process
        tensorboard = str(run.path / "tensorboard")
        self.accelerator = Accelerator(
            cpu=use_cpu,
            log_with=list(report_to) or None,
            project_dir=tensorboard,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
        )
        # the Trainer's own integration would write into its scratch directory, which is cleaned up
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", tensorboard)
        self.state = PartialState()
        self._check_world()
        self.requests = Requests(run, reporter, self.device, signals)

    @property
    def device(self) -> torch.device:
        """The device that this process computes on."""
        device = self.state.device
        # safetensors does not know `cpu:0`, which is what accelerate calls the CPU of several processes
        return torch.device("cpu") if device is None or device.type == "cpu" else device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.state.is_main_process

    @property
    def rank(self) -> int:
        """This process's rank."""
        return self.state.process_index

    @property
    def world_size(self) -> int:
        """Processes of this stage."""
        return self.state.num_processes

    def loaded(self) -> None:
        """Note that loading has ended.

        What is alive now stays: the garbage collector, which would walk half a million objects in a full round, is told
        to leave it out. What is dead goes first; frozen, it would never go.

        Raises:
            Stopped: a signal came before.
        """
        self.requests.signals.loaded()
        gc.collect()
        gc.freeze()

    def main_first(self) -> AbstractContextManager[None]:
        """Let rank 0 prepare data first, whose cache the others then read."""
        return self.state.main_process_first()

    def reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks, in place."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """Return the maximum over all ranks, element by element."""
        if self.world_size > 1:
            distributed.all_reduce(values, distributed.ReduceOp.MAX)
        return values

    def gather(self, rows: list[Any]) -> list[Any]:
        """Gather rows of all ranks, interleaved; see :func:`.exchange.gather_rows`."""
        return rows if self.world_size == 1 else gather_rows(rows, self.device)

    def clean_up(self) -> None:
        """Remove scratch files and cached rows of a finished stage."""
        if self.is_main:
            for name in (SCRATCH, CACHE):
                shutil.rmtree(self.run.path / name, ignore_errors=True)

    def _check_world(self) -> None:
        expected = int(os.environ.get("STACKLLAMA_WORLD_SIZE", "1"))
        if self.world_size != expected:
            raise StageError(
                f"{expected} processes were requested, {self.world_size} started. Training would silently use another "
                "batch size; check the accelerate command in launch.json."
            )
