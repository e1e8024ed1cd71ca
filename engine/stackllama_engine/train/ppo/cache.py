"""A key-value cache that is not copied at every token.

transformers' ``DynamicCache`` concatenates: at every token, all keys and values of before move to a new array. Here
an array for the longest possible text is made once, and what attention reads is a view of its filled part, so that
attention costs what the text so far costs (``StaticCache`` attends to the empty part as well, under a mask).
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class _Preallocated(DynamicLayer):
    """One layer's keys and values, ``[B, heads, tokens, width]``.

    Args:
        room: tokens, at most.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._arrays: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append; returns everything so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._arrays = [self._array(states) for states in (key_states, value_states)]
        start = self.get_seq_length()
        for array, states in zip(self._arrays, (key_states, value_states), strict=True):
            array[:, :, start : start + states.shape[2]] = states
        self.keys, self.values = (array[:, :, : start + key_states.shape[2]] for array in self._arrays)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these rows go on."""
        self.reorder_cache(indices)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in this order, some perhaps left out."""
        length = self.get_seq_length()
        self._arrays = [array[beam_idx] for array in self._arrays]
        self.keys, self.values = (array[:, :, :length] for array in self._arrays)

    def _array(self, states: Tensor) -> Tensor:
        rows, heads, _, width = states.shape
        return torch.empty(rows, heads, self._room, width, dtype=states.dtype, device=states.device)


def key_value_cache(config: Any, room: int) -> DynamicCache:
    """A cache for texts of at most ``room`` tokens; layers with a sliding window or none of their own stay as they are.

    Args:
        config: the model's.
        room: tokens of prompt and response.
    """
    cache = DynamicCache(config=config)
    cache.layers = [_Preallocated(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
