"""Metrics of healthy and broken PPO runs of the demo, which the tests of the health rules read.

    python scripts/health_series.py --seeds 0 1 2           # every case, with these seeds; a minute or two per run
    python scripts/health_series.py --seeds 5 --cases frozen
    python scripts/health_series.py --tiny                  # one case of two steps; nothing is kept

Writes ``tests/health/series/CASE-SEED.json``: what rules read of every step, rounded, and what was changed in the
recipe. The base after SFT and the reward model are those of the demo with seed ``--base`` (0); PPO has its own seed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BROKEN = ROOT / "tests" / "health"
SERIES = BROKEN / "series"
COMMAND = [str(Path(sys.executable).parent / "stackllama-console")]
_DIGITS = 4
_KEPT = frozenset(
    {
        "objective/scores",
        "objective/scores_std",
        "objective/kl",
        "objective/kl_coef",
        "response_length",
        "val/num_tokens",
        "val/num_eos_tokens",
        "val/length_correlation",
        "val/repetition",
        "val/scores_outside_range",
        "val/ratio",
        "val/var_explained",
        "policy/clipfrac_avg",
        "policy/approxkl_avg",
        "policy/entropy_avg",
        "reward/model",
        "loss/value_avg",
        "learning_rate",
        "ppo/updates",
        "ppo/skipped_updates",
    }
)
"""Metrics that rules read."""
_QUICK = ("logging_steps=1", "eval_steps=0", "max_eval_samples=8", "eval_temperatures=[]", "eval_best_of=[]")

_HALF = ("per_device_train_batch_size=16",)
"""Half the demo's responses per step, for what is broken; half the time."""


class Case(NamedTuple):
    """A way in which a run is healthy or broken."""

    keys: tuple[str, ...]
    """Changes of the demo's PPO recipe."""
    steps: int
    reward: str = "reward/adapter"
    """Directory of the reward model, after the pipeline's name; empty: none."""
    base: str = "sft-merged/merged"
    """Directory of the policy's base, likewise."""


CASES = {
    "healthy": Case((), 40),
    "over_optimised": Case(("learning_rate=1e-3", "kl_coef=0"), 40),
    "constant_reward": Case(("reward_funcs=[broken_rewards:constant]",), 20, reward=""),
    "length_reward": Case(("reward_funcs=[broken_rewards:length]", "kl_coef=0.05"), 30, reward=""),
    "headless_reward": Case((), 20, reward="reward/headless/adapter"),
    "wrong_template": Case(("prompt_format=none",), 20, "reward-merged/unrecorded", "sft-merged/unrecorded"),
    "frozen": Case(("learning_rate=1e-9",), 20),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Record the cases; returns the exit code."""
    parser = argparse.ArgumentParser(description="Record metrics of healthy and broken runs.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--base", type=int, default=0, help="seed of SFT and reward model")
    parser.add_argument("--home", type=Path, help="keep the runs here, and use those that are there")
    parser.add_argument("--tiny", action="store_true", help="one case of two steps; nothing is kept")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        home = options.home or Path(scratch)
        base = _base(home, options.base, tiny=options.tiny)
        cases = ["healthy"] if options.tiny else options.cases
        for seed in options.seeds[: 1 if options.tiny else None]:
            for name in cases:
                series = _record(home, base, name, seed, tiny=options.tiny)
                if not options.tiny:
                    SERIES.mkdir(exist_ok=True)
                    (SERIES / f"{name}-{seed}.json").write_text(json.dumps(series) + "\n", encoding="utf-8")
                sys.stdout.write(f"{name}, seed {seed}: {len(series['steps'])} steps\n")
                sys.stdout.flush()
    return 0


def _base(home: Path, seed: int, *, tiny: bool) -> Path:
    """Return the pipeline whose base and reward model the cases use; made where it is not there."""
    pipeline = home / "runs" / f"base-{seed}"
    if not pipeline.exists():
        short = [f"{stage}.max_steps=2" for stage in ("sft", "reward")] if tiny else []
        quick = [f"ppo.{word}" for word in (*_QUICK, "max_steps=1")]
        seeds = [f"{stage}.seed={seed}" for stage in ("sft", "reward", "ppo")]
        recipe = ROOT / "engine" / "stackllama_engine" / "demo_base" / "demo.yaml"
        _run(home, "launch", "pipeline", str(recipe), *seeds, *quick, *short, "--name", pipeline.name, "--follow")
    _drop_head(pipeline.with_name(f"{pipeline.name}-reward"))
    for suffix in ("sft-merged", "reward-merged"):
        _forget_format(pipeline.with_name(f"{pipeline.name}-{suffix}"))
    return pipeline


def _forget_format(merged: Path) -> None:
    """Copy a merged model without the record of its prompt format, by which a launch refuses another one."""
    if not (copy := merged / "unrecorded").exists():
        shutil.copytree(merged / "merged", copy, ignore=shutil.ignore_patterns("prompt_format.json", "base.json"))


def _drop_head(reward: Path) -> None:
    """Write a copy of the reward model whose score head is random, as a merge that loses it leaves one."""
    import torch
    from safetensors.torch import load_file, save_file

    copy = reward / "headless"
    if copy.exists():
        return
    shutil.copytree(reward / "adapter", copy / "adapter")
    shutil.copy(reward / "result.json", copy)
    file = copy / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    shuffle = torch.Generator().manual_seed(0)
    for name in [name for name in weights if "score" in name]:
        weights[name] = torch.empty_like(weights[name]).normal_(0, 0.02, generator=shuffle)
    save_file(weights, file)


def _record(home: Path, base: Path, name: str, seed: int, *, tiny: bool) -> dict[str, Any]:
    case = CASES[name]
    ppo = base.with_name(f"{base.name}-ppo")
    run = home / "runs" / f"{name}-{seed}"
    batch = () if name == "healthy" else _HALF
    words = [f"seed={seed}", f"max_steps={2 if tiny else case.steps}", *_QUICK, *batch, *case.keys]
    words.append(f"model_name_or_path={base}-{case.base}")
    words.append(f"reward_model_path={f'{base}-{case.reward}' if case.reward else 'null'}")
    if not run.exists():
        _run(home, "launch", "ppo", str(ppo / "recipe.yaml"), *words, "--name", run.name, "--follow")
    steps: dict[int, dict[str, Any]] = {}
    for line in (run / "attempts" / "001" / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["kind"] == "metrics" and "objective/scores" in event["metrics"]:
            steps[event["step"]] = event["metrics"]
    names = [key for key in next(iter(steps.values())) if key in _KEPT]
    return {
        "case": name,
        "seed": seed,
        "keys": list(case.keys),
        "base_loss": _result(base, "sft")["eval_loss"],
        "score_std": _result(base, "reward")["score_std"] if case.reward.startswith("reward/") else None,
        "steps": list(steps),
        "metrics": {key: [_rounded(row.get(key)) for row in steps.values()] for key in names},
    }


def _result(base: Path, stage: str) -> dict[str, Any]:
    return json.loads((base.with_name(f"{base.name}-{stage}") / "result.json").read_text(encoding="utf-8"))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def _run(home: Path, *words: str) -> None:
    environment = os.environ | {"STACKLLAMA_HOME": str(home), "OMP_NUM_THREADS": "1"}
    subprocess.run([*COMMAND, *words], cwd=BROKEN, env=environment, check=True)


if __name__ == "__main__":
    sys.exit(main())
