"""Search for the known files in another trainer's directory, with a sentence for each thing that is left out.

==========================  ===========================================================================
``trainer_state.json``      transformers (and what is built on it), here, in the newest ``checkpoint-*``
                            or in ``last-checkpoint``
``trainer_log.jsonl``       LLaMA-Factory; else ``logging.jsonl`` of ms-swift or ``wandb-history.jsonl``
``events.out.tfevents.*``   TensorBoard's scalars, in here and in folders below
``trainer.log``, ``*.log``  the log; see `logs.newest_log`
==========================  ===========================================================================

Links are followed, as TensorBoard does, where people compose runs of links; a folder or an event file that two paths
lead to counts once, so a circle of links ends. Only regular files are opened. A log is shown as it is, so a link to one
is not followed: it might lead to any text of this user's.
"""

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from msgspec import Struct, field

from ..sanitise import one_line
from .logs import LOG_NAMES, newest_log
from .regular_file import is_lfs_pointer

MOST_EVENT_FILES = 200
MOST_ENTRIES = 20_000
"""Entries that are examined in one search, in all folders together."""
DEPTH = 8
"""Folders below the directory."""
LOOKED_FOR = (
    "trainer_state.json (also in checkpoint-* and last-checkpoint), trainer_log.jsonl, logging.jsonl, "
    f"wandb-history.jsonl and events.out.tfevents.* (also in folders, {DEPTH} deep)"
)

_EVENTS = "events.out.tfevents."
_STATE = "trainer_state.json"
_LOGS = ("trainer_log.jsonl", "logging.jsonl", "wandb-history.jsonl")
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,15})|last-checkpoint")
_START = re.compile(r"[A-Z][a-z]{2}\d\d_\d\d-\d\d-\d\d_.+")
"""Folder that transformers makes at each start, as in ``Nov24_10-11-12_host``."""
_NAMED = 3  # links, say, that are named before the rest is counted


class EventPath(Struct, frozen=True):
    """An event file; ``identity`` is its device and inode, ``changed`` its time of change in ns."""

    path: Path
    identity: tuple[int, int]
    changed: int


class Files(Struct):
    """Result of one search."""

    state: Path | None = None
    log: Path | None = None
    text_log: Path | None = None
    events: list[EventPath] = field(default_factory=list[EventPath])
    """Newest first."""
    notes: list[str] = field(default_factory=list[str])
    """Sentences on what was left out, without a full stop; sanitised."""
    holders: dict[Path, int] = field(default_factory=dict[Path, int])
    """Folders that hold a known file → the last change of one in ns; of folders below, whatever kind it is."""


def find_files(folder: Path) -> Files:
    """Search a directory.

    Raises:
        OSError: it cannot be read.
    """
    search = _Search(folder)
    search.walk()
    events = sorted(search.events, key=lambda event: (event.changed, event.path.name), reverse=True)
    newest = [event for event in events[:MOST_EVENT_FILES] if search.is_content(event.path)]
    if left := len(events) - MOST_EVENT_FILES:
        search.left_out("event files", left, f"of {len(events)} event files the {MOST_EVENT_FILES} newest are read")
    states = [path for path in _states(folder, search.names) if search.is_content(path)]
    logs = [folder / name for name in _LOGS if name in search.names]
    text_log = newest_log(folder)
    if not text_log and search.linked_logs:
        search.left_out("logs", 1, f"logs that are links are not read: {_some(search.linked_logs)}")
    return Files(
        state=max(states, key=lambda path: path.stat().st_mtime_ns, default=None),
        log=next((path for path in logs if path.is_file() and search.is_content(path)), None),
        text_log=text_log if text_log and search.is_content(text_log) else None,
        events=newest,
        notes=search.notes(),
        holders=search.holders,
    )


def event_age(path: Path) -> tuple[str, Path]:
    """Return a key that sorts event files by start: ``events.out.tfevents.<Unix seconds>.<host>…``."""
    seconds = path.name.removeprefix(_EVENTS).partition(".")[0]
    return (seconds.zfill(20) if seconds.isdigit() else "0", path)


def group_of(folder: Path, holders: Collection[Path]) -> Path:
    """Return the folder whose run wrote event files: their own, as TensorBoard has it, unless a trainer was restarted.

    transformers writes the events of each start into a new folder of ``OUTPUT_DIR/runs``. Folders below ``runs`` are
    taken for its starts where its other files stand beside ``runs``, or where each of them is named as it names them.

    Args:
        folder: of event files; relative, as all paths here.
        holders: folders that hold a known file.
    """
    runs = next((path for path in (folder, *folder.parents) if path.name == "runs"), None)
    if runs is None:
        return folder
    names = {holder.relative_to(runs).parts[0] for holder in holders if runs in holder.parents}
    is_restarted = runs.parent in holders or all(map(_START.fullmatch, names))
    return runs.parent if is_restarted else folder


