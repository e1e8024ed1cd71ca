"""The work of ``ppo_work.py`` by this project's PPO stage, in a process of its own; one JSON line at the end.

What runs is the stage itself, step by step: reward as an adapter on the shared base, responses scored through text.

    python benchmarks/ppo_ours.py FOLDER BATCHES --prepare     # writes what all sides read
    python benchmarks/ppo_ours.py FOLDER BATCHES [key=value …]
    python benchmarks/ppo_ours.py --tiny                       # both with a tiny model, in a folder that is removed
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ppo_work
from ppo_work import Work

ppo_work.quiet()

from ppo_stage import Endless, history, opened, recipe_of, write_reward_adapter  # noqa: E402

from stackllama_engine.train import models  # noqa: E402

__all__ = ["Endless", "main", "measure", "prepare"]
_ON_GPU = {False: (), True: ("use_cpu=false", "dtype=bfloat16", "bf16=true")}
_PHASES = ("rollout", "score", "update")


def prepare(folder: Path, batches: int, work: Work, model: str | None = None) -> None:
    """Write what all sides read, and the reward model as an adapter, which only this side can use."""
    ppo_work.prepare(folder, batches, work, **ppo_work.placement(model))
    write_reward_adapter(folder, work, **ppo_work.placement(model))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare the work, or do and report it."""
    parser = ppo_work.parser("The work of ppo_work.py by this project's PPO stage.")
    parser.add_argument("more", nargs="*", metavar="key=value", help="recipe keys")
    parser.add_argument("--prepare", action="store_true", help="write what all sides read")
    options = parser.parse_args(arguments)
    work, on_gpu = ppo_work.work_of(options), ppo_work.placement(options.model)["device"] == "cuda"
    if options.folder is not None:
        if options.prepare:
            prepare(options.folder, options.batches, work, options.model)
        else:
            measure(options.folder, options.batches, work, [*_ON_GPU[on_gpu], *options.more])
    elif options.tiny:
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), options.batches + 1, work)
            measure(Path(folder), options.batches, work, options.more)
    else:
        parser.error("name the folder")
    return 0


def measure(folder: Path, batches: int, work: Work, more: Sequence[str]) -> None:
    """Do the prepared work and report it."""
    ppo_work.set_threads()
    meter = ppo_work.Meter()
    models.quiet_libraries()
    recipe = recipe_of(folder, batches, work, more)
    metrics: list[dict[str, float]] = []
    with opened(recipe, work) as stage:
        meter.run(lambda number: metrics.append(stage.step(number)[0]), batches)
        stage.reporter.phase("end")  # which reports the last phase's memory
        memory = history(stage).memory_by_phase
    assert all(row["val/num_tokens"] == work.batch * work.response for row in metrics)
    assert all(row["val/ratio_first"] == 1.0 for row in metrics)
    phases = {name: [row[f"time/{name}"] for row in metrics[1:]] for name in _PHASES}
    peaks = [memory[phase].get("allocated", 0.0) for phase in _PHASES]  # each phase resets the allocator's own
    meter.report(
        phases=phases,
        allocated=max(peaks) or None,
        versions=ppo_work.versions("torch", "transformers", "peft", "numpy"),
    )


if __name__ == "__main__":
    sys.exit(main())
