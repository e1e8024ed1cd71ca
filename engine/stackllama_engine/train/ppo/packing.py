"""Rows of like length together, so that little of a batch is padding, and no wider than their own longest."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def longest_first(indices: Iterable[int], length: Callable[[int], int], size: int) -> Iterator[list[int]]:
    """At most ``size`` indices at a time; of equally long ones those that came first.

    Args:
        indices: of rows.
        length: tokens of the row at an index.
        size: of a batch.
    """
    order = sorted(indices, key=lambda index: -length(index))
    for start in range(0, len(order), size):
        yield order[start : start + size]


class PackedBatch(NamedTuple):
    """Some responses that go through the model together, no wider than their own longest prompt and response."""

    indices: Tensor
    """Their rows in the rollout, int64 ``[b]``."""
    prompt: int
    """Tokens of their longest prompt."""
    response: int
    """Tokens of their longest response."""
    padded: bool = True
    """Whether any of them is shorter; without, no mask is needed."""

    def of(self, columns: Tensor) -> Tensor:
        """Their part of something per response token, ``[B, R]`` → ``[b, response]``."""
        return columns[self.indices, : self.response]

    def texts(self, tokens: Tensor, responses: int) -> Tensor:
        """Their part of token ids or attention mask, ``[B, P + R]`` → ``[b, prompt + response]``; ``responses``: R."""
        split = tokens.shape[1] - responses
        return tokens[self.indices, split - self.prompt : split + self.response]


class Lengths:
    """Tokens of each prompt and response, known to the host: no kernel has to be waited for to cut padding off.

    Args:
        prompts: of each prompt.
        responses: of each response, end token included.
    """

    def __init__(self, prompts: Sequence[int], responses: Sequence[int]) -> None:
        self._prompts, self._responses = prompts, responses

    def packed(self, indices: Sequence[int], size: int, device: torch.device) -> Iterator[PackedBatch]:
        """``size`` rows at a time, longest first, so that rows of one pack are about as long.

        What belongs to which pack follows from indices and lengths alone: two passes over the same indices see the same
        packs, and so the same numbers bit for bit.
        """
        for pack in longest_first(indices, lambda index: self._prompts[index] + self._responses[index], size):
            prompts, responses = ([lengths[index] for index in pack] for lengths in (self._prompts, self._responses))
            padded = len({*prompts}) > 1 or len({*responses}) > 1
            yield PackedBatch(torch.tensor(pack, device=device), max(prompts), max(responses), padded)
