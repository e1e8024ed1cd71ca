"""The report that `demo`, `pipeline --follow` and `watch` print at the end of a pipeline."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stackllama_console.cli import demo as demo_module
from stackllama_engine.contract.recipe import PipelineRecipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher

RESULTS: dict[str, dict[str, Any]] = {
    "sft": {"stage": "sft", "loss_first": 3.25, "loss_last": 0.5, "eval_loss": 0.6, "steps": 60, "tokens": 9000},
    "sft-merged": {"stage": "merge", "path": "merged", "difference": 2.5e-6, "difference_from_base": 0.4},
    "reward": {
        "stage": "reward",
        "accuracy": 0.875,
        "margin": 1.2,
        "loss": 0.3,
        "pairs": 600,
        "ties": 4,
        "dropped_too_long": 0,
    },
    "reward-merged": {"stage": "merge", "path": "merged", "difference": 0.0, "difference_from_base": 0.4},
    "ppo": {
        "stage": "ppo",
        "steps": 60,
        "before": {"mean_reward": -0.125, "true_utility": 0.5, "kl": 0.0},
        "after": {"mean_reward": 1.5, "true_utility": 0.75, "kl": 4.25, "questions": 1280},
        "samples": [
            {
                "question": f"How do I boil egg {index}?",
                "before": "With \x1b[2Jwater.",
                "after": "word " * 100,
                "reward_before": -0.5,
                "reward_after": 1.25,
                "utility_before": 0.25,
                "utility_after": 0.875,
            }
            for index in range(1, 4)
        ],
    },
    "ppo-merged": {"stage": "merge", "path": "merged", "difference": 1.0e-5, "difference_from_base": 0.4},
}


@pytest.fixture
def pipeline(make_run: Callable[..., RunDir]) -> RunDir:
    for suffix, result in RESULTS.items():
        run = make_run(Stage(result["stage"]), f"p-{suffix}", created=1000.0, started=1000.0, ended=1030.0)
        run.write_json("result.json", result)
    return make_run(Stage.PIPELINE, "p", created=1000.0, started=1000.0, ended=1185.0)


TABLE = """\
                                     first         last     wall time
SFT     held-out loss                             0.600          30 s
        loss, training batch         3.250 →      0.500
merge   error of the merge                       2.5e-6          30 s
reward  held-out accuracy                         0.875          30 s
        held-out pairs                              600
        held-out ties                                 4
merge   error of the merge                        0.000          30 s
PPO     mean reward                 -0.125 →      1.500          30 s
        true utility                 0.500 →      0.750
        KL per response              0.000 →      4.250
        held-out: T = 1, 1 sample per prompt, 1,280 prompts
