"""Log-probabilities a few tokens at a time: the same numbers and gradients as from all logits at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stackllama_engine.budget import lm_head
from stackllama_engine.train.ppo import head
from stackllama_engine.train.ppo.shared_base import SharedBase

from .toy import ppo_recipe

TOKENS, HIDDEN, VOCABULARY = 2 * head.CHUNK + 40, 16, 300


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=dtype)
    bias = torch.randn(VOCABULARY, generator=generator, dtype=dtype)
    return hidden, weight, bias, torch.randint(VOCABULARY, (TOKENS,), generator=generator)


class Largest(TorchDispatchMode):
    """The largest array that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_gradients_of_a_head_in_another_type(dtype: torch.dtype) -> None:
    hidden, weight, bias, tokens = inputs(torch.float32)
    cast = hidden.detach().to(dtype).requires_grad_()
    found = head.chosen(cast, weight.to(dtype), bias.to(dtype), tokens, 0.7, entropy_trains=True)
    spread = torch.linspace(-1, 1, TOKENS)
    (found.logprobs * spread + found.entropy * spread.flip(0)).sum().backward()
    plain = torch.distributions.Categorical(logits=(hidden @ weight.T + bias) / 0.7)
    (plain.log_prob(tokens) * spread + plain.entropy() * spread.flip(0)).sum().backward()
    tolerance = 0.2 if dtype == torch.bfloat16 else 0.03
    assert cast.grad is not None and hidden.grad is not None and cast.grad.dtype == dtype
    assert (cast.grad - hidden.grad).norm() < tolerance * hidden.grad.norm()
    assert found.logprobs.dtype == torch.float32


@pytest.mark.parametrize("entropy_trains", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_all_logits_at_once(entropy_trains: bool, temperature: float) -> None:
    hidden, weight, bias, tokens = inputs(torch.float32)
    found = head.chosen(hidden, weight, bias, tokens, temperature, entropy_trains=entropy_trains)
    spread = torch.linspace(-1, 1, TOKENS)
    (found.logprobs * spread + (found.entropy * spread.flip(0) if entropy_trains else 0)).sum().backward()
    mine, hidden.grad = hidden.grad, None
    plain = torch.distributions.Categorical(logits=(hidden @ weight.T + bias) / temperature)
    logprobs, entropy = plain.log_prob(tokens), plain.entropy()
    (logprobs * spread + (entropy * spread.flip(0) if entropy_trains else 0)).sum().backward()
    torch.testing.assert_close(found.logprobs, logprobs)
    torch.testing.assert_close(found.entropy, entropy, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mine, hidden.grad, atol=1e-4, rtol=1e-4)
    assert found.entropy.requires_grad == entropy_trains


def test_logits_of_the_whole_batch_never_exist() -> None:
    hidden, weight, bias, tokens = inputs(torch.float32)
    with Largest() as largest:
        head.chosen(hidden, weight, bias, tokens, 1.0, entropy_trains=True).logprobs.sum().backward()
    assert largest.elements == head.CHUNK * VOCABULARY


CARD = torch.device("cuda")  # a name: nothing is put there


def test_a_chunk_is_as_large_as_the_device_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabularies = {400: 1024, 32_000: 1024, 128_256: 512, 262_144: 256, 10**6: 128}
    assert {size: head.chunk_tokens(CARD, size) for size in vocabularies} == vocabularies
    assert head.chunk_tokens(torch.device("cpu"), 32_000) == 128
    monkeypatch.setenv("STACKLLAMA_LEAVE_OUT", "head")
    assert head.chunk_tokens(CARD, 32_000) == 128


def test_the_memory_formula_counts_the_same_chunks() -> None:
    for vocabulary in (400, 32_000, 128_256, 10**6):
        for device in (CARD, torch.device("cpu")):
            counted = lm_head.chunk_tokens(vocabulary, on_gpu=device == CARD)
            assert counted == head.chunk_tokens(device, vocabulary)


def test_chunks_of_any_size_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, tokens = inputs(torch.float64)
    small = head.chosen(hidden, weight, bias, tokens, 0.7, entropy_trains=True)
    monkeypatch.setattr(head, "chunk_tokens", lambda *_: 1024)
    large = head.chosen(hidden, weight, bias, tokens, 0.7, entropy_trains=True)
    torch.testing.assert_close(small, large)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_and_without_gradients_the_numbers_are_the_same_bits(dtype: torch.dtype) -> None:
    hidden, weight, bias, tokens = inputs(dtype)
    training = head.chosen(hidden, weight, bias, tokens, 1.0, entropy_trains=False)
    scoring = head.chosen(hidden.detach(), weight, bias, tokens, 1.0, entropy_trains=False)
    assert training.logprobs.requires_grad
    assert torch.equal(training.logprobs, scoring.logprobs)


def test_a_trained_head_says_the_same(base: Path) -> None:
    shared = SharedBase(ppo_recipe(base), torch.device("cpu"))
    ids = torch.tensor([[1, 5, 6, 8, 9, 2]])
    frozen = shared.outputs(ids, torch.ones_like(ids), 3)
    module: Any = shared.base.get_output_embeddings()
    module.weight.requires_grad_()
    trained = shared.outputs(ids, torch.ones_like(ids), 3)
    torch.testing.assert_close(frozen, trained)
    trained.logprobs.sum().backward()
    assert module.weight.grad.abs().sum() > 0
