"""Interface of every reader of a run, whichever trainer wrote the files."""

from typing import Protocol

from stackllama_engine.contract.history import History
from stackllama_engine.contract.stages import Stage

from .eta import Eta
from .series import Series


class Reader(Protocol):
    """A run as of the last `poll`. All its texts are sanitised.

    ``history``, ``series`` and ``memory`` are replaced rather than changed in size by `poll`, so that one thread may
    poll while another one reads them; a `Series` holds a lock of its own.
    """

    @property
    def title(self) -> str:
        """The run's name on screens."""
        ...

    @property
    def stage(self) -> Stage | None:
        """The run's stage; None for another trainer's run, and as long as nothing was read."""
        ...

    @property
    def history(self) -> History:
        """The fold over all events, with sanitised names and texts."""
        ...

    @property
    def series(self) -> dict[str, Series]:
        """Metric name → its values over steps."""
        ...

    @property
    def memory(self) -> dict[str, Series]:
        """``allocated``, ``reserved``, ``device``, ``rss`` → bytes over steps."""
        ...

    @property
    def phase(self) -> str:
        """The state's phase; of other trainers' runs ``running``, ``finished``, ``silent`` or ``unknown``."""
        ...

    @property
    def bad_lines(self) -> int:
        """Number of lines that are not records."""
        ...

    def poll(self) -> bool:
        """Read what is new; return whether anything changed. Never raises for the content of files."""
        ...

    def eta(self, now: float) -> Eta | None:
        """Estimate the time left at ``now`` (Unix seconds); None when it is not known."""
        ...
