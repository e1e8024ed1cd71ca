"""Log-probabilities of chosen tokens under a frozen head, a few hundred tokens at a time.

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
from torch.nn import functional

CHUNK = 256
"""Tokens whose logits exist at a time; two float32 arrays of ``[CHUNK, V]``."""


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
        directions = 1 + entropy if ctx.needs_input_grad[0] else 0
        parts = [
            _chunk(states, weight, bias, chosen_tokens, temperature, directions)
            for states, chosen_tokens in zip(hidden.split(CHUNK), tokens.split(CHUNK), strict=True)
        ]
        logprobs, entropies, *kept = (torch.cat(columns) for columns in zip(*parts, strict=True))
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
    hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, temperature: float, directions: int
) -> tuple[Tensor, ...]:
    """Log-probabilities, entropies ``[n]``, and the directions asked for, float32 ``[n, H]`` each."""
    logs = functional.linear(hidden, weight, bias).float()
    if temperature != 1.0:
        logs = logs.div_(temperature)
    logs = logs.sub_(logs.logsumexp(-1, keepdim=True))
    logprobs = logs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    shares = logs.exp()
    entropies = -torch.linalg.vecdot(shares, logs)
    kept: list[Tensor] = []
    if directions:
        kept.append((weight[tokens].float() - (shares.to(weight.dtype) @ weight).float()) / temperature)
    if directions > 1:
        surprise = logs.add_(entropies.unsqueeze(-1)).mul_(shares)
        kept.append((surprise.to(weight.dtype) @ weight).float() / -temperature)
    return logprobs, entropies, *kept
