"""Sampling of responses with a key-value cache, from noise that belongs to each response.

Shapes: ``B`` prompts, ``b`` of them unfinished, ``P`` longest prompt, ``R`` longest response, ``T`` tokens so far,
``H`` hidden width, ``V`` vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from .packing import longest_first
from .shared_base import SharedBase
from .static_decoder import open_decoder

_STRIDE = {"cpu": 1}
"""Tokens between two checks of which rows have ended, per device type; elsewhere 8."""


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
    """The randomness of one response: its longest length, and one uniform number per token."""

    length: int
    uniforms: Tensor
    """float64 ``[R]``."""


def draw_noise(seed: int, step: int, index: int, lengths: tuple[int, int]) -> Noise:
    """Draw the noise of response ``index`` of ``step``: the same on every rank, machine and attempt.

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
    stops: Sequence[int],
    pad: int,
    each_token: Callable[[], None] = lambda: None,
    micro_batch_size: int = 0,
    group_size: int = 1,
) -> Responses:
    """Sample one response per prompt, its end token included; it ends there or at its noise's length.

    Args:
        base: the policy is the active adapter.
        prompts: token ids.
        noise: one per prompt.
        stops: tokens that end a response.
        pad: pads prompts on the left.
        each_token: called before each token; what it raises ends the sampling.
        micro_batch_size: responses at a time, those with the longest prompts first, so that prompts of one
            micro-batch are about as long; 0: all at once, in their order.
        group_size: number of prompts in a row that are the same one, which is then read once per micro-batch.
    """
    responses = Responses(([] for _ in prompts), ([] for _ in prompts))
    with base.sampling():
        micro_batches: Iterable[Sequence[int]] = [range(len(prompts))]
        if micro_batch_size:
            micro_batches = longest_first(range(len(prompts)), lambda index: len(prompts[index]), micro_batch_size)
        for micro_batch in micro_batches:
            # rows of one group share their prompt; `origins` says which of the distinct ones each row has
            groups = list(dict.fromkeys(index // group_size for index in micro_batch))
            origins = None
            if len(groups) < len(micro_batch):
                places = {group: place for place, group in enumerate(groups)}
                origins = [places[index // group_size] for index in micro_batch]
            sampled = _sample(
                base,
                [prompts[group * group_size] for group in groups],
                [noise[index] for index in micro_batch],
                stops,
                pad,
                each_token,
                origins,
            )
            for index, response, logprobs in zip(micro_batch, sampled, sampled.logprobs, strict=True):
                responses[index], responses.logprobs[index] = response, logprobs
    return responses


def _sample(
    base: SharedBase,
    prompts: Sequence[Sequence[int]],
    noise: Sequence[Noise],
    stops: Sequence[int],
    pad: int,
    each_token: Callable[[], None],
    origins: Sequence[int] | None,
) -> Responses:
    """Sample one micro-batch of responses.

    Finished rows leave the batch, so that a step costs what its unfinished rows cost. On a GPU the host asks which they
    are only every few tokens, because asking waits for every kernel; what a row samples after its end is cut off.
    """
    limits = [n.length for n in noise]
    device, longest, stride = base.device, max(limits), _STRIDE.get(base.device.type, 8)
    uniforms = _pad_uniforms(noise).to(device)  # float64 [B, R]
    ends = torch.tensor(limits, device=device)  # [B], longest length of each row
    alive = torch.arange(len(noise), device=device)  # [b], rows that are still sampled
    ended = torch.zeros_like(alive, dtype=torch.bool)  # [b]
    ending = torch.tensor(stops, dtype=torch.int64, device=device)
    sampled = torch.zeros(len(noise), longest, dtype=torch.int64, device=device)  # [B, R]
    logprobs = torch.zeros(len(noise), longest, device=device)  # [B, R]
    with closing(open_decoder(base, prompts, longest, pad, origins)) as decoder:
        hidden = decoder.prefill()  # [B, P, H], or [B, 1, H]
        for position in range(longest):
            each_token()
            # draw the next token of every row from the logits of its last one, with the row's own random number
            tokens, token_logprobs = draw(base.logits(hidden[:, -1]), uniforms[alive, position])  # [b] each
            sampled[alive, position] = tokens
            logprobs[alive, position] = token_logprobs
            ended |= torch.isin(tokens, ending)
            left = longest - position - 1
            if not left:
                break
            # let rows go that have drawn the end token or reached their length
            if (position + 1) % stride == 0:
                keep = (~ended & (ends[alive] > position + 1)).nonzero().squeeze(1)  # indices into alive
                if not len(keep):
                    break
                if decoder.is_worth_shrinking(len(keep), left):
                    alive, tokens, ended = (part[keep] for part in (alive, tokens, ended))
                    decoder.keep(keep)
            hidden = decoder.step(tokens)  # [b, …, H]
    responses = [_until(row, stops, limit) for row, limit in zip(sampled.tolist(), limits, strict=True)]
    return Responses(responses, (row[: len(r)] for row, r in zip(logprobs.tolist(), responses, strict=True)))


def _until(tokens: list[int], stops: Sequence[int], limit: int) -> list[int]:
    """Cut after the first token that ends a response, or at the limit."""
    end = next((index for index, token in enumerate(tokens[:limit]) if token in stops), limit - 1)
    return tokens[: end + 1]


def pick(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw tokens alone, ``[B]``; see :func:`draw`."""
    return draw(logits, uniforms)[0]


def draw(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Sample by the inverse of the cumulative distribution.

    Args:
        logits: float32 ``[B, V]``, already over the temperature.
        uniforms: ``[B]`` in [0, 1).

    Returns:
        Token ids and their log-probabilities, float32, ``[B]`` each.
    """
    highest = logits.amax(-1, keepdim=True)  # [B, 1]; subtracted, so that exp cannot overflow
    weights = (logits - highest).exp_()  # [B, V], unnormalised probabilities
    cumulative = weights.cumsum(-1, dtype=torch.float64)  # [B, V]
    total = cumulative[:, -1]  # [B]
    # scaled by the sum as it was rounded, so that its rounding does not make the last token win
    threshold = (uniforms * total).unsqueeze(-1)  # [B, 1]
    tokens = torch.searchsorted(cumulative, threshold, right=True).clamp(max=logits.shape[-1] - 1)  # [B, 1]
    logprobs = (logits.gather(-1, tokens) - highest).squeeze(-1) - total.log()  # [B]
    return tokens.squeeze(-1), logprobs.float()


def _pad_uniforms(noise: Sequence[Noise]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([n.uniforms for n in noise], batch_first=True)
