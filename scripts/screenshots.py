"""The pictures of README and docs, made by the application itself while a PPO run is training.

    python scripts/screenshots.py                      # runs the demo first: some ten minutes on two quiet cores
    python scripts/screenshots.py --from HOME          # the demo was run before, in this home: some three minutes
    python scripts/screenshots.py --tiny --out FOLDER  # no demo, a few steps: shows that this script works

A home is copied, its runs get the names that are in the pictures, and nothing is written to the original. In the copy a
second PPO run with another `kl_coef` is launched and pictured while it trains; it is stopped at the end. Size, theme
and settings are always the same. Pictures go to `docs/images`.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIZE = (140, 40)
PLACE = Path("/tmp/stackllama")  # noqa: S108 - the pictures name it
DEMO = ROOT / "engine" / "stackllama_engine" / "demo_base" / "demo.yaml"
FIRST, SECOND = "demo-ppo", "demo-ppo-kl-1"
"""The PPO run that has ended, and the one that is pictured while it trains."""
REWARD = """\
import logging

logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
log = logging.getLogger("wording")
log.setLevel(logging.INFO)


def short(*, questions: list[str], responses: list[str]) -> list[float]:
    words = [len(response.split()) for response in responses]
    log.info("%d responses, %.1f words on average, %d at most", len(words), sum(words) / len(words), max(words))
    for question, response in zip(questions, responses):
        if response.count("Use ") > 1:
            log.warning("several answers to %r: %r", question, response[:60])
            break
    return [-count / 100 for count in words]
"""
"""A reward function that logs, as people's do; its weight is 0."""
LIVE = (
    "kl_coef=1",
    "reward_funcs=wording:short",
    "reward_weights=0",
    "save_minutes=1",
    "logging_steps=1",
    "max_eval_samples=64",
    "seed=1",
)
TINY = (
    *("model_name_or_path=demo", "dataset_name=demo", "use_cpu=true", "load_in_8bit=false", "dtype=float32"),
    *("per_device_train_batch_size=4", "gradient_accumulation_steps=1", "num_mini_batches=1", "response_length=8"),
    *("max_prompt_length=64", "max_eval_samples=4", "logging_steps=1", "reward_funcs=wording:short"),
)
_IDS = re.compile(r"terminal-\d+")
_PATIENCE = 60.0  # seconds until a screen has what is waited for
_TRAINING = 3600.0  # seconds until a run has got where it is pictured


class Runs:
    """A home with an ended and a running PPO run, made through the command line."""

    def __init__(self, home: Path, *, tiny: bool, step: int) -> None:
        self.home = home
        self.tiny = tiny
        self.step = 2 if tiny else step
        """The step of the second run from which on it is pictured."""

    def make(self, source: Path | None) -> None:
        """Copy the runs of the demo, or run it now; in the tiny form one short run."""
        (self.home.parent / "wording.py").write_text(REWARD)
        if source:
            copy_home(source, self.home)
        elif self.tiny:
            self.call("launch", "ppo", *TINY, "max_steps=2", "--name", FIRST, "--follow", "--plain")
        else:
            self.call("pipeline", str(DEMO), "--name", "demo", "--follow", "--plain")

    def train(self) -> None:
        """Launch the second run, and wait until it has something to be pictured."""
        recipe = str(self.home / "runs" / FIRST / "recipe.yaml")
        more = (*TINY, "max_steps=100000") if self.tiny else LIVE
        self.call("launch", "ppo", *([] if self.tiny else [recipe]), *more, "--name", SECOND)
        deadline = time.monotonic() + _TRAINING
        while (run := self.show(SECOND))["step"] < self.step:
            if run["exit_code"] is not None or time.monotonic() > deadline:
                raise SystemExit(f"{SECOND} did not get to step {self.step}: {run['state']}, {run['cause']}")
            time.sleep(0.5)

    def stop(self) -> None:
        """End the second run, if there is one."""
        if (self.home / "runs" / SECOND).exists():
            self.call("runs", "stop", SECOND, check=False)

    def show(self, run: str) -> dict[str, Any]:
        """Return what `runs show` knows of a run."""
        return json.loads(self.call("runs", "show", run, "--json"))

    def call(self, *words: str, check: bool = True) -> str:
        """One command; what it prints."""
        argv = [sys.executable, "-m", "stackllama_console", "--home", str(self.home), *words]
        return subprocess.run(argv, cwd=self.home.parent, stdout=subprocess.PIPE, text=True, check=check).stdout


