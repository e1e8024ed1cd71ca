"""The application: options, themes, keys and which screen comes first. Everything else is in screens and widgets."""

import asyncio
import importlib
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events
from textual._compositor import CompositorUpdate
from textual.app import SystemCommand
from textual.binding import Binding, BindingType
from textual.command import Provider
from textual.screen import Screen

from stackllama_engine.contract.atomic_files import make_private_dir, write_whole
from stackllama_engine.contract.errors import ExitCode
from stackllama_engine.contract.run_dir import RunDir

from ..early_exit import leave_at_once
from ..paths import copy_file, keymap_file, screenshots_dir
from ..sanitise import one_line, sanitise
from ..settings import load_settings
from .base_app import BaseApp, Options
from .driver import GuardedDriver
from .frames import Frames
from .no_color import Colourless
from .themes import DEFAULT, load_themes

if TYPE_CHECKING:
    from ..readers.endings import Ending, Endings
    from ..readers.machine import Machine
_ENDINGS_SECONDS = 2.0
_KEYMAP_LINES = 6  # of one notice: several would take each other's place
_SETTLED_SECONDS = 0.5
_SCREENS = ("monitor", "help", "launch", "pick", "samples", "text", "compare", "choose", "gpus", "chat")
"""What keys open, the most wanted first."""


def _palette() -> type[Provider]:
    from .palette import CommandsInOrder

    return CommandsInOrder


def _import_screens() -> None:
    for name in _SCREENS:
        importlib.import_module(f"{__package__}.screens.{name}")


