"""A run's reconciled state; its lock is tried at most once per second."""

import time
from collections.abc import Callable

import msgspec

from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.run_dir import RunDir, State
from stackllama_engine.launch.reconcile import reconcile

from ..remote_runs import elsewhere_text
from ..sanitise import log_line, one_line
from .file_stamp import Stamp

RECONCILE_SECONDS = 1.0


class StateWatch:
    """``state.json`` as it changes. A run that has ended costs one ``stat`` per poll.

    Attributes:
        run: the run directory.
        state: as last read, its texts sanitised; None until it could be read once.
        error: why it cannot be read now: deleted, damaged, not permitted.
        elsewhere: on which other machine it is, in words; empty where it is on this one.
    """

    def __init__(self, run: RunDir, clock: Callable[[], float] = time.monotonic) -> None:
        self.run = run
        self.state: State | None = None
        self.error: str | None = None
        self.elsewhere = ""
        self._clock = clock
        self._stamp = Stamp(run.path / "state.json")
        self._reconcile_at = float("-inf")

    @property
    def deleted(self) -> bool:
        """Whether its directory was gone at the last poll; a damaged run may lack ``state.json`` alone."""
        return self._stamp.missing and not self.run.path.is_dir()

    def poll(self) -> bool:
        """Read what is new; return whether ``state`` or ``error`` changed."""
        before = self.state, self.error, self.elsewhere
        try:
            changed = self._stamp.changed()
            if self._stamp.missing:
                self.error = self._missing()
            elif changed or self.error or not (self.state and self.state.has_ended):
                self._read(changed)
        except (UsageError, OSError, TimeoutError) as error:
            self.error = one_line(str(error))
        return before != (self.state, self.error, self.elsewhere)

    def _read(self, changed: bool) -> None:
        if self._clock() >= self._reconcile_at:
            self._reconcile_at = self._clock() + RECONCILE_SECONDS
            self.state = clean_state(reconcile(self.run))
            self.elsewhere = elsewhere_text(self.run, self.state)
        elif changed:
            self.state = clean_state(self.run.read_state())
        else:
            return
        self.error = None

    def _missing(self) -> str:
        if self.run.path.is_dir():
            missing = one_line(str(self.run.path / "state.json"))
            return f"{missing} is missing: not a run, or a damaged one that `runs repair` can rebuild."
        return f"The run was deleted: {one_line(str(self.run.path))} is gone."


def clean_state(state: State) -> State:
    """Sanitise the texts of a state that come from other programs."""
    cause = None if state.cause is None else one_line(state.cause)
    lines = [log_line(line) for line in state.last_lines]
    waiting = None if state.waiting is None else one_line(state.waiting)
    findings = {one_line(rule): one_line(text) for rule, text in state.findings.items()}
    return msgspec.structs.replace(state, cause=cause, last_lines=lines, waiting=waiting, findings=findings)
