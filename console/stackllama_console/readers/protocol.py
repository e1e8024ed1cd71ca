"""What every reader of a run offers, whichever trainer wrote the files."""

from typing import Protocol

from stackllama_engine.contract.history import History
from stackllama_engine.contract.stages import Stage

from .eta import Eta
from .series import Series


class Reader(Protocol):
    """A run as its files say, at the moment of the last `poll`. All its texts are sanitised.

    ``history``, ``series`` and ``memory`` are replaced rather than changed in size by `poll`, so that one thread may
    poll while another one reads them; a `Series` holds a lock of its own.
    """

    @property
    def title(self) -> str:
        """What to call the run."""
        ...

    @property
    def stage(self) -> Stage | None:
        """None for a foreign trainer, and as long as nothing was read."""
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
        """The state's phase; of foreign runs ``running``, ``finished`` or ``unknown``."""
        ...

    @property
    def bad_lines(self) -> int:
        """Lines that were no records."""
        ...

    def poll(self) -> bool:
        """Read what is new; whether anything changed. Cheap without news; never raises for what the files hold."""
        ...

    def eta(self, now: float) -> Eta | None:
        """Time left, as known at ``now`` (Unix seconds); None when nothing can be said."""
        ...
