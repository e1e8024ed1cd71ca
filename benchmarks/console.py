"""The console's figures beside a bare Textual application's, measured in turns in one run.

    python benchmarks/console.py                    # all of it; a quarter of an hour
    python benchmarks/console.py paint idle redraw  # some of it
    python benchmarks/console.py hour --real-hour   # one hour of a live run in one hour

Needs ``pyte`` (in the ``dev`` extra) and Linux. Everything runs as real processes in a pseudo-terminal of 120 × 40
whose output is read and counted. Other load on the machine makes times longer, on both sides: look at the ratios.
Exit code 1 when a wanted figure is missed.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / name) for name in ("console", "engine", "benchmarks")]

from console_charts import redraw  # noqa: E402
from console_figures import Figure, busy, machine, say  # noqa: E402
from console_live import charts, flood, hour  # noqa: E402
from console_start import first_paint, idle, million  # noqa: E402
from console_trainer import trainer  # noqa: E402


def main() -> int:
    """Measure, print, and say whether all was as wanted."""
    parser = argparse.ArgumentParser(description="The console's figures beside a bare Textual application's.")
    parser.add_argument("only", nargs="*", metavar="FIGURE", help=f"some of: {', '.join(measures(False, 0))}")
    parser.add_argument("--turns", type=int, default=9, help="turns of both sides (9)")
    parser.add_argument("--real-hour", action="store_true", help="one hour of a live run takes an hour")
    options = parser.parse_args()
    known = measures(options.real_hour, options.turns)
    if unknown := set(options.only) - known.keys():
        parser.error(f"no figure {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    say(machine())
    busy()
    figures: list[Figure] = []
    for name in options.only or known:
        with tempfile.TemporaryDirectory(prefix="console-benchmark-") as scratch:
            for figure in known[name](Path(scratch)):
                figures.append(figure)
                say(figure.line())
        say(f"       the machine was {busy():.0%} busy meanwhile, others' work included")
    missed = [figure.name for figure in figures if figure.passed is False]
    say(
        f"\n{sum(figure.passed is True for figure in figures)} as wanted, {len(missed)} missed: {'; '.join(missed)}"
        if missed
        else f"\nall {len(figures)} as wanted"
    )
    return 1 if missed else 0


def measures(real_hour: bool, turns: int) -> dict[str, Callable[[Path], list[Figure]]]:
    """Every measurement by name; each takes a scratch folder."""
    return {
        "paint": lambda scratch: first_paint(scratch, turns),
        "idle": lambda scratch: idle(scratch, 20.0),
        "redraw": lambda _: redraw(max(30, turns)),
        "million": lambda scratch: million(scratch, max(3, turns // 3)),
        "charts": lambda scratch: charts(scratch, max(3, turns // 3), 20.0),
        "log": lambda scratch: flood(scratch, 50_000, 12.0),
        "trainer": lambda scratch: trainer(scratch, max(15, turns)),
        "hour": lambda scratch: hour(scratch, real=real_hour),
    }


if __name__ == "__main__":
    sys.exit(main())
