"""The user's reward function: imported, called with texts, its results checked.

The function is called with two keywords, lists of equal length, once per rollout or evaluation and process::

    def politeness(*, questions: list[str], responses: list[str]) -> list[float]:
        return [float("please" in response) for response in responses]

and returns one finite number each, in their order, or None for a response that it abstains from. After an error that
may pass, such as a service that does not answer, it is called again a few times before the run ends. Its module is
imported from the directory that the launch found it in (``reward_fn_path``), else from what is installed.
"""

import importlib
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...contract.errors import StageError
from ...contract.recipe import FUNCTION

_MOST_SHOWN = 80
_WAITS = (1.0, 5.0, 25.0)
"""Seconds before the function is called again, after its first, second and third failure."""
_MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
)
"""Errors of the code itself: the same call would raise them again."""
_LARGEST = 3.4028234663852886e38
"""Largest float32, the dtype of scores."""


class RewardFunction:
    """``reward_fn`` of a recipe, imported.

    Args:
        reference: ``package.module:function``.
        directory: where its module lies; None: among the installed packages.
        notice: gets each failure after which the function is called again.
        wait: sleeps some seconds before that.

    Raises:
        StageError: it cannot be imported, or is no function.
    """

    def __init__(
        self,
        reference: str,
        directory: str | None,
        notice: Callable[[str], None] = print,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        named = FUNCTION.fullmatch(reference)
        assert named, reference  # the recipe checks it
        self._what = f"`reward_fn: {reference}`"
        self._notice, self._wait = notice, wait
        module = self._import(named["module"], directory)
        self._function: Any = getattr(module, named["name"], None)
        if not callable(self._function):
            raise StageError(f"{self._what}: {_place(module)} has no function `{named['name']}`.")

    def __call__(self, questions: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Compute one finite number per response; NaN where the function returned None.

        Raises:
            StageError: it raised, again and again where that could pass, or gave something else; the text names the
                response.
        """
        values: list[Any] | None = None
        for seconds in (*_WAITS, None):
            try:
                values = _as_list(self._function(questions=list(questions), responses=list(responses)))
                break
            except (Exception, SystemExit) as error:
                traceback.print_exc()  # into the log: where in the function it was
                if seconds is None or isinstance(error, (*_MISTAKES, SystemExit)):
                    raise self._failed(error, questions, responses) from error
                self._notice(f"{self._what} raised {_described(error)}; calling again in {seconds:g} s")
                self._wait(seconds)
        if values is None:
            raise StageError(f"{self._what} must return a list of numbers, one per response.")
        if len(values) != len(responses):
            missing = "" if len(values) > len(responses) else f" Without one: {_shown(responses, len(values))}."
            raise StageError(f"{self._what} returned {len(values)} numbers for {len(responses)} responses.{missing}")
        return [self._number(value, responses, index) for index, value in enumerate(values)]

    def _number(self, value: Any, responses: Sequence[str], index: int) -> float:
        if value is None:
            return math.nan
        try:
            number = math.nan if isinstance(value, str | bytes) else float(value)
        except Exception:  # noqa: BLE001 - `float` of an unknown object may raise anything
            number = math.nan
        if not abs(number) <= _LARGEST:
            kind = _line(value) if isinstance(value, int | float | str) else f"a {type(value).__name__}"
            raise StageError(f"{self._what} returned {kind}, not a finite number, for {_shown(responses, index)}.")
        return number

    def _failed(self, error: BaseException, questions: Sequence[str], responses: Sequence[str]) -> StageError:
        """Return the error with the first response that raises one by itself."""
        for index, (question, response) in enumerate(zip(questions, responses, strict=True)):
            try:
                self._function(questions=[question], responses=[response])
            except (Exception, SystemExit) as alone:  # noqa: BLE001 - as above
                return StageError(f"{self._what} raised {_described(alone)}, for {_shown(responses, index)}.")
        several = f"{len(responses)} responses together, and for none alone; the first is {_shown(responses, 0)}"
        return StageError(f"{self._what} raised {_described(error)}, for {several}.")

    def _import(self, name: str, directory: str | None) -> Any:
        try:
            with _first_on_path(directory):
                module = importlib.import_module(name)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            raise StageError(f"{self._what}: importing `{name}` raised {_described(error)}; see the log.") from error
        if directory and not Path(_place(module)).is_relative_to(directory):
            raise StageError(
                f"{self._what}: `{name}` is already imported from {_place(module)}; rename the one in {directory}."
            )
        return module


@contextmanager
def _first_on_path(directory: str | None) -> Iterator[None]:
    """Put a directory first on the module path, and last afterwards.

    What lies beside the function can still be imported later, and shadows nothing.
    """
    if directory is None:
        yield
        return
    sys.path.insert(0, directory)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(directory)
        sys.path.append(directory)


def _as_list(values: Any) -> list[Any] | None:
    """Convert what was returned into a list; None for what is not a sequence."""
    if isinstance(values, str | bytes | dict) or not hasattr(values, "__iter__"):
        return None
    if getattr(values, "ndim", 1) == 2 and values.shape[1] == 1:  # a model's logits, as they come
        values = values.reshape(-1)
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _place(module: Any) -> str:
    """Return where a module lies."""
    file = getattr(module, "__file__", None)
    return str(file) if file else f"`{module.__name__}`"


def _shown(responses: Sequence[str], index: int) -> str:
    return f"response {index} ({_line(responses[index])!r})"


def _described(error: BaseException) -> str:
    message = _line(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _line(what: object) -> str:
    """Print a value on one line, without control characters, and shortened."""
    plain = "".join(letter if letter.isprintable() else " " for letter in str(what)[: 8 * _MOST_SHOWN])
    words = " ".join(plain.split())
    return words if len(words) <= _MOST_SHOWN else f"{words[: _MOST_SHOWN - 1]}…"
