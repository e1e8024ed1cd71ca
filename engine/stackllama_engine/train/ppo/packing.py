"""Micro-batches of rows of like length, cut to their own longest, so that little of them is padding.

Shapes: ``B`` responses of a rollout, ``b`` of a micro-batch, ``P`` longest prompt, ``R`` longest response.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def longest_first(
    indices: Iterable[int], length: Callable[[int], int], micro_batch_size: int, tokens: int | None = None
) -> Iterator[list[int]]:
    """Yield at most ``micro_batch_size`` indices at a time, longest rows first; equally long ones keep their order.

    Args:
        indices: of rows.
        length: tokens of the row at an index.
        micro_batch_size: rows per micro-batch.
        tokens: most tokens of a micro-batch, padding included, which then decides instead; a row that has more is
            alone.
    """
    order = sorted(indices, key=lambda index: -length(index))
    start = 0
    while start < len(order):
        width = max(1, length(order[start]))  # of the longest
        rows = micro_batch_size if tokens is None else max(1, tokens // width)
        yield order[start : start + rows]
        start += rows


class PackedBatch(NamedTuple):
    """Some responses that go through the model together, no wider than their own longest prompt and response."""

    indices: Tensor
    """Their rows in the rollout, int64 ``[b]``."""
    prompt: int
    """Tokens of their longest prompt."""
    response: int
    """Tokens of their longest response."""
    padded: bool = True
    """Whether any of them is shorter; without, every row begins and ends where the others do."""
    width: int | None = None
    """Tokens of their longest prompt and response together; None: of longest prompt plus longest response."""

    def select_states(self, states: Tensor) -> Tensor:
        """Select their part of states whose rows begin on the left, ``[B, T, H]`` → ``[b, t, H]``.

        ``t`` tokens are as many as go through the model.
        """
        return states[self.indices, : self.tokens]

    @property
    def tokens(self) -> int:
        """Tokens per row as it goes through the model."""
        return self.width or self.prompt + self.response

    def select_response(self, values: Tensor) -> Tensor:
        """Select their part of values per response token, ``[B, R]`` → ``[b, response]``."""
        return values[self.indices, : self.response]

    def select_tokens(self, tokens: Tensor, responses: int) -> Tensor:
        """Select their part of token ids or attention mask, ``[B, P + R]`` → ``[b, prompt + response]``.

        Args:
            tokens: prompts end, and responses begin, at the same column in every row.
            responses: ``R``.
        """
        split = tokens.shape[1] - responses  # P
        return tokens[self.indices, split - self.prompt : split + self.response]


class Lengths:
    """Tokens of each prompt and response, known to the host: no kernel has to be waited for to cut padding off.

    Args:
        prompts: of each prompt.
        responses: of each response, end token included.
    """

    def __init__(self, prompts: Sequence[int], responses: Sequence[int]) -> None:
        self._prompts, self._responses = prompts, responses

    def packed(
        self, indices: Sequence[int], micro_batch_size: int, device: torch.device, tokens: int | None = None
    ) -> Iterator[PackedBatch]:
        """Yield ``micro_batch_size`` rows at a time, longest first, so that rows of one batch are about as long.

        What belongs to which batch follows from indices and lengths alone: two passes over the same indices see the
        same batches, and so the same numbers bit for bit.

        Args:
            indices: of rows.
            micro_batch_size: rows per batch.
            device: of the indices.
            tokens: most tokens per batch, padding included, instead of so many rows.
        """

        def length(index: int) -> int:
            return self._prompts[index] + self._responses[index]

        for batch in longest_first(indices, length, micro_batch_size, tokens):
            prompts = [self._prompts[index] for index in batch]
            responses = [self._responses[index] for index in batch]
            padded = len({*prompts}) > 1 or len({*responses}) > 1
            width = length(batch[0])
            yield PackedBatch(torch.tensor(batch, device=device), max(prompts), max(responses), padded, width)
