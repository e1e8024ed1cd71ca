"""Screens under keys: run directories by hand, one screen in the application, what stands on it as text."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from stackllama_console.tui.app import ConsoleApp, Options
from stackllama_console.tui.screen import ConsoleScreen
from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.recipe_io import dump_recipe, load_recipe
from stackllama_engine.contract.run_dir import Home, Launch, RunDir, State
from stackllama_engine.contract.stages import Stage

FORBIDDEN = {chr(code) for code in [*range(32), *range(127, 160)]} | set(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)

OVERRIDES = {
    Stage.SFT: ["model_name_or_path=demo", "dataset_name=demo"],
    Stage.REWARD: ["model_name_or_path=demo", "dataset_name=demo"],
    Stage.PREFERENCE: ["model_name_or_path=demo", "dataset_name=demo"],
    Stage.PPO: ["model_name_or_path=demo", "dataset_name=demo", "reward_model_path=demo"],
    Stage.MERGE: ["adapter_path=demo"],
    Stage.PIPELINE: ["model_name_or_path=demo", "dataset_name=demo"],
}


def isolate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Use no settings, keymap or runs but the test's own."""
    for variable, name in (("XDG_STATE_HOME", "state"), ("XDG_CONFIG_HOME", "config"), ("STACKLLAMA_HOME", "home")):
        monkeypatch.setenv(variable, str(tmp_path / name))
    return Home(tmp_path / "home")


def make_run(home: Home, stage: Stage, name: str, *overrides: str, phase: str = "finished", **launch: Any) -> RunDir:
    """Make a run of one attempt; alive in name only: nobody holds its lock unless the test does."""
    run = home.create(stage, dump_recipe(load_recipe(stage, None, [*OVERRIDES[stage], *overrides])), name)
    run.attempt_dir(1).mkdir(mode=0o700)
    ended = {"ended": 1_700_000_070.0} if phase in ("finished", "failed", "stopped", "lost") else {}
    state = State(stage=stage, phase=phase, attempt=1, created=1_700_000_000.0, started=1_700_000_010.0, **ended)  # type: ignore[arg-type]
    run.write_state(state)
    run.write_launch(Launch(argv=[], cwd="/", host="h", created=1_700_000_000.0, **launch))
    return run


def write_metrics(run: RunDir, metrics: dict[str, list[float]], attempt: int = 1) -> None:
    """Write one metrics event per step, from step 1 on."""
    writer = EventWriter(run.attempt_dir(attempt) / "events.jsonl")
    for index in range(max(map(len, metrics.values()))):
        values = {name: column[index] for name, column in metrics.items() if index < len(column)}
        writer.write("metrics", step=index + 1, metrics=values)
    writer.close()


def add_samples(run: RunDir, *rows: dict[str, Any]) -> None:
    """Append rows to ``samples.jsonl``."""
    with run.samples_file.open("ab") as file:
        file.writelines(msgspec.json.encode(row) + b"\n" for row in rows)


def drive(
    home: Home,
    make: Callable[[], ConsoleScreen],
    script: Callable[["Driven"], Awaitable[None]],
    size: tuple[int, int] = (80, 24),
    **options: Any,
) -> ConsoleApp:
    """Run the application with one screen over its first one and let a script press keys."""

    async def main() -> ConsoleApp:
        app = ConsoleApp(Options(home=home, **options))
        async with app.run_test(size=size) as pilot:
            screen = make()
            await app.push_screen(screen)
            await script(Driven(app, screen, pilot))
        assert app.crash is None
        return app

    return asyncio.run(main())


class Driven:
    """A running application with a screen in front."""

    def __init__(self, app: ConsoleApp, screen: ConsoleScreen, pilot: Pilot[None]) -> None:
        self.app = app
        self.screen: Any = screen
        self.pilot = pilot

    @property
    def text(self) -> str:
        """The text on the terminal, line by line."""
        return "\n".join(self.lines)

    @property
    def lines(self) -> list[str]:
        """The rendered strips as text."""
        strips = self.app.screen._compositor.render_strips()
        return ["".join(segment.text for segment in strip) for strip in strips]

    @property
    def notices(self) -> str:
        """Notices, line by line; they are not drawn here."""
        return "\n".join(notice.message for notice in self.app._notifications)

    async def press(self, *keys: str) -> None:
        """Press keys and let what they began come to rest."""
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def until(self, condition: Callable[[], Any], seconds: float = 20.0) -> None:
        """Wait for what a thread reads."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"never came true; on the screen:\n{self.text}"
            await self.pilot.pause(0.02)
        await self.pilot.pause()

    async def shows(self, *texts: str) -> None:
        """Wait until all of these stand on the screen."""
        await self.until(lambda: all(text in self.text for text in texts))

    async def type(self, text: str) -> None:
        """Put a text into the line that has the focus, as pasting would."""
        assert isinstance(self.app.focused, Input)
        self.app.focused.value = text
        await self.pilot.pause()

    def assert_clean(self) -> None:
        """Assert that no rendered strip holds anything a terminal would obey, and every segment has a style."""
        for strip in self.app.screen._compositor.render_strips():
            for segment in strip:
                found = FORBIDDEN & set(segment.text)
                assert not found, f"{sorted(map(ascii, found))} in {segment.text!r}"
                assert segment.style is not None
