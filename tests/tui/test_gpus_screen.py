"""The GPUs on the console: their screen, and their place on the monitor, with 1, 2, 8 and 16 of them."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.launch.conftest import gpus
from tests.launch.fake_nvml import FakeNvml
from tests.tui.app_kit import Shown, run_app
from tests.tui.screens_kit import isolate, make_run, write_metrics

from stackllama_console.tui import watched as watched_module
from stackllama_console.tui.widgets.gpu_panel import GpuList, GpuPanel
from stackllama_console.tui.widgets.text_lines import TextLines
from stackllama_engine.contract.run_dir import Home, Launch
from stackllama_engine.contract.stages import Stage

__all__ = ["gpus"]


@pytest.fixture
def alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """Yield a home with a run that is running on this machine, whose GPUs are read at every poll."""
    home = isolate(tmp_path, monkeypatch)
    monkeypatch.setattr(watched_module, "_MACHINE_SECONDS", 0.0)
    run = make_run(home, Stage.PPO, "alive", phase="running")
    run.write_launch(Launch(argv=[], cwd="/", host=socket.gethostname(), created=1_700_000_000.0))
    write_metrics(run, {"objective/scores": [1.0, 2.0], "objective/kl": [0.5, 0.6]})
    lock = run.acquire_lock()
    yield home
    os.close(lock)


def _block(shown: Shown) -> list[str]:
    return shown.front.query_one(GpuPanel).plain.splitlines()


@pytest.mark.parametrize(("count", "lines", "begins"), [(2, 4, "GPU 0"), (16, 2, "16 GPUs")])
def test_gpus_have_a_place_on_the_monitor(alive: Home, gpus: FakeNvml, count: int, lines: int, begins: str) -> None:
    gpus.count = count

    async def script(shown: Shown) -> None:
        await shown.reaches("MonitorScreen")
        await shown.until(lambda: _block(shown))
        assert len(_block(shown)) == lines and _block(shown)[0].startswith(begins)
        assert "GPU" not in shown.front.query_one("#state", TextLines).plain
        assert shown.front.query_one(GpuPanel).region.height == lines
        shown.assert_clean()

    run_app(alive, script, target="alive")


def test_the_monitor_shows_the_gpus_of_its_run_and_opens_all(alive: Home, gpus: FakeNvml) -> None:
    gpus.count = 8
    environment = {"CUDA_VISIBLE_DEVICES": "5"}
    launch = Launch(argv=[], cwd="/", host=socket.gethostname(), created=1.0, environment=environment)
    alive.run("alive").write_launch(launch)

    async def script(shown: Shown) -> None:
        await shown.reaches("MonitorScreen")
        await shown.until(lambda: _block(shown))
        assert _block(shown)[0].startswith("GPU 5  A GPU") and len(_block(shown)) == 2
        await shown.press("u")
        await shown.shows("8 × A GPU", "run or program", "esc back", "u close")
        await shown.press("escape")
        assert shown.name == "MonitorScreen"
        await shown.pilot.resize_terminal(80, 20)  # too low for a block: in the line about the machine
        await shown.until(lambda: "GPU 5 95 %" in shown.front.query_one("#state", TextLines).plain)
        assert _block(shown) == [] and not shown.front.query_one(GpuPanel).region

    run_app(alive, script, target="alive")


@pytest.mark.parametrize(("count", "size"), [(1, (160, 45)), (8, (80, 24)), (16, (80, 24))])
def test_their_screen(alive: Home, gpus: FakeNvml, count: int, size: tuple[int, int]) -> None:
    gpus.count, gpus.bits = count, 0x40

    async def script(shown: Shown) -> None:
        await shown.until(lambda: shown.front.index.rows)
        await shown.press("u")
        await shown.shows("GPUs", socket.gethostname(), "HW thermal slowdown")
        panel = shown.front.query_one(GpuList)
        assert panel.plain.count("60 °C") == 1 and panel.plain.splitlines()[-1].endswith(")")
        await shown.press("G")
        await shown.until(lambda: panel.plain.splitlines()[-1] in shown.text)
        await shown.press("g")
        assert panel.scroll_offset.y == 0
        shown.assert_clean()
        before = _colours(panel)
        await shown.press("T")
        assert _colours(panel) != before
        await shown.press("u")
        assert shown.name == "RunsScreen"

    run_app(alive, script, size=size)


def _colours(panel: GpuList) -> set[object]:
    return {segment.style.color for y in range(3) for segment in panel.render_line(y) if segment.style is not None}


def test_without_gpus_their_screen_says_so(alive: Home, gpus: FakeNvml) -> None:
    gpus.count = 0

    async def script(shown: Shown) -> None:
        await shown.until(lambda: shown.front.index.rows)
        await shown.press("n")
        await shown.reaches("LaunchScreen")
        await shown.press("u")
        await shown.shows("no GPU; runs use the CPU")
        await shown.press("escape")
        assert shown.name == "LaunchScreen"

    run_app(alive, script)
