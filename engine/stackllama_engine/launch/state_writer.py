"""The state of a running attempt as its supervisor writes it, also when the disk is full for a while."""

import contextlib
import time

import msgspec

from ..contract.run_dir import RunDir, State
from .supervisor_log import log_line

_PATIENCE = 600.0  # seconds to keep trying to record the outcome on a full disk
_POLL = 0.2


class StateWriter:
    """Holds the state, and writes every change of it to ``state.json``.

    Args:
        run: the run; assigned anew when its directory was renamed.

    Attributes:
        state: as it is, written or not.
        is_unsaved: whether the newest state could not be written yet.
    """

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.state: State = run.read_state()
        self.is_unsaved = False

    def record(self, **changes: object) -> None:
        """Change the state; on a full disk it is kept, and written by :meth:`retry`."""
        self.state = msgspec.structs.replace(self.state, **changes)
        try:
            self.run.write_state(self.state)
        except OSError as error:
            if not self.is_unsaved:
                log_line(f"state.json: {error}; retrying until it can be written")
            self.is_unsaved = True
        else:
            self.is_unsaved = False
            self._keep_spare()

    def retry(self) -> None:
        """Write what could not be written before."""
        if self.is_unsaved:
            self.record()

    def flush(self, directory_is_gone: bool) -> None:
        """Retry for some minutes where the outcome could not be written, unless the run's directory was removed."""
        deadline = time.monotonic() + _PATIENCE
        while self.is_unsaved and not directory_is_gone and time.monotonic() < deadline:
            time.sleep(_POLL)
            self.record()

    def _keep_spare(self) -> None:
        """Reserve room for the next state, which a full disk would not take."""
        with contextlib.suppress(OSError):  # there is none now: at the next change of the state
            if self.state.has_ended:
                self.run.drop_spare_state()
            else:
                self.run.keep_spare_state()
