"""The LoRA layer of training against PEFT's own: bit for bit without casts, in float64 with the fused product."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import layer as lora
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config

from stackllama_engine.contract.recipe import TrainRecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import fast_lora, models
from stackllama_engine.train.fast_lora import FastLoraLinear, speed_up_lora
from stackllama_engine.train.left_out import VARIABLE
from stackllama_engine.train.ppo.rollout import pad_tokens, policy_outputs
from stackllama_engine.train.ppo.shared_base import REFERENCE, SharedBase

from .toy import ppo_recipe

CPU = torch.device("cpu")
BF16 = ("dtype=bfloat16", "bf16=true")


def moved(model: nn.Module, seed: int = 1) -> nn.Module:
    """Give every adapter weights that change the output; a fresh one's second factor is zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def gradients(loss: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    for parameter in parameters:
        parameter.grad = None
    loss.backward()
    return [torch.zeros_like(one) if one.grad is None else one.grad.clone() for one in parameters]


def ids(rows: int = 3, length: int = 12) -> tuple[Tensor, Tensor]:
    """Return random tokens and a mask with padding on the left of the first row."""
    tokens = torch.randint(3, 300, (rows, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    return tokens, mask


def supervised(base: Path, stage: Stage, *keys: str) -> list[Tensor]:
    """Return the loss and every gradient of one batch of SFT or reward training."""
    recipe = load_recipe(stage, None, (f"model_name_or_path={base}", "lora_dropout=0.0", *keys))
    assert isinstance(recipe, TrainRecipe)
    torch.manual_seed(0)
    if stage is Stage.SFT:
        model: Any = models.add_lora(models.load_causal_lm(recipe, CPU), recipe, "CAUSAL_LM")
    else:
        model = models.add_lora(models.load_reward_base(recipe, 0, CPU), recipe, "SEQ_CLS")
    models.trainables_to_fp32(model)
    moved(model).train()
    tokens, mask = ids()
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
        loss = model(input_ids=tokens, attention_mask=mask).logits.float().square().mean()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [loss.detach(), *gradients(loss, trained)]


def ppo(base: Path, *keys: str) -> list[Tensor]:
    """Return log-probabilities, values and every gradient of one PPO micro-batch."""
    torch.manual_seed(0)
    shared = SharedBase(ppo_recipe(base, "value_adapter=true", *keys), CPU)
    moved(shared.model)
    tokens, mask = ids()
    outputs = shared.outputs(tokens, mask, 5)
    loss = outputs.logprobs.sum() + outputs.values.square().sum()
    return [outputs.logprobs.detach(), outputs.values.detach(), *gradients(loss, shared.trainable())]


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.REWARD, Stage.PPO])
def test_leaving_input_casts_out_changes_no_bit(base: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[Tensor]:
        return ppo(base, *BF16) if stage is Stage.PPO else supervised(base, stage, *BF16, "load_in_8bit=false")

    monkeypatch.setenv(VARIABLE, "casts,lora")
    with_casts = run()
    monkeypatch.setenv(VARIABLE, "lora")
    without = run()
    assert len(without) > 20 and all(map(torch.equal, with_casts, without))


def test_without_autocast_a_16_bit_input_is_cast_as_by_peft() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8)).bfloat16(), LoraConfig(target_modules=["0"]))
    x = torch.randn(2, 8, dtype=torch.bfloat16)
    expected = moved(model)(x)
    speed_up_lora(model)
    assert torch.equal(model(x), expected)


