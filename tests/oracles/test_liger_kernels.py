"""Liger's kernels, run by Triton's interpreter on a CPU, against transformers' modules (``make oracles`` builds them).

In float32 alone: the interpreter keeps 16-bit floats of bf16 as whole numbers, and multiplies them as such.
"""

from typing import Any

import pytest
import torch

from .results import results_of

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    return results_of("liger", {})


def close(mine: Any, theirs: Any) -> None:
    """Compare relative to the largest element; several sums differ in their order."""
    mine, theirs = torch.tensor(mine), torch.tensor(theirs)
    assert float((mine - theirs).abs().max()) <= 5e-6 * float(theirs.abs().max())


@pytest.mark.parametrize("part", ["norm", "mlp", "rotary"])
def test_kernel_agrees_with_the_plain_module_and_its_gradients(answers: dict[str, Any], part: str) -> None:
    pairs = list(zip(answers["liger"][part], answers["plain"][part], strict=True))
    assert len(pairs) >= 3
    for mine, theirs in pairs:
        close(mine, theirs)


@pytest.mark.parametrize("column", ["logprobs", "values", "gradient"])
def test_ppo_update_agrees_with_plain_modules(answers: dict[str, Any], column: str) -> None:
    close(answers["liger"]["update"][column], answers["plain"]["update"][column])


def test_every_kernel_ran_forward_and_backward(answers: dict[str, Any]) -> None:
    assert set(answers["launches"]) == {
        "_rms_norm_forward_kernel",
        "_rms_norm_backward_kernel",
        "_swiglu_forward_kernel",
        "_swiglu_backward_kernel",
        "_triton_rope",  # both ways
    }


def test_first_ratio_is_one_with_liger(answers: dict[str, Any]) -> None:
    (step,) = answers["steps"]
    for metrics in (answers["liger"]["update"]["metrics"], step):
        assert (metrics["val/ratio_first"], metrics["policy/approxkl_first"]) == (1.0, 0.0)
