"""Formula against every allocation of real training steps, without a GPU."""

from typing import Any

import pytest
import torch

from stackllama_engine.budget import adapter, training, weights
from stackllama_engine.budget.activations import LayerMode
from stackllama_engine.budget.precision import Precision
from stackllama_engine.budget.shapes import architecture_of

from .tracing import peak_of_second_step

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 704,
    "vocab_size": 2000,
    "tie_word_embeddings": False,
}
GROUPED = {"num_key_value_heads": 2}
FEW_TOKENS = {"vocab_size": 64}
LORA = {"r": 8}
ALL = {"r": 8, "target_modules": "all-linear"}
BF16, FP32 = torch.bfloat16, torch.float32
# changes of the configuration, adapter (None: everything is trained), dtype, checkpointing
CASES: list[tuple[dict[str, Any], dict[str, Any] | None, torch.dtype, str]] = [
    ({}, LORA, BF16, "none"),
    (GROUPED, LORA, BF16, "none"),
    (FEW_TOKENS, LORA, BF16, "none"),
    ({}, ALL, BF16, "none"),
    ({}, LORA, FP32, "none"),
    ({}, LORA, BF16, "plain"),
    (FEW_TOKENS, LORA, BF16, "reentrant"),
    ({}, None, BF16, "none"),
    ({}, None, FP32, "none"),
    ({}, None, BF16, "plain"),
    ({"model_type": "qwen3", "head_dim": 64}, LORA, BF16, "none"),
    ({"model_type": "phi"}, LORA, BF16, "none"),
]


@pytest.mark.parametrize(("changes", "lora", "dtype", "checkpointing"), CASES)
def test_formula_is_within_three_percent_of_the_trace(
    changes: dict[str, Any], lora: dict[str, Any] | None, dtype: torch.dtype, checkpointing: Any
) -> None:
    config = SMALL | changes
    sequences, length = 2, 256
    traced = peak_of_second_step(
        config, lora=lora, dtype=dtype, checkpointing=checkpointing, sequences=sequences, length=length
    )
    arch = architecture_of(config, "m", "config.json", frozenset())
    precision = Precision(native=dtype.itemsize)
    targets = adapter.targets(arch, lora.get("target_modules")) if lora else ()
    trained = adapter.parameters(targets, lora["r"], arch.layers) if lora else arch.parameters
    work = training.Workload(
        arch=arch,
        mode=LayerMode(
            precision=precision, full=lora is None, targets=targets, rank=lora["r"] if lora else 0, length=length
        ),
        sequences=sequences,
        base=weights.base(arch, precision),
        trained=trained,
        adapter=4 * trained if lora else 0,
        width=4 if lora else dtype.itemsize,
        checkpointing=checkpointing,
        optimizer="loop",
    )
    predicted = max(one.bytes for one in training.phases(work))
    assert predicted == pytest.approx(traced, rel=0.03)
