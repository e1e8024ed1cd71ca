"""Incremental decoding of prompts that are padded on the left.

Shapes: ``B`` rows, ``P`` longest prompt, ``H`` hidden width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .cache import key_value_cache

if TYPE_CHECKING:
    from .shared_base import SharedBase


@dataclass(frozen=True)
class DecodingMode:
    """Shortcuts of sampling; :mod:`.model_checks` turns off those that change a model's log-probabilities."""

    merge: bool = True
    """Merge the adapter into float32 weights while sampling."""
    cache: bool = True
    """Keep keys, values and recurrent states from one token to the next; without, every token reads the whole text."""
    drop_rows: bool = True
    """Remove finished rows from the batch."""


class Decoder:
    """Texts that grow by one token at a time, all together.

    Args:
        base: its active adapter reads; its ``decoding`` says how.
        prompts: token ids.
        room: most tokens that will follow a prompt.
        pad: pads prompts on the left.
    """

    def __init__(self, base: "SharedBase", prompts: Sequence[Sequence[int]], room: int, pad: int) -> None:
        width, device = max(map(len, prompts)), base.device
        self.drops_rows = base.decoding.drop_rows
        self._base = base
        self._ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
        self._mask = torch.zeros(len(prompts), width + room, dtype=torch.int64, device=device)
        self._mask[:, :width] = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        self._positions = (self._mask[:, :width].cumsum(1) - 1).clamp(min=0)
        self._padded = any(len(prompt) < width for prompt in prompts)
        self._length = width
        self._cache = key_value_cache(base.base.config, width + room) if base.decoding.cache else None

    def prefill(self) -> Tensor:
        """Hidden states of the prompts, ``[B, P, H]``."""
        return self._read()

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token per row, ``[B]``; hidden states of at least the last position, ``[B, …, H]``."""
        self._mask[:, self._length] = 1
        self._length += 1
        ids, positions = tokens.unsqueeze(1), self._positions[:, -1:] + 1
        if self._cache is None:
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
        seen = self._mask[:, : self._length] if self._padded else None
        return self._base.hidden(self._ids, seen, self._positions, self._cache)
