"""What a PPO run does when a step cannot be finished: begin a phase again, abandon the step, or go back.

- A stop in the middle of a step abandons it: nothing of it stays, the state at the last boundary is saved, and the
  resumed run makes the same step again.
- Out of memory on any rank: every rank begins the phase again with half as many rows at once (:class:`..faults.Fit`).
- A step that is not finite, or none of whose mini-batches could be applied, is skipped. After ``max_skipped_steps``
  of them in a row the weights themselves are in doubt: back to the newest verified checkpoint (or the start) with
  half the learning rate, because with the same one the same would happen again. After ``max_rollbacks`` of that, the
  run ends.
"""

from collections.abc import Callable
from typing import TypeVar

from ...contract.errors import StageError
from ..faults import Fit, memory_that_ran_out
from ..requests import LeftEarly
from ..session import Session

T = TypeVar("T")


class Abandoned(Exception):
    """A stop was asked for in the middle of a step or an evaluation; raised on every rank alike."""


class Unscored(StageError):
    """A rollout could not be scored; the policy is as sound as it was, and worth saving."""


class Together:
    """Runs a phase on every rank until it fits, or until a stop is wanted.

    Args:
        session: its requests ask all ranks at the end of a phase.
        fit: how many rows at once.
    """

    def __init__(self, session: Session, fit: Fit) -> None:
        self._session = session
        self._requests = session.requests
        self._fit = fit

    def __call__(self, work: Callable[[], T]) -> T:
        """The result of ``work``, which holds no collective and calls ``requests.leave_early`` between its pieces.

        Raises:
            Abandoned: a stop is wanted.
            StageError: memory ran out with one row at a time; or ``work`` raised it, on every rank the first one's.
        """
        while True:
            results: list[T] = []
            failed, problem = False, ""
            try:
                results.append(work())
            except LeftEarly:
                pass  # the others learn of the stop below
            except StageError as error:
                problem = str(error)
            except Exception as error:
                if memory_that_ran_out(error) is None:
                    raise
                failed = True
            agreed = self._requests.agree(failed, problem=bool(problem))
            if agreed.problem:
                raise StageError(next(text for text in self._session.gather([problem]) if text))
            if agreed.stop:
                raise Abandoned
            if not agreed.failed:
                return results[0]
            del results
            self._fit.halve_forward()

    def between(self) -> None:
        """A point inside the update at which every rank learns of a stop.

        Raises:
            Abandoned: it is wanted.
        """
        if self._requests.agree(failed=False).stop:
            raise Abandoned
