"""Another trainer's directory, read without writing to it: the known files in it, merged into one run.

`foreign_files` lists those files and what is left out. Nothing is written, nothing unpickled. Where several files hold
a metric, the one at the highest step is shown. The directory's own event files and those of a trainer's starts (see
`foreign_files.group_of`) are one run that was restarted; metrics of other folders have the folder's name as a prefix.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.history import History
from stackllama_engine.contract.user_dirs import expanded

from ..sanitise import one_line
from .eta import Eta, estimate
from .foreign_files import LOOKED_FOR, Files, event_age, find_files, group_of
from .foreign_sources import EventsSource, LogSource, StateSource
from .series import Series

SEARCH_SECONDS = 5.0
"""Between two searches for new files."""
QUIET_SECONDS = 600.0
"""A directory in which nothing was written for so long is silent."""

_MOST_WATCHED = 1000  # event files that are followed at once, those that come during the watch included


def open_foreign(path: Path) -> "ForeignReader":
    """Attach to a directory, read-only; ``path`` may be a file in it.

    Raises:
        UsageError: it holds no known file; the message lists those.
    """
    path = expanded(path).absolute()
    folder = path.parent if path.is_file() else path
    if not folder.is_dir():
        raise UsageError(f"{path}: no such directory.")
    reader = ForeignReader(folder)
    reader.find()
    if not reader.sources:
        ours = " It looks like a run of this console: open it by its run id." if (folder / "attempts").is_dir() else ""
        why = f"{reader.error} " if reader.error else "".join(f"{note}. " for note in reader.notes)
        raise UsageError(f"{folder}: nothing to follow. {why}Looked for {LOOKED_FOR}.{ours}")
    return reader


class ForeignReader:
    """Reader of another trainer's directory. Implements `Reader`.

    Attributes:
        path: the directory.
        title: its name.
        stage: always None: not known.
        history: step, totals, first and newest values; a copy that `poll` replaces.
        series: metric name → series over steps.
        memory: bytes, where the trainer writes them.
        phase: ``finished`` at the last step or where the trainer says so, ``running`` while files change, ``silent``
            when none has changed for long, ``unknown`` where nothing says.
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
        self._files = Files()
        self._unreadable: str | None = None
        self._changed_at = 0.0

    @property
    def sources(self) -> list[str]:
        """The files that are read, relative to the directory; sanitised."""
        files = [source.path for source in (self._state, self._log) if source]
        files += [path for events in self._events.values() for path in list(events.files)]
        return [one_line(str(path.relative_to(self.path))) for path in files]

    @property
    def began(self) -> float | None:
        """When its first event file was begun, by that file's name, in Unix seconds; None where none says."""
        ages = [event_age(path)[0] for events in list(self._events.values()) for path in list(events.files)]
        return min((seconds for age in ages if (seconds := float(age)) > 0), default=None)

    @property
    def bad_lines(self) -> int:
        """Number of lines of ``trainer_log.jsonl`` and records of event files that could not be read."""
        log = self._log.bad_lines if self._log else 0
        return log + sum(events.bad_records for events in list(self._events.values()))

    @property
    def error(self) -> str | None:
        """The reason, in a sentence, why something cannot be read now; None when all can."""
        errors = [self._unreadable, self._state.error if self._state else None]
        errors += [events.error for events in list(self._events.values())]
        return next((f"{text}." for text in errors if text), None)

    @property
    def notes(self) -> list[str]:
        """Sentences on what is in the directory and not shown, without a full stop; sanitised."""
        notes = [*self._files.notes]
        sources = [source for source in (self._state, self._log) if source]
        notes += [note for source in sources for note in source.notes]
        notes += [note for events in list(self._events.values()) for note in events.notes]
        return list(dict.fromkeys(notes))

    def poll(self) -> bool:
        """Read what is new; return whether anything changed."""
        now = self._clock()
        before = self.error, self.phase, self.bad_lines, self.notes
        changed = now >= self._search_at and self.find()
        changed |= self._poll_files()
        if changed:
            self._merge()
        self.phase = self._find_phase(now)
        self.history.phase = self.phase if self.phase in ("running", "finished") else None
        return changed or before != (self.error, self.phase, self.bad_lines, self.notes)

    def eta(self, now: float) -> Eta | None:
        """Estimate the time left from the trainer's own times; None unless it is running."""
        if self.phase != "running":
            return None
        paces = [self._log.pace] if self._log else []
        paces += [events.pace for events in list(self._events.values())]
        for pace in paces:
            if len(points := pace.points.copy()) > 1:
                return estimate(points, self.history.total_steps, now)
        return None

    def find(self) -> bool:
        """Search the directory for files; return whether any is new."""
        self._search_at = self._clock() + SEARCH_SECONDS
        before = self.sources, self.log_file
        try:
            self._find()
            self._unreadable = None
        except OSError as error:
            self._unreadable = one_line(f"{self.path} cannot be read: {error.strerror or error}")
        return before != (self.sources, self.log_file)

    def _find(self) -> None:
        files = self._files = find_files(self.path)
        if files.state is not None and self._state is None:
            self._state = StateSource(files.state)
        elif files.state is not None and self._state is not None and self._state.path != files.state:
            self._state.turn_to(files.state)
        if self._log is None and files.log is not None:
            self._log = LogSource(files.log)
        followed = {path for events in self._events.values() for path in events.files}
        holders = {holder.relative_to(self.path) for holder in files.holders}
        for event in files.events:
            if event.path in followed or event.identity in self._identities:
                continue
            if len(followed) >= _MOST_WATCHED:
                files.notes.append(f"event files beyond the first {_MOST_WATCHED} are not read: open it again")
                break
            followed.add(event.path)
            self._identities.add(event.identity)
            group = group_of(event.path.parent.relative_to(self.path), holders)
            self._events.setdefault("/".join(group.parts), EventsSource()).add(event.path)
        self.log_file = files.text_log
        self._changed_at = max(self._changed_at, self._newest_change())

    def _poll_files(self) -> bool:
        changed = False
        for source in (self._state, self._log, *self._events.values()):
            try:
                changed |= source.poll() if source else False
            except OSError as error:
                self._unreadable = one_line(f"{self.path} cannot be read: {error.strerror or error}")
        return changed

    def _merge(self) -> None:
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
        times = [0.0]
        for path in files:
            try:
                times.append(path.stat().st_mtime)
            except OSError:
                continue  # deleted since: it does not say what was written last
        return max(times)

    def _find_phase(self, now: float) -> str:
        history = self.history
        ended = bool(history.total_steps) and history.step >= (history.total_steps or 0)
        if ended or (self._state is not None and self._state.done and self._state.step >= history.step):
            return "finished"
        if not self._changed_at:
            return "unknown"
        return "running" if now - self._changed_at < QUIET_SECONDS else "silent"


def _farthest(several: Iterable[dict[str, Series]]) -> dict[str, Series]:
    """Merge series by name: keep the one at the highest step, the first one where they are equal."""
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
    """Return the newest value; None where that is a gap."""
    last, gap = series.steps[-1:], series.gaps[-1:]
    return None if gap and (not last or gap[0] > last[0]) else series.last
