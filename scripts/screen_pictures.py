"""Every screen of the console at 80 × 24 and 160 × 45, as SVG, made by the application itself.

    python scripts/screen_pictures.py               # writes docs/images/screens and docs/images/gpus-*.svg, in minutes
    python scripts/screen_pictures.py --only chat --only gpus --out FOLDER

Neither a GPU nor a network is needed, and nothing is trained: `picture_home` invents runs, a stand-in for NVML invents
GPUs, and clock and host are invented too, so that a picture changes where its screen does. The pictures of GPUs say so
in their titles. `screenshots.py` makes the few pictures of a run that trains.
"""

import argparse
import asyncio
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from msgspec import Struct

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from picture_home import HOST, POLICY, REWARD, Clock, PictureHome, make_model  # noqa: E402 - found by the line above
from tests.launch.fake_nvml import GIB, FakeNvml  # noqa: E402

SIZES = {"": (80, 24), "-wide": (160, 45)}
"""End of the name → columns and rows."""
PLACE = Path("/tmp/stackllama")  # noqa: S108 - the pictures name it
FOREIGN = PLACE / "outputs" / "llama-factory-sft"
RUN = "ppo-kl-0.1"
"""The run that seems to be running."""
MACHINE = "CPU 41 %  RAM 96.2 GiB of 1.0 TiB"
PID = 41823
INSTALLED = "/opt/stackllama"
_IDS = re.compile(r"terminal-\d+")
_CLIPPED = re.compile(r' clip-path="url\(#terminal-line-\d+\)"')
_CLIPS = re.compile(r'<clipPath id="terminal-line-\d+">.*?</clipPath>\s*', re.DOTALL)
_PATIENCE = 60.0


class Shot(Struct, frozen=True, kw_only=True):
    """One screen.

    Attributes:
        about: its title.
        opens: what is opened from the list of runs: a method of the application and its arguments.
        ready: stands there before the keys are pressed.
        keys: pressed one after the other; ``'text'`` is typed.
        text: stands there at the end.
        gpus: how many there are.
        empty: without runs.
        sizes: ends of the names of its sizes.
    """

    about: str
    opens: tuple[Any, ...] = ()
    ready: str = ""
    keys: tuple[str, ...] = ()
    text: str = ""
    gpus: int = 1
    empty: bool = False
    sizes: tuple[str, ...] = tuple(SIZES)


def _monitor(run: str) -> tuple[str, str]:
    return "open_run", run


SHOTS: dict[str, Shot] = {
    "runs-empty": Shot(about="Runs: an empty home", gpus=0, empty=True, text="No runs here yet"),
    "runs": Shot(about="Runs", text="no sign for 3 days"),
    "runs-filter": Shot(
        about="Runs: filtered, two selected",
        keys=("slash", "'stage:ppo reward>1'", "enter", "space", "space"),
        text="2 selected",
    ),
    "columns": Shot(about="Runs: choose columns", keys=("C",), text="trend"),
    "delete": Shot(about="Runs: delete", keys=("G", "k", "D"), text="on disk"),
    "open": Shot(about="Runs: open another trainer's run", keys=("o", f"'{PLACE}/ou'", "tab"), text="outputs/"),
    "palette": Shot(about="Command palette", keys=("colon",), text="runs.launch"),
    "help": Shot(about="Help: the keys of the runs list", keys=("question_mark",), text="runs.launch"),
    "launch": Shot(about="Launch: the demo, without a GPU", gpus=0, opens=("open_demo",), text="ready"),
    "launch-models": Shot(
        about="Launch: choose a model", opens=("open_launch", RUN), ready="this run", keys=("m",), text="esc cancels"
    ),
    "launch-confirm": Shot(
        about="Launch: the plan, before anything starts",
        gpus=0,
        opens=("open_demo",),
        ready="ready",
        keys=("enter",),
        text="enter  launch",
    ),
    "launch-1": Shot(about="Launch: the memory budget on one GPU", opens=("open_launch", RUN), text="this run"),
    "launch-8": Shot(
        about="Launch: the memory budget on eight GPUs", gpus=8, opens=("open_launch", RUN), text="this run"
    ),
    "launch-budget": Shot(
        about="Launch: the memory budget alone",
        gpus=1,
        opens=("open_launch", RUN),
        ready="this run",
        keys=("b",),
        text="fits",
    ),
    "monitor": Shot(about="Monitor: a running PPO run", opens=_monitor(RUN), text="step 210: 128"),
    "monitor-finished": Shot(about="Monitor: a finished SFT run", opens=_monitor("math-sft"), text="finished"),
    "monitor-failed": Shot(about="Monitor: a failed run", opens=_monitor("sft-7b-lr3"), text="OutOfMemoryError"),
    "monitor-foreign": Shot(
        about="Monitor: another trainer's run", opens=("open_foreign", FOREIGN), text="step 350/500"
    ),
    "pipeline": Shot(about="Monitor: a finished pipeline", opens=_monitor("math"), text="wall time"),
    "chart": Shot(about="Monitor: one chart", opens=_monitor(RUN), ready="step 210: 128", keys=("1",), text="reward"),
    "log": Shot(about="Monitor: the log", opens=_monitor(RUN), ready="step 210: 128", keys=("5",), text="step 209"),
    "metrics": Shot(
        about="Monitor: the metrics", opens=_monitor(RUN), ready="step 210: 128", keys=("6",), text="entropy"
    ),
    "metrics-text": Shot(
        about="Monitor: all metrics as text", opens=_monitor(RUN), ready="step 210: 128", keys=("d",), text="first"
    ),
    "samples": Shot(about="Samples", opens=("samples", "math-ppo"), text="git bisect"),
    "compare": Shot(about="Compare: charts", opens=("open_comparison", ["math-ppo", RUN]), text="compare  2 runs"),
    "compare-recipe": Shot(
        about="Compare: recipes",
        opens=("open_comparison", ["math-ppo", RUN]),
        ready="compare  2 runs",
        keys=("2",),
        text="kl_coef",
        sizes=("",),
    ),
    "compare-metrics": Shot(
        about="Compare: metrics",
        opens=("open_comparison", ["math-ppo", RUN]),
        ready="compare  2 runs",
        keys=("3",),
        text="entropy",
        sizes=("",),
    ),
    "chat": Shot(
        about="Chat: before and after training",
        opens=("chat", "math-ppo"),
        ready="on cpu",
        keys=("'What helps to find the commit that broke a test?'", "enter"),
        text="git bisect",
    ),
    "gpus-1-monitor": Shot(about="Monitor: one GPU", opens=_monitor(RUN), text="GPU 0"),
    "gpus-8-monitor": Shot(about="Monitor: eight GPUs", gpus=8, opens=_monitor(RUN), text="GPU"),
    "gpus-1": Shot(about="One GPU", keys=("u",), text="run or program"),
    "gpus-8": Shot(about="Eight GPUs", gpus=8, keys=("u",), text="run or program"),
    "gpus-16": Shot(about="Sixteen GPUs", gpus=16, keys=("u",), text="16 × NVIDIA"),
}
"""Name → what is on it; at each size a file."""


