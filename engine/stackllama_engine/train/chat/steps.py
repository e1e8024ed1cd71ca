"""The forward passes of one response: the prompt's, then one per token, on a GPU as a CUDA graph.

Shapes: ``P`` prompt tokens, ``S`` tokens that there is room for, ``V`` vocabulary.
"""

import inspect
import sys
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..left_out import left_out
from ..ppo.cuda_graph import recorder_for
from ..ppo.static_decoder import StaticStep, obstacle, room_for, static_cache

_MOST_ROOM = 4096
"""Tokens of prompt and response up to which there is room for all of them from the start, which a graph needs."""


class GraphChoice:
    """Whether responses are decoded by CUDA graphs; tells the log once why not.

    Args:
        device: of the models.
        wanted: None: on a CUDA device.
    """

    def __init__(self, device: torch.device, wanted: bool | None = None) -> None:
        self._wanted = device.type == "cuda" and not left_out("graph") if wanted is None else wanted

    def fits(self, base: Any, tokens: int) -> bool:
        """Return whether a response of this model can be decoded by a graph.

        Args:
            base: a causal language model without an adapter around it.
            tokens: prompt and longest response.
        """
        if not self._wanted or room_for(tokens) > _MOST_ROOM:
            return False
        reason = obstacle(base)
        if reason is None and "position_ids" not in inspect.signature(base.forward).parameters:
            reason = f"{base.config.model_type} takes no positions"
        if reason:
            self.stop(reason)
        return self._wanted

    def stop(self, reason: str) -> None:
        """Use no graph from now on."""
        self._wanted = False
        print(f"answers without CUDA graphs, which is slower: {reason}", file=sys.stderr, flush=True)  # noqa: T201 - the generator's log


class GrowingSteps:
    """One response over a cache that grows.

    Args:
        model: with or without an adapter around it.
        base: the model without.
    """

    def __init__(self, model: Any, base: Any) -> None:
        # only the last position's logits: [P, V] of a whole prompt would cost more than the model's own work
        self._keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}
        self._model = model
        self._cache = self._make_cache(base)

    def prefill(self, prompt: Tensor) -> Tensor:
        """Read the prompt, ``[1, P]``; return the next token's logits, ``[1, V]``."""
        return self._logits(prompt)[:, -1]

    def step(self, token: Tensor) -> Tensor:
        """Append a token, ``[1]``; return the next one's logits, ``[1, V]``."""
        return self._logits(token.unsqueeze(0))[:, -1]

    def close(self) -> None:
        """Give back what the device holds for this response alone."""

    def _make_cache(self, base: Any) -> DynamicCache:
        return DynamicCache(config=base.config)

    def _logits(self, ids: Tensor, **more: Tensor) -> Tensor:
        return self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, **more, **self._keep).logits


class StaticSteps(GrowingSteps):
    """One response over buffers that stay where they are, as a CUDA graph on a CUDA device.

    Args:
        model: with or without an adapter around it.
        base: the model without; one that ``choice`` says fits.
        tokens: prompt and longest response.
        choice: told when nothing can be captured.
    """

    def __init__(self, model: Any, base: Any, tokens: int, choice: GraphChoice) -> None:
        self._room = room_for(tokens)
        self._choice = choice
        self._static: StaticStep | None = None
        super().__init__(model, base)

    def prefill(self, prompt: Tensor) -> Tensor:
        """Read the prompt, ``[1, P]``; return the next token's logits, ``[1, V]``."""
        logits, length = super().prefill(prompt), prompt.shape[1]
        mask = torch.zeros(1, self._room, dtype=torch.int64, device=prompt.device)
        mask[:, :length] = 1
        positions = torch.full((1, 1), length, dtype=torch.int64, device=prompt.device)
        recorder = recorder_for(prompt.device)
        self._static = StaticStep(self._read, self._cache, mask, positions, recorder, self._choice.stop)
        return logits

    def step(self, token: Tensor) -> Tensor:
        """Append a token, ``[1]``; return the next one's logits, ``[1, V]``."""
        assert self._static is not None
        return self._static(token)[:, -1]

    def close(self) -> None:
        """Give graph, keys and values back to the device."""
        if self._static is not None:
            self._static.close()

    def _make_cache(self, base: Any) -> DynamicCache:
        return static_cache(base.config, self._room)

    def _read(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        assert cache is self._cache
        return self._logits(ids, attention_mask=mask, position_ids=positions)
