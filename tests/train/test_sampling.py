"""What makes sampling faster changes nothing of what is sampled, and leaves nothing behind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers import DynamicCache

from stackllama_engine.train.ppo import narrowed_adapter, sampling
from stackllama_engine.train.ppo.decoder import key_value_cache
from stackllama_engine.train.ppo.sampling import draw_noise, sample
from stackllama_engine.train.ppo.shared_base import SharedBase

from .toy import ppo_recipe
from .update_kit import Waits

PROMPTS = [[1, 9], [1, 5, 6, 7, 8, 30], [1, 3, 4], [1, 5], [1, 40, 41, 42, 43]]


def policy(base: Path, *keys: str) -> SharedBase:
    """Make a policy that differs from the reference."""
    torch.manual_seed(0)
    shared = SharedBase(ppo_recipe(base, *keys), torch.device("cpu"))
    generator = torch.Generator().manual_seed(7)
    for parameter in shared.trainable():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return shared


def weights(shared: SharedBase) -> dict[str, tuple[int, Tensor]]:
    """Where each parameter lies, and a copy of it."""
    return {name: (p.data_ptr(), p.detach().clone()) for name, p in shared.model.named_parameters()}


def assert_same(before: dict[str, tuple[int, Tensor]], after: dict[str, tuple[int, Tensor]]) -> None:
    assert all(after[name][0] == place and torch.equal(after[name][1], copy) for name, (place, copy) in before.items())


def test_groups_of_like_length_sample_what_all_together_do(base: Path) -> None:
    shared = policy(base)
    noise = [draw_noise(1, 0, index, (3, 9)) for index in range(len(PROMPTS))]
    together = sample(shared, PROMPTS, noise, stops=(2,), pad=0)
    assert sample(shared, PROMPTS, noise, stops=(2,), pad=0, micro_batch_size=2) == together
    assert len({len(response) for response in together}) > 1


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("micro_batch_size", [0, 4, 3])  # all groups at once, two, and groups that are split
def test_a_prompt_that_is_read_once_per_group_samples_the_same(
    base: Path, static: bool, micro_batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = policy(base)
    shared.decoding = replace(shared.decoding, static=static)
    prompts = [prompt for prompt in PROMPTS[:4] for _ in range(2)]
    noise = [draw_noise(1, 0, index, (3, 9)) for index in range(len(prompts))]
    expected = sample(shared, prompts, noise, stops=(2,), pad=0)
    read: list[int] = []
    hidden = shared.hidden

    def counted(ids: Tensor, *rest: Any) -> Tensor:
        if ids.shape[1] > 1:
            read.append(len(ids))
        return hidden(ids, *rest)

    monkeypatch.setattr(shared, "hidden", counted)
    found = sample(shared, prompts, noise, stops=(2,), pad=0, micro_batch_size=micro_batch_size, group_size=2)
    assert found == expected
    for mine, theirs in zip(found.logprobs, expected.logprobs, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    assert sum(read) == {0: 4, 4: 4, 3: 5}[micro_batch_size]
    assert all(found[index] != found[index + 1] for index in range(0, len(found), 2))  # noise is the response's own


def test_checking_less_often_for_ends_changes_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = policy(base)
    noise = [draw_noise(1, 0, index, (3, 12)) for index in range(16)]
    every = sample(shared, [[1, 5]] * 16, noise, stops=(7,), pad=0)
    ends = {token for row in every for token in row}
    eos = next(iter(ends & {token for row in every for token in row[:-1]}))  # one that is sampled on the way
    expected = sample(shared, [[1, 5]] * 16, noise, stops=(eos,), pad=0)
    monkeypatch.setitem(sampling._STRIDE, "cpu", 8)
    assert sample(shared, [[1, 5]] * 16, noise, stops=(eos,), pad=0) == expected
    assert any(row[-1] == eos and len(row) < drawn.length for row, drawn in zip(expected, noise, strict=True))


def test_sampling_waits_only_when_it_checks_for_ends(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = policy(base)
    monkeypatch.setitem(sampling._STRIDE, "cpu", 8)
    noise = [draw_noise(1, 0, index, (20, 21)) for index in range(4)]
    with Waits() as waits:
        sample(shared, [[1, 5]] * 4, noise, stops=(), pad=0)
    assert waits.seen == {"aten.nonzero.default": 2}  # after 8 and after 16 of 20 tokens


def test_the_adapter_is_in_the_weights_while_sampling_and_gone_afterwards(base: Path) -> None:
    shared = policy(base)
    ids = torch.tensor([[1, 5, 6, 7]])
    mask, positions = torch.ones_like(ids), torch.arange(4).unsqueeze(0)
    before = weights(shared)
    with torch.no_grad():
        apart = shared.hidden(ids, mask, positions)
        with shared.sampling():
            inside = shared.hidden(ids, mask, positions)
            changed = {name for name, (place, _) in weights(shared).items() if place != before[name][0]}
        after = shared.hidden(ids, mask, positions)
    assert changed
    assert all("base_layer.weight" in name for name in changed)
    torch.testing.assert_close(inside, apart, atol=1e-4, rtol=1e-4)
    assert torch.equal(after, apart)
    assert_same(before, weights(shared))
    assert all(parameter.requires_grad for parameter in shared.trainable())


def test_weights_come_back_when_sampling_fails(base: Path) -> None:
    shared = policy(base)
    before = weights(shared)
    with pytest.raises(RuntimeError, match="full"), shared.sampling():
        raise RuntimeError("memory is full")
    assert_same(before, weights(shared))


def test_narrow_weights_are_left_alone(base: Path) -> None:
    shared = policy(base, "dtype=bfloat16")
    before = weights(shared)
    with shared.sampling():
        assert_same(before, weights(shared))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_adapter_is_narrowed_once_to_what_autocast_makes_of_it_at_every_token(base: Path, dtype: str) -> None:
    shared = policy(base, "bf16=true", f"dtype={dtype}")
    ids = torch.tensor([[1, 5, 6, 7]])
    before, positions = weights(shared), torch.arange(4).unsqueeze(0)
    with torch.no_grad():
        apart = shared.hidden(ids, None, positions)
        with shared.sampling():
            inside = shared.hidden(ids, None, positions)
            narrow = {name for name, p in shared.model.named_parameters() if p.data_ptr() != before[name][0]}
        with shared.acting(policy=False, temperature=1.0), shared.sampling():  # the base has no adapter to narrow
            assert_same(before, weights(shared))
    assert torch.equal(inside, apart)
    assert narrow == {name for name in before if "lora_" in name and ".default." in name}
    assert_same(before, weights(shared))
    assert all(parameter.requires_grad for parameter in shared.trainable())


def test_a_layer_that_does_more_than_multiply_is_not_narrowed(base: Path) -> None:
    shared = policy(base, "bf16=true")
    layers: Any = [module for module in shared.model.modules() if hasattr(module, "lora_variant")]
    layers[0].lora_variant["default"] = object()  # as DoRA
    with shared.sampling():
        first, second = (layer.lora_A["default"].weight.dtype for layer in layers[:2])
    assert (first, second) == (torch.float32, torch.bfloat16)


def test_a_quantised_base_layer_under_an_adapter_is_not_taken_for_one() -> None:
    """bitsandbytes' layers and PEFT's around them have the same names."""
    own = type("Linear8bitLt", (nn.Linear,), {})(4, 4)
    lora: Any = type("Linear8bitLt", (nn.Module, LoraLayer), {})()
    LoraLayer.__init__(lora, own)
    for part, shape in ((lora.lora_A, (4, 2)), (lora.lora_B, (2, 4))):
        part["default"] = nn.Linear(*shape, bias=False)
    assert narrowed_adapter._linears(own, "default") == []
    assert narrowed_adapter._linears(lora, "other") == []
    assert narrowed_adapter._linears(lora, "default") == [lora.lora_A["default"], lora.lora_B["default"]]


def test_the_cache_holds_what_transformers_would_and_copies_nothing(base: Path) -> None:
    shared = policy(base)
    mine, theirs = key_value_cache(shared.base.config, 6), DynamicCache(config=shared.base.config)
    ids, keep, places = torch.tensor([[1, 5, 6], [1, 7, 8]]), torch.tensor([1]), set[int]()
    with torch.no_grad():
        for cache in (mine, theirs):
            shared.hidden(ids, torch.ones_like(ids), torch.arange(3).expand(2, 3), cache)
            cache.batch_select_indices(keep)
        for position in range(3, 6):
            step = torch.tensor([[9]]), torch.ones(1, position + 1, dtype=torch.long), torch.tensor([[position]])
            hidden = [shared.hidden(*step, cache) for cache in (mine, theirs)]
            torch.testing.assert_close(hidden[0], hidden[1])
            places.add(mine.layers[0].keys.data_ptr())  # type: ignore[union-attr]
    assert len(places) == 1
    pairs: Any = zip(mine.layers, theirs.layers, strict=True)
    for one, other in pairs:
        torch.testing.assert_close((one.keys, one.values), (other.keys, other.values))
