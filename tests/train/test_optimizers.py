"""Optimizers on a CPU: named as in transformers, saved and taken back bit for bit, as large as predicted."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from stackllama_engine.budget import optimizer as budget
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import optimizers

ON_CPU = ["adamw_torch_fused", "adamw_torch", "adamw_bnb_8bit", "adamw_8bit", "adafactor"]
PAGED = ["paged_adamw_8bit", "paged_adamw_32bit"]


def recipe(optim: str) -> Any:
    keys = {"model_name_or_path": "m", "reward_model_path": "r", "optim": optim, "learning_rate": 1e-2}
    return build_recipe(Stage.PPO, keys | {"weight_decay": 0.1})


def network() -> nn.Module:
    """Make a matrix whose states bitsandbytes keeps in 8 bits, and a vector whose states it does not."""
    torch.manual_seed(1)
    return nn.Linear(80, 64)


def train(model: nn.Module, optimizer: Any, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(8, 80, generator=torch.Generator().manual_seed(step))
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def built(model: nn.Module, optim: str) -> Any:
    return optimizers.build(recipe(optim), list(model.parameters()))


@pytest.mark.parametrize("optim", ON_CPU)
def test_taken_back_from_files_it_goes_on_bit_for_bit(tmp_path: Path, optim: str) -> None:
    straight, broken = network(), network()
    train(straight, built(straight, optim), range(5))
    first = built(broken, optim)
    train(broken, first, range(3))
    tensors, numbers = optimizers.state_of(first)
    save_file(tensors, tmp_path / "optimizer.safetensors")
    second = built(broken, optim)
    optimizers.restore(second, load_file(tmp_path / "optimizer.safetensors"), copy.deepcopy(numbers))
    train(broken, second, range(3, 5))
    assert not torch.equal(straight.weight, network().weight)  # type: ignore[arg-type]
    for mine, theirs in zip(broken.parameters(), straight.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("optim", [*ON_CPU, *PAGED])
def test_a_name_means_what_it_means_to_the_trainer(tmp_path: Path, optim: str) -> None:
    asked = recipe(optim)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), optim=optim, learning_rate=asked.learning_rate, use_cpu=True, report_to="none"
    )
    kind, keys = Trainer.get_optimizer_cls_and_kwargs(arguments)
    model = network()
    theirs = kind([{"params": list(model.parameters()), "weight_decay": asked.weight_decay}], **keys)
    mine = built(model, optim)
    assert type(mine) is type(theirs)

    def settings(one: Any) -> dict[str, Any]:
        return {name: value for name, value in one.param_groups[0].items() if name != "params"}

    assert settings(mine) == settings(theirs)
    if kind.__module__.startswith("bitsandbytes"):
        assert vars(mine.args) == vars(theirs.args)
        assert mine.is_paged is theirs.is_paged is optim.startswith("paged")


@pytest.mark.parametrize("optim", ON_CPU)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_take_what_the_formula_says(optim: Any, dtype: torch.dtype) -> None:
    model = network().to(dtype)
    optimizer = built(model, optim)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    shared: dict[int, Tensor] = {}
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dim() and not name.startswith("qmap"):
                shared[value.data_ptr()] = value
    trained = (budget.Trained(64, 80), budget.Trained(64))
    kind = budget.kind_of(optim, on_gpu=False)
    found = sum(one.numel() * one.element_size() for one in shared.values())
    assert found == budget.states(trained, dtype.itemsize, kind)
