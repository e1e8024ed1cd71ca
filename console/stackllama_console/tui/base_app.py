"""The application as its screens see it: options, settings, and the screens that can be opened.

Screens and actions import this module only; `app` imports every screen and fills in how each is opened.
"""

import asyncio
import threading
from abc import ABCMeta, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path

from msgspec import Struct
from textual.app import App
from textual.binding import Binding
from textual.keys import format_key
from textual.message_pump import _MessagePumpMeta  # pyright: ignore[reportPrivateUsage]
from textual.notifications import Notify

from stackllama_engine.contract.run_dir import Home, RunDir

from ..sanitise import one_line
from ..settings import Settings, save_settings

_NOTICES = 3  # shown at once: more would cover the screen
_one_write = threading.Lock()


class Options(Struct, frozen=True, kw_only=True):
    """Options the console was started with.

    Attributes:
        home: where runs live.
        target: a run id to open, or a directory of another trainer.
        ascii: draw with ASCII characters alone.
        mouse: enable mouse support; off, the terminal selects text as usual.
    """

    home: Home
    target: str | Path | None = None
    ascii: bool = False
    mouse: bool = False


class _AbstractMeta(_MessagePumpMeta, ABCMeta):
    """Textual's metaclass of applications, with abstract methods."""


class BaseApp(App[None], metaclass=_AbstractMeta):
    """Options, settings and the ways to other screens, which a subclass defines: it cannot be started without one."""

    options: Options
    settings: Settings
    launched: str | None = None
    """The run that was launched last, until the list of runs has put its cursor on it."""
    _unsaved = False
    _saving = False

    def get_key_display(self, binding: Binding) -> str:
        """Return how the key line names a key; with ASCII alone ``enter`` and ``up`` where others are symbols."""
        shown = super().get_key_display(binding)
        if not self.options.ascii or shown.isascii():
            return shown
        *_, key = binding.parse_key()
        return shown.replace(format_key(key), self.key_name(key))

    def key_name(self, key: str) -> str:
        """Return one key as a keyboard or Textual names it."""
        shown = format_key(key)
        return key if self.options.ascii and not shown.isascii() else shown

    @property
    def home(self) -> Home:
        """The directory that runs live in."""
        return self.options.home

    def remember(self) -> None:
        """Write the settings to disk in a thread; changes made during a write share the next; a failure is a notice."""
        self._unsaved = True
        if not self._saving:
            self._saving = True
            self.run_worker(self._save())

    async def _save(self) -> None:
        try:
            while self._unsaved:
                if error := await asyncio.to_thread(self._write_settings):
                    self.notify(one_line(error), severity="warning", markup=False)
        finally:
            self._saving = False

    def on_notify(self, event: Notify) -> None:
        """Forget a notice that is shown again, which takes the place of its like, and the oldest of too many."""
        new = event.notification
        shown = list(self._notifications)
        likes = [
            old for old in shown if (old.message, old.title, old.severity) == (new.message, new.title, new.severity)
        ]
        others = [old for old in shown if old not in likes]
        for old in (*likes, *others[: max(0, len(others) + 1 - _NOTICES)]):
            self._unnotify(old, refresh=False)

    def dismiss_notices(self) -> bool:
        """Take every notice away; return whether there was one."""
        shown = bool(self._notifications)
        if shown:
            self.clear_notifications()
        return shown

    def on_unmount(self) -> None:
        """Write what no worker came to write."""
        if self._unsaved:
            self._write_settings()

    def _write_settings(self) -> str | None:
        with _one_write:  # the last to begin writes the newest
            self._unsaved = False
            return save_settings(copy(self.settings))

    @abstractmethod
    def prepare_screens(self) -> None:
        """Import what keys open, once the first screen shows what it has read."""

    @abstractmethod
    def open_run(self, run_id: str) -> None:
        """Open the monitor of a run of this home."""

    @abstractmethod
    def open_foreign(self, path: Path) -> None:
        """Open the monitor of another trainer's directory; ask which run where there are several in it."""

    @abstractmethod
    def open_launch(self, run_id: str | None = None, changes: Mapping[str, str] | None = None, *, at: str = "") -> None:
        """Open the form, filled from a run's recipe where a run is named, with changes to it or at one of its keys."""

    @abstractmethod
    def open_demo(self) -> None:
        """Open the launch form, filled from the demo's recipe."""

    @abstractmethod
    def open_samples(self, run: RunDir) -> None:
        """Open the browser of a run's samples."""

    @abstractmethod
    def open_chat(self, run: RunDir) -> None:
        """Open a chat with what a run trained."""

    @abstractmethod
    def open_gpus(self, run: RunDir | None = None) -> None:
        """Open the view of this machine's GPUs; with a run, its memory is told from that of others."""

    @abstractmethod
    def open_comparison(self, run_ids: Sequence[str]) -> None:
        """Open the comparison of two or more runs."""