class _Search:
    """One search: folders level by level, those changed last first, and what was left out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: set[str] = set()
        """Entries of the directory itself."""
        self.events: list[EventPath] = []
        self.linked_logs: list[str] = []
        self.holders: dict[Path, int] = {}
        self._left = MOST_ENTRIES
        self._visited: set[tuple[int, int]] = set()
        self._dangling: list[str] = []
        self._closed: list[str] = []
        self._pointers: list[str] = []
        self._limits: dict[str, str] = {}

    def walk(self) -> None:
        level = [self.folder]
        for depth in range(DEPTH + 1):
            below = [folder for here in level for folder in self._enter(here)]
            level = [path for _, path in sorted(below, reverse=True)]
            if depth == DEPTH and level:
                self.left_out("depth", len(level), f"folders more than {DEPTH} deep are not searched")

    def left_out(self, kind: str, count: int, text: str) -> None:
        if count > 0:
            self._limits[kind] = text

    def is_content(self, path: Path) -> bool:
        """Return whether a file is what its name says; False for a pointer that Git LFS left in its place."""
        if not is_lfs_pointer(path):
            return True
        self._pointers.append(self._relative(path))
        return False

    def notes(self) -> list[str]:
        notes = list(self._limits.values())
        if self._pointers:
            notes.append(f"Git LFS pointers instead of contents (`git lfs pull` fetches them): {_some(self._pointers)}")
        if self._dangling:
            notes.append(f"links that lead to nothing: {_some(self._dangling)}")
        if self._closed:
            notes.append(f"folders that may not be read: {_some(self._closed)}")
        return notes

    def _enter(self, here: Path) -> list[tuple[int, Path]]:
        """Examine one folder; return the folders in it with the time of their last change."""
        below: list[tuple[int, Path]] = []
        try:
            if not self._is_new(here.stat()):
                return []
            with os.scandir(here) as entries:
                for entry in entries:
                    if self._left <= 0:
                        self.left_out("entries", 1, f"the search ended after {MOST_ENTRIES} files and folders")
                        break
                    self._left -= 1
                    self._examine(here, entry, below)
        except OSError:
            if here == self.folder:
                raise
            self._closed.append(self._relative(here))
        return below

    def _examine(self, here: Path, entry: "os.DirEntry[str]", below: list[tuple[int, Path]]) -> None:
        if here == self.folder:
            self.names.add(entry.name)
            if entry.name.endswith(LOG_NAMES) and entry.is_symlink():
                self.linked_logs.append(one_line(entry.name))
        path = here / entry.name
        try:
            if entry.name.startswith(_EVENTS) and entry.is_file():
                status = entry.stat()
                if self._is_new(status):
                    self.events.append(EventPath(path, (status.st_dev, status.st_ino), status.st_mtime_ns))
                    self._hold(here, status)
            elif self._examine_known(here, entry):
                pass
            elif entry.is_dir():
                below.append((entry.stat().st_mtime_ns, path))
            elif entry.is_symlink() and not path.exists():
                self._dangling.append(f"{self._relative(path)} → {one_line(str(path.readlink()))}")
        except OSError:  # deleted meanwhile, or a link to itself
            if entry.is_symlink():
                self._dangling.append(self._relative(path))

    def _examine_known(self, here: Path, entry: "os.DirEntry[str]") -> bool:
        """Note a state or log, here or in a checkpoint; return whether it is one, or a checkpoint."""
        state = here / entry.name / _STATE
        is_checkpoint = _CHECKPOINT.fullmatch(entry.name) is not None
        if is_checkpoint and state.is_file():
            self._hold(here, state.stat())
        elif entry.name in (*_LOGS, _STATE):
            self._hold(here, entry.stat())
        return is_checkpoint or entry.name in (*_LOGS, _STATE)

    def _hold(self, folder: Path, status: os.stat_result) -> None:
        self.holders[folder] = max(self.holders.get(folder, 0), status.st_mtime_ns)

    def _is_new(self, status: os.stat_result) -> bool:
        identity = (status.st_dev, status.st_ino)
        if identity in self._visited:
            return False
        self._visited.add(identity)
        return True

    def _relative(self, path: Path) -> str:
        return one_line(str(path.relative_to(self.folder)))


def _states(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return each ``trainer_state.json`` that may be the run's: the directory's own, those of its last checkpoints."""
    numbered = [(int(match[1]), name) for name in names if (match := _CHECKPOINT.fullmatch(name)) and match[1]]
    holders = [
        folder,
        folder / "last-checkpoint",
        *(folder / name for _, name in [max(numbered, default=(0, ""))] if name),
    ]
    paths = [holder / _STATE for holder in holders]
    return [path for path in paths if path.is_file()]


def _some(names: list[str]) -> str:
    names = sorted(names)
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
