"""All runs: states, steps, last metrics; the hub from which everything else is reached."""

from typing import Any

from stackllama_engine.contract.run_dir import Home

from ..screen import ConsoleScreen


class RunsScreen(ConsoleScreen):
    """The first screen."""

    HEADING = "runs"

    def __init__(self, home: Home) -> None:
        super().__init__()
        self.home = home

    def look(self) -> Any:
        """Nothing yet."""
        return None
