"""The application itself under keys, from its first screen on."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.tui.screens_kit import Driven
from textual.widgets import Input

from stackllama_console.tui.app import ConsoleApp, Options
from stackllama_engine.contract.run_dir import Home

Script = Callable[["Shown"], Awaitable[None]]


class Shown(Driven):
    """As `Driven`, but the screen is whichever is in front."""

    @property
    def front(self) -> Any:
        """The screen in front."""
        return self.app.screen

    @property
    def name(self) -> str:
        """The class name of the screen in front."""
        return type(self.app.screen).__name__

    @property
    def said(self) -> list[str]:
        """Notices that are still shown."""
        return [notice.message for notice in self.app._notifications]

    async def notified(self, *parts: str) -> None:
        """Wait for a notice with these parts."""
        await self.until(lambda: any(all(part in text for part in parts) for text in self.said))

    async def reaches(self, name: str) -> None:
        """Wait for a screen."""
        await self.until(lambda: self.name == name)
        await self.pilot.pause()

    async def fill(self, text: str) -> None:
        """Put a text into the line that has the focus and let it be seen."""
        await self.until(lambda: isinstance(self.app.focused, Input))
        await self.type(text)


def run_app(
    home: Home, script: Script, size: tuple[int, int] = (80, 24), target: str | Path | None = None, **options: Any
) -> ConsoleApp:
    """Run the application on a home, let a script press keys, and see that it did not crash."""

    async def main() -> ConsoleApp:
        app = ConsoleApp(Options(home=home, target=target, **options))
        async with app.run_test(size=size) as pilot:
            await script(Shown(app, app.screen, pilot))  # type: ignore[arg-type]
        assert app.crash is None
        return app

    return asyncio.run(main())
