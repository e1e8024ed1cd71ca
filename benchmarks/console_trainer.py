"""The cost of being watched: a fixed amount of a trainer's work, alone and watched, in turns."""

import os
import statistics
import time
from pathlib import Path

from console_live import Writer, watch
from console_measurement import Measurement, Sizes, median, spread


def trainer(scratch: Path, sizes: Sizes) -> list[Measurement]:
    """Measure wall and processor time of the same work, the writer on one core and the console on another."""
    cores = sorted(os.sched_getaffinity(0))
    mine, other = (cores[0], cores[-1]) if len(cores) > 1 else (None, None)
    wall: dict[bool, list[float]] = {False: [], True: []}
    cpu: dict[bool, list[float]] = {False: [], True: []}
    home = scratch / "home"
    with Writer("work", home, "work", sizes.work, core=mine) as writer:
        _once(writer)  # warm
        for turn in range(sizes.rounds):
            for watched in (False, True) if turn % 2 else (True, False):
                if watched:
                    with watch(home, "work", scratch, other):
                        time.sleep(sizes.warm / 3)
                        times = _once(writer)
                else:
                    times = _once(writer)
                wall[watched].append(times[0])
                cpu[watched].append(times[1])
    ratio = median([with_ / alone for with_, alone in zip(wall[True], wall[False], strict=True)])
    used = median([with_ / alone for with_, alone in zip(cpu[True], cpu[False], strict=True)])
    low, _, high = statistics.quantiles(wall[False], n=4)
    noise = (high - low) / median(wall[False])
    return [
        Measurement(
            name="a trainer's work while it is watched",
            wanted="≤ 2 % more, or less than alone's quartiles differ",
            measured=f"{ratio:.3f} × the time, {used:.3f} × the processor time alone",
            passed=ratio <= 1.02 or (ratio - 1 < noise and used <= 1.02),
            notes=[
                f"{sizes.rounds} turns of {sizes.work} steps; alone {median(wall[False]):.2f} s "
                f"({spread(wall[False], 1, 2)}), watched {median(wall[True]):.2f} s ({spread(wall[True], 1, 2)})",
                f"the middle half of the times alone lies within {noise:.0%}",
                "each on a core of its own" if mine is not None else "both on the same core: there is only one",
            ],
        )
    ]


def _once(writer: Writer) -> tuple[float, float]:
    writer.go()
    wall, cpu = writer.read().split()
    return float(wall), float(cpu)
