"""The base of all screens: a heading, a footer, and one worker that polls while the screen is shown."""

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any, ClassVar, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.screen import Screen
from textual.widgets import Static

from ..sanitise import one_line
from .base_app import BaseApp
from .widgets.key_line import KeyLine


class Heading(Static):
    """The first line: where one is, and what is worth knowing about this machine."""

    DEFAULT_CSS = """
    Heading {
        height: 1; dock: top; padding: 0 1; background: $panel; color: $foreground;
        text-wrap: nowrap; text-overflow: ellipsis;
    }
    """

    def __init__(self) -> None:
        super().__init__("", markup=False)
        self._shown: Text | None = None

    def show(self, text: Text) -> None:
        """Replace the text; nothing is painted where it is the same."""
        if self._shown is None or text != self._shown or text.spans != self._shown.spans:
            self._shown = text
            self.update(text)


class ConsoleScreen(Screen[Any]):
    """Base class of screens that follow files.

    Subclasses say what to read in :meth:`poll`, which runs in a thread and touches no widget, and what to do with it
    in :meth:`render_update`, which runs in the event loop and is called only with an update (not None).
    """

    HEADING: ClassVar[str] = ""
    INTERVAL: ClassVar[float] = 0.5  # seconds between polls
    ESCAPE_TO_MINIMIZE = False
    WIDGETS_WITH_KEYS: ClassVar[tuple[str, ...]] = ()
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "escape", "back", id="screen.back", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._visible = asyncio.Event()
        self._painted = asyncio.Event()
        self._stays = False

    def compose(self) -> ComposeResult:
        """Compose heading, :meth:`body` and footer."""
        yield Heading()
        yield from self.body()
        yield KeyLine()

    def body(self) -> ComposeResult:
        """Compose the screen's own widgets."""
        yield from ()

    def on_mount(self) -> None:
        """Begin to poll once the screen is painted: nothing is read before."""
        self.set_heading()
        self.console_app.theme_changed_signal.subscribe(self, lambda _: self.restyle())
        # the application comes to this only after its own mounting, before which nothing is painted
        self.console_app.call_later(self.call_after_refresh, self._painted.set)
        self.begin(self._follow(), group="follow", exclusive=True)

    def on_screen_suspend(self) -> None:
        """Stop polling while the screen is hidden: no reading, no bytes."""
        self._visible.clear()

    def on_screen_resume(self) -> None:
        """Poll again."""
        self._visible.set()

    @property
    def refusing_keys(self) -> frozenset[str]:
        """Ids of bindings that could only refuse now: neither footer nor help nor palette offers them."""
        return frozenset()

    @property
    def console_app(self) -> BaseApp:
        """The application, by our own type."""
        return cast("BaseApp", self.app)  # pyright: ignore[reportUnknownMemberType]

    def poll(self) -> Any:
        """Read what is new, in a thread; None where nothing is."""
        return None

    def render_update(self, update: Any) -> None:
        """Render what :meth:`poll` returned."""

    def restyle(self) -> None:
        """Render again whatever holds the theme's colours: another theme was chosen."""

    def begin(self, work: Coroutine[Any, Any, None], *, group: str, exclusive: bool = False) -> None:
        """Run a coroutine beside the screen; what comes back after the screen has gone changes nothing.

        Args:
            work: may wait for threads, and then change widgets.
            group: of the workers it belongs to.
            exclusive: end the others of its group.
        """
        self.run_worker(self._while_here(work), group=group, exclusive=exclusive)

    def set_heading(self, *parts: str | Text) -> None:
        """Set the heading to the screen's name and ``parts``, foreign ones as plain text."""
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(self.HEADING, style="bold")
        for part in parts:
            if part:
                text.append("  " if text else "")
                text.append(part if isinstance(part, Text) else one_line(part))
        self.query_one(Heading).show(text)

    def action_escape(self) -> None:
        """Dismiss the notices that are shown, and go back; a screen is left only when none was shown."""
        self._stays = self.console_app.dismiss_notices()
        self.action_back()
        self._stays = False

    def action_back(self) -> None:
        """Go to the previous screen; the first one stays."""
        if not self._stays and len(self.console_app.screen_stack) > 2:  # Textual's own blank screen is the first
            self.console_app.pop_screen()

    def action_gpus(self) -> None:
        """Open the view of the GPUs; bound on the screens where no letter is text."""
        self.console_app.open_gpus()

    def say(self, message: str, *, error: bool = False) -> None:
        """Show a notice that disappears by itself; plain text."""
        self.console_app.notify(one_line(message), severity="error" if error else "information", markup=False)

    async def _while_here(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except NoMatches:
            if self.is_attached and not self._pruning:
                raise
            # the widgets go before the screen's workers are ended

    async def _follow(self) -> None:
        await self._painted.wait()
        if not gc.isenabled():  # off since the start, see `cli/console.py`
            gc.freeze()
            gc.enable()
        clock = asyncio.get_running_loop().time
        while True:
            await self._visible.wait()
            started = clock()
            update = await asyncio.to_thread(self.poll)
            if update is not None and self.is_attached:
                self.render_update(update)
            self.console_app.prepare_screens()
            await asyncio.sleep(max(self.INTERVAL / 5, started + self.INTERVAL - clock()))
