"""One rollout: what was sampled, and everything computed from it before the update.

Shapes: ``B`` responses, ``P`` longest prompt, ``R`` longest response.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from . import losses
from .batches import longest_first
from .scorer import Answer
from .shared_base import Outputs, SharedBase


class Rows(NamedTuple):
    """Some responses that go through the model together, no wider than their own longest prompt and response."""

    places: Tensor
    """Their rows in the rollout, int64 ``[b]``."""
    prompt: int
    """Tokens of their longest prompt."""
    response: int
    """Tokens of their longest response."""
    padded: bool = True
    """Whether any of them is shorter; without, no mask is needed."""

    def of(self, columns: Tensor) -> Tensor:
        """Their part of something per response token, ``[B, R]`` → ``[b, response]``."""
        return columns[self.places, : self.response]

    def texts(self, tokens: Tensor, responses: int) -> Tensor:
        """Their part of token ids or attention mask, ``[B, P + R]`` → ``[b, prompt + response]``; ``responses``: R."""
        split = tokens.shape[1] - responses
        return tokens[self.places, split - self.prompt : split + self.response]


class Lengths:
    """Tokens of each prompt and response, known to the host: no kernel has to be waited for to cut padding off.

    Args:
        prompts: of each prompt.
        responses: of each response, end token included.
    """

    def __init__(self, prompts: Sequence[int], responses: Sequence[int]) -> None:
        self._prompts, self._responses = prompts, responses

    def packed(self, places: Sequence[int], size: int, device: torch.device) -> Iterator[Rows]:
        """``size`` rows at a time, longest first, so that rows of one pack are about as long.

        What belongs to which pack follows from places and lengths alone: two passes over the same places see the same
        packs, and so the same numbers bit for bit.
        """
        for pack in longest_first(places, lambda place: self._prompts[place] + self._responses[place], size):
            prompts, responses = ([lengths[place] for place in pack] for lengths in (self._prompts, self._responses))
            padded = len({*prompts}) > 1 or len({*responses}) > 1
            yield Rows(torch.tensor(pack, device=device), max(prompts), max(responses), padded)


@dataclass(frozen=True)
class Rollout:
    """Prompts padded on the left, responses on the right."""

    input_ids: Tensor
    """int64 ``[B, P + R]``."""
    attention_mask: Tensor
    """int64 ``[B, P + R]``."""
    mask: Tensor
    """float32 ``[B, R]``: 1 on response tokens, the end token included."""
    answers: list[Answer]
    """The responses as text, ``B`` of them."""
    old: Outputs
    """The policy that sampled, float32 ``[B, R]`` each."""
    ref_logprobs: Tensor
    """float32 ``[B, R]``."""
    scores: Tensor
    """The weighted sum of the opinions, float32 ``[B]``."""
    opinions: dict[str, Tensor] = field(default_factory=dict)
    """What each part of the reward said, by its metric's name; float32 ``[B]`` each."""

    @property
    def responses(self) -> int:
        """``R``."""
        return self.mask.shape[1]

    @cached_property
    def lengths(self) -> Lengths:
        """Of prompts and responses."""
        return lengths_of(self.attention_mask, self.responses)

    def cut(self, rows: Rows) -> "Rollout":
        """What the update reads of some rows, as wide as they are."""
        ids, attention = (rows.texts(tokens, self.responses) for tokens in (self.input_ids, self.attention_mask))
        old = Outputs(*(rows.of(column) for column in self.old))
        return replace(self, input_ids=ids, attention_mask=attention, mask=rows.of(self.mask), old=old, answers=[])


@dataclass(frozen=True)
class Targets:
    """What the update aims at, float32 ``[B, R]`` each."""

    kl: Tensor
    advantages: Tensor
    returns: Tensor

    def cut(self, rows: Rows) -> "Targets":
        """Those of some rows."""
        return Targets(rows.of(self.kl), rows.of(self.advantages), rows.of(self.returns))


def pad_tokens(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids ``[B, P + R]``, attention mask ``[B, P + R]`` and response mask ``[B, R]``."""
    left, right = max(map(len, prompts)), max(map(len, responses))
    ids, attention, mask = [], [], []
    for prompt, response in zip(prompts, responses, strict=True):
        before, after = left - len(prompt), right - len(response)
        ids.append([pad] * before + [*prompt, *response] + [pad] * after)
        attention.append([0] * before + [1] * (len(prompt) + len(response)) + [0] * after)
        mask.append([1.0] * len(response) + [0.0] * after)
    return (
        torch.tensor(ids, device=device),
        torch.tensor(attention, device=device),
        torch.tensor(mask, device=device),
    )


def lengths_of(attention_mask: Tensor, responses: int) -> Lengths:
    """Lengths from the attention mask ``[B, P + R]``."""
    split = attention_mask.shape[1] - responses
    prompts, answers = attention_mask[:, :split].sum(1), attention_mask[:, split:].sum(1)
    return Lengths(*torch.stack([prompts, answers]).tolist())


@torch.no_grad()
def policy_outputs(
    base: SharedBase,
    input_ids: Tensor,
    attention_mask: Tensor,
    responses: int,
    size: int,
    each_batch: Callable[[], None] = lambda: None,
    mini_batches: int = 1,
) -> Outputs:
    """Outputs of the active adapter over the batch, ``size`` rows at a time; 0 beyond a pack's longest response.

    With size and mini-batches of the update, its first epoch sees bit-for-bit the same log-probabilities.
    """
    columns = [torch.zeros(len(input_ids), responses, device=input_ids.device) for _ in Outputs._fields]
    lengths = lengths_of(attention_mask, responses)
    for places in torch.arange(len(input_ids)).chunk(mini_batches):
        for rows in lengths.packed(places.tolist(), size, input_ids.device):
            each_batch()  # what it raises ends the pass
            ids, attention = rows.texts(input_ids, responses), rows.texts(attention_mask, responses)
            part = base.outputs(ids, attention, rows.response, padded=rows.padded)
            for column, values in zip(columns, part, strict=True):
                column[rows.places, : rows.response] = values
    return Outputs(*columns)


def sequence_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over each response, ``[B]``."""
    return losses.masked(values, mask).sum(1)
