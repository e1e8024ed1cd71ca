"""How much of a model's weights is read, from transformers' own progress bars."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import transformers

from .reporting import Reporter

_WEIGHTS = "Loading weights"  # transformers' words
_SECONDS = 1.0  # between two reports


def report_weights(reporter: Reporter) -> None:
    """Report from now on how much of a model is read whenever one is loaded."""
    if not reporter.is_main:
        return

    def make_bar(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if options.get("desc") == _WEIGHTS and len(args) == 1:
            return reported(reporter, args[0])
        return factory(*args, **options)

    transformers.utils.logging.set_tqdm_hook(make_bar)


def reported(reporter: Reporter, items: Iterable[Any], clock: Callable[[], float] = time.monotonic) -> Iterator[Any]:
    """Yield the items, and report the share that is done once a second."""
    rows = list(items)
    before = clock()
    reporter.activity("reading weights", 0.0)
    for number, item in enumerate(rows):
        yield item
        if (now := clock()) - before >= _SECONDS:
            before = now
            reporter.activity("reading weights", round((number + 1) / len(rows), 2))
    reporter.activity("preparing the model")
