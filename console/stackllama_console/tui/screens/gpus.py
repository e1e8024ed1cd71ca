"""The GPUs of this machine: how busy, full and hot each is, what is wrong, and which runs hold its memory."""

import socket
from pathlib import Path
from typing import ClassVar

from msgspec import Struct
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from ...gpu_lines import ASCII, UNICODE, GpuView, Line, gpu_lines, process_lines
from ...readers.gpu_processes import GpuProcess, gpu_processes
from ...readers.machine import Machine, MachineReading, describe
from ...sanitise import one_line
from ..screen import ConsoleScreen
from ..widgets.gpu_panel import GpuList


class _Update(Struct, frozen=True):
    reading: MachineReading
    processes: tuple[GpuProcess, ...]


class GpusScreen(ConsoleScreen):
    """Every GPU, measured while the screen is shown.

    Args:
        machine: takes the readings.
        run: the run whose memory is told from that of others; None: all runs together.
    """

    HEADING = "GPUs"
    INTERVAL = 2.0
    WIDGETS_WITH_KEYS: ClassVar[tuple[str, ...]] = ("GpuList",)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "escape", "back", id="screen.back"),  # shown, as is the key that opened it: nothing else is
        Binding("u", "back", "close", id="gpus.close"),
    ]
    DEFAULT_CSS = """
    GpusScreen > GpuList { height: 1fr; padding: 0 1; }
    """

    def __init__(self, machine: Machine, run: Path | None = None) -> None:
        super().__init__()
        self._machine = machine
        self._run = run
        self._update: _Update | None = None

    def body(self) -> ComposeResult:
        """Compose the lines."""
        yield GpuList()

    def on_mount(self) -> None:
        """Say that they are being read."""
        self.query_one(GpuList).show([[("reading …", "dim")]])

    def poll(self) -> _Update | None:
        """Measure; None where nothing has changed."""
        reading = self._machine.read(self._run)
        update = _Update(reading, gpu_processes(reading.gpus))
        return update if update != self._update else None

    def render_update(self, update: _Update) -> None:
        """Render the GPUs, the processes, and the machine in one line."""
        self._update = update
        reading, processes = update.reading, update.processes
        self.set_heading(f"of {socket.gethostname()}", Text(describe(reading)))
        ours = frozenset(one.pid for one in processes if one.run) if self._run is None else reading.run_pids
        whose = "runs" if self._run is None else "this run"
        view = GpuView(gpus=tuple(reading.gpus), pids=ours, whose=whose, xids=reading.xids)
        glyphs = ASCII if self.console_app.options.ascii else UNICODE
        lines: list[Line] = gpu_lines(view, self.size.width - 3, glyphs=glyphs)
        if processes:
            lines += [[], *process_lines(processes, ours)]
        if not lines:
            lines = [[(one_line(reading.note or reading.error or "no GPU"), "")]]
        self.query_one(GpuList).show(lines)

    def on_resize(self, event: events.Resize) -> None:
        """Lay out for the new width."""
        if self._update is not None:
            self.render_update(self._update)
