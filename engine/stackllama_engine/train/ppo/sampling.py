"""Sampling responses with a key-value cache, from noise that belongs to each response.

Shapes: ``B`` prompts, ``P`` longest prompt, ``R`` longest response, ``V`` vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .decoding import Decoder
from .packing import longest_first
from .shared_base import SharedBase

_STRIDE = {"cpu": 1}
"""Tokens from one look at which rows have ended to the next, by kind of device; elsewhere 8."""


class Responses(list[list[int]]):
    """Sampled tokens of each response, its end token included, and what the sampler drew them with.

    Args:
        tokens: of each response.
        logprobs: of each response's tokens, under the distribution that they were drawn from.
    """

    def __init__(self, tokens: Iterable[list[int]], logprobs: Iterable[list[float]]) -> None:
        super().__init__(tokens)
        self.logprobs = list(logprobs)


@dataclass(frozen=True)
class Noise:
    """The randomness of one response: its longest length, and one uniform number a token."""

    length: int
    uniforms: Tensor
    """float64 ``[R]``."""


def draw_noise(seed: int, step: int, index: int, lengths: tuple[int, int]) -> Noise:
    """Noise of response ``index`` of ``step``: the same on every rank, machine and attempt.

    Args:
        seed: the recipe's.
        step: PPO step.
        index: position of the response in the step's batch over all ranks.
        lengths: the longest length is drawn uniformly from ``[low, high)``.
    """
    generator = torch.Generator().manual_seed(((seed * 1_000_003 + step) * 1_000_003 + index) % (1 << 63))
    length = int(torch.randint(*lengths, (1,), generator=generator))
    return Noise(length, torch.rand(length, generator=generator, dtype=torch.float64))


@torch.no_grad()
def sample(
    base: SharedBase,
    prompts: Sequence[Sequence[int]],
    noise: Sequence[Noise],
    eos: int,
    pad: int,
    each_token: Callable[[], None] = lambda: None,
    micro_batch_size: int = 0,
) -> Responses:
    """One response a prompt, its end token included; it ends there or at its noise's length.

    Args:
        base: the policy is the active adapter.
        prompts: token ids.
        noise: one a prompt.
        eos: end token.
        pad: pads prompts on the left.
        each_token: called before each; what it raises ends the sampling.
        micro_batch_size: responses at a time, those with the longest prompts first, so that prompts of one
            micro-batch are about as long; 0: all at once, in their order.
    """
    responses = Responses(([] for _ in prompts), ([] for _ in prompts))
    with base.sampling():
        micro_batches: Iterable[Sequence[int]] = [range(len(prompts))]
        if micro_batch_size:
            micro_batches = longest_first(range(len(prompts)), lambda index: len(prompts[index]), micro_batch_size)
        for micro_batch in micro_batches:
            sampled = _sample(
                base,
                [prompts[index] for index in micro_batch],
                [noise[index] for index in micro_batch],
                eos,
                pad,
                each_token,
            )
            for index, response, logprobs in zip(micro_batch, sampled, sampled.logprobs, strict=True):
                responses[index], responses.logprobs[index] = response, logprobs
    return responses


def _sample(
    base: SharedBase,
    prompts: Sequence[Sequence[int]],
    noise: Sequence[Noise],
    eos: int,
    pad: int,
    each_token: Callable[[], None],
) -> Responses:
    """A group of responses together.

    Finished rows leave the batch, so that a step costs what its living rows cost. On a GPU the host asks which they are
    only every few tokens, because asking waits for every kernel; what a row samples after its end is cut off.
    """
    limits = [n.length for n in noise]
    device, longest, stride = base.device, max(limits), _STRIDE.get(base.device.type, 8)
    uniforms, ends = _pad_uniforms(noise).to(device), torch.tensor(limits, device=device)
    alive = torch.arange(len(prompts), device=device)
    ended = torch.zeros_like(alive, dtype=torch.bool)
    sampled = torch.full((len(prompts), longest), eos, device=device)
    logprobs = torch.zeros(len(prompts), longest, device=device)
    decoder = Decoder(base, prompts, longest, pad)
    hidden = decoder.prefill()
    for position in range(longest):
        each_token()
        tokens, logprobs[alive, position] = draw(base.logits(hidden[:, -1]), uniforms[alive, position])
        sampled[alive, position] = tokens
        ended |= tokens == eos
        if position + 1 == longest:
            break
        if (position + 1) % stride == 0:
            keep = (~ended & (ends[alive] > position + 1)).nonzero().squeeze(1)
            if not len(keep):
                break
            if len(keep) < len(alive) and decoder.drops_rows:
                alive, tokens, ended = (part[keep] for part in (alive, tokens, ended))
                decoder.keep(keep)
        hidden = decoder.step(tokens)
    responses = [_until(row, eos, limit) for row, limit in zip(sampled.tolist(), limits, strict=True)]
    return Responses(responses, (row[: len(r)] for row, r in zip(logprobs.tolist(), responses, strict=True)))


def _until(tokens: list[int], eos: int, limit: int) -> list[int]:
    """Tokens up to the end token, or to the limit."""
    return tokens[: tokens.index(eos, 0, limit) + 1] if eos in tokens[:limit] else tokens[:limit]


def pick(logits: Tensor, uniforms: Tensor) -> Tensor:
    """The tokens of :func:`draw`, ``[B]``."""
    return draw(logits, uniforms)[0]


def draw(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Sample by the inverse of the cumulative distribution.

    Args:
        logits: float32 ``[B, V]``, already over the temperature.
        uniforms: ``[B]`` in [0, 1).

    Returns:
        Token ids and their log-probabilities, float32, ``[B]`` each.
    """
    highest = logits.amax(-1, keepdim=True)
    shares = (logits - highest).exp_()
    cumulative = shares.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1]
    # the rounding of the sum must not make the last token win
    threshold = (uniforms * total).unsqueeze(-1)
    tokens = torch.searchsorted(cumulative, threshold, right=True).clamp(max=logits.shape[-1] - 1)
    logprobs = (logits.gather(-1, tokens) - highest).squeeze(-1) - total.log()
    return tokens.squeeze(-1), logprobs.float()


def _pad_uniforms(noise: Sequence[Noise]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([n.uniforms for n in noise], batch_first=True)
