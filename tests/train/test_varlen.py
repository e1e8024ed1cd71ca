"""Packed rows without masks: outputs and gradients of the mask that keeps documents apart."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import varlen
from stackllama_engine.train.left_out import VARIABLE
from stackllama_engine.train.sft_packing import Collator, leave_masks_out
from stackllama_engine.train.varlen import Documents

from .in_process import finish
from .toy import SFT

CPU = torch.device("cpu")
LENGTHS = [5, 1, 7, 3, 8]  # two rows of 13 and 11 tokens, and padding
ROWS = [
    {"input_ids": list(range(10, 23)), "labels": list(range(10, 23)), "seq_lengths": [5, 1, 7]},
    {"input_ids": list(range(30, 41)), "labels": list(range(30, 41)), "seq_lengths": [3, 8]},
]


def model_of(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def batch() -> dict[str, Tensor]:
    made = Collator(0, flat=False)(ROWS)
    return {name: made[name] for name in ("input_ids", "position_ids")}


def outputs(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Return the logits and every gradient, padding left out of the loss."""
    model.zero_grad()
    logits = model(**inputs, use_cache=False).logits
    (logits[0].square().sum() + logits[1, :11].square().sum()).backward()
    return [logits[0].detach(), logits[1, :11].detach(), *(parameter.grad for parameter in model.parameters())]


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Collect the lengths of documents, layer by layer."""
    lengths: list[list[int]] = []
    by_document = varlen.by_document

    def seen(query: Tensor, key: Tensor, value: Tensor, *, documents: Documents, scale: float | None) -> Tensor:
        lengths.append(documents.lengths)
        return by_document(query, key, value, documents=documents, scale=scale)

    monkeypatch.setattr(varlen, "by_document", seen)
    return lengths


@pytest.mark.parametrize("checkpointing", [False, True])
def test_outputs_and_gradients_are_those_of_the_mask(
    base: Path, attended: list[list[int]], checkpointing: bool
) -> None:
    model = model_of(base).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    masked = outputs(model, batch())
    assert not attended
    handle = varlen.keep_apart(model)
    apart = outputs(model, batch())
    assert attended == [[*LENGTHS, 2]] * (4 if checkpointing else 2)  # layers; padding is one more document
    handle.remove()
    assert all(map(torch.equal, outputs(model, batch()), masked))
    for mine, theirs in zip(apart, masked, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-6 * float(theirs.abs().max()))


def test_rows_of_one_document_and_rows_with_masks_are_left_alone(base: Path, attended: list[list[int]]) -> None:
    model = model_of(base).eval()
    ids = batch()["input_ids"]
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    cases: list[dict[str, Tensor]] = [
        {"input_ids": ids, "position_ids": positions},
        {"input_ids": ids},
        batch() | {"attention_mask": torch.ones_like(ids)},
    ]
    with torch.no_grad():
        plain = [model(**case).logits for case in cases]
        varlen.keep_apart(model)
        assert all(map(torch.equal, (model(**case).logits for case in cases), plain))
        prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        assert torch.equal(model.generate(**prompt, max_new_tokens=2)[:, :13], ids)
    assert not attended


def reference(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, **named: Any) -> Tensor:
    """Stand in for torch's kernel: one masked product over all tokens."""
    tokens, groups = torch.arange(len(query)), query.shape[1] // key.shape[1]
    document = torch.bucketize(tokens, bounds[1:], right=True)
    mask = (document[:, None] == document) & (tokens[:, None] >= tokens)
    query, key, value = (states.transpose(0, 1) for states in (query, key, value))
    key, value = (states.repeat_interleave(groups, 0) for states in (key, value))
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, **named).transpose(0, 1)


