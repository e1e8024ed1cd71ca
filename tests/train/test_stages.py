"""Stages on a toy base, through the real command (launcher, supervisor, accelerate, training, result).

What else they can do is tested in this process.
"""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from stackllama_engine.contract import requests
from stackllama_engine.contract.checkpoints import read_manifest
from stackllama_engine.contract.errors import StageError
from stackllama_engine.contract.events import Event, EventReader
from stackllama_engine.contract.metrics import metrics_of
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.fork import launch_fork, plan_fork
from stackllama_engine.launch.launcher import launch, plan, resume
from stackllama_engine.train import checkpoint

from .in_process import attempt, finish
from .toy import PPO, REWARD, SFT, make_base, run_stage, wait_for

pytestmark = pytest.mark.slow


def events(run: RunDir, attempt: int = 1) -> list[Event]:
    return list(EventReader(run.attempt_dir(attempt) / "events.jsonl").read())


def metrics(run: RunDir, kind: str = "training") -> list[dict[str, float | None]]:
    """Of one attempt: those of the training steps, or those of PPO's evaluations (``kind="evaluation"``)."""
    found = [event.metrics for event in events(run) if event.kind == "metrics"]
    return [row for row in found if (kind == "evaluation") == ("eval/kl" in row)]


def samples(run: RunDir, when: str | None = None) -> list[dict[str, Any]]:
    """Rows of a training step (``when=None``), or of the evaluations before, during or after."""
    rows = [json.loads(line) for line in run.samples_file.read_text().splitlines()]
    return [row for row in rows if row.get("when") == when]


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Of what a test runs in this process."""
    return Home(tmp_path / "home")


@pytest.fixture(scope="module")
def sft_run(shared_home: Home, base: Path) -> RunDir:
    return run_stage(shared_home, Stage.SFT, f"model_name_or_path={base}", *SFT)


@pytest.fixture(scope="module")
def reward_run(shared_home: Home, base: Path) -> RunDir:
    return run_stage(shared_home, Stage.REWARD, f"model_name_or_path={base}", *REWARD)


@pytest.fixture(scope="module")
def ppo_run(shared_home: Home, base: Path, reward_run: RunDir) -> RunDir:
    inputs = (f"model_name_or_path={base}", f"reward_model_path={reward_run.id}")
    return run_stage(shared_home, Stage.PPO, *PPO, *inputs)


def test_sft_trains_and_leaves_facts(sft_run: RunDir) -> None:
    result = sft_run.read_json("result.json")
    assert result["loss_last"] < result["loss_first"]
    assert result["steps"] == 6
    assert 6 * 4 * 64 * 2 / 3 < result["tokens"] <= 6 * 4 * 64  # whole answers, as many as fit
    assert any(tensor.abs().sum() > 0 for name, tensor in weights(sft_run).items() if "lora_B" in name)
    assert [checkpoint.problem(path) for path in sorted(sft_run.checkpoints.iterdir())] == [None, None]
    assert {"loss", "grad_norm", "learning_rate", "mean_token_accuracy", "entropy"} <= metrics(sft_run)[0].keys()
    assert events(sft_run)[-1].data == {"exit_code": 0, "cause": None}


@pytest.mark.parametrize("stage", ["sft_run", "reward_run", "ppo_run"])
def test_every_stage_says_what_it_does_before_its_first_step(stage: str, request: pytest.FixtureRequest) -> None:
    kinds = ("activity", "progress")
    first = itertools.takewhile(
        lambda event: event.kind != "progress",
        (event for event in events(request.getfixturevalue(stage)) if event.kind in kinds),
    )
    done = [(event.data["doing"], event.data.get("share")) for event in first]
    assert done[0] == ("importing libraries", None)
    assert ("tokenizing", None) in done and ("reading weights", 0.0) in done


@pytest.mark.parametrize("stage", ["sft_run", "reward_run", "ppo_run"])
def test_every_reported_metric_is_described(stage: str, request: pytest.FixtureRequest) -> None:
    run: RunDir = request.getfixturevalue(stage)
    described = {metric.name for metric in metrics_of(run.read_state().stage)}
    reported = {name for event in events(run) if event.kind == "metrics" for name in event.metrics}
    unknown = sorted(reported - described)
    assert reported and not unknown


def test_a_fork_without_changes_ends_as_the_run_it_came_from(shared_home: Home, sft_run: RunDir) -> None:
    fork = launch_fork(plan_fork(shared_home, sft_run, 3, ["save_steps=2"], "fork"))
    assert wait_for(fork, lambda state: state.has_ended).phase == "finished"
    before, after = ([row["loss"] for row in metrics(run) if "loss" in row] for run in (sft_run, fork))
    assert len(after) == 3 and after == before[3:]
    assert all(torch.equal(tensor, weights(sft_run)[name]) for name, tensor in weights(fork).items())


@pytest.mark.parametrize("more", ["packing=false", "packing_strategy=wrapped"])
def test_sft_with_other_loaders(home: Home, base: Path, more: str) -> None:
    _, facts = finish(home, base, Stage.SFT, *SFT, "max_steps=2", more)
    assert facts["steps"] == 2


def test_full_training_leaves_a_model_that_merging_only_casts(shared_home: Home, home: Home, base: Path) -> None:
    keys = (f"model_name_or_path={base}", *SFT, "max_steps=2", "use_peft=false", "bf16=true", "num_processes=2")
    run = run_stage(shared_home, Stage.SFT, *keys)
    assert not run.adapter.exists()
    merged = finish(home, base, Stage.MERGE, f"adapter_path={run.merged}")[0].merged
    trained, cast = (AutoModelForCausalLM.from_pretrained(path, dtype="auto") for path in (run.merged, merged))
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor.bfloat16(), cast.state_dict()[name]), name


@pytest.mark.parametrize("bits", ["load_in_8bit=true", "load_in_4bit=true"])
def test_sft_on_a_quantised_base(home: Home, base: Path, bits: str) -> None:
    run, _ = finish(home, base, Stage.SFT, *SFT, "max_steps=2", bits)
    assert {tensor.dtype for tensor in weights(run).values()} == {torch.float32}
    assert any(tensor.abs().sum() > 0 for name, tensor in weights(run).items() if "lora_B" in name)


def test_reward_trains_its_head_and_counts_ties_apart(reward_run: RunDir) -> None:
    result = reward_run.read_json("result.json")
    assert 0 <= result["accuracy"] <= 1
    assert result["pairs"] == 8
    assert result["ties"] == 0
    assert any(name.endswith("score.weight") for name in weights(reward_run))


def test_reward_drops_and_counts_long_pairs(home: Home, base: Path) -> None:
    keys = ("max_steps=1", "max_length=70", "max_tokens_per_micro_batch=200")
    run, facts = finish(home, base, Stage.REWARD, *REWARD, *keys)
    assert 0 < facts["dropped_too_long"] < 72
    assert any("70 tokens" in event.data["message"] for event in events(run) if event.kind == "health")


def test_ppo_starts_at_ratio_one_and_moves(ppo_run: RunDir, reward_run: RunDir) -> None:
    run = ppo_run
    for row in metrics(run):
        assert row["val/ratio_first"] == 1.0
        assert row["policy/approxkl_first"] == 0.0
        assert row["policy/approxkl_avg"] > 0  # type: ignore[operator]
    # the policy starts as the reference, which is asked in larger batches: to rounding
    assert metrics(run)[0]["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert abs(metrics(run)[-1]["objective/kl"]) > 1e-4  # type: ignore[arg-type]
    # adaptive: a KL of 0 is off target by more than −20 %, which takes 0.2 · 4 responses / 10,000 off
    assert metrics(run)[1]["objective/kl_coef"] == pytest.approx(0.2 * (1 - 0.2 * 4 / 10_000))
    # lengths are drawn from [4, 8); a response may end before its own
    assert {row["length"] for row in samples(run) if not row["ended"]} <= {4, 5, 6, 7}
    assert len({row["length"] for row in samples(run)}) > 1 and max(row["length"] for row in samples(run)) < 8
    assert samples(run)[0].keys() == {
        "step",
        "question",
        "response",
        "reward",
        "score",
        "rewards",
        "kl",
        "length",
        "ended",
        "columns",
        "utility",
    }
    assert samples(run)[0]["columns"].keys() == {"question_id", "score_j", "score_k"}
    assert samples(run)[0]["rewards"] == {"model": samples(run)[0]["reward"]}
    assert_held_out_samples(run)
    assert sorted(path.name for path in run.adapter.glob("*.safetensors")) == [
        "adapter_model.safetensors",
        "value_head.safetensors",
    ]
    assert not (run.adapter / "reward").exists()  # what is shared is the policy alone
    result = run.read_json("result.json")
    assert {"eval/mean_reward", "objective/scores"} <= read_manifest(run.checkpoints / "step-000002").metrics.keys()
    assert result["before"]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert result["before"]["questions"] == 8
    assert len(result["samples"]) == 3
    lineage = run.read_json("lineage.json")
    assert lineage["parents"] == [reward_run.id] and lineage["prompt_format"]["kind"] == "question_answer"


def assert_held_out_samples(run: RunDir) -> None:
    """Check that the same prompts are evaluated before, after each step and after, with their means."""
    before, during, after = (samples(run, when) for when in ("before", "during", "after"))
    assert [row["step"] for row in before] == [0] * 4
    assert [row["step"] for row in during] == [1] * 4 + [2] * 4 + [3] * 4
    assert [row["step"] for row in after] == [4] * 4  # and not twice, although 4 is a multiple of eval_steps
    questions = [row["question"] for row in before]
    assert len(set(questions)) == 4
    assert [row["question"] for row in during + after] == questions * 4
    assert {row["split"] for row in before + during + after} == {"evaluation"}
    assert all(abs(row["kl"]) < 1e-5 for row in before)
    assert all(row["kl"] != 0.0 for row in after)
    means = {event.step: event.metrics for event in events(run) if "eval/kl" in event.metrics}
    assert list(means) == [0, 1, 2, 3, 4]
    for step, when in ((0, "before"), (4, "after")):
        facts = {f"eval/{name}": value for name, value in run.read_json("result.json")[when].items()}
        assert facts.pop("eval/questions") == 8  # all of them, not only the rows that are recorded
        # reward less 0.2 × KL, less the penalty of 1 where all, some or none of the responses had no end
        most = facts["eval/mean_reward"] - 0.2 * facts["eval/kl"]
        assert most - 1.0 - 1e-5 <= means[step].pop("eval/objective") <= most + 1e-5
        assert (means[step].pop("eval/selection_se") or 0) > 0 and means[step].pop("eval/selection") is not None
        assert means[step] == pytest.approx(facts)
        assert means[step].keys() == {
            "eval/mean_reward",
            "eval/reward/model",
            "eval/kl",
            "eval/response_length",
            "eval/true_utility",
        }


def test_ppo_continues_another_run(
    shared_home: Home, home: Home, base: Path, sft_run: RunDir, reward_run: RunDir
) -> None:
    inputs = (f"model_name_or_path={base}", f"reward_model_path={reward_run.id}", f"policy_adapter_path={sft_run.id}")
    keys = (*PPO, "max_steps=1", "lora_r=4")
    planned = plan(shared_home, load_recipe(Stage.PPO, None, (*keys, *inputs)))
    assert set(planned.parents) == {sft_run.id, reward_run.id}
    found = (f"policy_adapter_path={sft_run.adapter}", f"reward_model_path={reward_run.adapter}")
    run, _ = finish(home, base, Stage.PPO, *keys, *found)
    # the reference is the adapter it began with, asked in batches of another size
    assert metrics(run)[0]["objective/kl"] == pytest.approx(0, abs=1e-5)


def test_ppo_stops_at_nan_scores(home: Home, base: Path, reward_model: Path, tmp_path: Path) -> None:
    poisoned = tmp_path / "adapter"
    shutil.copytree(reward_model, poisoned)
    state = load_file(reward_model / "adapter_model.safetensors")
    state[next(name for name in state if name.endswith("score.weight"))][0, 0] = float("nan")
    save_file(state, poisoned / "adapter_model.safetensors")
    keys = (*PPO, f"reward_model_path={poisoned}")
    with attempt(home, base, Stage.PPO, *keys) as one, pytest.raises(StageError, match="NaN or infinity in 8 scores"):
        one.train()
    assert not one.run.adapter.exists()


def test_ppo_on_an_8_bit_base(home: Home, base: Path, reward_model: Path) -> None:
    run, _ = finish(
        home, base, Stage.PPO, *PPO, f"reward_model_path={reward_model}", "load_in_8bit=true", "max_steps=2"
    )
    assert [row["val/ratio_first"] for row in metrics(run)] == [1.0, 1.0]


def test_ppo_with_a_reward_model_of_another_base(home: Home, base: Path, reward_model: Path, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=1)
    run, _ = finish(home, other, Stage.PPO, *PPO, f"reward_model_path={reward_model}", "max_steps=1")
    said = [event.data["message"] for event in events(run) if event.kind == "health"]
    assert any("second model" in message for message in said)


def test_two_processes_equal_one_and_accumulation(
    shared_home: Home, home: Home, base: Path, reward_model: Path
) -> None:
    """1 × 8, 2 processes × 4 and accumulation 8 × 1, with all that is a statistic over ranks or tokens."""
    inputs = (
        *PPO,
        f"model_name_or_path={base}",
        f"reward_model_path={reward_model}",
        "max_steps=2",
        "eval_steps=0",
        "lr_scheduler_type=linear",
        "adap_kl_ctrl=false",
        "kl_estimator=k3",
        "normalize_reward=true",
        "cliprange_reward=1",
        "missing_eos_reward=-1",
        "whiten_rewards=true",
        "ent_coef=0.01",
        "value_adapter_layers=1",  # of two
    )
    one, eight = (
        finish(
            home,
            base,
            Stage.PPO,
            *inputs,
            f"per_device_train_batch_size={size}",
            f"gradient_accumulation_steps={count}",
        )[0]
        for size, count in ((8, 1), (1, 8))
    )
    ranks = ("per_device_train_batch_size=4", "gradient_accumulation_steps=1", "num_processes=2")
    two = run_stage(shared_home, Stage.PPO, *inputs, *ranks)
    names = {
        "objective/scores",
        "objective/score_mean",
        "objective/score_std",
        "objective/score_clipfrac",
        "objective/kl",
        "objective/rlhf_reward",
        "loss/policy_avg",
        "loss/value_avg",
        "policy/entropy_avg",
        "val/num_tokens",
        "grad_norm",
    }
    assert [row["learning_rate"] for row in metrics(one)] == [1e-3, 5e-4]  # annealed to 0
    assert [row["objective/kl_coef"] for row in metrics(one)] == [0.2, 0.2]
    assert [row["val/ratio_first"] for run in (one, two, eight) for row in metrics(run)] == [1.0] * 6
    for other in (two, eight):
        assert [row["question"] for row in samples(one, "after")] == [
            row["question"] for row in samples(other, "after")
        ]
        for mine, theirs in zip(metrics(one), metrics(other), strict=True):
            for name in names:
                assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
        for name, tensor in weights(one).items():
            torch.testing.assert_close(weights(other)[name], tensor, atol=2e-4, rtol=1e-3)


def test_merge_equals_base_plus_adapter(shared_home: Home, sft_run: RunDir) -> None:
    run = run_stage(shared_home, Stage.MERGE, f"adapter_path={sft_run.id}")
    result = run.read_json("result.json")
    assert 0 < result["difference"] < 0.5 * result["difference_from_base"]
    merged = AutoModelForCausalLM.from_pretrained(run.merged)
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}


def test_merge_keeps_the_score_head(home: Home, base: Path, reward_run: RunDir) -> None:
    run, _ = finish(home, base, Stage.MERGE, f"adapter_path={reward_run.adapter}", "dtype=float32")
    merged = AutoModelForSequenceClassification.from_pretrained(run.merged)
    trained = next(tensor for name, tensor in weights(reward_run).items() if name.endswith("score.weight"))
    assert torch.equal(merged.get_submodule("score").weight, trained)


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.REWARD, Stage.PPO])
def test_stopped_and_resumed_equals_straight(
    shared_home: Home, base: Path, sft_run: RunDir, reward_run: RunDir, ppo_run: RunDir, stage: Stage
) -> None:
    straight = {Stage.SFT: sft_run, Stage.REWARD: reward_run, Stage.PPO: ppo_run}[stage]
    broken = launch(plan(shared_home, load_recipe(stage, straight.recipe_file)))
    requests.write(broken, "pause")  # served at the first step boundary
    wait_for(broken, lambda _: any(event.phase == "paused" for event in events(broken)))
    broken.request("stop")
    state = wait_for(broken, lambda state: state.has_ended)
    assert (state.phase, state.exit_code) == ("stopped", 75)
    path, _ = checkpoint.newest(broken.checkpoints)
    assert path and checkpoint.step_of(path) == 1
    resume(shared_home, broken.id)
    assert wait_for(broken, lambda state: state.attempt == 2 and state.has_ended).phase == "finished"
    assert weights(broken).keys() == weights(straight).keys()
    for name, tensor in weights(straight).items():
        assert torch.equal(weights(broken)[name], tensor), name
    done = checkpoint.step_of(path)
    assert untimed(broken, 1, 0) + untimed(broken, 2, done) == untimed(straight, 1, 0)
    if stage is Stage.PPO:  # questions, answers and evaluations are in it once each
        assert broken.samples_file.read_text() == straight.samples_file.read_text()


def untimed(run: RunDir, attempt: int, after: int) -> list[tuple[int | None, dict[str, float | None]]]:
    """Collect an attempt's metrics of the steps after one, without those that depend on time."""
    timed = {"tokens_per_second", "response_tokens_per_second", "time/rollout", "time/score", "time/update"}
    return [
        (event.step, {name: value for name, value in event.metrics.items() if name not in timed})
        for event in events(run, attempt)
        if event.kind == "metrics" and (event.step or 0) >= after
    ]


def test_a_model_that_cannot_be_loaded_says_so(home: Home, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with attempt(home, tmp_path, Stage.SFT, *SFT) as one, pytest.raises(StageError, match="Cannot load the tokenizer"):
        one.train()