def invented(count: int) -> FakeNvml:
    """Return GPUs of one kind; the third is hot, the sixth had memory errors."""

    def memory(index: int) -> Any:
        total, used = int(139.8 * GIB), (60 + index * 4 % 50) * GIB
        return SimpleNamespace(total=total, used=used, free=total - used)

    answers: dict[str, Callable[..., Any]] = {
        "nvmlDeviceGetName": lambda _: "NVIDIA H200",
        "nvmlDeviceGetUtilizationRates": lambda index: SimpleNamespace(gpu=97 - index * 7 % 60),
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetComputeRunningProcesses": lambda _: [
            SimpleNamespace(pid=os.getpid(), usedGpuMemory=int(41.2 * GIB))
        ],
        "nvmlDeviceGetPowerUsage": lambda index: 650_000 - 21_000 * index,
        "nvmlDeviceGetEnforcedPowerLimit": lambda _: 700_000,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda index: {0: 0x4, 2: 0x20}.get(index, 0),
        "nvmlDeviceGetTotalEccErrors": lambda index, *_: 3 if index == 5 else 0,
    }
    fake = FakeNvml(count)
    for name, answer in answers.items():
        setattr(fake, name, answer)
    return fake


def stand_in(gpus: int) -> None:
    """Replace what is measured of this machine."""
    from stackllama_console.readers import budget_inputs, generator, gpu_processes, machine
    from stackllama_console.tui import watched
    from stackllama_console.tui.screens import chat as chat_screen
    from stackllama_console.tui.screens import gpus as gpus_screen
    from stackllama_engine.contract.process_id import identify
    from stackllama_engine.launch import gpus as launch_gpus
    from stackllama_engine.launch import nvml
    from stackllama_engine.launch.argv import Command

    here = identify(os.getpid())
    ram = (
        SimpleNamespace(total=1024 * GIB, available=928 * GIB)
        if gpus
        else SimpleNamespace(total=32 * GIB, available=24 * GIB)
    )
    shown = MACHINE if gpus else "CPU 88 %  RAM 8.1 GiB of 32.0 GiB"
    chat = [sys.executable, str(ROOT / "scripts" / "picture_home.py")]

    in_full = Command.in_shell

    def in_shell(command: Command) -> str:
        return in_full(command).replace(sys.executable, f"{INSTALLED}/.venv/bin/python").replace(str(ROOT), INSTALLED)

    answers: list[tuple[Any, str, Any]] = [
        (Command, "in_shell", in_shell),
        (nvml, "pynvml", invented(gpus)),
        (machine, "run_processes", lambda _: [here]),
        (gpu_processes, "marked_run", lambda _: Path(RUN)),
        (watched, "describe", lambda _: shown),
        (gpus_screen, "describe", lambda _: shown),
        (chat_screen, "randbelow", lambda _: 577672),
        (budget_inputs, "main_memory", lambda: ram),
        (launch_gpus, "pynvml", invented(gpus)),
        (generator, "chat_command", lambda *_, **__: (chat, dict(os.environ))),
    ]
    for module, attribute, value in answers:
        setattr(module, attribute, value)