class Two(nn.Module):
    """A layer, and one with a bias behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 20, bias=False), nn.Linear(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def pair(dropout: float = 0.0, **keys: Any) -> tuple[Any, Any]:
    """Return one float64 model with two adapters, by PEFT and with fast layers."""
    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=7, lora_dropout=dropout, target_modules=["first", "second"], **keys)
    model: Any = get_peft_model(Two(), config)  # type: ignore[arg-type]
    model.add_adapter("other", LoraConfig(r=2, lora_alpha=1, target_modules=["first"]))
    own: Any = moved(model).double()
    fast = copy.deepcopy(own)
    speed_up_lora(fast)
    return own, fast


def both(own: Any, fast: Any) -> None:
    """Assert that output and all gradients are the same to float64's precision."""
    x = torch.randn(4, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    results = []
    for model in (own, fast):
        torch.manual_seed(3)  # of dropout
        given = x.clone().requires_grad_()
        y = model(given)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        results.append([y.detach(), *gradients(y.sin().sum(), [given, *trained])])  # type: ignore[list-item]
    assert len(results[0]) == len(results[1])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


def fast_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by one with every fused product."""
    calls: list[int] = []
    product = fast_lora._product

    def counted(*tensors: Any) -> Any:
        calls.append(1)
        return product(*tensors)

    monkeypatch.setattr(fast_lora, "_product", counted)
    return calls


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("training", [True, False])
def test_output_and_gradients_are_pefts(dropout: float, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    own, fast = pair(dropout)
    calls = fast_calls(monkeypatch)
    both(own.train(training), fast.train(training))
    assert len(calls) == 2


@pytest.mark.parametrize("state", ["other", "disabled", "merged", "both"])
def test_adapters_switch_as_in_peft(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, fast = pair()
    calls = fast_calls(monkeypatch)
    for model in (own, fast):
        if state == "other":
            model.set_adapter("other")
        elif state == "disabled":
            model.base_model.disable_adapter_layers()
        elif state == "merged":
            model.merge_adapter()
        else:
            model.base_model.set_adapter(["default", "other"])
    both(own, fast)
    assert len(calls) == {"other": 1, "both": 1}.get(state, 0)  # of two layers, the second has one adapter


@pytest.mark.parametrize("keys", [{"use_dora": True}, {"lora_bias": True}, {"use_rslora": True}, {"bias": "lora_only"}])
def test_what_is_not_covered_runs_in_peft(keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    own, fast = pair(**keys)
    calls = fast_calls(monkeypatch)
    both(own, fast)
    assert len(calls) == {"use_rslora": 2, "bias": 1}.get(next(iter(keys)), 0)  # a bias that is trained, on one layer


def test_a_hooked_layer_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    own, fast = pair()
    calls, seen = fast_calls(monkeypatch), []
    fast.base_model.model.first.lora_A.default.register_forward_hook(lambda *_: seen.append(1))
    both(own, fast)
    assert seen and len(calls) == 1


def test_gradients_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x, other, down, up = (one.requires_grad_() for one in (random(3, 4), random(3, 4), random(2, 4), random(5, 2)))
    weight, bias = random(5, 4), random(5)
    apply: Any = fast_lora._LoraLinear.apply
    assert torch.autograd.gradcheck(lambda *t: apply(t[0], None, weight, bias, *t[1:], 0.7), (x, down, up))
    assert torch.autograd.gradcheck(lambda *t: apply(t[0], t[1], weight, None, *t[2:], 0.7), (x, other, down, up))


def test_a_convolution_of_gpt2_stays_pefts() -> None:
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, pad_token_id=0)
    recipe = load_recipe(Stage.SFT, None, ("model_name_or_path=x", "load_in_8bit=false"))
    assert isinstance(recipe, TrainRecipe)
    model = models.add_lora(AutoModelForCausalLM.from_config(config), recipe, "CAUSAL_LM")
    kinds = {type(module) for module in model.modules() if isinstance(module, lora.LoraLayer)}
    assert kinds == {lora.Linear}


def test_fused_bfloat16_is_nearer_to_float64_than_pefts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum is rounded once instead of after each of product, scale and sum."""
    torch.manual_seed(0)
    layer: Any = get_peft_model(nn.Sequential(nn.Linear(256, 256, bias=False)), LoraConfig(target_modules=["0"]))
    x = torch.randn(64, 256)
    moved(layer)
    layer.base_model.model[0].base_layer.bfloat16()
    narrow = copy.deepcopy(layer).bfloat16().double()  # the same 16-bit weights, computed with exactly
    exact = narrow(x.bfloat16().double())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        own = layer(x.bfloat16())
        speed_up_lora(layer)
        fused = layer(x.bfloat16())
    assert fused.dtype == own.dtype == torch.bfloat16
    assert (fused - exact).abs().mean() < (own - exact).abs().mean()


@pytest.mark.parametrize("keys", [(), BF16, ("bf16=true", "gradient_checkpointing=true")])
def test_ratio_is_exactly_one(base: Path, keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without gradients the fused product gives the same bits, checkpointed or not; the critic's as well."""
    calls = fast_calls(monkeypatch)
    shared = SharedBase(ppo_recipe(base, "value_adapter=true", *keys), CPU)
    moved(shared.model)
    tokens, attention, _ = pad_tokens([[1, 5, 6], [1, 7]], [[8, 9, 2], [10, 2]], 0, CPU)
    old = policy_outputs(shared, tokens, attention, 3, 2)
    new = shared.outputs(tokens, attention, 3)
    assert calls and new.logprobs.requires_grad
    assert torch.equal(torch.exp(new.logprobs - old.logprobs), torch.ones_like(old.logprobs))
    assert torch.equal(new.values, old.values)


def test_adapters_added_later_are_fast(base: Path, tmp_path: Path) -> None:
    """Also on layers that the policy's adapter leaves alone."""
    recipe = ppo_recipe(base, "lora_target_modules=[q_proj]", "value_adapter=true")
    shared = SharedBase(recipe, CPU)
    wide = ppo_recipe(base, "lora_target_modules=[q_proj, up_proj]", "value_adapter=false")
    SharedBase(wide, CPU).model.save_pretrained(str(tmp_path))
    shared.add_adapter_from(tmp_path, REFERENCE)
    layers = [module for module in shared.model.modules() if isinstance(module, lora.LoraLayer)]
    assert len(layers) == 4 and {type(layer) for layer in layers} == {FastLoraLinear}


def test_a_classifier_keeps_its_own_head(base: Path) -> None:
    """The score head is trained as a whole; PEFT's wrapper of it is no LoRA layer."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    recipe = load_recipe(Stage.REWARD, None, (f"model_name_or_path={base}", "load_in_8bit=false"))
    assert isinstance(recipe, TrainRecipe)
    adapted = models.add_lora(model, recipe, "SEQ_CLS")
    assert not isinstance(adapted.get_base_model().score, FastLoraLinear)  # type: ignore[operator,union-attr]
