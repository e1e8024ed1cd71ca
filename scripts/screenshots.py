"""The README's pictures, made by the application itself from the runs of a demo.

    python scripts/screenshots.py HOME [OUT]

HOME has the runs of `stackllama-console demo`, and a second PPO run of another `kl_coef` to compare with; it is copied
first, and nothing is written to it. OUT is `docs/images` unless it is named. Size and settings are always the same.
"""

import asyncio
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIZE = (140, 40)
PLACE = Path("/tmp/stackllama")  # noqa: S108 — what is shown names it
_IDS = re.compile(r"terminal-\d+")
_PATIENCE = 60.0


class Shots:
    """One application on a copy of the home, under keys."""

    def __init__(self, home: Path, out: Path) -> None:
        self.home = home
        self.out = out
        self.hidden: tuple[str, ...] = ()

    async def take(self, *hidden: str) -> None:
        """All pictures; none of ``hidden`` may be in them."""
        from stackllama_console.tui.app import ConsoleApp, Options
        from stackllama_engine.contract.run_dir import Home
        from stackllama_engine.contract.stages import Stage

        home = Home(self.home)
        runs = [(run.id, run.read_state()) for run in home.runs()]
        ppo = [name for name, state in runs if state.stage is Stage.PPO and state.has_ended]
        if len(ppo) < 2:
            raise SystemExit(
                f"{self.home}: two PPO runs that have ended are needed; `launch ppo RECIPE kl_coef=…` makes another"
            )
        self.hidden = (*hidden, str(Path.home()), str(ROOT))
        app = ConsoleApp(Options(home=home))
        async with app.run_test(size=SIZE) as pilot:
            self.app, self.pilot = app, pilot
            await self.until(lambda: bool(getattr(app.screen, "_shown", None)))
            app.open_run(ppo[0])
            await self.until(lambda: "response length" in self.text() or "entropy" in self.text())
            await self.save("monitor", "Monitor: PPO on the embedded demo")
            await pilot.press("escape")
            app.open_launch(ppo[0])
            await self.until(lambda: "fits" in self.text() and "cloned" in self.text())
            await self.save("launch", "Launch: a changed copy of the demo's PPO, and what it will take")
            await pilot.press("escape")
            from stackllama_console.tui.screens.compare import CompareScreen

            await app.push_screen(CompareScreen(home, ppo[-2:]))
            await self.until(lambda: "objective/scores" in self.text())
            await self.save("compare", "Compare: two PPO runs")

    async def save(self, name: str, title: str) -> None:
        """One picture, without what differs from one making to the next."""
        await self.pilot.pause(1.0)
        svg = _IDS.sub("terminal", self.app.export_screenshot(title=title))
        if named := [word for word in self.hidden if word in svg]:
            raise SystemExit(f"{name}: the picture names {named}")
        (self.out / f"{name}.svg").write_text(svg)

    def text(self) -> str:
        """What stands on the screen."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in strip) for strip in strips)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what a thread reads."""
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"never came; on the screen:\n{self.text()}")
            await self.pilot.pause(0.1)


def move(home: Path, source: Path) -> None:
    """Let the copy name itself where it named the home it was made from."""
    for file in home.rglob("*"):
        if file.suffix in (".json", ".yaml") and file.is_file() and str(source) in (text := file.read_text()):
            file.write_text(text.replace(str(source), str(home)))


def main(arguments: list[str]) -> None:
    """Copy the home, take the pictures, remove the copy."""
    if not 1 <= len(arguments) <= 2:
        raise SystemExit(__doc__)
    source, out = Path(arguments[0]), Path(arguments[1] if len(arguments) == 2 else ROOT / "docs" / "images")
    out.mkdir(parents=True, exist_ok=True)
    PLACE.mkdir()
    try:
        with tempfile.TemporaryDirectory() as own:
            os.environ |= {f"XDG_{name}_HOME": own for name in ("STATE", "CONFIG", "CACHE", "DATA")}
            os.environ |= {"HF_HOME": own, "STACKLLAMA_HOME": str(PLACE / "home")}
            shutil.copytree(source, PLACE / "home")
            move(PLACE / "home", source.resolve())
            asyncio.run(Shots(PLACE / "home", out).take(str(source.resolve())))
    finally:
        shutil.rmtree(PLACE)


if __name__ == "__main__":
    main(sys.argv[1:])
