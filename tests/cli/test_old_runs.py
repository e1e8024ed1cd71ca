"""Run directories written by commit 2a714a5 open, are listed and compare."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.old_runs import lay_out

from stackllama_console.readers.comparison import Comparison
from stackllama_console.readers.run_reader import RunReader
from stackllama_engine.contract.checkpoints import newest
from stackllama_engine.contract.recipe import TrainRecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import TRAINING_STAGES, Stage
from stackllama_engine.launch.auto_precision import refuse_auto

ENDS = {
    "sft": "finished",
    "sft-stopped": "stopped",
    "reward": "finished",
    "ppo": "finished",
    "ppo-stopped": "stopped",
    "pipeline": "finished",
    "pipeline-sft": "finished",
    "pipeline-sft-merged": "finished",
    "pipeline-reward": "finished",
    "pipeline-reward-merged": "finished",
    "pipeline-ppo": "finished",
    "pipeline-ppo-merged": "finished",
}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(lay_out(tmp_path_factory.mktemp("old")))


def test_old_runs_are_listed_and_shown(old: Home, run_main: Callable[..., Any]) -> None:
    listed = run_main("--home", str(old.path), "runs", "ls", "--json").json()
    assert listed["damaged"] == []
    assert {run["run"]: run["state"] for run in listed["runs"]} == ENDS
    for run_id in ("sft", "reward", "ppo-stopped", "pipeline"):
        shown = run_main("--home", str(old.path), "runs", "show", run_id)
        assert (shown.code, shown.err) == (0, "") and run_id in shown.out


def test_readers_read_old_runs_and_their_checkpoints_verify(old: Home) -> None:
    for run in old.runs():
        reader = RunReader(run)
        assert reader.poll() and (reader.error, reader.bad_lines, reader.phase) == (None, 0, ENDS[run.id])
        if run.id in ("sft", "sft-stopped", "reward"):
            assert reader.series["loss"].last is not None
        path, skipped = newest(run.checkpoints)
        assert skipped == [] and (path is not None) == (
            run.id in ("sft", "sft-stopped", "reward", "ppo", "ppo-stopped")
        )


def test_old_runs_compare(old: Home) -> None:
    compared = Comparison(old, ["ppo", "ppo-stopped"])
    assert compared.poll() and compared.errors == []
    assert "objective/kl" in compared.metrics()
    assert [side.facts.values["max_steps"] for side in compared.sides] == ["3", "8"]


def test_old_runs_keep_their_precision(old: Home) -> None:
    for run in old.runs():
        stage = run.read_state().stage
        if stage not in TRAINING_STAGES:
            continue
        recipe = load_recipe(stage, run.recipe_file)
        assert isinstance(recipe, TrainRecipe)
        assert (recipe.base_precision, recipe.checkpointing) == ("dtype", stage is Stage.SFT), run.id
        refuse_auto(recipe)  # nothing is left to decide
    pipeline = load_recipe(Stage.PIPELINE, old.run("pipeline").recipe_file)
    refuse_auto(pipeline)
