"""Calls that may never return: to a driver, a file system whose server is gone, a debugger.

A call runs in a thread of its own, which nobody has to join: the caller waits for a limited time, continues, and takes
the answer later. While one call hangs no other is made, so threads do not pile up; and a process that ends leaves them
behind (they are daemons, in C code that holds no lock of Python's).
"""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class UnansweredError(Exception):
    """No answer in time; the message is a sentence for a person, without its period."""


class Asked(Generic[T]):
    """One pending call.

    Args:
        who: what is called, as in messages.
        question: called in a thread.
        over: called when it has returned.
    """

    def __init__(self, who: str, question: Callable[[], T], over: Callable[[], None]) -> None:
        self._who = who
        self._question = question
        self._over = over
        self._started = time.monotonic()
        self._answered = threading.Event()
        self._answer: list[T] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._ask, name=f"asks {who}", daemon=True).start()

    def answer(self, seconds: float = 0.0) -> T:
        """Wait for the answer and return it.

        Args:
            seconds: to wait, counted from the start of the call: polling a call that hangs costs no more time.

        Raises:
            UnansweredError: there is none yet; call again later.
            Exception: what the question raised.
        """
        if not self._answered.wait(max(0.0, seconds - self.seconds)):
            raise UnansweredError(f"{self._who} has not answered for {self.seconds:.0f} s")
        if self._error is not None:
            raise self._error
        return self._answer[0]

    @property
    def seconds(self) -> float:
        """Seconds since the call was started."""
        return time.monotonic() - self._started

    def _ask(self) -> None:
        try:
            self._answer.append(self._question())
        except BaseException as error:  # noqa: BLE001 - raised again by `answer`
            self._error = error
        finally:
            self._over()
            self._answered.set()


class Asker:
    """Makes one call at a time.

    Args:
        who: what is called, as in messages.
    """

    def __init__(self, who: str) -> None:
        self.who = who
        self._turn = threading.Lock()
        self._since = 0.0

    @property
    def hangs(self) -> bool:
        """Whether a call has not returned yet."""
        return self._turn.locked()

    def ask(self, question: Callable[[], T], seconds: float) -> Asked[T]:
        """Start a call, after the one before has returned.

        Args:
            question: what is called; :meth:`Asked.answer` returns its result or raises its exception.
            seconds: to wait for the turn; none where the call before has taken longer already.

        Raises:
            UnansweredError: the call before still hangs.
        """
        hangs = self._turn.locked() and time.monotonic() - self._since > seconds
        if not (self._turn.acquire(blocking=False) if hangs else self._turn.acquire(timeout=seconds)):
            raise UnansweredError(f"{self.who} has not answered for {time.monotonic() - self._since:.0f} s")
        self._since = time.monotonic()
        return Asked(self.who, question, self._turn.release)

    def answer(self, question: Callable[[], T], seconds: float) -> T:
        """Start a call and wait for its answer, so long for each.

        Raises:
            UnansweredError: there was none.
            Exception: what the question raised.
        """
        return self.ask(question, seconds).answer(seconds)
