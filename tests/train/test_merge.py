"""A merge is accepted only when it is proven, or when its adapter is too small to prove anything."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, LoraModel, get_peft_model
from safetensors.torch import load_file, save_file

from stackllama_engine.contract.errors import StageError
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import merge, models

from .in_process import Attempt, attempt

CPU = torch.device("cpu")
TARGETS = ["q_proj", "v_proj", "down_proj"]


def make_adapter(base: Path, path: Path, scale: float) -> Path:
    """Save an adapter as PEFT does, whose B matrices are as large as those after a few steps (``scale``)."""
    torch.manual_seed(1)
    plain = models.load_plain(str(base), None, "float32", CPU)
    model = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=TARGETS))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=scale)
    model.save_pretrained(str(path))
    models.load_tokenizer(str(base)).save_pretrained(str(path))
    return path


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that changes the base well above any noise."""
    return make_adapter(base, tmp_path_factory.mktemp("adapter") / "grown", 0.05)


@pytest.fixture
def merging(base: Path, tmp_path: Path) -> Callable[..., tuple[dict[str, Any], Attempt]]:
    def run(adapter: Path, *keys: str) -> tuple[dict[str, Any], Attempt]:
        with attempt(Home(tmp_path / "home"), base, Stage.MERGE, f"adapter_path={adapter}", *keys) as one:
            facts = one.train()
        assert facts is not None
        return facts, one

    return run


def test_difference_is_the_mean_of_absolute_differences() -> None:
    assert merge.difference(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 1.0]])) == 2.0


def test_a_faithful_merge_passes() -> None:
    assert merge.check(0.04, effect=0.1, allowed=0.5, noise=1e-6, reason="rounding").verified


@pytest.mark.parametrize("found", [0.06, 0.1, math.nan])
def test_a_merge_that_is_not_base_plus_adapter_fails(found: float) -> None:
    with pytest.raises(StageError, match="rounding"):
        merge.check(found, effect=0.1, allowed=0.5, noise=0.01, reason="rounding")


@pytest.mark.parametrize(
    ("found", "effect", "noise", "verified"),
    [
        (2.42e-07, 1.39e-04, 1.2e-07, True),  # float32's noise, which says nothing about the merge
        (5.83e-06, 2.52e-05, 2.0e-06, True),
        (2.42e-07, 2.0e-07, 1.2e-07, False),  # as large as what the adapter does
        (0.0, 0.0, 1.2e-07, False),
    ],
)
def test_a_difference_within_the_noise_is_no_failure(found: float, effect: float, noise: float, verified: bool) -> None:
    assert merge.check(found, effect=effect, allowed=merge.EXACT, noise=noise, reason="").verified is verified


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "dtype"), [(1e-7, "bfloat16"), (0.0, "float32")])
def test_an_adapter_too_small_to_verify_is_merged_and_says_so(
    base: Path, tmp_path: Path, merging: Callable[..., Any], scale: float, dtype: str
) -> None:
    facts, one = merging(make_adapter(base, tmp_path / "young", scale), f"dtype={dtype}")
    assert facts["verified"] is False
    assert ("too small to verify" if scale else "changes nothing on any probe") in one.health
    assert (one.run.merged / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_grown_adapter_is_verified_after_rounding(adapter: Path, merging: Callable[..., Any]) -> None:
    facts, one = merging(adapter, "dtype=bfloat16")
    assert facts["verified"] and "too small" not in one.health
    assert facts["difference"] < 0.5 * facts["difference_from_base"]


def _twice(merge_and_unload: Callable[..., Any]) -> Callable[..., Any]:
    def mutant(self: LoraModel, **keys: Any) -> Any:
        for module in self.modules():
            if isinstance(scaling := getattr(module, "scaling", None), dict):
                scaling["default"] *= 2
        return merge_and_unload(self, **keys)

    return mutant


def _without_one_module(merge_and_unload: Callable[..., Any]) -> Callable[..., Any]:
    def mutant(self: LoraModel, **keys: Any) -> Any:
        name = next(name for name, _ in self.named_parameters() if "down_proj.lora_B" in name)
        self.get_parameter(name).data.zero_()
        return merge_and_unload(self, **keys)

    return mutant


@pytest.mark.slow
@pytest.mark.parametrize("mutation", [_twice, _without_one_module])
def test_a_wrong_merge_is_found(
    adapter: Path, merging: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, mutation: Callable[..., Any]
) -> None:
    monkeypatch.setattr(LoraModel, "merge_and_unload", mutation(LoraModel.merge_and_unload))
    with pytest.raises(StageError, match="merging went wrong"):
        merging(adapter)


@pytest.mark.slow
def test_weights_lost_while_saving_are_found(
    base: Path, adapter: Path, merging: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved is the base again: found by what rounding explains, however large rounding is."""

    def save_base(model: Any, tokenizer: Any, path: Path, *_: Any) -> None:
        shutil.copytree(base, path)

    monkeypatch.setattr(models, "save_model", save_base)
    with pytest.raises(StageError, match="rounding to bfloat16 loses it"):
        merging(adapter)


@pytest.mark.slow
def test_tensors_that_adapter_or_model_lacks_are_found(
    adapter: Path, tmp_path: Path, merging: Callable[..., Any]
) -> None:
    shutil.copytree(adapter, tmp_path / "renamed")
    file = tmp_path / "renamed" / "adapter_model.safetensors"
    save_file({name.replace("layers.1", "layers.7"): value for name, value in load_file(file).items()}, file)
    with pytest.raises(StageError, match=r"lacks .*layers\.1"):
        merging(tmp_path / "renamed")
    weights = load_file(adapter / "adapter_model.safetensors")
    more = {name.replace("layers.1", "layers.7"): value.clone() for name, value in weights.items()}
    save_file(weights | more, file)
    with pytest.raises(StageError, match=r"has no place for .*layers\.7"):
        merging(tmp_path / "renamed")


def test_a_damaged_adapter_config_is_named(adapter: Path, tmp_path: Path, merging: Callable[..., Any]) -> None:
    shutil.copytree(adapter, tmp_path / "damaged")
    (tmp_path / "damaged" / "adapter_config.json").write_text(json.dumps({"r": 4})[:-2])
    with pytest.raises(StageError, match=r"damaged/adapter_config\.json cannot be read"):
        merging(tmp_path / "damaged")
