"""Sampling of responses with a key-value cache, from noise that belongs to each response.

Shapes: ``B`` prompts, ``b`` of them unfinished, ``P`` longest prompt, ``R`` longest response, ``T`` tokens so far,
``H`` hidden width, ``V`` vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .packing import longest_first
from .shared_base import SharedBase

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
                stops,
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
    stops: Sequence[int],
    pad: int,
    each_token: Callable[[], None],
) -> Responses:
    """Sample one micro-batch of responses.

    Finished rows leave the batch, so that a step costs what its unfinished rows cost. On a GPU the host asks which they
    are only every few tokens, because asking waits for every kernel; what a row samples after its end is cut off.
    """
    limits = [n.length for n in noise]
    device, longest, stride = base.device, max(limits), _STRIDE.get(base.device.type, 8)
    uniforms = _pad_uniforms(noise).to(device)  # float64 [B, R]
    ends = torch.tensor(limits, device=device)  # [B], longest length of each row
    alive = torch.arange(len(prompts), device=device)  # [b], rows that are still sampled
    ended = torch.zeros_like(alive, dtype=torch.bool)  # [b]
    ending = torch.tensor(stops, dtype=torch.int64, device=device)
    sampled = torch.zeros(len(prompts), longest, dtype=torch.int64, device=device)  # [B, R]
    logprobs = torch.zeros(len(prompts), longest, device=device)  # [B, R]
    decoder = Decoder(base, prompts, longest, pad)
    hidden = decoder.prefill()  # [B, P, H]
    for position in range(longest):
        each_token()
        # draw the next token of every row from the logits of its last one, with the row's own random number
        tokens, token_logprobs = draw(base.logits(hidden[:, -1]), uniforms[alive, position])  # [b] each
        sampled[alive, position] = tokens
        logprobs[alive, position] = token_logprobs
        ended |= torch.isin(tokens, ending)
        if position + 1 == longest:
            break
        # let rows go that have drawn the end token or reached their length
        if (position + 1) % stride == 0:
            keep = (~ended & (ends[alive] > position + 1)).nonzero().squeeze(1)  # indices into alive
            if not len(keep):
                break
            if len(keep) < len(alive) and decoder.drops_rows:
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


class Decoder:
    """A batch of texts that grow by one token at a time; prompts are padded on the left.

    Args:
        base: its active adapter reads; its ``decoding`` says how.
        prompts: token ids.
        room: most tokens that will follow a prompt.
        pad: pads prompts on the left.
    """

    def __init__(self, base: SharedBase, prompts: Sequence[Sequence[int]], room: int, pad: int) -> None:
        width, device = max(map(len, prompts)), base.device
        self.drops_rows = base.decoding.drop_rows
        self._base = base
        # what the next forward pass reads: the prompts at first, then one token per row
        self._ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)  # [B, P]
        # 1 on tokens; as wide as the longest text can become, filled as it grows
        self._mask = torch.zeros(len(prompts), width + room, dtype=torch.int64, device=device)
        self._mask[:, :width] = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        self._positions = (self._mask[:, :width].cumsum(1) - 1).clamp(min=0)  # [B, P]; a prompt's first token is at 0
        self._padded = any(len(prompt) < width for prompt in prompts)
        self._length = width
        self._cache = key_value_cache(base.base.config, width + room) if base.decoding.cache else None

    def prefill(self) -> Tensor:
        """Read the prompts; return their hidden states, ``[B, P, H]``."""
        return self._read()

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token per row, ``[B]``; return hidden states of at least the last position, ``[B, …, H]``."""
        self._mask[:, self._length] = 1
        self._length += 1
        ids, positions = tokens.unsqueeze(1), self._positions[:, -1:] + 1  # [B, 1] each
        if self._cache is None:  # the whole text is read again, [B, T]
            ids, positions = torch.cat([self._ids, ids], 1), torch.cat([self._positions, positions], 1)
        self._ids, self._positions = ids, positions
        return self._read()

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows only, int64 ``[b]``."""
        self._ids, self._mask, self._positions = (part[rows] for part in (self._ids, self._mask, self._positions))
        if self._cache is not None:
            rows_kept: Any = rows  # annotated as a LongTensor, which no tensor of torch is
            self._cache.reorder_cache(rows_kept)  # the one selection of rows that every kind of cache layer has

    def _read(self) -> Tensor:
        mask = self._mask[:, : self._length] if self._padded else None  # [B, T]
        return self._base.hidden(self._ids, mask, self._positions, self._cache)


class _Preallocated(DynamicLayer):
    """One layer's keys and values, ``[B, heads, tokens, width]``, which are not copied at every token.

    transformers' ``DynamicCache`` concatenates: at every token, all keys and values of before move to a new array. Here
    an array for the longest possible text is made once, and what attention reads is a view of its filled part, so that
    attention costs what the text so far costs (``StaticCache`` attends to the empty part as well, under a mask).

    Args:
        room: tokens, at most.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._arrays: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values, ``[B, heads, tokens, width]`` each; return everything so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._arrays = [self._array(states) for states in (key_states, value_states)]
        start = self.get_seq_length()
        for array, states in zip(self._arrays, (key_states, value_states), strict=True):
            array[:, :, start : start + states.shape[2]] = states
        self.keys, self.values = (array[:, :, : start + key_states.shape[2]] for array in self._arrays)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Continue with these rows only."""
        self.reorder_cache(indices)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder rows; some may be left out."""
        length = self.get_seq_length()
        self._arrays = [array[beam_idx] for array in self._arrays]
        self.keys, self.values = (array[:, :, :length] for array in self._arrays)

    def _array(self, states: Tensor) -> Tensor:
        rows, heads, _, width = states.shape
        return torch.empty(rows, heads, self._room, width, dtype=states.dtype, device=states.device)


def key_value_cache(config: Any, room: int) -> DynamicCache:
    """Make a cache for texts of at most ``room`` tokens; layers with a sliding window stay as they are.

    Args:
        config: the model's.
        room: tokens of prompt and response.
    """
    cache = DynamicCache(config=config)
    cache.layers = [_Preallocated(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
