"""torchrl's results: cases as JSON on standard input, results on standard output; runs in an environment of its own."""
# pyright: reportMissingImports=false

import json
import sys
from typing import Any

import torch
from torchrl.data import AdaptiveKLController
from torchrl.objectives.value.functional import generalized_advantage_estimate


def gae(case: dict[str, Any]) -> dict[str, Any]:
    """Compute GAE; torchrl has time on the second-to-last axis, and a response ends an episode."""
    values, rewards, ends = (torch.tensor(case[name]).unsqueeze(-1) for name in ("values", "rewards", "ends"))
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    advantages, returns = generalized_advantage_estimate(
        case["gamma"], case["lam"], values, following, rewards, done=ends, terminated=ends
    )
    return {"advantages": advantages.squeeze(-1).tolist(), "returns": returns.squeeze(-1).tolist()}


def controller(case: dict[str, Any]) -> list[float]:
    """Update torchrl's controller with the penalties −coefficient · KL of each batch."""
    oracle = AdaptiveKLController(init_kl_coef=case["coef"], target=case["target"], horizon=case["horizon"])
    coefficients: list[float] = []
    for kl in case["kl"]:
        oracle.update([-float(oracle.coef) * kl] * case["responses"])
        coefficients.append(float(oracle.coef))
    return coefficients


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    cases = json.load(sys.stdin)
    print(json.dumps({"gae": [gae(one) for one in cases["gae"]], "controller": controller(cases["controller"])}))
