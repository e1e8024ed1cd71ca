"""Reward functions of the user's: imported, called with texts and columns, their results checked.

A function is called with keywords, lists of equal length, once per rollout or evaluation and process, and returns one
finite number each, in their order, or None for a response that it abstains from. Its parameters say how it is called:

==============================  ==================================================================================
``completions``                 TRL's way: ``prompts`` and ``completions`` are texts, and of a conversational source
                                lists of messages, the completion ``[{"role": "assistant", "content": …}]``
``responses``                   ``questions``, ``prompts`` and ``responses`` are texts
``question``, ``prompt``,       the same as ``questions``, as the column of the prompt may be called
``instruction``
any other name                  that column of the rows, or the value of ``reward_kwargs``
``**kwargs``                    all of it
==============================  ==================================================================================

After an error that may pass, such as a service that does not answer, it is called again a few times before the run
ends. Its module is imported from the directory that the launch found it in (``reward_func_paths``), else from what is
installed.
"""

import asyncio
import importlib
import inspect
import math
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...contract.errors import StageError
from ...contract.recipe import FUNCTION, PROMPT_COLUMNS, REWARD_ARGUMENTS, RewardFunc
from ...contract.reward_parameters import Parameters
from .response_text import ResponseText
from .time_limit import TimeLimitError, interruptible, run_limited, time_limit

_MOST_SHOWN = 80
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
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
    re.error,
    SystemExit,
)
"""Errors of the code itself: the same call would raise them again."""
_CANCELLED = "asyncio.CancelledError, which nobody asked for"
_FAILURES = (Exception, SystemExit, TimeLimitError)
_LARGEST = 3.4028234663852886e38
"""Largest float32, the dtype of scores."""


