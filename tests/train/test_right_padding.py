"""Padding behind a row needs no mask where attention is causal, and keeps it where it is not."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from stackllama_engine.train import right_padding
from stackllama_engine.train.sft_packing import Collator

CPU, CARD = torch.device("cpu"), torch.device("cuda")
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 40}
ROWS = [[5, 6, 7, 9, 8, 2], [6, 7, 2]]


def llama(**more: Any) -> Any:
    torch.manual_seed(0)
    more |= SIZES | {"num_labels": 1}
    config = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, **more)
    return LlamaForSequenceClassification(config).eval()


def test_a_causal_model_scores_the_same_without_masks() -> None:
    model, seen = llama(), []
    ids = torch.tensor([row + [0] * (6 - len(row)) for row in ROWS])
    mask = (ids != 0).long()
    with torch.no_grad():
        alone = torch.cat([model(input_ids=torch.tensor([row])).logits for row in ROWS])
        right_padding.drop_masks(model, CPU, nullcontext(), bf16=False)
        layer = model.get_decoder().layers[0]
        layer.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True)
        torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, alone, atol=1e-6, rtol=1e-5)
    assert seen == [None]


def test_a_model_that_looks_ahead_keeps_its_masks() -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(num_attention_heads=4, **SIZES))
    assert not right_padding.needs_none(model, CPU, nullcontext(), bf16=False)


def test_masks_stay_where_a_gpu_has_no_kernel_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    assert right_padding.keeps_mask(model, CARD, bf16=False)
    assert not right_padding.keeps_mask(model, CARD, bf16=True)
    assert not right_padding.keeps_mask(model.bfloat16(), CARD, bf16=False)
    monkeypatch.setenv("STACKLLAMA_LEAVE_OUT", "pack")
    assert right_padding.keeps_mask(model, CARD, bf16=True)


def test_rows_of_sft_are_collated_without_a_mask() -> None:
    rows: list[Any] = [{"input_ids": row} for row in ROWS]
    batch = Collator(0, flat=False, masks=False)(rows)
    assert batch.keys() == {"input_ids", "labels", "num_tokens", "position_ids"}  # TRL wants one of mask or positions
    assert batch["position_ids"].tolist() == [list(range(6))] * 2
    assert batch["num_tokens"].tolist() == [6, 3] and batch["labels"][1].tolist() == [6, 7, 2, -100, -100, -100]
    assert "attention_mask" in Collator(0, flat=False)(rows)
