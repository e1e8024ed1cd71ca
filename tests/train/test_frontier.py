"""The frontier of a PPO run: what selects among its evaluations, and what of them a resumed run counts."""

from pathlib import Path
from typing import Any

import pytest

from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.recipe import PPORecipe
from stackllama_engine.contract.recipe_io import build_recipe, dump_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train.ppo.frontier import advice, choose_checkpoint, facts, selection_metrics

ROWS: list[dict[str, Any]] = [
    {"score": 1.0, "kl": 2.0, "rewards": {"model": 1.0, "gold": 0.5}},
    {"score": 3.0, "kl": 4.0, "rewards": {"model": 3.0}},  # the function abstained
]


def recipe(**keys: Any) -> PPORecipe:
    return PPORecipe(model_name_or_path="m", reward_model_path="r", kl_coef=0.5, **keys)


WATCHED: dict[str, Any] = {"reward_funcs": ["rewards:other", "rewards:gold"], "reward_weights": [1.0, 0.0]}


def test_selection_is_by_the_function_of_weight_0_else_the_objective() -> None:
    assert selection_metrics(recipe(), ROWS) == pytest.approx({"eval/selection": 0.5, "eval/selection_se": 0.5})
    assert selection_metrics(recipe(**WATCHED), ROWS) == {"eval/selection": 0.5, "eval/selection_se": 0.0}
    assert selection_metrics(recipe(**WATCHED), ROWS[1:]) == {}


def write(run: RunDir, attempt: int, values: dict[int, float]) -> Path:
    """Write the evaluations of an attempt; return its folder."""
    folder = run.attempt_dir(attempt)
    folder.mkdir()
    writer = EventWriter(folder / "events.jsonl")
    for step, value in values.items():
        metrics = {"eval/mean_reward": step / 10, "eval/kl": 1.0, "eval/selection": value, "eval/selection_se": 0.1}
        writer.write("metrics", step=step, metrics=metrics)
    writer.close()
    return folder


def test_choice_is_over_all_attempts_and_a_repeated_evaluation_counts_once(tmp_path: Path) -> None:
    run = Home(tmp_path).create(Stage.PPO, "")
    write(run, 1, {0: 5.0, 10: 0.2, 20: 0.9})
    write(run, 2, {20: 0.8, 30: 0.3})
    choice = choose_checkpoint(recipe(**WATCHED), run)
    assert choice and [point.selection for point in choice.points] == [0.2, 0.8, 0.3]
    assert choice.step == 20 and choice.text.startswith("take step 20, not the last (30): `gold` was 0.8")
    assert advice(choice, run).endswith(
        "it has no checkpoint: set `save_steps` to `eval_steps` and `metric_for_best_model=eval/selection`"
    )
    assert facts(choice, run)["frontier"][1] == {
        "step": 20,
        "reward": 2.0,
        "kl": 1.0,
        "selection": 0.8,
        "selection_se": 0.1,
    }


@pytest.mark.parametrize(
    ("changed", "steps"), [({}, [10, 20, 30]), ({"max_eval_samples": 9}, [20, 30]), ({"kl_coef": 0.1}, [20, 30])]
)
def test_evaluations_of_before_a_change_of_what_is_measured_do_not_count(
    tmp_path: Path, changed: dict[str, Any], steps: list[int]
) -> None:
    run = Home(tmp_path).create(Stage.PPO, "")
    keys: dict[str, Any] = {"model_name_or_path": "m", "reward_model_path": "r", "kl_coef": 0.5}
    for attempt, more in enumerate(({}, changed, changed), 1):
        made = build_recipe(Stage.PPO, keys | more)
        (write(run, attempt, {10 * attempt: 0.5}) / "recipe.yaml").write_text(dump_recipe(made))
    choice = choose_checkpoint(recipe(), run)
    assert choice and [point.step for point in choice.points] == steps
