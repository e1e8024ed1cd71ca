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
    """Yield a home with a run at work on this machine, whose GPUs are read at every poll."""
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


@pytest.mark.parametrize(("count", "lines", "begins"), [(1, 2, "GPU 0"), (2, 3, "GPU  util"), (8, 2, "8 GPUs")])
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


def test_a_low_monitor_names_them_in_one_line(alive: Home, gpus: FakeNvml) -> None:
    async def script(shown: Shown) -> None:
        await shown.reaches("MonitorScreen")
        await shown.until(lambda: "GPU 0 90 %" in shown.front.query_one("#state", TextLines).plain)
        assert _block(shown) == [] and not shown.front.query_one(GpuPanel).region

    run_app(alive, script, target="alive", size=(80, 20))


def test_the_monitor_shows_the_gpus_of_its_run_alone(alive: Home, gpus: FakeNvml) -> None:
    gpus.count = 8
    run = alive.run("alive")
    environment = {"CUDA_VISIBLE_DEVICES": "5"}
    launch = Launch(argv=[], cwd="/", host=socket.gethostname(), created=1.0, environment=environment)
    run.write_launch(launch)

    async def script(shown: Shown) -> None:
        await shown.reaches("MonitorScreen")
        await shown.until(lambda: _block(shown))
        assert _block(shown)[0].startswith("GPU 5  A GPU") and len(_block(shown)) == 2

    run_app(alive, script, target="alive")


@pytest.mark.parametrize("size", [(80, 24), (160, 45)])
@pytest.mark.parametrize("count", [1, 2, 8, 16])
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
        await shown.press("u")
        assert shown.name == "RunsScreen"

    run_app(alive, script, size=size)


def test_the_monitor_opens_their_screen(alive: Home, gpus: FakeNvml) -> None:
    async def script(shown: Shown) -> None:
        await shown.reaches("MonitorScreen")
        await shown.until(lambda: _block(shown))
        await shown.press("u")
        await shown.shows("run or program")
        await shown.press("escape")
        assert shown.name == "MonitorScreen"

    run_app(alive, script, target="alive")


def test_without_gpus_their_screen_says_so(alive: Home, gpus: FakeNvml) -> None:
    gpus.count = 0

    async def script(shown: Shown) -> None:
        await shown.until(lambda: shown.front.index.rows)
        await shown.press("u")
        await shown.shows("no GPU; runs use the CPU")

    run_app(alive, script)


def test_colours_follow_the_theme(alive: Home, gpus: FakeNvml) -> None:
    async def script(shown: Shown) -> None:
        await shown.until(lambda: shown.front.index.rows)
        await shown.press("u")
        await shown.shows("GPU 0")

        def colours() -> set[object]:
            strip = shown.front.query_one(GpuList).render_line(0)
            return {segment.style.color for segment in strip if segment.style is not None}

        before = colours()
        await shown.press("T")
        assert colours() != before

    run_app(alive, script)
