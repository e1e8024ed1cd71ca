"""``gpus``: the GPUs of this machine, once or until Ctrl-C; the same lines as on the console's screen."""

import argparse
import shutil
import socket
import sys
import time
from typing import Any

import msgspec

from stackllama_engine.contract.errors import ExitCode
from stackllama_engine.contract.run_dir import Home

from ..gpu_lines import ASCII, UNICODE, GpuView, Line, gpu_lines, process_lines
from ..readers.gpu_processes import GpuProcess, gpu_processes
from ..readers.machine import Machine, MachineReading
from ..sanitise import sanitise
from ..units import cut
from .output import can_redraw, paint, say, show_json, show_json_line

SECONDS = 2.0
"""Between two readings of ``--watch``."""
_WIDE = 120  # cells of a line in a file or a pipe
_COLOURS = {"dim": "dim", "bold": "bold", "busy": "blue", "ours": "green", "warning": "yellow", "error": "red"}


def gpus(arguments: argparse.Namespace) -> int:
    """Print the GPUs; with ``--watch`` again and again. Return 1 where they cannot be read."""
    machine = Machine(Home(arguments.home).path)
    before = 0
    while True:
        reading = machine.read()
        processes = gpu_processes(reading.gpus)
        if arguments.json:
            (show_json_line if arguments.watch else show_json)(facts(reading, processes))
        elif arguments.watch and can_redraw(sys.stdout):
            before = _redraw(_fitting(reading, processes, arguments.ascii), before)
        else:
            _print(_lines(reading, processes, arguments.ascii))
        if not arguments.watch:
            if reading.error:
                say(reading.error)
            return ExitCode.FAILED if reading.error else ExitCode.DONE
        sys.stdout.flush()
        time.sleep(SECONDS)


def facts(reading: MachineReading, processes: tuple[GpuProcess, ...]) -> dict[str, Any]:
    """Return the JSON document: the readings, each with its processes and its newest Xid error."""
    return {
        "time": time.time(),
        "host": socket.gethostname(),
        "gpus": [
            msgspec.to_builtins(gpu)
            | {"xid": reading.xids.get(gpu.index)}
            | {"processes": [msgspec.to_builtins(one) for one in processes if one.gpu == gpu.index]}
            for gpu in reading.gpus
        ],
        "note": reading.note,
        "error": reading.error,
    }


def _fitting(reading: MachineReading, processes: tuple[GpuProcess, ...], ascii_only: bool) -> list[Line]:
    """Return the fullest lines that fit into the terminal; of what does not fit the lines are counted."""
    room = shutil.get_terminal_size((80, 24)).lines - 1
    lines = _lines(reading, processes, ascii_only)
    if len(lines) > room:
        below = len(process_lines(processes)) + 1 if processes else 0
        for most in (room - below, room // 2, room - 1) if processes else (room,):
            shorter = _lines(reading, processes, ascii_only, most)
            if len(shorter) > max(below, 1):  # there is a way to show the GPUs in so many lines
                lines = shorter
                break
    if len(lines) <= room:
        return lines
    kept = lines[: max(0, room - 1)]
    return [*kept, [(f"… and {len(lines) - len(kept)} more lines", "dim")]]


def _lines(
    reading: MachineReading, processes: tuple[GpuProcess, ...], ascii_only: bool, most: int | None = None
) -> list[Line]:
    pids = frozenset(one.pid for one in processes if one.run)
    view = GpuView(gpus=tuple(reading.gpus), pids=pids, whose="runs", xids=reading.xids)
    width = shutil.get_terminal_size((_WIDE, 24)).columns - 1 if sys.stdout.isatty() else _WIDE
    lines = gpu_lines(view, width, most, glyphs=ASCII if ascii_only else UNICODE)
    if processes:
        lines += [[], *process_lines(processes)]
    return lines or [[(reading.note or reading.error or "no GPU", "")]]


def _print(lines: list[Line]) -> None:
    for line in lines:
        sys.stdout.write(_painted(line) + "\n")


def _redraw(lines: list[Line], before: int) -> int:
    """Write lines over those that were written before; return how many there are."""
    columns, rows = shutil.get_terminal_size((80, 24))
    lines = [_cut(line, columns - 1) for line in lines[: rows - 1]]
    start = f"\x1b[{before}F" if before else ""
    sys.stdout.write(start + "".join(f"{_painted(line)}\x1b[K\n" for line in lines) + "\x1b[J")
    return len(lines)


def _cut(line: Line, width: int) -> Line:
    cells: Line = []
    for text, style in line:
        cells.append((cut(text, max(0, width)), style))
        width -= len(text)
    return cells


def _painted(line: Line) -> str:
    parts = ((sanitise(text), _COLOURS.get(style)) for text, style in line)
    return "".join(paint(text, colour, sys.stdout) if colour and text else text for text, colour in parts).rstrip()
