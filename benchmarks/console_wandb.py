"""Writes a Weights & Biases run of four metrics into a folder, offline; started by the benchmark with wandb's Python.

    console_wandb.py FOLDER STEPS LAST            so many steps at once; the last loss is LAST
    console_wandb.py FOLDER STEPS LAST RATE       and then RATE steps per second, until stdin is closed
    console_wandb.py --tiny                       whether wandb is here; writes nothing

Prints ``ready`` and the run's folder when the first steps are written.
"""

import math
import os
import random
import select
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TOTAL = 1_000_000
"""Steps that a live run would have."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what is asked for."""
    words = sys.argv[1:] if arguments is None else [*arguments]
    if words == ["--tiny"]:
        print("wandb is installed" if find_spec("wandb") else "wandb is not installed: `pip install wandb`")
        return 0
    folder, steps, last, *rate = words
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": folder, "WANDB_CONSOLE": "off"}
    Path(folder).mkdir(parents=True, exist_ok=True)
    import wandb  # pyright: ignore

    run: Any = wandb.init(project="benchmark", settings=wandb.Settings(x_disable_stats=True))  # pyright: ignore
    noise, count = random.Random(0), int(steps)
    for step in range(1, count + 1):
        run.log(metrics(step, max(count, TOTAL if rate else 0), noise, float(last) if step == count else None))
    if not rate:
        run.finish()
        print("ready", Path(run.dir).parent, flush=True)
        return 0
    print("ready", Path(run.dir).parent, flush=True)
    start, done = time.monotonic(), 0
    while not select.select([sys.stdin], [], [], max(0.0, start + done / float(rate[0]) - time.monotonic()))[0]:
        done += 1
        run.log(metrics(count + done, TOTAL, noise, None))
    run.finish()
    return 0


def metrics(step: int, total: int, noise: random.Random, last: float | None) -> dict[str, float]:
    """Return the four metrics of a step, as the run of ours has them."""
    loss = 2 * math.exp(-3 * step / total) + noise.random() / 10 if last is None else last
    return {
        "loss": loss,
        "learning_rate": 1e-4 * (1 - step / total),
        "grad_norm": noise.random(),
        "mean_token_accuracy": 0.5 + noise.random() / 10,
    }


if __name__ == "__main__":
    sys.exit(main())
