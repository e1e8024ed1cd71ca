"""The command palette's entries in the application's own order: the screen's actions first."""

from textual.command import DiscoveryHit, Hits
from textual.system_commands import SystemCommandsProvider


class CommandsInOrder(SystemCommandsProvider):
    """Textual's provider, which would sort the entries by their titles before anything is typed."""

    async def discover(self) -> Hits:
        """Yield every entry."""
        for title, hint, callback, _ in self.app.get_system_commands(self.screen):  # pyright: ignore[reportUnknownMemberType]
            yield DiscoveryHit(title, callback, help=hint)
