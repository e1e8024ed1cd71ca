"""Decoding over buffers that stay where they are, so that one token's forward pass can be a CUDA graph.

Token, position, mask, keys and values keep their addresses and shapes from token to token; where the next token goes
is a number on the device. Attention reads the whole room under a mask, a tenth more than the text for a rollout of
511 + 127 tokens; in exchange the host launches a token's kernels, more than a thousand, as one.

Shapes: ``B`` texts, ``b`` of them unfinished, ``S`` tokens that there is room for, ``H`` hidden width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .cuda_graph import CaptureError, Direct, Recorder, Replay, recorder_for
from .decoder import Decoder, Preallocated, key_value_cache
from .shared_base import SharedBase

Read = Callable[[Tensor, Tensor, Tensor, DynamicCache], Tensor]
"""Token ids ``[b, 1]``, mask ``[b, S]``, positions ``[b, 1]`` and cache → outputs, ``[b, 1, …]``."""

_ALIGNED = 16
"""Room is a multiple of it: fused attention copies any other mask in every layer."""
_WORTH = 32
"""Tokens that must still follow for a smaller batch to pay: its first step is run and its second captured, which takes
the host as long as about twenty replays (39 ms per token were measured for 0.9B on an H200, 3.5 ms are estimated)."""


def obstacle(model: Any) -> str | None:
    """Return why one token of this model cannot be a CUDA graph; None: nothing is known.

    Args:
        model: a causal language model of transformers, without PEFT around it.
    """
    kind = model.config.model_type
    if not getattr(model, "_can_compile_fullgraph", False):
        return f"{kind} chooses its kernels by what it computes"
    layers = key_value_cache(model.config, 1).layers
    if not layers or any(type(layer) is not Preallocated for layer in layers):
        return f"{kind} has sliding windows or recurrent states"
    attention = model.config.get_text_config(decoder=True)._attn_implementation
    if attention not in ("sdpa", "eager"):
        return f"`attn_implementation={attention}` reads lengths on the host"
    if getattr(model, "is_loaded_in_8bit", False):
        return "LLM.int8 waits for the device in every linear layer"
    if any("dynamic" in rope or "longrope" in rope for rope in _rope_types(model)):
        return f"the rotary embedding of {kind} depends on the length"
    return None


def _rope_types(model: Any) -> list[str]:
    return [str(module.rope_type) for module in model.modules() if hasattr(module, "rope_type")]


class StaticLayer(Preallocated):
    """Keys and values of one layer; once fixed, a token goes where `place` says, and attention reads the whole room."""

    def __init__(self, room: int) -> None:
        super().__init__(room)
        self._place: Tensor | None = None

    def fix(self, place: Tensor) -> None:
        """Read the next token's index from ``place``, int64 ``[1]``, from now on."""
        for array in self._arrays:
            array[:, :, self.get_seq_length() :] = 0  # masked, but 0 × NaN would be NaN
        self._place = place
        self.is_compileable = True  # the mask is never left out
        self.keys, self.values = self._arrays

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values, ``[b, heads, tokens, width]`` each; return everything so far, or the whole room."""
        if self._place is None:
            return super().update(key_states, value_states, *args, **kwargs)
        for array, states in zip(self._arrays, (key_states, value_states), strict=True):
            array.index_copy_(2, self._place, states)
        keys, values = self._arrays
        return keys, values

    def get_seq_length(self) -> Any:
        """Return the tokens so far; once fixed, as a tensor."""
        return super().get_seq_length() if self._place is None else self._place[0]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of what attention reads."""
        return super().get_mask_sizes(query_length) if self._place is None else (self._room, 0)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Continue with these rows only."""
        if self._place is None:
            super().reorder_cache(beam_idx)
            return
        self._arrays = [array[beam_idx] for array in self._arrays]
        self.keys, self.values = self._arrays


def static_cache(config: Any, room: int) -> DynamicCache:
    """Make a cache of `StaticLayer` for texts of at most ``room`` tokens, a multiple of 16 (see :func:`room_for`).

    Args:
        config: of a model without :func:`obstacle`.
        room: ``S``.
    """
    cache = DynamicCache(config=config)
    assert all(type(layer) is DynamicLayer for layer in cache.layers)
    layers: list[Any] = [StaticLayer(room) for _ in cache.layers]
    cache.layers = layers
    return cache


def room_for(tokens: int) -> int:
    """Return the room ``S`` for so many tokens."""
    return -(-tokens // _ALIGNED) * _ALIGNED


class StaticStep:
    """One token's forward pass: the first one at a batch size is run, the second captured, and from then on replayed.

    Args:
        read: the forward pass.
        cache: of :func:`static_cache`, with the prompts in it.
        mask: int64 ``[B, S]``: 1 on the tokens so far.
        positions: int64 ``[B, 1]``: those of the next token.
        recorder: captures.
        on_failure: receives the reason why nothing could be captured; the steps are run from then on.
    """

    def __init__(
        self,
        read: Read,
        cache: DynamicCache,
        mask: Tensor,
        positions: Tensor,
        recorder: Recorder,
        on_failure: Callable[[str], None],
    ) -> None:
        self._read = read
        self._cache = cache
        self._mask = mask
        self._positions = positions
        self._recorder = recorder
        self._on_failure = on_failure
        self._tokens = torch.zeros_like(positions)  # [B, 1]
        self._place = torch.full((1,), int(cache.get_seq_length()), dtype=torch.int64, device=mask.device)
        self._rehearsed = False
        self._replay: Replay | None = None
        layers: list[Any] = cache.layers
        for layer in layers:
            layer.fix(self._place)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Append one token per text, int64 ``[b]``; return the outputs, ``[b, 1, …]``."""
        self._tokens.copy_(tokens.unsqueeze(1))
        try:
            return self._advance()
        except CaptureError as error:
            self._recorder = Direct()
            self._on_failure(str(error))
            return self._step()

    def _advance(self) -> Tensor:
        if self._replay is None:
            if not self._rehearsed:
                self._rehearsed = True
                return self._recorder.rehearse(self._step)
            self._replay = self._recorder.capture(self._step)
        return self._replay()

    def keep(self, rows: Tensor) -> None:
        """Continue with these texts only, int64 ``[b]``; the next steps are run and captured anew."""
        self._forget_graph()
        self._tokens, self._mask, self._positions = (part[rows] for part in (self._tokens, self._mask, self._positions))
        rows_kept: Any = rows  # annotated as a LongTensor, which no tensor of torch is
        self._cache.reorder_cache(rows_kept)

    def close(self) -> None:
        """Give graph, keys and values back to the device; nothing can follow."""
        self._forget_graph()
        self._cache.layers.clear()
        self._recorder.give_back()

    def _forget_graph(self) -> None:
        if self._replay is not None:
            self._replay.close()
        self._replay, self._rehearsed = None, False

    def _step(self) -> Tensor:
        """Read the token at its place, and move on; may be run again where it failed, because that comes last."""
        self._mask.index_fill_(1, self._place, 1)
        outputs = self._read(self._tokens, self._mask, self._positions, self._cache)
        self._positions.add_(1)
        self._place.add_(1)
        return outputs


