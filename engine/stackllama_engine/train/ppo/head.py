"""Log-probabilities of chosen tokens under a frozen head, a hundred tokens at a time.

The float32 logits of a whole batch never exist: neither in the forward pass nor, as usual, again in the backward
pass. With ``z = W h / τ`` and ``p = softmax(z)``

    log p_y = z_y − log Σ exp z          ∂ log p_y / ∂h = (W_y − Wᵀ p) / τ
    H = −Σ p log p                       ∂ H / ∂h = −Wᵀ (p ⊙ (log p + H)) / τ

and as every token's gradient is one number times such a vector, the vector is all that is kept: the head is multiplied
as often as by autograd, and never computed again. The head must not be trained itself.

Shapes: ``N`` tokens, ``H`` hidden width, ``V`` vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK = 128
"""Tokens whose logits exist at a time; two float32 arrays of ``[CHUNK, V]``, and a third in the head's own type where
that is another. They are filled again for every chunk: on a CPU, fresh memory costs more than the work on it."""


class Chosen(NamedTuple):
    """Of each token: its log-probability, and the entropy of the distribution it came from; float32 ``[N]``."""

    logprobs: Tensor
    entropy: Tensor


def chosen(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, temperature: float, *, entropy_trains: bool
) -> Chosen:
    """Log-probability of each token and entropy at its position.

    Args:
        hidden: the state before each token, ``[N, H]``.
        weight: the head's, ``[V, H]``, frozen.
        bias: the head's, ``[V]``, frozen.
        tokens: ``[N]``.
        temperature: divides the logits.
        entropy_trains: whether the entropy has a gradient, for another product with the head.
    """
    return Chosen(*_Chosen.apply(hidden, weight, bias, tokens, temperature, entropy_trains))  # type: ignore[arg-type]


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        count = len(tokens)
        directions = 1 + entropy if ctx.needs_input_grad[0] else 0
        logprobs, entropies = hidden.new_empty(2, count, dtype=torch.float32).unbind()
        kept = [hidden.new_empty(hidden.shape, dtype=torch.float32) for _ in range(directions)]
        logits = hidden.new_empty(min(CHUNK, count), len(weight))
        wide = 1 if logits.dtype == torch.float32 else 2
        arrays = (logits, *(torch.empty_like(logits, dtype=torch.float32) for _ in range(wide)))
        for start in range(0, count, CHUNK):
            part = slice(start, min(start + CHUNK, count))
            room = [array[: part.stop - start] for array in arrays]
            found = _chunk(hidden[part], weight, bias, tokens[part], temperature, directions, room)
            for column, values in zip((logprobs, entropies, *kept), found, strict=True):
                column[part] = values
        ctx.save_for_backward(*kept)
        ctx.dtype = hidden.dtype
        if directions < 2:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        of_logprobs, of_entropy = grad_outputs
        kept = ctx.saved_tensors
        gradient = of_logprobs.unsqueeze(-1) * kept[0]
        if len(kept) > 1:
            gradient += of_entropy.unsqueeze(-1) * kept[1]
        return gradient.to(ctx.dtype), None, None, None, None, None


def _chunk(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    temperature: float,
    directions: int,
    room: list[Tensor],
) -> tuple[Tensor, ...]:
    """Log-probabilities, entropies ``[n]``, and the directions asked for, float32 ``[n, H]`` each.

    Args:
        room: written over, ``[n, V]`` each: in the head's type, then in float32 (the last two, of two or three).
    """
    logits, (logs, shares) = room[0], room[-2:]
    torch.mm(hidden, weight.T, out=logits)
    if bias is not None:
        logits.add_(bias)
    if logits is not logs:
        logs.copy_(logits)
    if temperature != 1.0:
        logs.div_(temperature)
    logs.sub_(logs.amax(-1, keepdim=True))
    said = logs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    torch.exp(logs, out=shares)
    total = shares.sum(-1)
    normaliser = total.log()
    entropies = normaliser - logs.mul_(shares).sum(-1) / total
    kept: list[Tensor] = []
    if directions:
        kept.append((weight[tokens].float() - _mean(shares, weight, logits, total)) / temperature)
    if directions > 1:  # p ⊙ (log p + H), times the total
        surprise = logs.addcmul_(shares, (entropies - normaliser).unsqueeze(-1))
        kept.append(_mean(surprise, weight, logits, total) / -temperature)
    return said - normaliser, entropies, *kept


def _mean(shares: Tensor, weight: Tensor, room: Tensor, total: Tensor) -> Tensor:
    """Rows of the head, ``[V, H]``, weighted with ``shares / total``, ``[n, V]`` and ``[n]``; float32 ``[n, H]``.

    Args:
        room: for the weights in the head's type, unless that is float32; in a narrower one, sums of what is not yet
            divided could overflow.
    """
    if weight.dtype == shares.dtype:
        return (shares @ weight) / total.unsqueeze(-1)
    return (torch.div(shares, total.unsqueeze(-1), out=room) @ weight).float()
