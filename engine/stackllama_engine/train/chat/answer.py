"""One response, token by token, and its text as far as it is final.

Shapes: ``P`` prompt tokens, ``V`` vocabulary.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from ...contract.chat_messages import Ask
from ...contract.errors import StageError
from ...contract.prompt_format import Message
from ..limits import positions
from ..ppo.sampling import pick
from .steps import GraphChoice, GrowingSteps, StaticSteps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GREEDY = 0.01
"""Temperatures below are 0: the likeliest token."""
_PARTIAL = "\ufffd"


@torch.no_grad()
def tokens(
    model: Any, prompt: Sequence[int], stops: Collection[int], ask: Ask, choice: GraphChoice | None = None
) -> Iterator[int]:
    """Yield the response's tokens as they are sampled, the end token included.

    Args:
        model: a causal language model, with or without an adapter.
        prompt: its tokens in the model's format.
        stops: tokens that end a response.
        ask: temperature, length and seed; the same seed draws the same noise for every model.
        choice: whether CUDA graphs are used; None: they are not.

    Raises:
        StageError: the prompt leaves no room for a response.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    room = _room(base, len(prompt))
    longest = min(ask.max_new_tokens, room)
    tokens_in_all = len(prompt) + longest
    fits = choice is not None and choice.fits(base, tokens_in_all)
    steps = StaticSteps(model, base, tokens_in_all, choice) if choice and fits else GrowingSteps(model, base)
    generator = torch.Generator().manual_seed(ask.seed)
    with closing(steps):
        logits = steps.prefill(torch.tensor([[*prompt]], device=base.device)).float()  # [1, V]
        for left in reversed(range(longest)):
            uniform = torch.rand(1, generator=generator, dtype=torch.float64).to(logits.device)
            greedy = ask.temperature < _GREEDY
            next_token = logits.argmax(-1) if greedy else pick(logits / ask.temperature, uniform)  # [1]
            token = int(next_token)
            yield token
            if token in stops or not left:
                return
            logits = steps.step(next_token).float()  # [1, V]


def messages_of(ask: Ask) -> list[Message] | None:
    """Return a question as a conversation with its own system prompt; None: the run's format says how it begins."""
    if ask.system is None:
        return None
    return [{"role": "system", "content": ask.system}, {"role": "user", "content": ask.prompt}]


class Text:
    """Tokens to text in pieces, none of which the tokens to come will change.

    A character may take several tokens, and sentencepiece joins words by what stands before them, so a piece is the
    difference that its tokens make after the ones just before. White space at the very beginning is left out, as PPO
    does before a response is scored.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # of the last piece and those not yet said
        self._said = 0  # how many of them are in a piece already
        self._begun = False

    def push(self, token: int) -> str:
        """Return the final text that a token adds; empty while a character is incomplete."""
        self._ids.append(token)
        return self._piece(final=False)

    def flush(self) -> str:
        """Return what is left at the end, replacement characters included."""
        return self._piece(final=True)

    def _piece(self, *, final: bool) -> str:
        before = self._decode(self._ids[: self._said])
        now = self._decode(self._ids)
        if len(now) <= len(before) or (now.endswith(_PARTIAL) and not final and len(self._ids) - self._said < 8):
            return ""
        self._ids, self._said = self._ids[self._said :], len(self._ids) - self._said
        piece = now[len(before) :] if self._begun else now[len(before) :].lstrip()
        self._begun = self._begun or bool(piece)
        return piece

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def _room(base: Any, prompt: int) -> int:
    """Return how many tokens fit after the prompt.

    Raises:
        StageError: none do.
    """
    limit = positions(base)
    if limit is None:
        return 1 << 30
    if prompt >= limit.tokens:
        raise StageError(
            f"the prompt has {prompt} tokens in the template; the model takes {limit.tokens}, its response included."
        )
    return limit.tokens - prompt
