"""The search of a log's view: its text, how far it has come, and the match one is at."""

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any

from ...readers.log_levels import Level
from ...readers.log_search import MOST, LogSearch
from ...readers.logs import LogReader
from ...sanitise import one_line


class LogFinder:
    """Searches the log of a reader in a thread, text by text.

    Attributes:
        current: the place of the match that one has gone to.
    """

    def __init__(self) -> None:
        self.current: int | None = None
        self._text = ""
        self._search: LogSearch | None = None
        self._below: int | None = None
        """Where to look upwards from for the first match to go to; None once one has gone somewhere."""
        self._running = False

    def __len__(self) -> int:
        return 0 if self._search is None else len(self._search)

    @property
    def pattern(self) -> re.Pattern[str] | None:
        """What finds the text within a line; None: nothing is searched for."""
        return None if self._search is None else self._search.pattern

    @property
    def position(self) -> int | None:
        """Position of the current match, from 1 on."""
        return None if self._search is None or self.current is None else self._search.position(self.current)

    @property
    def status(self) -> str:
        """How far it has come, what it has found, and why it could not; empty without a search."""
        search, position = self._search, self.position
        if search is None:
            return ""
        if search.error:
            return search.error
        count = f"more than {MOST:,}" if search.is_full else f"{len(search):,}"
        if not search.is_done and search.share < 1:
            found = f"searching {search.share:.0%}, {count} matches"
        elif not len(search):
            found = "no match in the whole log"
        elif position and not search.is_full:
            found = f"match {position:,} of {count}"
        else:
            found = f"{count} matches"
        return f"{found}: {one_line(self._text)}"

    def begin(self, reader: LogReader | None, text: str, minimum: Level, below: int | None) -> None:
        """Search for a text, for none where it is empty; what was found before is forgotten.

        Args:
            reader: whose log is searched.
            text: without a capital in it, capitals do not matter.
            minimum: the least serious level of lines that count.
            below: the place from which on no match is gone to before those further up; None: to no match.
        """
        self._text, self._below, self.current = text, below, None
        self._search = LogSearch(reader, text, minimum) if text and reader is not None else None

    def follow(self, reader: LogReader | None, minimum: Level) -> None:
        """Search for the same text in another log, or at another level."""
        current = self.current
        self.begin(reader, self._text, minimum, None)
        self.current = current

    def is_of(self, reader: LogReader) -> bool:
        """Return whether what is searched is still the file that the reader follows."""
        return self._search is None or self._search.base == reader.base

    @property
    def is_searching(self) -> bool:
        """Whether there is something left to search."""
        return self._search is not None and not self._search.is_done

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to search and :meth:`run` is not doing so."""
        return self.is_searching and not self._running

    def run(self, progress: Callable[[], None]) -> Coroutine[Any, Any, None]:
        """Return what searches in a thread until all is searched; ``progress`` is called after each step.

        From this call on :attr:`is_waiting` is false, not only once it runs: no two threads step one search.
        """
        self._running = True
        return self._run(progress)

    async def _run(self, progress: Callable[[], None]) -> None:
        try:
            while (search := self._search) is not None and not search.is_done:
                await asyncio.to_thread(search.step)
                if search is self._search:
                    progress()
        finally:
            self._running = False

    def take_first(self) -> int | None:
        """Return the match to go to at first, once, as soon as it is known."""
        search, below = self._search, self._below
        place = search.before(below) if search is not None and below is not None else None
        if place is None or search is None or below is None or not (place < below or search.is_done):
            return None
        self._below = None
        return place

    def after(self, place: int) -> int | None:
        """Return the next match, of those found so far; after the last one the first.

        Where there is none yet, the first one is still gone to when it comes.
        """
        return self._gone_to(None if self._search is None else self._search.after(place))

    def before(self, place: int) -> int | None:
        """Return the match before, of those found so far; before the first one the last; without one as `after`."""
        return self._gone_to(None if self._search is None else self._search.before(place))

    def _gone_to(self, place: int | None) -> int | None:
        if place is not None:
            self._below = None
        return place
