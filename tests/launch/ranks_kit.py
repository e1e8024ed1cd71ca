"""Real ranks under a real `accelerate launch`, and a second user of the machine who tries what they open."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher
from stackllama_engine.launch.argv import build_command
from stackllama_engine.launch.machine_check import resolve_machine
from stackllama_engine.launch.processes import run_processes

from .conftest import Runs, wait_for

TOY = Path(__file__).with_name("toy_ranks.py")
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as a second user")

LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
"""127.0.0.1, ::1 and ::ffff:127.0.0.1 as /proc/net writes them on a little-endian machine."""

_STRANGER = """
import datetime, os, signal, sys
import torch  # while it may still be read
from torch.distributed import TCPStore
os.setgroups([]); os.setgid(65534); os.setuid(65534)
place, *ports = sys.argv[1:]
for port in ports:
    if (child := os.fork()) == 0:
        signal.alarm(4)  # a listener that is no store lets a client wait for ever
        store = TCPStore("localhost", int(port), None, False, datetime.timedelta(seconds=3), wait_for_workers=False)
        store.set("stranger", "was here")
        os.write(1, f"{port} is a store: {store.get('stranger').decode()}\\n".encode())
        os._exit(0)
    os.waitpid(child, 0)
for root, folders, files in os.walk(place):
    print("entered", root, folders, files)
try:
    print("listed", os.listdir(place))
except OSError as error:
    print("listing:", type(error).__name__)
for name in ("torchrun", "ranks-0"):
    for flags in (os.O_RDONLY, os.O_WRONLY):
        try:
            os.open(os.path.join(place, name), flags)
            print("opened", name)
        except OSError as error:
            print(name, type(error).__name__)
"""


def start_ranks(runs: Runs, processes: int) -> RunDir:
    """Start a new run of the toy; returns when its ranks have met."""
    run = runs.create()
    again(run, processes)
    return run


def again(run: RunDir, processes: int = 2) -> None:
    """Start the next attempt: the command of a stage, with the toy in the stage's place."""
    recipe = msgspec.structs.replace(load_recipe(Stage.SFT, run.recipe_file), num_processes=processes)
    command = build_command(resolve_machine(recipe, []), run.path, [])
    argv = [*command.argv[: command.argv.index("stackllama_engine.train") - 1], str(TOY), str(run.path)]
    lock = run.acquire_lock()
    try:
        launcher.start_supervisor(run, lock, msgspec.structs.replace(command, argv=argv), launcher.Record())
    finally:
        os.close(lock)
    wait_for(lambda: steps(run) > 5, seconds=120)


def steps(run: RunDir) -> int:
    """Count the steps that its newest attempt has reported."""
    path = run.attempt_dirs()[-1] / "events.jsonl"
    return path.read_bytes().count(b'"progress"') if path.is_file() else 0


def listening(run: RunDir) -> dict[int, str]:
    """TCP ports on which a process of the run listens, with the address as /proc/net writes it."""
    sockets = {inode for process in run_processes(run.path) for inode in _sockets(process.pid)}
    found: dict[int, str] = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            if fields[3] == "0A" and fields[9] in sockets:
                found[int(port, 16)] = address
    return found


def rendezvous_dir_of(run: RunDir) -> str:
    """Read where the ranks of a running attempt meet, from the environment of one of its processes."""
    for process in run_processes(run.path):
        for entry in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"STACKLLAMA_MEETING="):
                return entry.partition(b"=")[2].decode()
    return ""


def ask_as_nobody(place: str, ports: list[int]) -> list[str]:
    """Try, as a second user, each port as a store of torch, and the files of the rendezvous directory."""
    argv = [sys.executable, "-c", _STRANGER, place, *(str(port) for port in ports)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def check_nobody_comes_in(run: RunDir) -> None:
    """No process of the run lets a second user read or write a store, by a socket or by a file."""
    ports = listening(run)
    assert ports, "Gloo listens: without a port, the test looks at the wrong processes"
    place = rendezvous_dir_of(run)
    report = ask_as_nobody(place, sorted(ports))
    refused = [f"{name} PermissionError" for name in ("torchrun", "ranks-0") for _ in range(2)]
    assert report == ["listing: PermissionError", *refused], report
    assert set(ports.values()) <= LOOPBACK, f"{ports} are open to other machines"
    assert sorted(os.listdir(place)) == ["ranks-0", "torchrun"], place  # noqa: PTH208 - text is compared
    assert Path(place).stat().st_mode & 0o777 == 0o700


def _sockets(pid: int) -> set[str]:
    found: set[str] = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found
