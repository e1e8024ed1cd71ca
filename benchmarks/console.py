"""The console's speed and size beside a bare Textual application's, measured in turns in one run.

    python benchmarks/console.py                    # all of it; a quarter of an hour
    python benchmarks/console.py paint idle redraw  # some of it
    python benchmarks/console.py hour --real-hour   # one hour of a live run in one hour
    python benchmarks/console.py --tiny             # whether it still runs, in under a minute; no bound counts

Needs ``pyte`` (in the ``dev`` extra) and Linux; ``leet`` needs ``wandb``. Everything runs as real processes in a
pseudo-terminal of 120 × 40 whose output is read and counted. Other load on the machine makes times longer, on both
sides: look at the ratios.
Exit code 1 when a bound is not kept.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / name) for name in ("console", "engine", "benchmarks")]

from console_charts import redraw  # noqa: E402
from console_keys import keys  # noqa: E402
from console_leet import leet  # noqa: E402
from console_live import charts, flood, hour  # noqa: E402
from console_measurement import TINY, Measurement, Sizes, busy, machine, say  # noqa: E402
from console_start import first_paint, idle, million, values  # noqa: E402
from console_trainer import trainer  # noqa: E402

MEASUREMENTS: dict[str, Callable[[Path, Sizes], list[Measurement]]] = {
    "paint": first_paint,
    "idle": idle,
    "redraw": redraw,
    "million": million,
    "values": values,
    "charts": charts,
    "log": flood,
    "keys": keys,
    "leet": leet,
    "trainer": trainer,
    "hour": hour,
}
"""Each takes a scratch folder."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 when a bound is not kept."""
    parser = argparse.ArgumentParser(description="The console's speed and size beside a bare Textual application's.")
    parser.add_argument("only", nargs="*", metavar="NAME", help=f"some of: {', '.join(MEASUREMENTS)}")
    parser.add_argument("--turns", type=int, help="turns of both sides (9)")
    parser.add_argument("--real-hour", action="store_true", help="one hour of a live run takes an hour")
    parser.add_argument("--tiny", action="store_true", help="seconds; whether it runs, not how fast")
    options = parser.parse_args(arguments)
    if unknown := set(options.only) - MEASUREMENTS.keys():
        parser.error(f"no measurement {', '.join(sorted(unknown))}; there are {', '.join(MEASUREMENTS)}")
    sizes = TINY if options.tiny else sizes_of(options.turns, options.real_hour)
    say(machine())
    busy()
    measured: list[Measurement] = []
    for name in options.only or MEASUREMENTS:
        with tempfile.TemporaryDirectory(prefix="console-benchmark-") as scratch:
            for measurement in MEASUREMENTS[name](Path(scratch), sizes):
                if options.tiny:
                    measurement = msgspec.structs.replace(measurement, passed=None)
                measured.append(measurement)
                say(measurement.line())
        say(f"       the machine was {busy():.0%} busy meanwhile, other processes included")
    if options.tiny:
        say(f"\n{len(measured)} measured, at a size at which no bound counts")
        return 0
    missed = [measurement.name for measurement in measured if measurement.passed is False]
    kept = sum(measurement.passed is True for measurement in measured)
    say(f"\n{kept} as wanted, {len(missed)} missed: {'; '.join(missed)}" if missed else f"\nall {kept} as wanted")
    return 1 if missed else 0


def sizes_of(turns: int | None, real_hour: bool) -> Sizes:
    """Return the full sizes, with as many turns as were named at least."""
    sizes = Sizes(speed=1.0) if real_hour else Sizes()
    if turns is None:
        return sizes
    return msgspec.structs.replace(
        sizes,
        turns=turns,
        few=max(sizes.few, turns // 3),
        redraws=max(sizes.redraws, turns),
        rounds=max(sizes.rounds, turns),
    )


if __name__ == "__main__":
    sys.exit(main())
