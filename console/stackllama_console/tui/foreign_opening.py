"""Opening another trainer's directory: which run of it is asked where there are several."""

import asyncio
from pathlib import Path

from stackllama_engine.contract.errors import UsageError

from ..readers.foreign_runs import runs_in
from ..units import span
from .base_app import BaseApp
from .clock import now


async def open_directory(app: BaseApp, path: Path) -> None:
    """Open the monitor of the run in a directory, or of the one that is chosen; what is wrong stands on the monitor."""
    from .screens.choose import ChooseScreen
    from .screens.monitor import MonitorScreen

    try:
        runs = await asyncio.to_thread(runs_in, path)
    except UsageError:
        app.push_screen(MonitorScreen.of_directory(path))
        return
    paths = {run.name: run.path for run in runs}

    def chosen(name: str | None) -> None:
        if name is not None:
            app.settings.remember_foreign(paths[name])
            app.remember()
            app.push_screen(MonitorScreen.of_directory(paths[name]))

    if len(runs) == 1:
        chosen(runs[0].name)
        return
    choices = [(run.name, f"written {span(max(0.0, now() - run.changed))} ago") for run in runs]
    app.push_screen(ChooseScreen(f"{len(runs)} runs in {path.name or path}: open which?", choices), chosen)