class StaticDecoder(Decoder):
    """A :class:`.decoder.Decoder` by :class:`StaticStep`; finished rows leave when half of them have finished."""

    def __init__(
        self,
        base: SharedBase,
        prompts: Sequence[Sequence[int]],
        room: int,
        pad: int,
        origins: Sequence[int] | None = None,
    ) -> None:
        super().__init__(base, prompts, room, pad, origins)
        self._rows = len(prompts if origins is None else origins)
        self._steps: StaticStep | None = None

    def prefill(self) -> Tensor:
        """Read the prompts; return as :meth:`.decoder.Decoder.prefill`."""
        hidden = super().prefill()
        cache, recorder = self._cache, recorder_for(self._base.device)
        assert cache is not None
        following = self._positions[:, -1:] + 1  # [B, 1]
        self._steps = StaticStep(
            self._base.hidden, cache, self._mask, following, recorder, self._base.decode_without_graph
        )
        return hidden

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token per row, ``[b]``; return the hidden states of its position, ``[b, 1, H]``."""
        assert self._steps is not None
        return self._steps(tokens)

    def is_worth_shrinking(self, kept: int, left: int) -> bool:
        """Return whether finished rows should leave now: ``kept`` would stay, for ``left`` more tokens."""
        return self.drops_rows and 2 * kept <= self._rows and left >= _WORTH

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows only, int64 ``[b]``."""
        assert self._steps is not None
        self._rows = len(rows)
        self._steps.keep(rows)

    def close(self) -> None:
        """Give graph, keys and values back to the device."""
        if self._steps is not None:
            self._steps.close()

    def _room(self, tokens: int) -> int:
        return room_for(tokens)

    def _make_cache(self, room: int) -> DynamicCache:
        return static_cache(self._base.base.config, room)


def open_decoder(
    base: SharedBase, prompts: Sequence[Sequence[int]], room: int, pad: int, origins: Sequence[int] | None = None
) -> Decoder:
    """Return the decoder that ``base.decoding`` asks for; to be closed.

    Args:
        base: its active adapter reads.
        prompts: token ids.
        room: most tokens that will follow a prompt.
        pad: pads prompts on the left.
        origins: as :class:`.decoder.Decoder` takes them.
    """
    kind = StaticDecoder if base.decoding.cache and base.decoding.static else Decoder
    return kind(base, prompts, room, pad, origins)
