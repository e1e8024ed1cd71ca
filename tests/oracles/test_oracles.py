"""The mathematics against torchrl and TRL 1.12.0, each in an environment of its own (``make oracles`` builds them)."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stackllama_engine.train.ppo import losses
from stackllama_engine.train.ppo.update import whiten

from .results import results_of

pytestmark = pytest.mark.slow

LENGTHS = (5, 2, 4, 1)
GENERATOR = torch.Generator().manual_seed(11)


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def mask_of(full: bool) -> Tensor:
    lengths = torch.tensor([5] * 4 if full else LENGTHS)
    return (torch.arange(5) < lengths[:, None]).double()


def alone(values: Tensor) -> Tensor:
    return values


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(mine: Tensor, theirs: Any) -> None:
    torch.testing.assert_close(mine, double(theirs), rtol=1e-7, atol=1e-9)


@pytest.fixture(scope="module")
def torchrl() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return cases and results."""
    cases: list[dict[str, Any]] = []
    for full, gamma, lam in ((True, 0.9, 0.95), (False, 1.0, 0.95), (False, 0.97, 0.5), (False, 1.0, 1.0)):
        mask = mask_of(full)
        ends = torch.cat([mask[:, 1:], torch.zeros(4, 1)], dim=1) < mask
        case = {"values": normal(4, 5), "rewards": normal(4, 5), "ends": ends, "mask": mask}
        cases.append({name: column.tolist() for name, column in case.items()} | {"gamma": gamma, "lam": lam})
    kl = [12.0, 3.0, 6.6, 0.0, 40.0, 5.9]
    controller = {"coef": 0.2, "target": 6.0, "horizon": 10_000, "responses": 256, "kl": kl}
    everything: dict[str, Any] = {"gae": cases, "controller": controller}
    return everything, results_of("torchrl", everything)


def test_gae_is_that_of_torchrl(torchrl: tuple[dict[str, Any], dict[str, Any]]) -> None:
    cases, answers = torchrl
    for case, answer in zip(cases["gae"], answers["gae"], strict=True):
        values, rewards, mask = (double(case[name]) for name in ("values", "rewards", "mask"))
        advantages, returns = losses.gae(values, rewards, mask, case["gamma"], case["lam"])
        close(advantages, (double(answer["advantages"]) * mask).tolist())
        close(returns, (double(answer["returns"]) * mask).tolist())


def test_adaptive_controller_is_that_of_torchrl(torchrl: tuple[dict[str, Any], dict[str, Any]]) -> None:
    case, answer = torchrl[0]["controller"], torchrl[1]["controller"]
    mine = losses.KLController(case["coef"], case["target"], case["horizon"])
    coefficients: list[float] = []
    for kl in case["kl"]:
        mine.update(kl, case["responses"])
        coefficients.append(mine.coef)
    assert coefficients == pytest.approx(answer, rel=1e-6)
    assert len(set(coefficients)) == len(coefficients)


def targets_case(full: bool, **args: Any) -> dict[str, Any]:
    mask = mask_of(full)
    last = mask.sum(1).long() - 1
    logprobs, ref_logprobs, values = -normal(4, 5).abs(), -normal(4, 5).abs(), normal(4, 5) * mask
    padding = mask == 0
    columns = {
        "logprobs": logprobs.masked_fill(padding, 1.0),
        "ref_logprobs": ref_logprobs.masked_fill(padding, 1.0),
        "values": values,
        "scores": normal(4),
        "responses": torch.zeros(4, 5),
        "padding_mask": padding,
        "padding_mask_p1": padding,
        "sequence_lengths": last,
        "sequence_lengths_p1": last,
    }
    return {name: column.tolist() for name, column in columns.items()} | {"args": args}


