"""Restarts of SFT and reward within an attempt: every rank replaces itself by a fresh process.

TRL's trainers and DDP exchange tensors in every micro-batch, so a rank whose memory ran out leaves the others waiting
in the middle of a collective, from which no library brings them back. What does: ``exec``. The rank that knows why
writes ``restart.json`` into the attempt's folder; each process that sees it there (a thread polls, whatever its main
thread waits for) executes its own command line again. It keeps its process id, so torchrun notices nothing; memory,
communicators and random state begin anew, and training resumes from the newest verified checkpoint or the start.

PPO makes its collectives itself and needs no restart (:mod:`.ppo.fault_tolerance`); it only records changes here.
A new attempt begins with the settings of the one before it.
"""

import contextlib
import fcntl
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
from msgspec import Struct

from ..contract.atomic_files import write_whole
from ..contract.disk_space import Reserve, is_full
from ..contract.errors import StageError
from ..contract.run_dir import RunDir
from .signals import SIGNALS, Signals

if TYPE_CHECKING:
    from .pending_writes import PendingWrites

FILE = "restart.json"
_POLL_SECONDS = 0.5
_PEER_SECONDS = 5.0  # between a peer's restart and the failure of the collective that it left, and some more


class Restart(Struct, frozen=True, kw_only=True):
    """``restart.json``: differences from the recipe since the attempt began, and their reason."""

    count: int = 0
    per_device_train_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    per_device_eval_batch_size: int | None = None
    local_rollout_forward_batch_size: int | None = None
    max_tokens_per_micro_batch: int | None = None
    learning_rate: float | None = None
    """The schedule's peak, where training resumes from ``at_step``; later checkpoints hold it themselves."""
    at_step: int = 0
    rollbacks: int = 0
    message: str = ""

    @property
    def sizes(self) -> dict[str, int]:
        """The batch sizes that fit, where they are not the recipe's."""
        keys = (
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "per_device_eval_batch_size",
            "local_rollout_forward_batch_size",
            "max_tokens_per_micro_batch",
        )
        return {key: value for key in keys if (value := getattr(self, key)) is not None}

    def applied(self, recipe: Any) -> Any:
        """Return the recipe with the batch sizes that fit."""
        return msgspec.structs.replace(recipe, **self.sizes)


class Restarts(threading.Thread):
    """Restarts of one attempt; the thread polls for those that another rank asks for, and for a stop while loading.

    Args:
        run: the run directory.
        attempt: its number.
        signals: of this process.
    """

    def __init__(self, run: RunDir, attempt: int, signals: Signals) -> None:
        super().__init__(daemon=True, name="restarts")
        self._path = run.attempt_dir(attempt) / FILE
        self._signals = signals
        self._run = run
        self.disk: PendingWrites | None = None
        """Rank 0's, once there is one."""
        self.now = _read(self._path) if self._path.exists() else _as_before(run, attempt)

    def again(self, **changes: Any) -> NoReturn:
        """Begin again on every rank, with ``changes`` of :class:`Restart`."""
        self.now = msgspec.structs.replace(self.now, count=self.now.count + 1, **changes)
        try:
            self._write()
        except OSError as error:
            if not is_full(error):
                raise
            Reserve(self._run.path).release()  # held for such a moment; the fresh process holds another
            self._write()
        _execute()

    def note(self, **changes: Any) -> None:
        """Keep ``changes`` of :class:`Restart` for later attempts, without a restart; written later on a full disk."""
        self.now = msgspec.structs.replace(self.now, **changes)
        if self.disk is None:
            self._write()
        else:
            self.disk.write("restart.json", self._write)

    def _write(self) -> None:
        write_whole(self._path, msgspec.json.encode(self.now))

    def join_peer(self) -> None:
        """After a failed collective, begin again when a peer did, else return."""
        deadline = time.monotonic() + _PEER_SECONDS
        while time.monotonic() < deadline:
            if _read(self._path).count > self.now.count:
                _execute()
            time.sleep(_POLL_SECONDS / 5)

    def run(self) -> None:
        """Poll until the process ends."""
        while True:
            time.sleep(_POLL_SECONDS)
            if _read(self._path).count > self.now.count:
                _execute()
            if self._signals.loading and self._run.asked_to_stop():
                os.kill(os.getpid(), signal.SIGUSR1)


def _read(path: Path) -> Restart:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Restart)
    except FileNotFoundError:
        return Restart()
    except (OSError, msgspec.DecodeError) as error:
        raise StageError(f"{path} cannot be read: {error}.") from None


def _as_before(run: RunDir, attempt: int) -> Restart:
    """Return the settings that a new attempt begins with.

    Those are the batch sizes that fitted before, the rollbacks so far and, until a later checkpoint holds it, the
    learning rate of the newest of them.
    """
    for number in range(attempt - 1, 0, -1):
        before = _read(run.attempt_dir(number) / FILE)
        if before != Restart():
            settings = [f"`{key}: {value}`" for key, value in before.sizes.items()]
            settings += [f"rollbacks so far: {before.rollbacks}"] if before.rollbacks else []
            message = f"continuing with the settings of attempt {number}: {', '.join(settings)}"
            return msgspec.structs.replace(before, count=0, message=message)
    return Restart()


def _execute() -> NoReturn:
    """Become a fresh process with the same command line; a signal in between waits for it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if descriptor > 2:  # a GPU or a socket that stays open would outlive what knew of it
            with contextlib.suppress(OSError):  # closed since it was listed
                fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