def test_the_kernel_is_given_bounds_causal_windows_and_grouped_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for CUDA's kernel agrees with the CPU's way, and torch's own takes the call by its shapes."""
    calls: list[dict[str, Any]] = []

    def kernel(query: Tensor, key: Tensor, value: Tensor, *bounds: Any, scale: float | None, **named: Any) -> Tensor:
        calls.append(named | {"bounds": bounds})
        return reference(query, key, value, bounds[0], scale=scale)

    documents = Documents(torch.tensor([0, 5, 6, 13]).int(), [5, 1, 7])
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(13, heads, 8, generator=generator) for heads in (4, 2, 2)]
    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
        mine = varlen.by_varlen(*states, documents=documents, scale=0.3)
    torch.testing.assert_close(mine, varlen.by_document(*states, documents=documents, scale=0.3))
    (call,) = calls
    assert (call["window_size"], call["enable_gqa"], call["bounds"][2:]) == ((-1, 0), True, (7, 7))
    meta = [state.to("meta").bfloat16().requires_grad_() for state in states]
    output = varlen.by_varlen(*meta, documents=Documents(documents.bounds.to("meta"), [5, 1, 7]), scale=None)
    output.sum().backward()
    assert output.shape == (13, 4, 8) and meta[1].grad is not None and meta[1].grad.shape == (13, 2, 8)


def test_attention_that_bounds_do_not_describe_is_refused(base: Path) -> None:
    layer = model_of(base).model.layers[0].self_attn
    query, key = torch.zeros(1, 4, 13, 16), torch.zeros(1, 2, 13, 16)
    documents = Documents(torch.tensor([0, 5, 13]).int(), [5, 8])
    with pytest.raises(ValueError, match="more than causal attention; packed rows need its masks"):
        varlen.attention(layer, query, key, key, None, dropout=0.1, packed_documents=documents)
    with pytest.raises(ValueError, match="several widths"):
        varlen.attention(layer, query, key, key[..., :8], None, packed_documents=documents)


@pytest.mark.parametrize(
    ("config", "longest", "expected"),
    [
        (LlamaConfig(), 4096, True),
        (LlamaConfig(attention_dropout=0.1), 64, False),
        (LlamaConfig(head_dim=512), 64, False),
        (LlamaConfig(head_dim=12), 64, False),
        (MistralConfig(sliding_window=64), 63, True),
        (MistralConfig(sliding_window=64), 64, False),
    ],
)
def test_models_fit_by_their_configuration(config: Any, longest: int, expected: bool) -> None:
    assert varlen.fits(config, longest) is expected


def test_masks_are_left_out_where_the_device_can(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(base)
    assert varlen.leaves_masks_out(model, CPU, 64, bf16=False)
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not varlen.leaves_masks_out(model, cuda, 64, bf16=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert varlen.leaves_masks_out(model, cuda, 64, bf16=True)
    assert not varlen.leaves_masks_out(model, cuda, 64, bf16=False)  # in 32 bits
    monkeypatch.setenv(VARIABLE, "varlen")
    assert not varlen.leaves_masks_out(model, cuda, 64, bf16=True) and not varlen.leaves_masks_out(
        model, CPU, 64, bf16=False
    )


def test_a_model_that_does_not_pass_bounds_on_keeps_its_masks(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", sdpa_attention_forward)  # to be set back
    model, collator = model_of(base), Collator(0, flat=False)
    assert leave_masks_out(model, collator, nullcontext())

    def deaf(*arguments: Any, packed_documents: Any = None, **named: Any) -> Any:
        return sdpa_attention_forward(*arguments, **named)

    monkeypatch.setattr(varlen, "attention", deaf)
    other = model_of(base)
    masked = outputs(other, batch())
    assert not leave_masks_out(other, collator, nullcontext())
    assert all(map(torch.equal, outputs(other, batch()), masked))


@pytest.mark.long
def test_sft_trains_alike_with_and_without_masks(
    base: Path, shared_home: Home, attended: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (*SFT, "max_steps=2", "save_steps=0", "lora_dropout=0", "dtype=float32")
    _, apart = finish(shared_home, base, Stage.SFT, *keys)
    assert attended
    attended.clear()
    monkeypatch.setenv(VARIABLE, "varlen")
    _, masked = finish(shared_home, base, Stage.SFT, *keys)
    assert not attended
    assert apart["loss_last"] == pytest.approx(masked["loss_last"], rel=1e-4)
    assert apart["loss_first"] == pytest.approx(masked["loss_first"], rel=1e-5)
