"""Counted operations and bytes, against numbers worked by hand."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import floor  # pyright: ignore[reportMissingImports]

# one layer, H = 4, I = 6, two heads that share one pair of keys and values, V = 10
SMALL = floor.Shape(hidden=4, intermediate=6, layers=1, heads=2, kv_heads=1, vocabulary=10)
LLAMA_900M = floor.Shape(hidden=2048, intermediate=5632, layers=16, heads=16, kv_heads=8, vocabulary=32000)
LLAMA_7B = floor.Shape(hidden=4096, intermediate=11008, layers=32, heads=32, kv_heads=32, vocabulary=32000)
FIRST_CARD = floor.Rates(flop=790e12, bytes=4.3e12)


def test_weights_of_a_small_model() -> None:
    # q and o: 2 × 4 × 4 = 32; k and v: 2 × 4 × 2 = 16; gate, up, down: 3 × 4 × 6 = 72
    assert SMALL.trunk == 32 + 16 + 72 == 120
    assert SMALL.head == 40
    assert SMALL.kv_bytes == 2 * 2 * 2  # keys and values, two wide, two bytes each
    assert SMALL.weight_bytes("bf16") == 320
    assert SMALL.weight_bytes("nf4") == 120 / 2 + 80
    assert SMALL.weight_bytes("float32") == 640


def test_forward_and_backward_of_a_small_model() -> None:
    # two sequences of three tokens, two of the six scored: trunk 2 × 120 × 6, head 2 × 40 × 2,
    # attention 2 products × 2 × 4 wide × 3² / 2 × 2 sequences = 144
    assert floor.forward(SMALL, 2, 3, 2) == floor.Cost(1440 + 160 + 144, 320)
    assert floor.backward(SMALL, 2, 3, 2) == floor.Cost(1440 + 160 + 144 * 2.5, 320)


def test_decoding_of_a_small_model() -> None:
    # two steps of two rows: they see 4 and 5 tokens, 18 keys in all; products 2 × (120 + 40) × 4,
    # attention 4 × 4 wide × 18; weights twice, keys and values of 18 tokens
    assert floor.decode(SMALL, 2, 4, 2) == floor.Cost(1280 + 288, 640 + 18 * 8)


def test_the_slower_of_computing_and_reading_counts() -> None:
    assert floor.Cost(100, 10).seconds(floor.Rates(50, 10)) == 2.0
    assert floor.Cost(100, 30).seconds(floor.Rates(50, 10)) == 3.0


def test_an_own_critic_costs_passes_in_scoring_and_update() -> None:
    rates = floor.Rates(flop=1.0, bytes=1e9)
    detached = floor.ppo_phases(SMALL, floor.PPOStep(2, 2, 1, 3, own_critic=False), rates)
    own = floor.ppo_phases(SMALL, floor.PPOStep(2, 2, 1, 3, own_critic=True), rates)
    # of three tokens per sequence: trunk 1440, attention 144; the head of two response tokens 160
    assert detached["score"] == 2 * (1440 + 144 + 160) + (1440 + 144)
    assert own["score"] - detached["score"] == 1440 + 144
    assert detached["update"] == 3 * (2 * (1440 + 160) + 3.5 * 144)
    assert own["update"] - detached["update"] == 3 * (2 * 1440 + 3.5 * 144)
    # a response of one token is all in the prefill: 2 × 2 tokens, and the head of one state per row
    assert own["rollout"] == detached["rollout"] == 2 * 120 * 4 + 2 * 40 * 2 + 2 * 4 * 2 * 2 * 2


def test_a_critic_in_the_upper_layers_costs_passes_through_these() -> None:
    rates, two = floor.Rates(flop=1.0, bytes=1e9), replace(SMALL, layers=2)
    detached = floor.ppo_phases(two, floor.PPOStep(2, 2, 1, 3, own_critic=False), rates)
    upper = floor.ppo_phases(two, floor.PPOStep(2, 2, 1, 3, own_critic=True, critic_layers=1), rates)
    assert upper["score"] - detached["score"] == 1440 + 144
    assert upper["update"] - detached["update"] == 3 * (2 * 1440 + 3.5 * 144)


@pytest.mark.parametrize(
    ("shape", "own_critic", "samples_per_second"),
    [(LLAMA_900M, False, 59.9), (LLAMA_900M, True, 35.5), (LLAMA_7B, False, 7.2)],
)
def test_floors_that_were_computed_for_the_first_card(
    shape: floor.Shape, own_critic: bool, samples_per_second: float
) -> None:
    step = floor.PPOStep(responses=128, prompt=511, response=127, epochs=4, own_critic=own_critic)
    phases = floor.ppo_phases(shape, step, FIRST_CARD)
    assert 128 / sum(phases.values()) == pytest.approx(samples_per_second, rel=0.01)


def test_sft_counts_every_token() -> None:
    # three documents of two tokens: trunk and head each way, attention 2 × 4 × 2² × 3 = 96 forward
    assert floor.sft_step(SMALL, 3, 2).flop == 2 * (2 * 120 * 6 + 2 * 40 * 6) + 3.5 * 96
