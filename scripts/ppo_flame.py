"""A PPO step's time as a flame graph: docs/images/ppo-flame.svg.

    python scripts/ppo_flame.py                      # the work of benchmarks/ppo_work.py; one step after the first
    python scripts/ppo_flame.py --tiny               # a tiny model; the picture goes to --out or nowhere

A thread reads the main thread's stack every few milliseconds; the backward pass, which has no Python frames, shows
as ``backward``. Widths are shares of time. Names are functions and modules; no paths are written.
"""

import argparse
import html
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import ppo_ours  # noqa: E402  # pyright: ignore[reportMissingImports]
import ppo_work  # noqa: E402  # pyright: ignore[reportMissingImports]

_PLUMBING = {"_wrapped_call_impl", "_call_impl", "wrapper", "inner", "decorate_context", "_fn", "wrapped", "__exit__"}
_PACKAGES = ("stackllama_engine", "transformers", "peft", "torch")
_WIDTH, _HEIGHT, _SMALLEST = 1200, 17, 0.004
_COLOURS = {"stackllama_engine": "#e8a33d", "transformers": "#7aa6da", "peft": "#8fbf7f", "torch": "#b9b9c6"}

Stack = tuple[str, ...]


class Sampler(threading.Thread):
    """Counts the main thread's stacks between ``start`` and ``stop``."""

    def __init__(self, interval: float) -> None:
        super().__init__(daemon=True)
        self.counts: Counter[Stack] = Counter()
        self._interval, self._main, self._done = interval, threading.main_thread().ident, threading.Event()

    def run(self) -> None:
        """Count until stopped."""
        while not self._done.wait(self._interval):
            frame = sys._current_frames().get(self._main or 0)
            if frame and (stack := stack_of(frame)):
                self.counts[stack] += 1

    def stop(self) -> None:
        """Stop counting."""
        self._done.set()
        self.join()


def stack_of(frame: FrameType | None) -> Stack:
    """Return packages and functions from ``PPO.step`` inwards, without the plumbing of calls."""
    names: list[str] = []
    while frame is not None:
        code = frame.f_code
        package = str(frame.f_globals.get("__name__", "")).split(".")[0]
        if code.co_name not in _PLUMBING and package in _PACKAGES:
            names.append(f"{package}:{code.co_qualname.removesuffix('.forward')}")
        if code.co_qualname == "PPO.step":
            return tuple(reversed(names))
        frame = frame.f_back
    return ()


def svg(counts: Counter[Stack], heading: str) -> str:
    """Return the picture, root at the top."""
    total, boxes = sum(counts.values()), list[tuple[int, float, float, str]]()

    def place(stacks: Counter[Stack], depth: int, left: float) -> None:
        children: dict[str, Counter[Stack]] = {}
        for stack, count in stacks.items():
            if stack:
                children.setdefault(stack[0], Counter())[stack[1:]] += count
        for name, below in sorted(children.items(), key=lambda child: -child[1].total()):
            share = below.total() / total
            if share >= _SMALLEST:
                boxes.append((depth, left, share, name))
                place(below, depth + 1, left)
            left += share

    place(counts, 0, 0.0)
    height = (max(box[0] for box in boxes) + 3) * _HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="monospace" font-size="11">',
        f'<text x="4" y="13">{html.escape(heading)}</text>',
    ]
    for depth, left, share, name in boxes:
        package, function = name.split(":", 1)
        x, y, width = left * _WIDTH, (depth + 1.3) * _HEIGHT, share * _WIDTH
        label = html.escape(function[: max(0, int(width / 6.8))]) if width > 20 else ""
        lines.append(
            f'<g><title>{html.escape(name)} {share:.1%}</title><rect x="{x:.1f}" y="{y:.1f}" width="{width - 0.5:.1f}" '
            f'height="{_HEIGHT - 1}" fill="{_COLOURS[package]}"/>'
            f'<text x="{x + 2:.1f}" y="{y + 12:.1f}">{label}</text></g>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile one step and write the picture."""
    parser = argparse.ArgumentParser(description="A flame graph of one PPO step.")
    parser.add_argument("--out", type=Path, help="default: docs/images/ppo-flame.svg; with --tiny none is written")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: whether it runs")
    options = parser.parse_args(arguments)
    work = ppo_work.TINY if options.tiny else ppo_work.FULL
    out = options.out if options.tiny else options.out or ROOT / "docs" / "images" / "ppo-flame.svg"
    sampler, step = Sampler(0.005), ppo_ours.Endless.step

    def profiled(stage: ppo_ours.Endless, number: int) -> tuple[dict[str, float], str | None]:
        if number:
            sampler.start()
        began = time.perf_counter()
        result = step(stage, number)
        if number:
            sampler.stop()
            sys.stdout.write(f"{time.perf_counter() - began:.1f} s, {sampler.counts.total()} stacks\n")
        return result

    ppo_ours.Endless.step = profiled  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        prepared = [sys.executable, ppo_ours.__file__, folder, "2", "--prepare", *(["--tiny"] if options.tiny else [])]
        subprocess.run(prepared, check=True, stderr=subprocess.DEVNULL)
        ppo_ours.measure(Path(folder), 1, work, [])
    heading = (
        f"One PPO step: {work.batch} responses, {work.epochs} epochs, LLaMA of 58M; "
        "orange: this engine, blue: transformers, green: PEFT, grey: torch"
    )
    picture = svg(sampler.counts, heading)
    if out is not None:
        out.write_text(picture, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
