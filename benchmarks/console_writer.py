"""Stands in for a trainer: holds a run's lock and writes its files. Started by the benchmark.

    console_writer.py live HOME ID HISTORY STEPS_PER_SECOND LINES_PER_STEP [STEPS_BETWEEN_METRICS]
        a PPO run that continues until stdin is closed
    console_writer.py four HOME ID HISTORY STEPS_PER_SECOND
        an SFT run of four metrics and nothing else that continues until stdin is closed
    console_writer.py burst HOME ID LINES_PER_SECOND SECONDS
        a flood of dated log lines, started by a line on stdin
    console_writer.py work HOME ID STEPS
        a fixed amount of work for each line on stdin
    console_writer.py --tiny
        a short burst in a home that is removed

Each prints ``ready`` when the first records are written. Times in the log are `time.monotonic`.
"""

import random
import select
import sys
import tempfile
import time
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

import msgspec

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / name) for name in ("console", "engine", "benchmarks")]

from console_runs import events_of, make_run, write_sft_step, write_step  # noqa: E402

from stackllama_engine.contract.run_dir import Home, RunDir  # noqa: E402
from stackllama_engine.contract.stages import Stage  # noqa: E402

TOTAL = 1_000_000
TICK = 0.01
LINE = 113
"""Characters of a log line, as long as transformers' are."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a run of the kind that is named."""
    words = sys.argv[1:] if arguments is None else [*arguments]
    if words == ["--tiny"]:
        with tempfile.TemporaryDirectory() as folder:
            return main(["burst", folder, "tiny", "100", "0.2"])
    kind, home, name, *numbers = words
    run = make_run(Home(Path(home)), Stage.SFT if kind == "four" else Stage.PPO, name, "running")
    run.acquire_lock()  # held until the end of the process
    {"live": live, "four": four, "burst": burst, "work": work}[kind](run, *map(float, numbers))
    return 0


def live(run: RunDir, history: float, rate: float, lines: float, every: float = 1) -> None:
    """Write ``history`` steps at once, then ``rate`` per second; each with its log lines and one row of samples."""
    writer, log, samples, noise = events_of(run), _log(run), FileIO(run.samples_file, "a"), random.Random(0)
    step = 0

    def one_step() -> None:
        nonlocal step
        step += 1
        write_step(writer, step, TOTAL, noise, int(every))
        log.write(b"".join(_line(f"step {step} part {part}") for part in range(int(lines))))
        samples.write(_sample(step, noise))

    for _ in range(int(history)):
        one_step()
    print("ready", flush=True)
    start, done = time.monotonic(), 0
    while True:
        wait = start + done / rate - time.monotonic()
        if select.select([sys.stdin], [], [], max(0.0, wait))[0]:
            return
        done += 1
        one_step()


def four(run: RunDir, history: float, rate: float) -> None:
    """Write ``history`` steps at once, then ``rate`` per second."""
    writer, noise = events_of(run), random.Random(0)
    (run.attempt_dir(1) / "log.txt").touch()
    for step in range(1, int(history) + 1):
        write_sft_step(writer, step, TOTAL, noise)
    print("ready", flush=True)
    start, done = time.monotonic(), 0
    while not select.select([sys.stdin], [], [], max(0.0, start + done / rate - time.monotonic()))[0]:
        done += 1
        write_sft_step(writer, int(history) + done, TOTAL, noise)


def burst(run: RunDir, rate: float, seconds: float) -> None:
    """Write lines in portions of a hundredth of a second, and a step twice a second."""
    writer, log, noise = events_of(run), _log(run), random.Random(0)
    for step in range(1, 100):
        write_step(writer, step, TOTAL, noise)
    log.write(_line("ready"))
    print("ready", flush=True)
    sys.stdin.readline()
    start, written, step = time.monotonic(), 0, 100
    while (now := time.monotonic()) < start + seconds:
        wanted = int((now - start) * rate)
        log.write(b"".join(_line(f"line {number:09d}") for number in range(written, wanted)))
        written = wanted
        if now - start > (step - 100) / 2:
            step += 1
            write_step(writer, step, TOTAL, noise)
        time.sleep(TICK)
    print(written / (time.monotonic() - start), flush=True)
    sys.stdin.read()


def work(run: RunDir, steps: float) -> None:
    """Compute and write as a trainer does, the same amount each time, and print how long it took."""
    writer, log, noise = events_of(run), _log(run), random.Random(0)
    step = 0
    print("ready", flush=True)
    while sys.stdin.readline():
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(steps)):
            step += 1
            sum(value * value for value in range(60_000))
            write_step(writer, step, TOTAL, noise)
            log.write(b"".join(_line(f"step {step} part {part}") for part in range(3)))
        print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)


def _log(run: RunDir) -> FileIO:
    return FileIO(run.attempt_dir(1) / "log.txt", "a")


def _line(text: str) -> bytes:
    """Return a line of a trainer's metrics, of which hardly a digit stays from one to the next."""
    now = time.monotonic()
    metrics = f"loss={now * 7919 % 3:.6f} grad_norm={now * 104729 % 9:.6f} kl={now * 1299709 % 7:.6f} lr={now % 1:.3e}"
    return f"INFO t={now:.4f} {text} {metrics}".ljust(LINE)[:LINE].encode() + b"\n"


def _sample(step: int, noise: random.Random) -> bytes:
    row = {
        "step": step,
        "question": f"What is {step} good for?",
        "response": "It is good for counting. " * 6,
        "reward": noise.gauss(0, 1),
        "kl": noise.random(),
        "length": 40,
        "ended": True,
    }
    return msgspec.json.encode(row) + b"\n"


if __name__ == "__main__":
    sys.exit(main())
