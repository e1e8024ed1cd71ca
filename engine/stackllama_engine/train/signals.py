"""SIGTERM and SIGUSR1: save and stop. What installs them comes before torch, whose import takes seconds."""

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(BaseException):
    """The stage stopped as asked, after saving what there was; the attempt ends with 75.

    Not an ``Exception``: no library on its way may swallow it.
    """


class Signals:
    """Remembers the signals of this process, which both mean *save and stop*.

    Until :meth:`loaded` nothing was trained, so there is nothing to save: a signal ends the stage where it is.
    """

    def __init__(self) -> None:
        self.received = False
        self._loading = False
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def load(self) -> None:
        """Note that loading begins.

        Raises:
            Stopped: a signal came before.
        """
        self._loading = True
        self._leave()

    def loaded(self) -> None:
        """Note that loading has ended: from here on a signal is served where nothing is lost.

        Raises:
            Stopped: it came before.
        """
        self._leave()
        self._loading = False

    @property
    def loading(self) -> bool:
        """Whether loading has not ended, so that nothing was trained yet."""
        return self._loading

    def _leave(self) -> None:
        if self.received:
            raise Stopped

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if self._loading:
            raise Stopped
