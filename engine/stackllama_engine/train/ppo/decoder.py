"""Texts that grow by one token at a time, and the cache of their keys and values.

Shapes: ``B`` prompts, ``b`` of them unfinished, ``P`` longest prompt, ``T`` tokens so far, ``H`` hidden width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .shared_base import SharedBase


class Decoder:
    """A batch of texts that grow by one token at a time; prompts are padded on the left.

    Args:
        base: its active adapter reads; its ``decoding`` says how.
        prompts: token ids.
        room: most tokens that will follow a prompt.
        pad: pads prompts on the left.
        origins: the prompt of each text, as its index, where several texts begin with the same one; each prompt is then
            read once, and its keys and values are copied. None: one text per prompt.
    """

    def __init__(
        self,
        base: SharedBase,
        prompts: Sequence[Sequence[int]],
        room: int,
        pad: int,
        origins: Sequence[int] | None = None,
    ) -> None:
        self.drops_rows = base.decoding.drop_rows
        """Whether finished rows may leave."""
        if origins is not None and not self.drops_rows:  # states of its cache that cannot be selected, or copied
            prompts, origins = [prompts[index] for index in origins], None
        width, device = max(map(len, prompts)), base.device
        self._origins = None if origins is None else torch.tensor(origins, device=device)  # [B]
        self._base = base
        # what the next forward pass reads: the prompts at first, then one token per row
        self._ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)  # [B, P]
        total = self._room(width + room)
        # 1 on tokens; as wide as the longest text can become, filled as it grows
        self._mask = torch.zeros(len(prompts), total, dtype=torch.int64, device=device)
        self._mask[:, :width] = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        self._positions = (self._mask[:, :width].cumsum(1) - 1).clamp(min=0)  # [B, P]; a prompt's first token is at 0
        self._padded = any(len(prompt) < width for prompt in prompts)
        self._length = width
        self._cache = self._make_cache(total) if base.decoding.cache else None

    def is_worth_shrinking(self, kept: int, left: int) -> bool:
        """Return whether finished rows should leave now: ``kept`` would stay, for ``left`` more tokens."""
        return self.drops_rows and kept < len(self._mask)

    def close(self) -> None:
        """Give back what the device holds for this batch alone."""

    def prefill(self) -> Tensor:
        """Read the prompts; return their hidden states, ``[B, P, H]``, or of shared prompts the last, ``[B, 1, H]``."""
        hidden = self._read()
        if self._origins is None:
            return hidden
        self._select(self._origins)
        return hidden[:, -1:][self._origins]

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
        self._select(rows)

    def _select(self, rows: Tensor) -> None:
        """Make these rows the batch, int64 ``[b]``; one may come several times."""
        self._ids, self._mask, self._positions = (part[rows] for part in (self._ids, self._mask, self._positions))
        if self._cache is not None:
            rows_kept: Any = rows  # annotated as a LongTensor, which no tensor of torch is
            self._cache.reorder_cache(rows_kept)  # the one selection of rows that every kind of cache layer has

    def _room(self, tokens: int) -> int:
        """Return the width of mask and cache for texts of at most so many tokens."""
        return tokens

    def _make_cache(self, room: int) -> DynamicCache:
        return key_value_cache(self._base.base.config, room)

    def _read(self) -> Tensor:
        mask = self._mask[:, : self._length] if self._padded else None  # [B, T]
        return self._base.hidden(self._ids, mask, self._positions, self._cache)


class Preallocated(DynamicLayer):
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
        self._arrays: list[Tensor] = []  # keys and values, once there are some

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
    cache.layers = [Preallocated(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
