"""Device memory as given by the user."""

import pytest

from stackllama_engine.budget.cards import device_memory
from stackllama_engine.contract.errors import UsageError


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("24GiB", 24 << 30),
        ("24 gib", 24 << 30),
        ("1.5GiB", 3 << 29),
        ("80GB", 80 * 10**9),
        ("512MiB", 512 << 20),
        ("RTX-4090", 24564 << 20),
        ("rtx 4090", 24564 << 20),
        ("NVIDIA GeForce RTX 4090", 24564 << 20),
        ("h100", 81559 << 20),
    ],
)
def test_amounts_and_cards(text: str, amount: int) -> None:
    assert device_memory(text) == amount


@pytest.mark.parametrize("text", ["", "24", "0GiB", "-1GiB", "9" * 400 + "GiB", "nanGiB", "\x1b[2J", "x" * 10_000])
def test_invalid_memory_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        device_memory(text)
    assert len(str(caught.value)) < 200


def test_the_nearest_card_is_named() -> None:
    with pytest.raises(UsageError, match="did you mean `RTX-4090`"):
        device_memory("RTX4o90")
