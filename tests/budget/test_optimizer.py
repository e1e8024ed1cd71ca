"""States and transients of the optimizers, with numbers worked by hand."""

import pytest

from stackllama_engine.budget.optimizer import Optimizer, Trained, kind_of, states, step_transient

VECTOR = Trained(100)
MATRIX = Trained(64, 4096, count=2)
"""262,144 elements each: 1,024 blocks."""
SMALL = Trained(16, 4096)
"""65,536 elements: too few to be paged."""


@pytest.mark.parametrize(
    ("kind", "trained", "width", "expected"),
    [
        ("fused", VECTOR, 4, 800),
        ("fused", VECTOR, 2, 400),  # in the parameter's own dtype
        ("adamw8bit", VECTOR, 2, 800),  # fewer than 4,096 elements: float32
        ("adamw8bit", Trained(4095), 2, 8 * 4095),
        ("adamw8bit", Trained(4096), 2, 2 * 4096 + 8 * 16),
        ("adamw8bit", Trained(4097), 2, 2 * 4097 + 8 * 17),
        ("adamw8bit", MATRIX, 2, 2 * (2 * 262_144 + 8 * 1024)),
        ("paged8bit", SMALL, 2, 2 * 65_536 + 8 * 256),
        ("paged8bit", MATRIX, 2, 2 * 8 * 1024),  # the scales stay
        ("paged32bit", SMALL, 2, 8 * 65_536),  # float32 beside bf16 weights
        ("paged32bit", MATRIX, 2, 0),
        ("adafactor", VECTOR, 2, 400),
        ("adafactor", MATRIX, 2, 2 * 4 * (64 + 4096)),
        ("none", MATRIX, 2, 0),
    ],
)
def test_optimizer_states_worked_by_hand(kind: Optimizer, trained: Trained, width: int, expected: int) -> None:
    assert states([trained], width, kind) == expected


def test_step_transients_worked_by_hand() -> None:
    trained = (MATRIX, SMALL, VECTOR)
    every = 2 * 262_144 + 65_536 + 100
    assert step_transient(trained, 4, "foreach") == 4 * every
    assert step_transient(trained, 2, "loop") == 2 * 2 * 262_144
    assert step_transient(trained, 4, "fused") == step_transient(trained, 4, "adamw8bit") == 0
    assert step_transient(trained, 4, "adamw8bit", on_gpu=False) == 20 * 262_144
    assert step_transient(trained, 4, "adafactor") == 8 * 262_144
    assert step_transient(trained[::-1], 2, "adafactor") == 16 * 262_144 + 4 * 65_536


def test_plain_adamw_copies_everything_where_it_is_on_a_gpu() -> None:
    assert kind_of("adamw_torch", on_gpu=True) == "foreach"
    assert kind_of("adamw_torch", on_gpu=False) == "loop"
    assert kind_of("adamw_8bit", on_gpu=True) == kind_of("adamw_bnb_8bit", on_gpu=True)
