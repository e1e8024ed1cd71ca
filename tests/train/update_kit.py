"""A toy rollout, and one update of it whose gradients are kept."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stackllama_engine.contract.recipe import PPORecipe
from stackllama_engine.train.ppo.algorithm import Updater, compute_advantages
from stackllama_engine.train.ppo.response_text import ResponseText
from stackllama_engine.train.ppo.rewards import final_scores
from stackllama_engine.train.ppo.rollout import Advantages, LowerStates, Rollout, pad_tokens, policy_outputs
from stackllama_engine.train.ppo.shared_base import SharedBase
from stackllama_engine.train.ppo.update import UpdateStats

from .toy import ppo_recipe

CPU = torch.device("cpu")
PROMPTS = [[1, 5, 6, 9], [1, 7], [1, 8, 30], [1, 9]]
RESPONSES = [[8, 9, 2], [10, 2], [11, 40, 41, 42], [2]]


def alone(values: Tensor) -> Tensor:
    return values


class Keeper(torch.optim.SGD):
    """Keeps the gradient of every step, all parameters in one row."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr=lr)
        self.steps: list[Tensor] = []

    def step(self, closure: Any = None) -> Any:
        kept = [parameter.grad for group in self.param_groups for parameter in group["params"]]
        self.steps.append(torch.cat([gradient.flatten().clone() for gradient in kept]))
        return super().step(closure)


class Waits(TorchDispatchMode):
    """Operations after which a host would have to wait for its GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket._qualified_op_name in ("aten::_local_scalar_dense", "aten::nonzero"):
            self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


@dataclass
class Toy:
    """A policy that is not the reference, and what it sampled."""

    recipe: PPORecipe
    base: SharedBase
    rollout: Rollout
    gradients: list[Tensor] = field(default_factory=list)

    def advantages(self, kl_coef: float = 0.2) -> Advantages:
        scores = final_scores(self.recipe, self.rollout.scores, self.rollout.texts)
        return compute_advantages(self.recipe, self.rollout, scores, kl_coef, alone)

    def update(self, advantages: Advantages, lr: float = 0.0) -> UpdateStats:
        keeper = Keeper(self.base.trainable(), lr)
        statistics = Updater(self.recipe, self.base, keeper, alone).update(self.rollout, advantages, torch.Generator())
        self.gradients = keeper.steps
        return statistics

    def with_old(self, **columns: Tensor) -> None:
        """Let the rollout say something else of the sampled tokens."""
        self.rollout = replace(self.rollout, old=self.rollout.old._replace(**columns))


def toy(path: Path, *keys: str, masks: bool = False) -> Toy:
    """One mini-batch an epoch and one epoch, unless the keys say otherwise; ``masks``: padding is masked."""
    keys = (
        "num_ppo_epochs=1",
        "num_mini_batches=1",
        "value_adapter=false",
        "missing_eos_penalty=0",
        "per_device_train_batch_size=4",
        "gradient_accumulation_steps=1",
        *keys,
    )
    recipe = ppo_recipe(path, "max_grad_norm=1e9", *keys)
    torch.manual_seed(0)
    base = SharedBase(recipe, CPU)
    generator = torch.Generator().manual_seed(7)
    for parameter in base.trainable():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    base.masks_padding = masks
    ids, attention, mask = pad_tokens(PROMPTS, RESPONSES, 0, CPU)
    kept = LowerStates(*ids.shape) if base.below_critic else None
    with base.reference():
        reference = policy_outputs(base, ids, attention, mask.shape[1], 4, keep=kept).logprobs
    lower, tokens = kept.states if kept else None, recipe.max_tokens_per_micro_batch
    old = policy_outputs(base, ids, attention, mask.shape[1], recipe.micro_batch_size, tokens=tokens, lower=lower)
    texts = [ResponseText("", "", response[-1] == 2) for response in RESPONSES]
    scores = torch.tensor([1.0, -0.5, 2.0, 0.25])
    return Toy(recipe, base, Rollout(ids, attention, mask, texts, old, reference, scores, lower=lower))
