"""Run directories for the benchmark, written through the engine's own contract, with a PPO run's usual records."""

import math
import random
import time
from pathlib import Path

from msgspec import structs

from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.recipe_io import dump_recipe, load_recipe
from stackllama_engine.contract.run_dir import Home, Phase, RunDir, State
from stackllama_engine.contract.stages import Stage

RECORDS_PER_STEP = 7
"""Three phases, progress, metrics, memory, samples."""

_RECIPES = {
    Stage.SFT: ["model_name_or_path=demo", "dataset_name=demo"],
    Stage.REWARD: ["model_name_or_path=demo", "dataset_name=demo"],
    Stage.PPO: ["model_name_or_path=demo", "dataset_name=demo", "reward_model_path=demo"],
}
_NOISY = (
    "objective/entropy",
    "objective/rlhf_reward",
    "objective/non_score_reward",
    "val/num_tokens",
    "response_length",
    "demo/true_utility",
    "policy/approxkl_first",
    "policy/policykl",
    "policy/clipfrac_avg",
    "val/clipfrac_avg",
    "val/ratio",
    "policy/approxkl_avg",
    "policy/entropy_avg",
    "grad_norm",
    "val/var_explained",
    "time/rollout",
    "time/score",
    "time/update",
    "tokens_per_second",
)


def make_run(home: Home, stage: Stage, name: str, phase: Phase) -> RunDir:
    """Make a run directory with a recipe, a state and an empty first attempt."""
    run = home.create(stage, dump_recipe(load_recipe(stage, None, _RECIPES[stage])), name)
    run.attempt_dir(1).mkdir(mode=0o700)
    now = time.time()
    ended = now - 60 if phase == "finished" else None
    state = State(
        stage=stage,
        phase=phase,
        attempt=1,
        created=now - 900,
        started=now - 890,
        ended=ended,
        exit_code=None if ended is None else 0,
    )
    run.write_state(state)
    return run


def events_of(run: RunDir) -> EventWriter:
    """Return the writer of its first attempt's events."""
    return EventWriter(run.attempt_dir(1) / "events.jsonl")


def metrics_at(step: int, total: int, noise: random.Random) -> dict[str, float]:
    """Return about thirty metrics as PPO reports them: curves with noise, each point another value."""
    done = step / total
    values = {
        name: (index + 1) * (0.5 + 0.3 * math.sin(6 * done)) + noise.gauss(0, 0.1 * (index + 1))
        for index, name in enumerate(_NOISY)
    }
    return values | {
        "objective/scores": 2 * done + noise.gauss(0, 0.3),
        "objective/kl": 8 * math.sqrt(done) + noise.gauss(0, 0.4),
        "objective/kl_coef": 0.15,
        "loss/policy_avg": -0.01 + noise.gauss(0, 0.003),
        "loss/value_avg": 1.5 * math.exp(-3 * done) + abs(noise.gauss(0, 0.1)),
        "learning_rate": 4e-4 * (1 - done),
        "episode": 96.0 * step,
        "ppo/updates": 6.0,
        "ppo/skipped_updates": 0.0,
        "ppo/stopped_early": 0.0,
        "val/ratio_first": 1.0,
    }


def memory_at(step: int, noise: random.Random) -> dict[str, float]:
    """Return bytes as the engine reports them on a CPU."""
    return {"rss": 6.8e8 + 2e4 * (step % 97) + noise.random() * 1e6}


def write_step(writer: EventWriter, step: int, total: int, noise: random.Random, every: int = 1) -> int:
    """Write the records of one step and return how many: `RECORDS_PER_STEP`, without metrics two fewer."""
    for phase in ("rollout", "score", "update"):
        writer.write("phase", phase=phase)
    writer.write("samples", step=step, data={"count": 4})
    writer.write("progress", step=step, total_steps=total)
    if step % every:
        return RECORDS_PER_STEP - 2
    writer.write("metrics", step=step, metrics=metrics_at(step, total, noise))
    writer.write("memory", phase="update", metrics=memory_at(step, noise))
    return RECORDS_PER_STEP


def make_old(home: Home, days: int = 40) -> None:
    """Date the runs of a home back, so that none of the ages in the list changes while it is looked at."""
    for run in home.unsorted_runs():
        state = run.read_state()
        moved = {name: getattr(state, name) for name in ("created", "started", "ended")}
        run.write_state(structs.replace(state, **{name: at and at - days * 86400 for name, at in moved.items()}))


def home_of_runs(path: Path, count: int = 20, steps: int = 200) -> Home:
    """Make a home of finished runs of three stages."""
    home = Home(path)
    noise = random.Random(0)
    for index in range(count):
        stage = (Stage.SFT, Stage.REWARD, Stage.PPO)[index % 3]
        run = make_run(home, stage, f"{stage.value}-{index:02d}", "finished")
        writer = events_of(run)
        for step in range(1, steps + 1):
            writer.write("progress", step=step, total_steps=steps)
            if stage is Stage.PPO:
                writer.write("metrics", step=step, metrics=metrics_at(step, steps, noise))
            else:
                writer.write("metrics", step=step, metrics={"loss": 2 - step / 200, "accuracy": 0.5 + step / 500})
        writer.write("end", data={"exit_code": 0})
        writer.close()
        (run.attempt_dir(1) / "log.txt").write_text("".join(f"INFO line {line} of a run\n" for line in range(300)))
    return home


def long_ppo(home: Home, name: str, events: int, last: float, every: int) -> RunDir:
    """Write a finished PPO run of so many events, metrics every ``every`` steps, whose last reward is ``last``."""
    run = make_run(home, Stage.PPO, name, "finished")
    steps = events * every // ((RECORDS_PER_STEP - 2) * every + 2)
    noise, writer, written, step = random.Random(0), events_of(run), 0, 0
    while written < events - RECORDS_PER_STEP:
        step += 1
        written += write_step(writer, step, steps, noise, every)
    writer.write("progress", step=step + 1, total_steps=step + 1)
    writer.write("metrics", step=step + 1, metrics=metrics_at(steps, steps, noise) | {"objective/scores": last})
    for _ in range(events - written - 3):
        writer.write("phase", phase="save")
    writer.write("end", data={"exit_code": 0})
    writer.close()
    (run.attempt_dir(1) / "log.txt").write_text("done\n")
    return run


def long_sft(home: Home, name: str, events: int, last: float) -> RunDir:
    """Write a finished SFT run of so many events, progress and metrics by turns, whose last loss is ``last``."""
    run = make_run(home, Stage.SFT, name, "finished")
    steps, noise, writer = events // 2, random.Random(0), events_of(run)
    for step in range(1, steps + 1):
        write_sft_step(writer, step, steps, noise, last if step == steps else None)
    writer.close()
    (run.attempt_dir(1) / "log.txt").write_text("done\n")
    return run


def write_sft_step(writer: EventWriter, step: int, total: int, noise: random.Random, loss: float | None = None) -> None:
    """Write progress and the four metrics of a step."""
    writer.write("progress", step=step, total_steps=total)
    writer.write(
        "metrics",
        step=step,
        metrics={
            "loss": 2 * math.exp(-3 * step / total) + noise.random() / 10 if loss is None else loss,
            "learning_rate": 1e-4 * (1 - step / total),
            "grad_norm": noise.random(),
            "mean_token_accuracy": 0.5 + noise.random() / 10,
        },
    )


def file_size(run: RunDir) -> int:
    """Return the bytes of its events."""
    return (run.attempt_dir(1) / "events.jsonl").stat().st_size
