"""Weights, adapters, optimizer: numbers worked by hand."""

import msgspec
import pytest

from stackllama_engine.budget import adapter, optimizer, weights
from stackllama_engine.budget.architecture import Architecture
from stackllama_engine.budget.precision import Precision


def test_int8_has_one_scale_per_row() -> None:
    assert weights.int8(32, 4) == 32 + 16


def test_nf4_bytes_per_element() -> None:
    assert weights.four_bit(6400, False) == 3200 + 400  # 0.5625
    assert weights.four_bit(64 * 256, True) == 8192 + 256 + 4  # 0.516
    assert weights.four_bit(10**9, True) / 10**9 == pytest.approx(0.516, abs=0.001)


def test_bytes_of_a_7b_base(llama_7b: Architecture) -> None:
    linear, other = 6_476_005_376, 262_410_240
    assert (llama_7b.linear, llama_7b.other) == (linear, other)
    assert weights.base(llama_7b, Precision(native=2)) == 2 * (linear + other)
    rows = 32 * (5 * 4096 + 2 * 11008)  # q k v o down, and gate up
    prepared = Precision(native=2, quant="int8", kbit=True)
    assert weights.base(llama_7b, prepared) == linear + 4 * rows + 4 * other
    without_head = weights.base(llama_7b, prepared, head=False)
    assert weights.base(llama_7b, prepared) - without_head == 4 * 32000 * 4096


def test_lora_targets_as_peft_finds_them(llama_7b: Architecture) -> None:
    def named(modules: list[str] | str | None) -> list[str]:
        return [one.name for one in adapter.targets(llama_7b, modules)]

    assert named(None) == ["q_proj", "v_proj"]
    assert named(["down_proj", "nothing"]) == ["down_proj"]
    assert len(named("all-linear")) == 7
    assert named(r".*\.(gate|up)_proj") == ["gate_proj", "up_proj"]
    assert named("(") == []
    unknown = msgspec.structs.replace(llama_7b, default_targets=None)
    assert len(adapter.targets(unknown, None)) == 7


def test_lora_parameters(llama_7b: Architecture) -> None:
    assert adapter.parameters(adapter.targets(llama_7b, None), 16, 32) == 32 * 2 * 16 * (4096 + 4096)


def test_the_tensors_of_a_model_are_all_its_parameters(llama_7b: Architecture, llama_3b: Architecture) -> None:
    for arch in (llama_7b, llama_3b):
        assert optimizer.elements(weights.tensors(arch)) == arch.parameters
    headless = optimizer.elements(weights.tensors(llama_7b, head=False))
    assert headless == llama_7b.parameters - llama_7b.embedding
    chosen = adapter.targets(llama_7b, "all-linear")
    assert optimizer.elements(adapter.tensors(chosen, 16, 32)) == adapter.parameters(chosen, 16, 32)