merge   error of the merge                         1e-5          30 s
total                                                        3 m 05 s
"""


def test_the_table_and_three_prompts(pipeline: RunDir, run_main: Callable[..., Any]) -> None:
    result = run_main("runs", "watch", pipeline.id)
    assert result.code == 0
    table, _, samples = result.out.partition("\nPrompt 1\n")
    assert table == TABLE
    assert max(map(len, result.out.splitlines())) <= 80
    assert samples.startswith("    How do I boil egg 1?\n  before PPO  reward -0.500, true utility 0.250\n")
    assert "    With water.\n  after PPO  reward 1.250, true utility 0.875\n    word word" in samples
    assert "Prompt 3" in samples and "\x1b" not in result.out


def test_the_same_facts_as_json(pipeline: RunDir, run_main: Callable[..., Any]) -> None:
    facts = run_main("runs", "watch", pipeline.id, "--json").json()
    assert (facts["run"], facts["state"], facts["exit_code"], facts["seconds"]) == ("p", "finished", 0, 185.0)
    assert facts["ppo"].pop("temperature") == 1.0
    for suffix, result in RESULTS.items():
        assert facts[suffix] == {**result, "run": f"p-{suffix}", "state": "finished", "seconds": 30.0}


def test_a_pipeline_that_failed_shows_what_there_is(
    make_run: Callable[..., RunDir], run_main: Callable[..., Any]
) -> None:
    make_run(Stage.SFT, "p-sft").write_json("result.json", RESULTS["sft"])
    make_run(Stage.MERGE, "p-sft-merged", "failed", cause="no space")
    make_run(Stage.PIPELINE, "p", "failed", cause="Run `p-sft-merged` failed: no space")
    facts = run_main("runs", "watch", "p", "--json")
    assert facts.code == 1
    assert facts.json()["sft"]["loss_last"] == 0.5 and facts.json()["sft-merged"]["state"] == "failed"
    assert "reward" not in facts.json()
    text = run_main("runs", "watch", "p")
    assert (text.code, text.out) == (1, "") and "`p-sft-merged` failed: no space" in text.err


def test_the_total_of_a_resumed_pipeline_leaves_out_the_time_between(
    pipeline: RunDir, run_main: Callable[..., Any]
) -> None:
    pipeline.write_state(msgspec.structs.replace(pipeline.read_state(), attempt=2, started=1150.0))
    assert run_main("runs", "watch", "p", "--json").json()["seconds"] == 6 * 30.0


def test_a_stage_shown_alone_keeps_a_batch_and_held_out_rows_apart(
    pipeline: RunDir, run_main: Callable[..., Any]
) -> None:
    shown = run_main("runs", "show", "p-sft").out
    assert "  held-out loss: 0.6\n" in shown and "  loss, training batch: 3.25 → 0.5\n" in shown
    assert "loss_last" not in shown
    shown = run_main("runs", "show", "p-ppo").out
    assert "  held-out: T = 1, 1 sample per prompt, 1,280 prompts\n" in shown


def test_a_run_without_a_readable_recipe_says_what_it_knows(pipeline: RunDir, run_main: Callable[..., Any]) -> None:
    run = Home(pipeline.path.parents[1]).run("p-ppo")
    run.recipe_file.write_text("temperature: [")
    assert "  held-out: 1 sample per prompt, 1,280 prompts\n" in run_main("runs", "show", "p-ppo").out
    run.recipe_file.write_text("temperature: 0.7\noutput_min_length: 4\n")  # a key of an older version
    assert "  held-out: T = 0.7, 1 sample" in run_main("runs", "show", "p-ppo").out
    run.write_json("result.json", RESULTS["ppo"] | {"temperature": 0.5})  # what was really used
    assert "  held-out: T = 0.5, 1 sample" in run_main("runs", "show", "p-ppo").out


def test_the_list_shows_the_held_out_loss_of_a_finished_sft_run(pipeline: RunDir, run_main: Callable[..., Any]) -> None:
    (row,) = [run for run in run_main("runs", "ls", "--json").json()["runs"] if run["run"] == "p-sft"]
    assert row["last_metric"] == {"name": "eval_loss", "value": 0.6}


def test_show_of_a_pipeline_has_the_table(pipeline: RunDir, run_main: Callable[..., Any]) -> None:
    assert (
        "  PPO     mean reward                 -0.125 →      1.500          30 s\n" in run_main("runs", "show", "p").out
    )


@pytest.fixture
def demo_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "demo.yaml"
    file.write_text("model_name_or_path: demo\ndataset_name: demo\nsft:\n  seed: 9\n  max_steps: 60\n")
    monkeypatch.setattr(demo_module, "DEMO_RECIPE", file)


@pytest.mark.usefixtures("demo_recipe")
def test_demo_launches_the_recipe_with_the_seed_and_shows_the_end(
    pipeline: RunDir, run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[PipelineRecipe] = []

    def launch(planned: launcher.Plan) -> RunDir:
        assert isinstance(planned.recipe, PipelineRecipe)
        launched.append(planned.recipe)
        return pipeline

    monkeypatch.setattr(launcher, "launch", launch)
    result = run_main("demo", "--seed", "3", "sft.max_steps=5")
    assert (result.code, result.out.partition("\nPrompt 1\n")[0]) == (0, TABLE)
    (recipe,) = launched
    assert [section["seed"] for section in (recipe.sft, recipe.reward, recipe.ppo, recipe.merge)] == [3] * 4
    assert recipe.sft["max_steps"] == 5
    assert run_main("demo", "--json").json()["ppo"]["after"]["kl"] == 4.25


@pytest.mark.usefixtures("demo_recipe")
def test_demo_takes_no_recipe_file(run_main: Callable[..., Any]) -> None:
    result = run_main("demo", "mine.yaml")
    assert result.code == 2 and "pipeline mine.yaml" in result.err


def test_the_demos_own_recipe_is_there_and_valid(run_main: Callable[..., Any], home: Home) -> None:
    result = run_main("pipeline", str(demo_module.DEMO_RECIPE), "--dry-run", "--json")
    assert result.code == 0, result.err
    assert result.json()["recipe"]["sft"]["dataset_name"] == "demo"
