"""A merge is accepted only when it is proven."""

import math

import pytest
import torch

from stackllama_engine.contract.errors import StageError
from stackllama_engine.train import merge


def test_difference_is_the_mean_of_absolute_differences() -> None:
    assert merge.difference(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 1.0]])) == 2.0


def test_a_faithful_merge_passes() -> None:
    merge.check(0.04, effect=0.1, allowed=0.5, reason="rounding")


@pytest.mark.parametrize("found", [0.06, 0.1, math.nan])
def test_a_merge_that_is_not_base_plus_adapter_fails(found: float) -> None:
    with pytest.raises(StageError, match="rounding"):
        merge.check(found, effect=0.1, allowed=0.5, reason="rounding")


def test_an_adapter_that_does_nothing_fails() -> None:
    with pytest.raises(StageError, match="changes nothing"):
        merge.check(0.0, effect=0.0, allowed=0.5, reason="rounding")
