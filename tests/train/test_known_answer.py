"""PPO on a problem whose answer is known: a bandit over tokens, with a penalty on the KL from where it started.

Of all policies, the one that maximises ``E[r(a)] − β · KL(π ‖ π_ref)`` is ``π*(a) ∝ π_ref(a) · exp(r(a) / β)``
(arXiv:2305.18290, eq. 4; β is ``kl_coef``, kept fixed). Sampling, log-probabilities, reference,
targets and update are those of a run; only the model is tiny and the reward a table.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from stackllama_engine.contract.recipe import PPORecipe
from stackllama_engine.train.ppo.algorithm import Updater, compute_advantages
from stackllama_engine.train.ppo.response_text import ResponseText
from stackllama_engine.train.ppo.rewards import final_scores
from stackllama_engine.train.ppo.rollout import Rollout, pad_tokens, policy_outputs
from stackllama_engine.train.ppo.sampling import draw_noise, sample
from stackllama_engine.train.ppo.shared_base import SharedBase

from .toy import ppo_recipe
from .update_kit import CPU, alone

VOCABULARY, BATCH, STEPS = 8, 64, 60
PROMPTS = ([1], [1, 2])
"""Two questions with rewards of their own, one of them padded."""
REWARDS = torch.tensor([[0.0, 0.5, -0.5, 1.0, -1.0, 0.25, 0.75, -0.25], [1.0, -1.0, 0.0, -0.5, 0.5, 0.8, -0.8, 0.3]])
BETA = 0.5
TOLERANCE = 0.03
"""Total variation: half the sum of absolute differences. It starts above 0.5; the optimum of a coefficient that is a
tenth larger is 0.031 away, of one that is a tenth smaller 0.036."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, and logits wide enough for any answer."""
    path = tmp_path_factory.mktemp("bandit")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=0.15,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@torch.no_grad()
def distribution(base: SharedBase) -> Tensor:
    """Of the active adapter after each prompt, ``[2, V]``."""
    rows: list[Tensor] = []
    for prompt in PROMPTS:
        mask = torch.ones(1, len(prompt), dtype=torch.long)
        rows.append(base.logits(base.hidden(torch.tensor([prompt]), mask, mask.cumsum(1) - 1))[0, -1])
    return torch.stack(rows).softmax(-1)


def step(recipe: PPORecipe, base: SharedBase, updater: Updater, number: int) -> None:
    prompts = [PROMPTS[index % 2] for index in range(BATCH)]
    noise = [draw_noise(recipe.seed, number, index, (1, 2)) for index in range(BATCH)]
    responses = sample(base, prompts, noise, stops=(), pad=0)
    ids, attention, mask = pad_tokens(prompts, responses, 0, CPU)
    old = policy_outputs(base, ids, attention, 1, BATCH)
    with base.reference():
        reference = policy_outputs(base, ids, attention, 1, BATCH).logprobs
    scores = torch.stack([REWARDS[index % 2, response[0]] for index, response in enumerate(responses)])
    rollout = Rollout(ids, attention, mask, [ResponseText("", "", True)] * BATCH, old, reference, scores)
    scores = final_scores(recipe, scores, rollout.texts)
    advantages = compute_advantages(recipe, rollout, scores, recipe.kl_coef, alone)
    updater.update(rollout, advantages, torch.Generator().manual_seed(number))


def distance(one: Tensor, other: Tensor) -> float:
    """Total variation, of the prompt where it is larger."""
    return float(0.5 * (one - other).abs().sum(-1).max())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_ppo_reaches_the_optimum(llama: Path, seed: int) -> None:
    recipe = ppo_recipe(
        llama,
        f"seed={seed}",
        f"kl_coef={BETA}",
        "lora_r=8",
        "learning_rate=0.01",
        "gradient_accumulation_steps=1",
        f"per_device_train_batch_size={BATCH}",
    )
    torch.manual_seed(seed)
    base = SharedBase(recipe, CPU)
    with base.reference():
        weights = distribution(base) * (REWARDS / BETA).exp()
    optimum = weights / weights.sum(-1, keepdim=True)
    assert distance(distribution(base), optimum) > 0.5
    optimizer = torch.optim.AdamW(base.trainable(), lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / STEPS)
    updater = Updater(recipe, base, optimizer, alone)
    for number in range(STEPS):
        step(recipe, base, updater, number)
        schedule.step()
    assert distance(distribution(base), optimum) < TOLERANCE