def losses_case(full: bool, **args: float) -> dict[str, Any]:
    padding = mask_of(full) == 0
    columns = {
        "new_logprobs": normal(4, 5, scale=0.5).masked_fill(padding, 1.0),
        "mb_advantage": normal(4, 5),
        "mb_logprobs": normal(4, 5, scale=0.5).masked_fill(padding, 1.0),
        "mb_return": normal(4, 5),
        "vpred": normal(4, 5).masked_fill(padding, 0),
        "mb_values": normal(4, 5).masked_fill(padding, 0),
        "padding_mask": padding,
        "padding_mask_p1": padding,
        "micro_batch_inds": torch.arange(4),
    }
    return {name: column.tolist() for name, column in columns.items()} | {"args": args}


@pytest.fixture(scope="module")
def trl() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return cases and results."""
    base = {"kl_coef": 0.3, "gamma": 0.95, "lam": 0.9}
    cases: dict[str, Any] = {
        "whiten": [
            {"values": normal(4, 5).tolist(), "mask": mask_of(False).bool().tolist(), "shift_mean": shift}
            for shift in (True, False)
        ],
        "targets": [
            targets_case(full, kl_estimator=kl, whiten_rewards=whiten_rewards, **base)
            for full in (True, False)
            for kl in ("k1", "k3")
            for whiten_rewards in (False, True)
        ],
        "losses": [losses_case(full, cliprange=0.2, cliprange_value=0.3, vf_coef=0.1) for full in (True, False)],
    }
    return cases, results_of("trl", cases)


def test_whitening_is_that_of_trl(trl: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for case, answer in zip(trl[0]["whiten"], trl[1]["whiten"], strict=True):
        mask = double(case["mask"])
        mine = whiten(double(case["values"]), mask, alone, case["shift_mean"])
        close(mine, (double(answer) * mask).tolist())


def test_kl_advantages_and_returns_are_those_of_trl(trl: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for case, answer in zip(trl[0]["targets"], trl[1]["targets"], strict=True):
        args = case["args"]
        mask = 1 - double(case["padding_mask"])
        logprobs, reference, values, scores = (
            double(case[name]) for name in ("logprobs", "ref_logprobs", "values", "scores")
        )
        kl = losses.kl_per_token(logprobs, reference, args["kl_estimator"])
        close(kl, answer["kl"])
        rewards = losses.token_rewards(scores, kl, mask, args["kl_coef"])
        if args["whiten_rewards"]:
            rewards = whiten(rewards, mask, alone, shift_mean=False)
        advantages, returns = losses.gae(values, rewards, mask, args["gamma"], args["lam"])
        close(whiten(advantages, mask, alone), answer["advantages"])
        close(returns, answer["returns"])


def test_clipped_losses_and_their_gradients_are_those_of_trl(trl: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for case, answer in zip(trl[0]["losses"], trl[1]["losses"], strict=True):
        args = case["args"]
        columns = {name: double(value) for name, value in case.items() if name != "args"}
        mask = 1 - columns["padding_mask"]
        new, values = (columns[name].requires_grad_() for name in ("new_logprobs", "vpred"))
        policy = losses.policy_loss(new, columns["mb_logprobs"], columns["mb_advantage"], mask, args["cliprange"])
        value = losses.value_loss(values, columns["mb_values"], columns["mb_return"], mask, args["cliprange_value"])
        tokens = mask.sum()
        loss = (policy.loss + args["vf_coef"] * value.loss) / tokens
        mine = {
            "pg_loss": policy.loss / tokens,
            "vf_loss": value.loss / tokens,
            "loss": loss,
            "pg_clipfrac": policy.clipped / tokens,
            "vf_clipfrac": value.clipped / tokens,
            "approxkl": policy.approxkl / mask.numel(),  # TRL's mean is over padding too
        }
        assert {name: float(number.detach()) for name, number in mine.items()} == pytest.approx(
            {name: answer[name] for name in mine}, rel=1e-7
        )
        assert 0 < answer["pg_clipfrac"] < 1 and 0 < answer["vf_clipfrac"] < 1
        for part, expected in zip(torch.autograd.grad(loss, [new, values]), answer["gradient"], strict=True):
            close(part, expected)