class Shots:
    """One application on the home, under keys."""

    def __init__(self, home: Path, out: Path, hidden: Sequence[str]) -> None:
        self.home = home
        self.out = out
        self.hidden = hidden
        """What may be in no picture."""

    async def take(self) -> None:
        """All pictures."""
        from stackllama_console.tui.app import ConsoleApp, Options
        from stackllama_console.tui.screens.compare import CompareScreen
        from stackllama_console.tui.widgets.chart import Chart
        from stackllama_engine.contract.run_dir import Home

        home = Home(self.home)
        app = ConsoleApp(Options(home=home))
        async with app.run_test(size=SIZE) as pilot:
            self.app, self.pilot = app, pilot

            def drawn() -> int:
                return sum(bool(chart.curves and any(chart.rows)) for chart in app.screen.query(Chart))

            await self.until(lambda: FIRST in self.text())
            app.open_run(SECOND)
            await self.until(lambda: drawn() >= 3 and "wording" in self.text())
            await self.save("monitor", "Monitor: PPO on the embedded demo, training")
            await pilot.press("escape")
            app.open_launch(FIRST)
            await self.until(lambda: "fits" in self.text())
            await self.save("launch", "Launch: a changed copy of the demo's PPO, and what it will take")
            await pilot.press("escape")
            await app.push_screen(CompareScreen(home, [FIRST, SECOND]))
            # a comparison leaves out what its runs' names have in common
            await self.until(lambda: drawn() >= 1 and SECOND.removeprefix("demo-") in self.text())
            await self.save("compare", "Compare: two PPO runs")

    async def save(self, name: str, title: str) -> None:
        """One picture, without what differs from one making to the next."""
        await self.pilot.pause(1.0)
        svg = _IDS.sub("terminal", self.app.export_screenshot(title=title))
        if named := [word for word in self.hidden if word in svg]:
            raise SystemExit(f"{name}: the picture names {named}")
        (self.out / f"{name}.svg").write_text(svg)

    def text(self) -> str:
        """Read the screen, one line per row."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in strip) for strip in strips)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what a thread reads."""
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"never came; on the screen:\n{self.text()}")
            await self.pilot.pause(0.1)


def copy_home(source: Path, home: Path) -> None:
    """Copy the demo's runs under the names that are in the pictures; whatever names them or their home follows."""
    pipelines = [path.name for path in source.glob("runs/*") if (source / "runs" / f"{path.name}-ppo").is_dir()]
    if len(pipelines) != 1:
        raise SystemExit(f"{source}: one pipeline that has ended is needed; there are {len(pipelines)}")
    old = pipelines[0]
    for run in source.glob(f"runs/{old}*"):
        shutil.copytree(run, home / "runs" / run.name.replace(old, "demo", 1), symlinks=True)
    for file in home.rglob("*"):
        if file.suffix in (".json", ".yaml", ".jsonl") and file.is_file():
            text = file.read_text()
            file.write_text(text.replace(str(source.resolve()), str(home)).replace(old, "demo"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the runs, take the pictures, remove the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, metavar="HOME", help="a home in which the demo was run")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", metavar="FOLDER")
    parser.add_argument("--step", type=int, default=35, metavar="N", help="picture the run from this step of 60 on")
    parser.add_argument("--tiny", action="store_true", help="a few steps without the demo")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as own:
        place = Path(own) / "place" if options.tiny else PLACE
        place.mkdir(mode=0o700)
        runs = Runs(place / "home", tiny=options.tiny, step=options.step)
        hidden = [str(Path.home()), str(ROOT), *([str(options.source.resolve())] if options.source else [])]
        try:
            os.environ |= {f"XDG_{name}_HOME": own for name in ("STATE", "CONFIG", "CACHE", "DATA")} | {"HF_HOME": own}
            runs.make(options.source)
            runs.train()
            asyncio.run(Shots(runs.home, options.out, hidden).take())
        finally:
            runs.stop()
            os.environ.clear()
            os.environ.update(before)
            shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
