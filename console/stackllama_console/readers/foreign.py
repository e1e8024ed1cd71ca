"""Another trainer's directory, watched without a trace: whatever of the known files is in it, put together.

Which files those are, and what is left out, says `foreign_files`. Nothing is written, nothing unpickled. Where several
files hold a metric, that one is shown which has gone farthest. Folders of event files below ``runs/``, and the
directory itself, are one run that was begun again; any other folders are told apart by their names in front of the
metric's.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.history import History
from stackllama_engine.contract.user_dirs import expanded

from ..sanitise import one_line
from .eta import Eta, estimate
from .foreign_files import LOOKED_FOR, Files, find_files
from .foreign_sources import EventsSource, LogSource, StateSource
from .series import Series

SEARCH_SECONDS = 5.0
"""Between two looks for new files."""
QUIET_SECONDS = 600.0
"""A directory in which nothing was written for so long is not known to be at work."""

_MOST_WATCHED = 1000  # event files that are followed at once, those that come during the watch included


def open_foreign(path: Path) -> "ForeignReader":
    """Attach to a directory, read-only. One of the files in it will do for it.

    Raises:
        UsageError: there is nothing in it that is known; says what was looked for.
    """
    path = expanded(path).absolute()
    folder = path.parent if path.is_file() else path
    if not folder.is_dir():
        raise UsageError(f"{path}: no such directory.")
    reader = ForeignReader(folder)
    reader.find()
    if not reader.sources:
        ours = " It looks like a run of ours: open it by its name." if (folder / "attempts").is_dir() else ""
        why = f"{reader.trouble} " if reader.trouble else "".join(f"{note}. " for note in reader.notes)
        raise UsageError(f"{folder}: nothing to watch. {why}Looked for {LOOKED_FOR}.{ours}")
    return reader


class ForeignReader:
    """Implements `Reader` for a directory.

    Attributes:
        path: the directory.
        title: its name.
        stage: always None: it is not ours to say.
        history: step, totals, first and newest values; a copy that `poll` replaces.
        series: metric name → series over steps.
        memory: bytes, where the trainer writes them.
        phase: ``finished`` at the last step or where the trainer says so, ``running`` while files change, else
            ``unknown``.
        log_file: the log beside them; None without one.
    """

    stage = None

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.title = one_line(path.name) or one_line(str(path))
        self.history = History()
        self.series: dict[str, Series] = {}
        self.memory: dict[str, Series] = {}
        self.phase = "unknown"
        self.log_file: Path | None = None
        self._clock = clock
        self._search_at = 0.0
        self._state: StateSource | None = None
        self._log: LogSource | None = None
        self._events: dict[str, EventsSource] = {}
        self._identities: set[tuple[int, int]] = set()  # of the event files
        self._found = Files()
        self._unreadable: str | None = None
        self._changed_at = 0.0

    @property
    def sources(self) -> list[str]:
        """What is read, relative to the directory; sanitised."""
        files = [source.path for source in (self._state, self._log) if source]
        files += [path for events in self._events.values() for path in list(events.files)]
        return [one_line(str(path.relative_to(self.path))) for path in files]

    @property
    def bad_lines(self) -> int:
        """Lines of ``trainer_log.jsonl`` and records of event files that could not be read."""
        log = self._log.bad_lines if self._log else 0
        return log + sum(events.bad_records for events in list(self._events.values()))

    @property
    def trouble(self) -> str | None:
        """What cannot be read now, in a sentence; None when all is well."""
        found = [self._unreadable, self._state.trouble if self._state else None]
        found += [events.trouble for events in list(self._events.values())]
        return next((f"{text}." for text in found if text), None)

    @property
    def notes(self) -> list[str]:
        """What is in the directory and not shown, a sentence each without a full stop; sanitised."""
        notes = [*self._found.notes]
        sources = [source for source in (self._state, self._log) if source]
        notes += [note for source in sources for note in source.notes]
        notes += [note for events in list(self._events.values()) for note in events.notes]
        return list(dict.fromkeys(notes))

    def poll(self) -> bool:
        """Read what is new; whether anything changed."""
        now = self._clock()
        before = self.trouble, self.phase, self.bad_lines, self.notes
        changed = now >= self._search_at and self.find()
        changed |= self._poll_files()
        if changed:
            self._put_together()
        self.phase = self._find_phase(now)
        self.history.phase = None if self.phase == "unknown" else self.phase
        return changed or before != (self.trouble, self.phase, self.bad_lines, self.notes)

    def eta(self, now: float) -> Eta | None:
        """Time left from what the trainer says of its own time; None unless it is at work."""
        if self.phase != "running":
            return None
        paces = [self._log.pace] if self._log else []
        paces += [events.pace for events in list(self._events.values())]
        for pace in paces:
            if len(points := pace.points.copy()) > 1:
                return estimate(points, self.history.total_steps, now)
        return None

    def find(self) -> bool:
        """Look which files there are; whether any is new."""
        self._search_at = self._clock() + SEARCH_SECONDS
        before = self.sources, self.log_file
        try:
            self._find()
            self._unreadable = None
        except OSError as error:
            self._unreadable = one_line(f"{self.path} cannot be read: {error.strerror or error}")
        return before != (self.sources, self.log_file)

    def _find(self) -> None:
        found = self._found = find_files(self.path)
        if found.state is not None and self._state is None:
            self._state = StateSource(found.state)
        elif found.state is not None and self._state is not None and self._state.path != found.state:
            self._state.turn_to(found.state)
        if self._log is None and found.log is not None:
            self._log = LogSource(found.log)
        known = {path for events in self._events.values() for path in events.files}
        for event in found.events:
            if event.path in known or event.identity in self._identities:
                continue
            if len(known) >= _MOST_WATCHED:
                found.notes.append(f"event files beyond the first {_MOST_WATCHED} are not read: open it again")
                break
            known.add(event.path)
            self._identities.add(event.identity)
            self._events.setdefault(_group(event.path.parent.relative_to(self.path)), EventsSource()).add(event.path)
        self.log_file = found.text_log
        self._changed_at = max(self._changed_at, self._newest_change())

    def _poll_files(self) -> bool:
        changed = False
        for source in (self._state, self._log, *self._events.values()):
            try:
                changed |= source.poll() if source else False
            except OSError as error:
                self._unreadable = one_line(f"{self.path} cannot be read: {error.strerror or error}")
        return changed

    def _put_together(self) -> None:
        self._changed_at = max(self._changed_at, self._newest_change())
        curves = [source.curves for source in (self._log, self._state) if source]
        merged = _farthest(curve.series for curve in curves)
        several = len(self._events) > 1
        for name, events in sorted(self._events.items()):
            prefix = f"{one_line(name)}/" if several and name else ""
            merged = _farthest([merged, {prefix + key: series for key, series in events.series.items()}])
        self.series = merged
        self.memory = self._log.memory.series if self._log else {}
        steps = [source.step for source in (self._state, self._log, *self._events.values()) if source]
        totals = [source.total_steps for source in (self._log, self._state) if source and source.total_steps]
        self.history = History(
            step=max(0, *steps) if steps else 0,
            total_steps=totals[0] if totals else None,
            first={name: series.first for name, series in merged.items()},
            last={name: _newest(series) for name, series in merged.items()},
            memory={name: _newest(series) for name, series in self.memory.items()},
            updated=self._changed_at or None,
        )

    def _newest_change(self) -> float:
        files = [source.path for source in (self._state, self._log) if source]
        files += [path for events in self._events.values() for path in events.files]
        files += [self.log_file] if self.log_file else []
        found = [0.0]
        for path in files:
            try:
                found.append(path.stat().st_mtime)
            except OSError:
                continue  # gone since: it says nothing about what was written last
        return max(found)

    def _find_phase(self, now: float) -> str:
        history = self.history
        ended = bool(history.total_steps) and history.step >= (history.total_steps or 0)
        if ended or (self._state is not None and self._state.done and self._state.step >= history.step):
            return "finished"
        return "running" if self._changed_at and now - self._changed_at < QUIET_SECONDS else "unknown"


def _farthest(several: Iterable[dict[str, Series]]) -> dict[str, Series]:
    """Of each name the series that has gone farthest, the earlier one where they are equal."""
    merged: dict[str, Series] = {}
    for curves in several:
        for name, series in curves.items():
            if name not in merged or _end(series) > _end(merged[name]):
                merged[name] = series
    return merged


def _end(series: Series) -> float:
    span = series.span
    return span[1] if span else float("-inf")


def _newest(series: Series) -> float | None:
    """The newest value; None where that is a gap."""
    last, gap = series.steps[-1:], series.gaps[-1:]
    return None if gap and (not last or gap[0] > last[0]) else series.last


def _group(folder: Path) -> str:
    """Which run a folder of event files belongs to; empty: the directory's own. See this module's beginning."""
    parts = folder.parts
    if "runs" in parts:
        parts = parts[: parts.index("runs")]
    return "/".join(parts)