class ConsoleApp(BaseApp):
    """``stackllama-console``."""

    TITLE = "stackllama-console"
    CSS_PATH = "console.tcss"
    ENABLE_COMMAND_PALETTE = True
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {_palette}
    COMMAND_PALETTE_BINDING = "ctrl+p"
    NOTIFICATION_TIMEOUT = 6
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "help", "help", id="app.help", key_display="?"),
        Binding("colon", "command_palette", "commands", id="app.palette", key_display=":", show=False),
        Binding("q", "quit", "quit", id="app.quit"),
        Binding("T", "next_theme", "next theme", id="app.theme", show=False),
        Binding("P", "save_screen", "save screenshot as SVG", id="app.screenshot", show=False),
        Binding("ctrl+q", "quit", "quit", id="app.quit_always", show=False),
        Binding("ctrl+c", "say_quit", "quit", id="app.interrupt", show=False),
    ]

    def __init__(self, options: Options) -> None:
        GuardedDriver.ascii_only = options.ascii
        super().__init__(driver_class=None if os.environ.get("TEXTUAL_DRIVER") else GuardedDriver)
        if self.no_color:
            self._filters = [Colourless()]
        self.options = options
        self.settings, self._error = load_settings()
        self.animation_level = "none"
        self.crash: Exception | None = None
        self.left_with: int | None = None
        """The exit code that a signal or a hang-up asked for; None: nothing did."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._frames = Frames()
        self._machine: Machine | None = None
        """Read by the view of the GPUs; kept, because it keeps NVML open."""
        self._endings: Endings | None = None
        """None until they are looked for: what had ended by then is old."""
        self._announcing = False
        self._prepared = False
        self._load_themes()

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Define colours that our style sheet uses and Textual's own themes do not name."""
        names = ("primary", "warning", "success", "error", "secondary", "accent")
        return {f"curve-{index}": f"${name}" for index, name in enumerate(names, start=1)}

    def on_load(self) -> None:
        """Keep the event loop, before the terminal is touched: from here on :meth:`leave_soon` works."""
        self._loop = asyncio.get_running_loop()

    def on_mount(self) -> None:
        """Push the first screen."""
        self._load_keymap()
        self.push_screen(self._first_screen())
        self.set_interval(_ENDINGS_SECONDS, self._begin_announcing)
        if self._error:
            self.notify(one_line(self._error), severity="warning", markup=False)

    def _first_screen(self) -> Screen[Any]:
        from .screens.runs import RunsScreen

        if isinstance(self.options.target, str):
            self.call_after_refresh(self.open_run, self.options.target)
        elif self.options.target is not None:
            self.call_after_refresh(self.open_foreign, self.options.target)
        return RunsScreen(self.home)

    def prepare_screens(self) -> None:
        """Import what keys open, once the first screen shows what it has read: no key waits for it then."""
        if not self._prepared:
            self._prepared = True
            self.run_worker(self._prepare_screens(), group="prepare")

    async def _prepare_screens(self) -> None:
        await asyncio.sleep(_SETTLED_SECONDS)  # what was read first is painted meanwhile
        await asyncio.to_thread(_import_screens)

    # where one can go

    def open_run(self, run_id: str) -> None:
        """Open the monitor of a run of this home."""
        from .screens.monitor import MonitorScreen

        self.push_screen(MonitorScreen.of_run(self.home, run_id))

    def open_foreign(self, path: Path) -> None:
        """Open the monitor of another trainer's directory; ask which run where there are several in it."""
        from .foreign_opening import open_directory

        self.run_worker(open_directory(self, path))

    def open_launch(self, run_id: str | None = None, changes: Mapping[str, str] | None = None, *, at: str = "") -> None:
        """Open the form, filled from a run's recipe where a run is named, with changes to it or at one of its keys."""
        from .screens.launch import LaunchScreen

        self.push_screen(LaunchScreen(self.home, self.settings, clone=run_id, changes=changes, at=at))

    def open_demo(self) -> None:
        """Open the launch form, filled from the demo's recipe."""
        from ..readers.draft import read_demo
        from .screens.launch import LaunchScreen

        self.push_screen(LaunchScreen(self.home, self.settings, read=read_demo))

    def open_samples(self, run: RunDir) -> None:
        """Open the browser of a run's samples."""
        from .screens.samples import SamplesScreen

        self.push_screen(SamplesScreen(run))

    def open_chat(self, run: RunDir) -> None:
        """Open a chat with what a run trained."""
        from .screens.chat import ChatScreen

        self.push_screen(ChatScreen(run))

    def open_comparison(self, run_ids: Sequence[str]) -> None:
        """Open the comparison of two or more runs."""
        from .screens.compare import CompareScreen

        self.push_screen(CompareScreen(self.home, list(run_ids)))

    def open_gpus(self, run: RunDir | None = None) -> None:
        """Open the view of this machine's GPUs; with a run, its memory is told from that of others."""
        from ..readers.machine import Machine
        from .screens.gpus import GpusScreen

        self._machine = self._machine or Machine(self.home.path)
        self.push_screen(GpusScreen(self._machine, run.path if run else None))

    async def on_event(self, event: events.Event) -> None:
        """Sanitise pasted text: it is foreign and enters here."""
        if isinstance(event, events.Paste) and not event.is_forwarded:
            event = events.Paste(sanitise(event.text))
        await super().on_event(event)

    def _begin_announcing(self) -> None:
        if self.settings.announce:
            self.run_worker(self._announce(), group="endings")

    async def _announce(self) -> None:
        """Announce the runs that have ended or stalled, whichever screen is shown."""
        if self._announcing:  # the disk is slow
            return
        self._announcing = True
        try:
            endings = await asyncio.to_thread(self._poll_endings)
        finally:
            self._announcing = False
        for ending in endings if self.settings.announce else ():
            if isinstance(self._driver, GuardedDriver):
                self._driver.announce(f"run {ending}")

    def _poll_endings(self) -> "list[Ending]":
        from ..readers.endings import Endings

        endings = self._endings = self._endings or Endings(self.home)
        return endings.poll()

    def _switch_announcing(self) -> None:
        """Turn the announcing of ends on or off, and remember it."""
        self.settings.announce = not self.settings.announce
        self._endings = None
        self.remember()

    # actions

    def action_help(self) -> None:
        """Show the keys that work here."""
        from .screens.help import HelpScreen

        self.push_screen(HelpScreen.of(self.screen))

    def action_say_quit(self) -> None:
        """Say how to quit: Ctrl-C copies elsewhere and ends nothing here."""
        self.notify("Press q to quit; runs continue without the console.", markup=False)

    def action_next_theme(self) -> None:
        """Apply and persist the next theme."""
        names = self._own_themes
        position = names.index(self.theme) + 1 if self.theme in names else 0
        self.choose_theme(names[position % len(names)])
        self.notify(f"theme: {self.theme}", markup=False, timeout=2)

    def choose_theme(self, name: str) -> None:
        """Apply and persist a theme."""
        self.theme = name
        self.settings.theme = name
        self.remember()

    def action_save_screen(self) -> None:
        """Save the screen as SVG, in the state directory."""
        try:
            screenshots_dir().mkdir(parents=True, exist_ok=True, mode=0o700)
            path = self.save_screenshot(path=str(screenshots_dir()))
        except OSError as error:
            self.notify(one_line(f"screenshot not saved: {error}"), severity="error", markup=False)
        else:
            self.notify(one_line(path), title="screenshot saved", markup=False)

    def copy_to_clipboard(self, text: str) -> None:
        """Copy to the terminal's clipboard where it allows that, and always to a file."""
        self._clipboard = text
        if isinstance(self._driver, GuardedDriver):
            self._driver.copy(text)
        try:
            if not copy_file().parent.is_dir():
                make_private_dir(copy_file().parent)
            write_whole(copy_file(), text.encode() + b"\n")
        except OSError as error:
            self.notify(one_line(f"{copy_file()}: {error.strerror}"), severity="error", markup=False)
        else:
            self.notify(one_line(f"copied; also saved to {copy_file()}"), markup=False, timeout=4)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Yield the palette's entries: every action of the screen, of its widgets, of the application, the themes."""
        from .screens.help import actions_of, key_names

        for binding, node in actions_of(screen):
            hint = f"{binding.id}  key: {key_names(node, binding)}"
            yield SystemCommand(binding.description, hint, lambda b=binding, n=node: self._act(b.action, n))
        switch = "off" if self.settings.announce else "on"
        hint = "bell and desktop notification; remembered"
        yield SystemCommand(f"announce ends of runs: turn {switch}", hint, self._switch_announcing)
        for name in self._own_themes:
            yield SystemCommand(f"theme: {name}", "apply and remember", lambda n=name: self.choose_theme(n))

    def _act(self, action: str, node: Any) -> None:
        self.run_worker(self.run_action(action, node), exclusive=False)

    def _display(self, screen: Screen[Any], renderable: Any) -> None:
        """Display as Textual does, with less for the terminal to read; see `frames`."""
        if isinstance(renderable, CompositorUpdate):
            renderable = self._frames.tightened(renderable, self.size)
        super()._display(screen, renderable)  # pyright: ignore[reportUnknownMemberType]

    @contextmanager
    def suspend(self) -> Generator[None]:
        """Lend the terminal to another program; afterwards everything is drawn again."""
        with super().suspend():
            yield
        self._frames.forget()

    # the end

    def leave_soon(self, code: int) -> None:
        """End with an exit code; safe to call from a signal handler or a thread."""
        self.left_with = code
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lambda: self.exit(return_code=code))

    def _fatal_error(self) -> None:
        """Keep an unexpected error for the command line; Textual would print locals, tokens among them."""
        self._keep_crash()
        self._close_messages_no_wait()

    def panic(self, *renderables: Any) -> None:
        """End as :meth:`_fatal_error` does: what Textual would have printed may hold locals."""
        self._keep_crash()
        self._return_code = 1
        self._close_messages_no_wait()

    def _keep_crash(self) -> None:
        import sys

        error = sys.exc_info()[1] or self._exception
        if self.crash is None:
            self.crash = error if isinstance(error, Exception) else RuntimeError("the console stopped unexpectedly")

    # beginnings

    def _load_themes(self) -> None:
        themes, self._theme_notices = load_themes()
        for theme in themes:
            self.register_theme(theme)
        self._own_themes = [theme.name for theme in themes]
        candidates = (self.settings.theme, DEFAULT, "textual-dark")
        self.theme = next(name for name in candidates if name in self.available_themes)
        self.call_later(self._say_theme_notices)

    def _say_theme_notices(self) -> None:
        for notice in self._theme_notices:
            self.notify(notice, severity="warning", markup=False)

    def _load_keymap(self) -> None:
        if not keymap_file().is_file():
            return
        from .keymap import clashes, read_keymap
        from .screens import scopes

        scope_list = scopes.all_scopes(self.BINDINGS)
        keymap, notices = read_keymap(keymap_file(), sorted({name for scope in scope_list for name in scope.ids}))
        self.set_keymap(keymap)
        if wrong := [*notices, *clashes(scope_list, keymap)]:
            more = [f"… and {len(wrong) - _KEYMAP_LINES} more"] if len(wrong) > _KEYMAP_LINES else []
            text = "\n".join([*wrong[:_KEYMAP_LINES], *more])
            self.notify(text, title="keymap", severity="warning", markup=False, timeout=15)


def run_console(options: Options) -> tuple[int, Exception | None]:
    """Show the console until it is left.

    Returns:
        exit code, and the error where it crashed.
    """
    app = ConsoleApp(options)
    try:
        app.run(mouse=options.mouse)
    except Exception as error:  # noqa: BLE001 - whatever a mounting raises, Textual passes on
        app.crash = app.crash or error
    leave_at_once()  # the terminal is as it was
    if app.left_with is not None:  # a screen that was left while it was still being made fails, and nobody misses it
        return app.left_with, None
    if app.crash is not None:
        return app.return_code or ExitCode.FAILED, app.crash
    return app.return_code or 0, None
