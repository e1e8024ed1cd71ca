"""Attention implementations: transformers' names, and kernels that a person has allowed."""

import pytest

from stackllama_engine.contract import attention
from stackllama_engine.contract.errors import RecipeError, RefusedError
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.machine_check import resolve_machine

KERNEL = f"kernels-community/flash-attn3@{'a1' * 20}"


@pytest.mark.parametrize("implementation", [*attention.IMPLEMENTATIONS, KERNEL])
def test_what_transformers_takes_is_taken(implementation: str) -> None:
    attention.check_attention(implementation)


def test_a_kernel_is_executed_only_where_it_is_allowed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RefusedError, match="STACKLLAMA_ALLOWED_KERNELS=kernels-community/flash-attn3`"):
        attention.check_allowed(KERNEL)
    monkeypatch.setenv(attention.ALLOWED_KERNELS, "kernels-community/flash-attn2")
    with pytest.raises(RefusedError, match="executes code from a hub"):
        attention.check_allowed(KERNEL)
    monkeypatch.setenv(attention.ALLOWED_KERNELS, "kernels-community/flash-attn2, kernels-community/flash-attn3")
    attention.check_allowed(KERNEL)
    attention.check_allowed(None)


def test_flash_attention_without_its_package_is_refused_at_launch() -> None:
    """Transformers would load an unpinned kernel from the hub in its place."""
    words = ("model_name_or_path=demo", "use_cpu=true", "load_in_8bit=false", "attn_implementation=flash_attention_3")
    with pytest.raises(RecipeError, match="needs the package flash-attn-3, which is not installed"):
        resolve_machine(load_recipe(Stage.SFT, None, words), [])