class RewardFunction:
    """One of ``reward_funcs`` of a recipe, imported.

    Args:
        function: how the recipe names it.
        options: ``reward_kwargs``.
        timeout: seconds that a call may take.
        notice: gets each failure after which the function is called again.
        wait: sleeps some seconds before that.

    Raises:
        StageError: it cannot be imported, or is no function.
    """

    def __init__(
        self,
        function: RewardFunc,
        options: Mapping[str, Any] | None = None,
        timeout: float = math.inf,
        notice: Callable[[str], None] = print,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        named = FUNCTION.fullmatch(function.reference)
        assert named, function.reference  # the recipe checks it
        self.name = function.name
        self.weight = function.weight
        self._what = f"`reward_funcs: {function.reference}`"
        self._options = dict(options or {})
        self.timeout = timeout
        self._notice, self._wait = notice, wait
        module = self._import(named["module"], function.directory)
        self._function: Any = getattr(module, named["name"], None)
        if not callable(self._function):
            raise StageError(f"{self._what}: {_place(module)} has no function `{named['name']}`.")

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Parameters of the function; where it does not say them (compiled code), ``questions`` and ``responses``."""
        try:
            return inspect.signature(self._function).parameters
        except (TypeError, ValueError):
            keyword = inspect.Parameter.KEYWORD_ONLY
            return {name: inspect.Parameter(name, keyword) for name in ("questions", "responses")}

    @property
    def is_async(self) -> bool:
        """Whether it is an ``async def``, or an object that is called so."""
        function: Any = self._function
        return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)

    @property
    def keywords(self) -> Parameters:
        """Names that it may be called with."""
        parameters = self.parameters
        takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        return Parameters(frozenset(name for name, one in parameters.items() if one.kind in _BY_NAME), takes_any)

    def __call__(self, texts: Sequence[ResponseText]) -> list[float]:
        """Compute one finite number per response; NaN where the function returned None.

        Raises:
            StageError: it raised or took too long, again and again where that could pass, or gave something else; the
                text names the response.
        """
        if self.is_async:
            return self.finish(run_limited(self.attempts(texts), self.timeout), texts)
        values: list[Any] | None = None
        for seconds in (*_WAITS, None):
            arguments = self._arguments(texts)  # again each time: the function may have changed its lists
            try:
                values = self._called(arguments)
                break
            except _FAILURES as error:
                if seconds is None or isinstance(error, _MISTAKES):
                    raise self._failed(error, texts) from error
                self._note(error, seconds)
                self._wait(seconds)
        return self._checked(values, texts)

    async def attempts(self, texts: Sequence[ResponseText]) -> Any:
        """Call an ``async def`` until it returns; returns its values, or the error, for :meth:`finish`.

        Raises:
            StageError: it needs something that it cannot get.
        """
        outcome: Any = None
        for seconds in (*_WAITS, None):
            arguments = self._arguments(texts)
            try:
                return await self._awaited(arguments)
            except _FAILURES as error:
                outcome = error
                if seconds is None or isinstance(error, _MISTAKES):
                    break
                self._note(error, seconds)
                await asyncio.to_thread(self._wait, seconds)
        return outcome

    def finish(self, outcome: Any, texts: Sequence[ResponseText]) -> list[float]:
        """Check what :meth:`attempts` returned, outside of its event loop; as :meth:`__call__`."""
        if isinstance(outcome, BaseException):
            raise self._failed(outcome, texts) from outcome
        return self._checked(outcome, texts)

    # calls

    def _called(self, arguments: Mapping[str, Any]) -> Any:
        if self.is_async:
            return run_limited(self._awaited(arguments), self.timeout)
        try:
            with time_limit(self.timeout):
                values = self._function(**arguments)
                return _as_list(asyncio.run(values) if inspect.iscoroutine(values) else values)  # a decorated `async`
        except asyncio.CancelledError as error:
            raise RuntimeError(_CANCELLED) from error

    async def _awaited(self, arguments: Mapping[str, Any]) -> Any:
        limit = asyncio.timeout(None if math.isinf(self.timeout) else self.timeout)
        try:
            async with limit:
                with interruptible():
                    return _as_list(await self._function(**arguments))
        except TimeoutError as error:
            if limit.expired():
                raise TimeLimitError(self.timeout) from error
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task and task.cancelling():  # the call itself: its event loop is closed
                raise
            raise RuntimeError(_CANCELLED) from error

    def _note(self, error: BaseException, seconds: float) -> None:
        traceback.print_exception(error)  # into the log: where in the function it was
        self._notice(f"{self._what} {self._described(error)}; calling again in {seconds:g} s")

    def _arguments(self, texts: Sequence[ResponseText]) -> dict[str, Any]:
        """Return the keywords that the function asks for.

        Raises:
            StageError: it takes no responses, or needs something that there is not.
        """
        parameters, keywords = self.parameters, self.keywords
        named, takes_all = keywords.names, keywords.takes_any
        if not takes_all and not parameters.keys() & {"completions", "responses"}:
            raise StageError(f"{self._what} takes neither `completions` nor `responses`.")
        columns = {name: [text.columns[name] for text in texts] for name in texts[0].columns}
        as_texts = "responses" in parameters and "completions" not in parameters
        given: dict[str, Any] = {
            **{name: [text.question for text in texts] for name in PROMPT_COLUMNS if name in parameters},
            **columns,
            **self._options,
            "questions": [text.question for text in texts],
            "responses": [text.text for text in texts],
            "prompts": [text.question if as_texts else _prompt(text) for text in texts],
            "completions": [_completion(text) for text in texts],
            "completion_ids": [[*text.ids] for text in texts],
        }
        needed = {
            name
            for name, one in parameters.items()
            if one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
        }
        if lacking := sorted(needed - (given.keys() & named)):
            there = (
                ", ".join(f"`{name}`" for name in sorted(given.keys() - REWARD_ARGUMENTS - {*PROMPT_COLUMNS}))
                or "nothing"
            )
            raise StageError(
                f"{self._what} needs `{lacking[0]}`, which is neither a column of the data nor in `reward_kwargs`, "
                f"which have {there}."
            )
        return given if takes_all else {name: value for name, value in given.items() if name in named}

    # results

    def _checked(self, values: list[Any] | None, texts: Sequence[ResponseText]) -> list[float]:
        if values is None:
            raise StageError(f"{self._what} must return a list of numbers, one per response.")
        if len(values) != len(texts):
            missing = "" if len(values) > len(texts) else f" Without one: {_shown(texts, len(values))}."
            raise StageError(f"{self._what} returned {len(values)} numbers for {len(texts)} responses.{missing}")
        return [self._number(value, texts, index) for index, value in enumerate(values)]

    def _number(self, value: Any, texts: Sequence[ResponseText], index: int) -> float:
        if value is None:
            return math.nan
        try:
            number = math.nan if isinstance(value, str | bytes) else float(value)
        except Exception:  # noqa: BLE001 - `float` of an unknown object may raise anything
            number = math.nan
        if not abs(number) <= _LARGEST:
            kind = _line(repr(value)) if isinstance(value, int | float | str) else f"a {type(value).__name__}"
            raise StageError(f"{self._what} returned {kind}, not a finite number, for {_shown(texts, index)}.")
        return number

    def _failed(self, error: BaseException, texts: Sequence[ResponseText]) -> StageError:
        """Return the error with the first response that raises one by itself."""
        traceback.print_exception(error)
        several = f"{len(texts)} responses together"
        if isinstance(error, TimeLimitError):  # one by one they might take as long again
            return StageError(f"{self._what} {self._described(error)}, for {several}; the first is {_shown(texts, 0)}.")
        for index in range(len(texts)):
            try:
                self._called(self._arguments(texts[index : index + 1]))
            except _FAILURES as alone:
                return StageError(f"{self._what} {self._described(alone)}, for {_shown(texts, index)}.")
        several = f"{several}, and for none alone; the first is {_shown(texts, 0)}"
        return StageError(f"{self._what} {self._described(error)}, for {several}.")

    def _described(self, error: BaseException) -> str:
        if isinstance(error, TimeLimitError):
            return f"took longer than `reward_timeout: {self.timeout:g}` s"
        message = _line(error)
        return f"raised {type(error).__name__}: {message}" if message else f"raised {type(error).__name__}"

    def _import(self, name: str, directory: str | None) -> Any:
        try:
            with _first_on_path(directory):
                module = importlib.import_module(name)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            raise StageError(f"{self._what}: importing `{name}` {self._described(error)}; see the log.") from error
        if directory and not Path(_place(module)).is_relative_to(directory):
            raise StageError(
                f"{self._what}: `{name}` is already imported from {_place(module)}; rename the one in {directory}."
            )
        return module


def score_all(functions: Sequence[RewardFunction], texts: Sequence[ResponseText]) -> dict[str, list[float]]:
    """Call functions on the same responses, the ``async`` ones together; name → one number per response.

    Raises:
        StageError: as :meth:`RewardFunction.__call__`, of the first that fails.
    """
    together = [function for function in functions if function.is_async]

    async def outcomes() -> list[Any]:
        return await asyncio.gather(*(function.attempts(texts) for function in together))

    values = {function.name: function(texts) for function in functions if not function.is_async}
    longest = max((function.timeout for function in together), default=math.inf)
    for function, outcome in zip(together, run_limited(outcomes(), longest) if together else (), strict=True):
        values[function.name] = function.finish(outcome, texts)
    return {function.name: values[function.name] for function in functions}


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


def _prompt(text: ResponseText) -> Any:
    return text.question if text.messages is None else [dict(message) for message in text.messages]


def _completion(text: ResponseText) -> Any:
    return text.text if text.messages is None else [{"role": "assistant", "content": text.text}]


def _as_list(values: Any) -> list[Any] | None:
    """Convert what was returned into a list; None for what has no order or is one number."""
    dimensions = getattr(values, "ndim", 1)
    if isinstance(values, str | bytes | Mapping | Set) or not hasattr(values, "__iter__") or dimensions == 0:
        return None
    if dimensions == 2 and values.shape[1] == 1:  # a model's logits, as they come
        values = values.reshape(-1)
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _place(module: Any) -> str:
    """Return where a module lies."""
    file = getattr(module, "__file__", None)
    return str(file) if file else f"`{module.__name__}`"


def _shown(texts: Sequence[ResponseText], index: int) -> str:
    return f"response {index} ({_line(texts[index].text)!r})"


def _line(what: object) -> str:
    """Print a value on one line, without control characters, and shortened."""
    plain = "".join(letter if letter.isprintable() else " " for letter in str(what)[: 8 * _MOST_SHOWN])
    words = " ".join(plain.split())
    return words if len(words) <= _MOST_SHOWN else f"{words[: _MOST_SHOWN - 1]}…"
