"""Activation memory per token, worked by hand: h = 4096, INNER = 11008, 32 heads, no grouped queries."""

import msgspec

from stackllama_engine.budget import activations, adapter, lm_head
from stackllama_engine.budget.activations import LayerMode
from stackllama_engine.budget.architecture import Architecture
from stackllama_engine.budget.precision import Precision

H, INNER, HEADS = 4096, 11008, 32
BF16, INT8 = Precision(native=2), Precision(native=2, quant="int8", kbit=True)


def test_a_frozen_layer_in_bf16(llama_7b: Architecture) -> None:
    frozen = LayerMode(precision=BF16)
    assert activations.layer(llama_7b, frozen) == 2 * (4 * H + 4) + 2 * 4 * H + 4 * HEADS + 3 * 2 * INNER


def test_an_adapter_on_queries_and_values(llama_7b: Architecture) -> None:
    plain = LayerMode(precision=BF16)
    adapted = msgspec.structs.replace(plain, targets=adapter.targets(llama_7b, None), rank=16)
    per_target = 4 * H + 4 * 16
    base = activations.layer(llama_7b, plain)
    assert activations.layer(llama_7b, adapted) - base == per_target + 4 * 16 + 4 * H
    dropped = msgspec.structs.replace(adapted, dropout=True)
    assert activations.layer(llama_7b, dropped) - activations.layer(llama_7b, adapted) == 2 * H


def test_a_fused_adapter_shares_the_inputs_of_16_bit_matrices(llama_7b: Architecture) -> None:
    """Queries and values read one tensor, which is kept as it is; in float32 either keeps a 16-bit copy of its own."""
    amp = LayerMode(precision=Precision(native=2, amp=True))
    adapted = msgspec.structs.replace(amp, targets=adapter.targets(llama_7b, None), rank=16, fused=True)
    assert activations.layer(llama_7b, adapted) - activations.layer(llama_7b, amp) == 2 * H + 2 * 2 * 16
    wide = msgspec.structs.replace(adapted, precision=Precision(native=4, amp=True))
    assert activations.lora(llama_7b, wide) == 2 * (2 * H + 2 * 16)
    every = msgspec.structs.replace(adapted, targets=adapter.targets(llama_7b, "all-linear"))
    assert activations.lora(llama_7b, every) == 2 * (2 * H + INNER) + 7 * 2 * 16  # attention's output is there anyway
    assert activations.adapters_forward(llama_7b, every) == 4 * 2 * H


def test_a_layer_that_is_trained_in_bf16(llama_7b: Architecture) -> None:
    full = LayerMode(precision=BF16, full=True)
    assert activations.layer(llama_7b, full) == 16 * H + 4 * H + 4 * H + 4 * HEADS + 8 * INNER + 8


def test_int8_keeps_the_inputs_of_its_matrices_in_float32(llama_7b: Architecture) -> None:
    mode = LayerMode(precision=INT8, attention="efficient")
    assert activations.linear_inputs(llama_7b, mode) == 4 * (2 * H + INNER)
    assert activations.leak(llama_7b, mode) == 2 * 4 * H + 4 * H + 4 * INNER
    assert activations.leak(llama_7b, LayerMode(precision=BF16)) == 0


def test_scores_are_kept_by_plain_attention_alone(llama_7b: Architecture) -> None:
    flash = LayerMode(precision=BF16, length=1024)
    eager = msgspec.structs.replace(flash, attention="eager")
    difference = activations.attention(llama_7b, eager) - activations.attention(llama_7b, flash)
    assert difference == 6 * HEADS * 1024 - 4 * HEADS


def test_head_memory_worked_by_hand(llama_7b: Architecture) -> None:
    assert lm_head.plain(32000, 100, 2) == 12 * 32000 * 100
    assert lm_head.plain(32000, 100, 2, kept=True) == 14 * 32000 * 100
    tile, hidden = 2 * 100 * 32768, (4 + 2 * 2) * H * 100
    assert lm_head.tiled(llama_7b, BF16, 100, on_gpu=True) == tile + hidden
    assert lm_head.sampling(llama_7b, BF16, 8) == 24 * 32000 * 8
