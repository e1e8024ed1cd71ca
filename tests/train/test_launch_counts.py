"""Launches and memory traffic of one layer, per decoded token and per micro-batch, at a real model's width.

A GPU is bound by launches while it decodes and by traffic while it trains. The limits are what the code needs today: a
change that adds a kernel to every layer fails here. Where one becomes cheaper, lower its limit.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import masking_utils

from stackllama_engine.budget.trace import build, cuda, rl, supervised
from stackllama_engine.contract.recipe import PPORecipe, RewardRecipe, SFTRecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import models
from stackllama_engine.train.left_out import VARIABLE
from stackllama_engine.train.ppo.decoder import key_value_cache
from stackllama_engine.train.ppo.shared_base import CRITIC

from .launches import Launches

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
}
"""A model of 0.9B; tests use fewer layers."""
BF16 = ("load_in_8bit=false", "dtype=bfloat16", "bf16=true", "gradient_checkpointing=false")
ROWS, PROMPT, RESPONSE = 16, 511, 127
PER_LAYER = 7
"""Linear layers with an adapter."""


class Cost(NamedTuple):
    launches: int
    megabytes: float


@pytest.fixture(autouse=True)
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the kernels run that a GPU would choose for a batch without padding."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda *_: None)  # reads values
    with cuda.stand_ins(padded=False):
        yield


def fake() -> FakeTensorMode:
    return FakeTensorMode(allow_non_fake_inputs=True)


def per_layer(run: Callable[[int], list[Launches]]) -> list[Cost]:
    """Return what a layer more costs in each phase of a run, which gets the number of layers."""
    return [
        Cost(deep.count - shallow.count, (deep.bytes - shallow.bytes) / 1e6)
        for shallow, deep in zip(run(2), run(3), strict=True)
    ]


def shared_base(layers: int, *keys: str) -> Any:
    words = ("model_name_or_path=m", "dataset_name=demo", "reward_model_path=r", *BF16, *keys)
    recipe = load_recipe(Stage.PPO, None, words)
    assert isinstance(recipe, PPORecipe)
    with torch.device("meta"):
        base = rl._shared_base(recipe, LLAMA, layers, adapter_scores=False)
    with fake():
        build.fake(base.model)
        build.fake(base.value_head)
    return base


def update(layers: int) -> list[Launches]:
    """Count a micro-batch's forward and backward pass."""
    base = shared_base(layers, "value_adapter=false")
    with fake():
        ids = torch.zeros(ROWS, PROMPT + RESPONSE, dtype=torch.int64)
        with Launches() as forward:
            outputs = base.outputs(ids, torch.ones_like(ids), RESPONSE, padded=False)
            loss = outputs.logprobs.sum() + outputs.values.sum()
        with Launches() as backward:
            loss.backward()
    return [forward, backward]


def critic_operations(*keys: str) -> list[int]:
    """Count the operations of a critic's pass over a micro-batch, forward and backward, in a base of two layers."""
    base = shared_base(2, *keys)
    with fake():
        ids = torch.zeros(ROWS, PROMPT + RESPONSE, dtype=torch.int64)
        lower = torch.zeros(*ids.shape, LLAMA["hidden_size"], dtype=torch.bfloat16) if base.below_critic else None
        with base.adapter(CRITIC):
            with FlopCounterMode(display=False) as forward:
                values = base.values(ids, torch.ones_like(ids), RESPONSE, padded=False, lower=lower)
            with FlopCounterMode(display=False) as backward:
                values.sum().backward()
    return [forward.get_total_flops(), backward.get_total_flops()]


@torch.no_grad()
def token(layers: int) -> list[Launches]:
    """Count one decoded token after a prompt, without a graph."""
    base = shared_base(layers, "value_adapter=false")
    with fake():
        ids = torch.zeros(ROWS, PROMPT, dtype=torch.int64)
        positions = torch.arange(PROMPT).expand(ROWS, -1)
        cache = key_value_cache(base.base.config, PROMPT + RESPONSE)
        base.hidden(ids, None, positions, cache)
        with Launches() as decoding:
            base.hidden(ids[:, :1], None, positions[:, -1:] + 1, cache)
    return [decoding]


def step_of(stage: Stage) -> Callable[[int], list[Launches]]:
    def run(layers: int) -> list[Launches]:
        """Count a micro-batch's forward and backward pass in SFT or reward training."""
        recipe = load_recipe(stage, None, ("model_name_or_path=m", "max_length=512", *BF16))
        assert isinstance(recipe, SFTRecipe | RewardRecipe)
        pairs = isinstance(recipe, RewardRecipe)
        with torch.device("meta"):
            base = build.base(LLAMA, layers, recipe, score=pairs)
            model: Any = models.add_lora(base, recipe, "SEQ_CLS" if pairs else "CAUSAL_LM")
            models.trainables_to_fp32(model)
        with fake():
            build.fake(model)
            model.train()
            ids = torch.zeros(8, 512, dtype=torch.int64)
            with Launches() as forward, supervised.autocast(recipe):
                loss = model(input_ids=ids, use_cache=False).logits.float().sum()
            with Launches() as backward:
                loss.backward()
        return [forward, backward]

    return run


def within(cost: Cost, launches: int, megabytes: float) -> bool:
    return cost.launches <= launches and cost.megabytes <= megabytes


def test_a_layer_of_a_decoded_token() -> None:
    (decoding,) = per_layer(token)
    assert within(decoding, 67, 108), decoding


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.REWARD])
def test_a_layer_of_supervised_training(stage: Stage) -> None:
    """With dropout, one launch per adapter and direction more, and no cast around it."""
    forward, backward = per_layer(step_of(stage))
    assert within(forward, 72, 2428) and within(backward, 115, 4310), (forward, backward)


def test_a_critic_in_the_upper_layers_computes_in_these_alone() -> None:
    """Forward half of the operations in half of the layers; backward less, as nothing below has a gradient."""
    whole, half = critic_operations(), critic_operations("value_adapter_layers=1")
    head = 2 * ROWS * RESPONSE * LLAMA["hidden_size"]
    assert half[0] - head == (whole[0] - head) // 2
    assert half[1] < 0.5 * whole[1]


def test_a_layer_of_ppos_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's own code launches four kernels per adapter more either way: two casts, the scale and the sum."""
    forward, backward = per_layer(update)
    assert within(forward, 65, 4997) and within(backward, 101, 8954), (forward, backward)
    monkeypatch.setenv(VARIABLE, "casts,lora")
    by_peft = per_layer(update)
    more = [slow.launches - fast.launches for slow, fast in zip(by_peft, (forward, backward), strict=True)]
    assert more == [4 * PER_LAYER, 4 * PER_LAYER]
    assert by_peft[0].megabytes > 1.7 * forward.megabytes and by_peft[1].megabytes > 1.4 * backward.megabytes
