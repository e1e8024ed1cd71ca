"""Policy and base beside each other: who answers, means with their errors by hand, and what a run leaves of it."""

import math
from pathlib import Path

import pytest
import torch

from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train.ppo.evaluation import Variant, mean_and_error, summary
from stackllama_engine.train.ppo.rollout import policy_outputs
from stackllama_engine.train.ppo.sampling import draw_noise, sample

from .in_process import PPO, attempt
from .update_kit import PROMPTS, Toy, toy

BASE, POLICY = Variant(policy=False, temperature=1.0), Variant(policy=True, temperature=1.0)


def rows(*values: tuple[float, float, float]) -> list[dict[str, float]]:
    return [
        {"score": score, "reward": score, "kl": kl, "utility": utility, "length": 3} for score, kl, utility in values
    ]


def test_means_and_standard_errors_by_hand() -> None:
    # deviation of 1, 2, 3, 6 about 3: (4 + 1 + 0 + 9) / 3
    assert mean_and_error("x", [1, 2, 3, 6]) == {"x": 3.0, "x_se": pytest.approx(math.sqrt(14 / 3 / 4))}
    assert mean_and_error("x", [5.0]) == {"x": 5.0, "x_se": 0.0}


def test_a_win_is_a_better_score_and_a_tie_half_of_one() -> None:
    base = rows((1.0, 0.0, 0.5), (2.0, 0.0, 0.5), (3.0, 0.0, 0.5))
    found = summary(POLICY, rows((2.0, 1.0, 0.5), (2.0, 2.0, 0.5), (1.0, 3.0, 0.8)), base)
    assert (found["win_rate"], found["kl"], found["true_utility"]) == pytest.approx((0.5, 2.0, 0.6))
    assert found["name"] == "PPO, T = 1" and found["questions"] == 3
    assert "win_rate" not in summary(BASE, base, base)  # against itself it means nothing


def test_best_of_n_has_a_bound_instead_of_a_kl() -> None:
    found = summary(BASE._replace(best_of=4), rows((1.0, 0.3, 0.5)), rows((0.0, 0.0, 0.5)))
    assert found["kl"] == pytest.approx(math.log(4) - 3 / 4) and found["kl_is_bound"] and "kl_se" not in found
    assert found["name"] == "base, T = 1, best of 4"
    assert not {*BASE.samples} & {*BASE._replace(best_of=4).samples}  # it may lose to the base's one response
    assert Variant(policy=True, temperature=0).name == "PPO, greedy"


def answers(one: Toy, *, policy: bool, temperature: float) -> list[list[int]]:
    noise = [draw_noise(0, 0, index, (6, 7)) for index in range(len(PROMPTS))]
    with one.base.acting(policy=policy, temperature=temperature):
        return sample(one.base, PROMPTS, noise, (2,), 0)


def test_the_base_answers_without_the_adapter_and_the_policy_comes_back(base: Path) -> None:
    one = toy(base)
    policy = answers(one, policy=True, temperature=1.0)
    untouched = answers(one, policy=False, temperature=1.0)
    assert policy != untouched
    assert answers(one, policy=True, temperature=1.0) == policy and one.base.temperature == 1.0
    for name, parameter in one.base.model.named_parameters():
        if ".default." in name:
            parameter.data.zero_()
    assert answers(one, policy=True, temperature=1.0) == untouched


def test_greedy_is_the_likeliest_token(base: Path) -> None:
    one = toy(base)
    with one.base.acting(policy=True, temperature=1e-4):
        rollout = one.rollout
        sure = policy_outputs(one.base, rollout.input_ids, rollout.attention_mask, rollout.responses, 4).logprobs
    for index, (prompt, response) in enumerate(zip(PROMPTS, answers(one, policy=True, temperature=1e-4), strict=True)):
        ids = torch.tensor([prompt + response])
        with torch.no_grad():
            likeliest = one.base.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].argmax(-1)
        assert response == likeliest.tolist(), index
    assert float(sure.min()) < -1  # tokens that it would not choose have no probability left


@pytest.mark.slow
def test_a_run_leaves_its_table(base: Path, tmp_path: Path) -> None:
    keys = ("eval_temperatures=[0.5, 0]", "eval_best_of=[2]", "eval_steps=1", "learning_rate=0.05")
    with attempt(Home(tmp_path), base, Stage.PPO, *PPO, *keys) as first:
        result = first.train()
    assert result is not None
    table = {row["name"]: row for row in result["comparison"]}
    assert list(table)[:4] == ["base, T = 1", "base, T = 0.5", "base, greedy", "base, T = 1, best of 2"]
    assert list(table)[-3:] == ["PPO, T = 1", "PPO, T = 0.5", "PPO, greedy"]
    (best,) = (row for row in result["comparison"] if "step" in row)
    assert best["step"] in (1, 2) and best["name"] == f"PPO, T = 1, step {best['step']}"
    assert table["base, T = 1"]["mean_reward"] == pytest.approx(result["before"]["mean_reward"])
    assert table["PPO, T = 1"]["mean_reward"] == pytest.approx(result["after"]["mean_reward"])
    assert table["base, T = 1"]["kl"] == pytest.approx(0, abs=1e-5)
    assert table["base, greedy"]["kl"] > 0.1  # one answer for sure, of many
