"""PPO on the demo's parts through the real command, a seed on each core."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.launcher import launch, plan
from stackllama_engine.launch.reconcile import reconcile

from . import parts


def train(made: parts.Parts, home: Home, seeds: Sequence[int], **changed: Any) -> list[RunDir]:
    """Train seeds with the demo's own settings of PPO and changes of them, two at a time; return the finished runs."""

    def run(seed: int) -> RunDir:
        keys = parts.settings() | {
            "model_name_or_path": str(made.base),
            "reward_model_path": str(made.reward),
            "dataset_name": "demo",
            "dtype": "float32",
            "load_in_8bit": False,
            "use_cpu": True,
            "save_steps": 0,
            "eval_steps": 0,
            "eval_temperatures": [],
            "eval_best_of": [],
            "seed": seed,
        }
        directory = launch(plan(home, build_recipe(Stage.PPO, keys | changed), f"seed-{seed}"))
        while not (state := reconcile(directory)).has_ended:
            time.sleep(0.5)
        assert state.phase == "finished", state.cause
        return directory

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setenv("OMP_NUM_THREADS", "1")
        return list(pool.map(run, seeds))
