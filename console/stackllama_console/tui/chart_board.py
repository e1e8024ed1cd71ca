"""Which charts are on a page: those that match what was searched for, pinned ones on every page."""

import re
from collections.abc import Mapping, Sequence

COLUMN, ROW = 40, 12
"""Cells and lines of a chart below which no third column or row is begun."""


class Board:
    """Pages of charts, by title.

    Attributes:
        pinned: titles that stay in sight; shared with the settings.
        pattern: what titles or names of metrics must match; None: all are shown.
        page: from 0.
        pages: how many there are.
    """

    def __init__(self, pinned: list[str]) -> None:
        self.pinned = pinned
        self.pattern: re.Pattern[str] | None = None
        self.page = 0
        self.pages = 1
        self._titles: list[str] = []

    def arrange(self, charts: Mapping[str, str], room: int) -> list[str]:
        """Return the titles on this page, of which there is room for so many.

        Args:
            charts: title → names of its metrics.
            room: at least 1; pinned charts leave at least one place to the others.
        """
        self._titles = [title for title, names in charts.items() if self.matches(title, names)]
        pinned, others = self._parted(room)
        places = room - len(pinned)
        self.pages = max(1, -(-len(others) // places))
        self.page = min(self.page, self.pages - 1)
        return [*pinned, *others[self.page * places :][:places]]

    def matches(self, title: str, names: str) -> bool:
        """Return whether a chart is among those searched for."""
        return self.pattern is None or any(self.pattern.search(text) for text in (title, *names.split()))

    def turn(self, pages: int) -> None:
        """Turn to a later or an earlier page, round at the ends."""
        self.page = (self.page + pages) % self.pages

    def show(self, title: str, room: int) -> None:
        """Turn to the page that a chart is on."""
        pinned, others = self._parted(room)
        if title in others:
            self.page = others.index(title) // (room - len(pinned))

    def pin(self, title: str) -> bool:
        """Pin a chart, or no longer; return whether it is pinned now."""
        if title in self.pinned:
            self.pinned.remove(title)
            return False
        self.pinned.append(title)
        return True

    def _parted(self, room: int) -> tuple[list[str], list[str]]:
        """Return the titles that are on every page, and the rest in order, those pinned without a place first."""
        pinned = [title for title in self.pinned if title in self._titles]
        fixed = pinned[: room - 1]
        rest: Sequence[str] = [title for title in self._titles if title not in pinned]
        return fixed, [*pinned[len(fixed) :], *rest]


def shape(width: int, height: int, least: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    """Return (columns, rows) of charts in an area: ``least``, or three where there is room."""
    columns, rows = least
    return 3 if width >= 3 * COLUMN else columns, 3 if height >= 3 * ROW else rows


def compiled(text: str) -> re.Pattern[str] | None:
    """Return a person's regular expression, upper and lower case alike; None where it is none."""
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error:
        return None