@contextmanager
def place(clock: Clock, gpus: int, *, empty: bool) -> Iterator[Path]:
    """Yield a home in `PLACE`, which is made and removed; nothing of this user's is read or written."""
    PLACE.mkdir(mode=0o700)  # another's is not touched
    made: list[int] = []
    try:
        os.environ |= {f"XDG_{kind}_HOME": str(PLACE / kind.lower()) for kind in ("STATE", "CONFIG", "CACHE", "DATA")}
        cache = PLACE / "huggingface"
        os.environ |= {"HOME": str(PLACE / "you"), "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
        home = PictureHome(PLACE / "home", clock, gpus)
        if not empty:
            home.fill(FOREIGN)
            for name, kind in ((POLICY, "LlamaForCausalLM"), (REWARD, "LlamaForSequenceClassification")):
                make_model(cache / "hub", name, kind)
        made = home.locks
        yield home.home.path
    finally:
        for lock in made:
            os.close(lock)
        shutil.rmtree(PLACE)


class Camera:
    """Takes the pictures of one home."""

    def __init__(self, home: Path, out: Path) -> None:
        from stackllama_engine.contract.run_dir import Home

        self.home = Home(home)
        self.out = out

    async def take(self, name: str, shot: Shot, end: str) -> None:
        """Take one picture."""
        from stackllama_console.settings import Settings, save_settings
        from stackllama_console.tui.app import ConsoleApp, Options

        for kept in ("config", "state"):  # what the picture before has left
            shutil.rmtree(PLACE / kept, ignore_errors=True)
        if not shot.empty:
            save_settings(Settings(foreign_runs=[str(FOREIGN)]))
        app: Any = ConsoleApp(Options(home=self.home))
        async with app.run_test(size=SIZES[end]) as pilot:

            def shown() -> str:
                strips = app.screen._compositor.render_strips()
                return "\n".join("".join(segment.text for segment in strip) for strip in strips)

            async def until(text: str) -> None:
                deadline = time.monotonic() + _PATIENCE
                while text not in shown():
                    if time.monotonic() > deadline:
                        raise SystemExit(f"{name}{end}: {text!r} never came; on the screen:\n{shown()}")
                    await pilot.pause(0.05)

            await until("H200" if shot.gpus else "no GPU;")
            await until("No runs here yet" if shot.empty else "no sign for 3 days")
            self._open(app, *shot.opens)
            await until(shot.ready)
            for key in shot.keys:
                if key.startswith("'"):
                    app.focused.insert_text_at_cursor(key.strip("'"))
                else:
                    await pilot.press(key)
                await pilot.pause(0.2)
            await until(shot.text)
            await pilot.pause(0.8)
            simulated = f" (simulated GPU{'s' * (shot.gpus > 1)})" if shot.gpus else ""
            svg = app.export_screenshot(title=shot.about + simulated)
        folder = self.out if name.startswith("gpus-") else self.out / "screens"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}{end}.svg").write_text(_tidy(svg))

    def _open(self, app: Any, method: str = "", *arguments: Any) -> None:
        """Open what a shot names; samples and chat are opened with a run."""
        if method in ("samples", "chat"):
            getattr(app, f"open_{method}")(self.home.run(arguments[0]))
        elif method:
            getattr(app, method)(*arguments)


def _tidy(svg: str) -> str:
    """Return a picture without what differs from one making to the next, and half as large."""
    space = "&#160;"
    svg = svg.replace(f"{os.getpid():>8}".replace(" ", space), f"{PID:>8}".replace(" ", space))
    svg = _CLIPS.sub("", _CLIPPED.sub("", _IDS.sub("terminal", svg)))
    return (
        "\n".join(line.strip() for line in svg.replace(space, "\N{NO-BREAK SPACE}").splitlines() if line.strip()) + "\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", metavar="FOLDER")
    parser.add_argument("--only", action="append", choices=SHOTS, metavar="NAME", help="one picture (repeatable)")
    options = parser.parse_args(arguments)
    clock = Clock()
    clock.install()
    socket.gethostname = lambda: HOST
    chosen = {name: shot for name, shot in SHOTS.items() if not options.only or name in options.only}
    for gpus, empty in dict.fromkeys((shot.gpus, shot.empty) for shot in chosen.values()):
        with place(clock, gpus, empty=empty) as home:
            stand_in(gpus)
            camera = Camera(home, options.out)
            for name, shot in chosen.items():
                for end in shot.sizes if (shot.gpus, shot.empty) == (gpus, empty) else ():
                    asyncio.run(camera.take(name, shot, end))
    return 0


if __name__ == "__main__":
    sys.exit(main())
