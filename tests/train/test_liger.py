"""Liger's kernels: refused where they cannot run, and limited to three of them; `tests/oracles` runs the kernels."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from stackllama_engine.contract.errors import RefusedError, StageError, UsageError
from stackllama_engine.contract.recipe import SFTRecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import machine_check
from stackllama_engine.train.liger import use_liger_kernels

GPU = torch.device("cuda")
MODULE = "liger_kernel.transformers.monkey_patch"


@pytest.fixture
def model(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base)


def installed(monkeypatch: pytest.MonkeyPatch, functions: dict[str, Any] | None) -> None:
    """Install a stand-in of the package with functions per family; None: not installed."""
    module: Any = ModuleType(MODULE)
    module.MODEL_TYPE_TO_APPLY_LIGER_FN = functions
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name) if functions is not None else None)
    monkeypatch.setitem(sys.modules, MODULE, module if functions is not None else None)


def test_liger_needs_a_gpu(model: Any) -> None:
    with pytest.raises(StageError, match="needs a GPU, and there is none; set `use_liger_kernel: false`"):
        use_liger_kernels(model, torch.device("cpu"))
    with pytest.raises(UsageError, match="needs a GPU, but `use_cpu: true` is set"):
        load_recipe(Stage.SFT, None, ("model_name_or_path=m", "use_cpu=true", "use_liger_kernel=true"))


def test_a_missing_package_is_one_sentence(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, None)
    with pytest.raises(StageError, match=r"install the extra `\[fast\]`"):
        use_liger_kernels(model, GPU)
    recipe = load_recipe(Stage.SFT, None, ("model_name_or_path=m", "use_liger_kernel=true"))
    assert isinstance(recipe, SFTRecipe)
    monkeypatch.setattr(machine_check, "_installed", lambda name: name != "liger_kernel")
    with pytest.raises(RefusedError, match=r"needs liger-kernel, not installed here: `pip install '\.\[fast\]'`"):
        machine_check._check_packages(recipe)


def test_a_family_without_kernels_is_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"gpt2": None})
    with pytest.raises(StageError, match="no kernels for `llama` models"):
        use_liger_kernels(model, GPU)


def test_only_norms_swiglu_and_rotary_embeddings_are_replaced(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else a version of Liger has is turned off, also what is on by default."""
    calls: list[dict[str, Any]] = []

    def apply(
        rope: bool = True,
        cross_entropy: bool = False,
        fused_linear_cross_entropy: bool = True,
        rms_norm: bool = False,
        swiglu: bool = True,
        model: Any = None,
    ) -> None:
        calls.append(locals())

    installed(monkeypatch, {"llama": apply})
    use_liger_kernels(model, GPU)
    (call,) = calls
    assert call["model"] is model
    on = {name for name, value in call.items() if value is True}
    assert on == {"rope", "rms_norm", "swiglu"}
