"""The application as its screens see it: options, settings, and the screens that can be opened.

Screens and actions import this module only; `app` imports every screen and fills in how each is opened.
"""

from abc import ABCMeta, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct
from textual.app import App
from textual.message_pump import _MessagePumpMeta  # pyright: ignore[reportPrivateUsage]

from stackllama_engine.contract.run_dir import Home, RunDir

from ..sanitise import one_line
from ..settings import Settings, save_settings


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

    @property
    def home(self) -> Home:
        """The directory that runs live in."""
        return self.options.home

    def remember(self) -> None:
        """Write the settings to disk; a failure is a notice."""
        if error := save_settings(self.settings):
            self.notify(one_line(error), severity="warning", markup=False)

    @abstractmethod
    def open_run(self, run_id: str) -> None:
        """Open the monitor of a run of this home."""

    @abstractmethod
    def open_foreign(self, path: Path) -> None:
        """Open the monitor of another trainer's directory."""

    @abstractmethod
    def open_launch(self, run_id: str | None = None) -> None:
        """Open the launch form, filled from a run's recipe where a run is named."""

    @abstractmethod
    def open_samples(self, run: RunDir) -> None:
        """Open the browser of a run's samples."""

    @abstractmethod
    def open_chat(self, run: RunDir) -> None:
        """Open a chat with what a run trained."""

    @abstractmethod
    def open_comparison(self, run_ids: Sequence[str]) -> None:
        """Open the comparison of two or more runs."""
