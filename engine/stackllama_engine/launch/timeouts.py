"""Asking what may never answer: a driver, a file system that has gone, a debugger.

A question is put in a thread of its own, which nobody has to wait for: whoever asks waits for as long as he can spare,
goes on, and finds the answer later. While one question hangs nothing else is asked, so threads do not pile up; and a
process that ends leaves them behind (they are daemons, in C code that holds no lock of Python's).
"""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class UnansweredError(Exception):
    """No answer in time; the message is a sentence for a person, without a full stop."""


class Asked(Generic[T]):
    """One question that has been put.

    Args:
        who: is asked, as in messages.
        question: called in a thread.
        over: called when it has answered.
    """

    def __init__(self, who: str, question: Callable[[], T], over: Callable[[], None]) -> None:
        self._who = who
        self._question = question
        self._over = over
        self._begun = time.monotonic()
        self._answered = threading.Event()
        self._answer: list[T] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._ask, name=f"asks {who}", daemon=True).start()

    @property
    def answered(self) -> bool:
        """Whether there is an answer."""
        return self._answered.is_set()

    def answer(self, seconds: float = 0.0) -> T:
        """The answer, waited for.

        Args:
            seconds: since it was asked, not from now on: what hangs costs whoever looks again nothing more.

        Raises:
            UnansweredError: there is none yet; it can be asked for again.
            Exception: what the question raised.
        """
        if not self._answered.wait(max(0.0, seconds - self.seconds)):
            raise UnansweredError(f"{self._who} has not answered for {self.seconds:.0f} s")
        if self._error is not None:
            raise self._error
        return self._answer[0]

    @property
    def seconds(self) -> float:
        """Since it was asked."""
        return time.monotonic() - self._begun

    def _ask(self) -> None:
        try:
            self._answer.append(self._question())
        except BaseException as error:  # noqa: BLE001 - raised again where the answer is taken
            self._error = error
        finally:
            self._over()
            self._answered.set()


class Asker:
    """Somebody who is asked one thing at a time.

    Args:
        who: as in messages.
    """

    def __init__(self, who: str) -> None:
        self.who = who
        self._turn = threading.Lock()
        self._since = 0.0

    @property
    def hangs(self) -> bool:
        """Whether a question waits for its answer."""
        return self._turn.locked()

    def ask(self, question: Callable[[], T], seconds: float) -> Asked[T]:
        """Put a question, when the one before has been answered.

        Args:
            question: what is called; its answer or exception is that of :meth:`Asked.answer`.
            seconds: to wait for the turn; none where the question before has taken longer already.

        Raises:
            UnansweredError: the question before still hangs.
        """
        hangs = self._turn.locked() and time.monotonic() - self._since > seconds
        if not (self._turn.acquire(blocking=False) if hangs else self._turn.acquire(timeout=seconds)):
            raise UnansweredError(f"{self.who} has not answered for {time.monotonic() - self._since:.0f} s")
        self._since = time.monotonic()
        return Asked(self.who, question, self._turn.release)

    def answer(self, question: Callable[[], T], seconds: float) -> T:
        """Ask, and wait for the turn and for the answer, so long for each.

        Raises:
            UnansweredError: there was none.
            Exception: what the question raised.
        """
        return self.ask(question, seconds).answer(seconds)
