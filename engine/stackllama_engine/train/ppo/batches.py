"""Rows of like length together, so that little of a batch is padding."""

from collections.abc import Callable, Iterable, Iterator


def longest_first(places: Iterable[int], length: Callable[[int], int], size: int) -> Iterator[list[int]]:
    """At most ``size`` places at a time; of equally long ones those that came first.

    Args:
        places: of rows.
        length: tokens of the row at a place.
        size: of a batch.
    """
    order = sorted(places, key=lambda place: -length(place))
    for start in range(0, len(order), size):
        yield order[start : start + size]
