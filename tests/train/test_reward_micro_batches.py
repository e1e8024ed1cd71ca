"""Reward training by tokens: the gradient, loss and metrics of the pairs' own micro-batches, in float64."""

from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification
from trl.trainer.reward_trainer import RewardTrainer

from stackllama_engine.contract.recipe import RewardRecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train.reward_micro_batches import TokenMicroBatches, micro_batches, whole_steps

BETTER = [[1, 5, 6, 9, 8, 2], [1, 7, 2], [1, 8, 30, 11, 2], [1, 9, 4, 2]]
WORSE = [[1, 5, 6, 2], [1, 7, 10, 11, 12, 13, 2], [1, 8, 2], [1, 9, 2]]


class Trl:
    """What TRL's trainer brings along, around a model."""

    def __init__(self, model: Any, centering: float | None) -> None:
        self.model = model
        self.args = SimpleNamespace(center_rewards_coefficient=centering)
        self.accelerator = Accelerator(cpu=True)
        self.compute_loss_context_manager = nullcontext
        self._prepare_inputs = dict
        self._metrics: Any = defaultdict(lambda: defaultdict(list))
        self._total_train_tokens, self._tp_size = 0, 1

    def compute_loss(self, model: Any, inputs: Any) -> Tensor:
        return RewardTrainer.compute_loss(self, model, inputs)  # type: ignore[arg-type]


class Trainer(TokenMicroBatches, Trl):
    pass


@pytest.fixture
def trainer(request: pytest.FixtureRequest) -> Trainer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 40}
    sizes |= {"num_labels": 1}
    config = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, **sizes)
    return Trainer(LlamaForSequenceClassification(config).double(), request.param)


def inputs() -> dict[str, Tensor]:
    rows = [torch.tensor(row) for row in BETTER + WORSE]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def gradient(model: Any) -> Tensor:
    parts = [parameter.grad.flatten().clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    return torch.cat(parts)


@pytest.mark.parametrize("trainer", [None, 0.1], indirect=True)
@pytest.mark.parametrize("tokens", [14, 28, 100])
def test_a_step_by_tokens_is_the_step_of_all_pairs_at_once(trainer: Trainer, tokens: int) -> None:
    loss = trainer.compute_loss(trainer.model, inputs())
    loss.backward()
    expected, metrics = gradient(trainer.model), {key: list(value) for key, value in trainer._metrics["train"].items()}
    trainer._metrics.clear()
    trainer._total_train_tokens, trainer.max_tokens = 0, tokens
    found = trainer.training_step(trainer.model, inputs())
    torch.testing.assert_close(found, loss.detach())
    torch.testing.assert_close(gradient(trainer.model), expected, rtol=1e-9, atol=1e-14)
    for key, value in trainer._metrics["train"].items():
        assert value == pytest.approx(metrics[key]), key


def test_micro_batches_hold_no_more_tokens_than_allowed() -> None:
    mask = inputs()["attention_mask"]
    found = [(pairs.tolist(), width) for pairs, width in micro_batches(mask, 24)]
    assert found == [([1], 7), ([0, 2], 6), ([3], 4)]  # 2 texts × 7, 4 × 6, 2 × 4


def test_the_trainer_hands_over_whole_steps() -> None:
    words = ("model_name_or_path=demo", "per_device_train_batch_size=4", "gradient_accumulation_steps=3")
    recipe = load_recipe(Stage.REWARD, None, words)
    by_tokens = load_recipe(Stage.REWARD, None, (*words, "max_tokens_per_micro_batch=2048"))
    assert isinstance(recipe, RewardRecipe) and isinstance(by_tokens, RewardRecipe)
    assert whole_steps(recipe) == {}
    assert whole_steps(by_tokens) == {"per_device_train_batch_size": 12, "gradient_accumulation_steps": 1}
