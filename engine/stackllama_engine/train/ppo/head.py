"""Log-probabilities of chosen tokens under a frozen head, a chunk of tokens at a time.

A head is a matrix (:func:`chosen`), or the model's own code, which may scale or cap the logits (:func:`chosen_by`).

The float32 logits of a whole batch never exist: neither in the forward pass nor, as usual, again in the backward
pass. With ``z = W h / τ`` and ``p = softmax(z)``

    log p_y = z_y − log Σ exp z          ∂ log p_y / ∂h = (W_y − Wᵀ p) / τ
    H = −Σ p log p                       ∂ H / ∂h = −Wᵀ (p ⊙ (log p + H)) / τ

and as every token's gradient is one number times such a vector, only the vector is stored: the head is multiplied
as often as by autograd, and never computed again. The head must not be trained itself.

Shapes: ``N`` tokens, ``H`` hidden width, ``V`` vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..left_out import left_out

CHUNK = 128
"""Tokens whose logits exist at a time; two float32 arrays of ``[CHUNK, V]``, and a third in the head's own type where
that is another. They are filled again for every chunk: on a CPU, fresh memory costs more than the work on it."""
CUDA_CHUNK = 1024
"""The same on a GPU, where every chunk costs about twenty kernel launches, whatever its size."""
CUDA_LOGITS = 1 << 26
"""Most logits of a chunk on a GPU: a larger vocabulary gets shorter chunks, which keep it as busy."""


class Chosen(NamedTuple):
    """Log-probability of each token, and entropy of the distribution that it came from; float32 ``[N]`` each."""

    logprobs: Tensor
    entropy: Tensor


def chunk_tokens(device: torch.device, vocabulary: int) -> int:
    """Return the tokens of a chunk, as ``budget/lm_head.py`` counts them."""
    if device.type == "cpu" or left_out("head"):
        return CHUNK
    return max(CHUNK, min(CUDA_CHUNK, CUDA_LOGITS // vocabulary // CHUNK * CHUNK))


def chosen(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, temperature: float, *, entropy_trains: bool
) -> Chosen:
    """Compute the log-probability of each token and the entropy at its position.

    Args:
        hidden: the state before each token, ``[N, H]``.
        weight: the head's, ``[V, H]``, frozen.
        bias: the head's, ``[V]``, frozen.
        tokens: ``[N]``.
        temperature: divides the logits.
        entropy_trains: whether the entropy has a gradient, for another product with the head.
    """
    return Chosen(*_Chosen.apply(hidden, weight, bias, tokens, temperature, entropy_trains))  # type: ignore[arg-type]


def chosen_by(
    logits_of: Callable[[Tensor], Tensor], hidden: Tensor, tokens: Tensor, vocabulary: int, *, entropy_trains: bool
) -> Chosen:
    """Compute what :func:`chosen` does under a head that is a function.

    Args:
        logits_of: ``[n, H]`` → float32 ``[n, V]``, over the temperature; each row by itself, nothing in it trained.
        hidden: the state before each token, ``[N, H]``.
        tokens: ``[N]``.
        vocabulary: ``V``.
        entropy_trains: whether the entropy has a gradient, for another pass back through the head.
    """
    size = chunk_tokens(hidden.device, vocabulary)
    return Chosen(*_ChosenBy.apply(hidden, logits_of, tokens, size, entropy_trains))  # type: ignore[arg-type]


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        count = len(tokens)  # N
        # how many gradients with respect to hidden are kept: none, of the log-probability, or of the entropy as well
        direction_count = 1 + entropy if ctx.needs_input_grad[0] else 0
        logprobs, entropies = hidden.new_empty(2, count, dtype=torch.float32).unbind()  # [N] each
        directions = [hidden.new_empty(hidden.shape, dtype=torch.float32) for _ in range(direction_count)]  # [N, H]
        # buffers, [n, V] each, that every chunk of n tokens writes over
        size = chunk_tokens(hidden.device, len(weight))
        logits = hidden.new_empty(min(size, count), len(weight))
        float32_buffers = 1 if logits.dtype == torch.float32 else 2
        buffers = (logits, *(torch.empty_like(logits, dtype=torch.float32) for _ in range(float32_buffers)))
        for start in range(0, count, size):
            part = slice(start, min(start + size, count))
            chunk_buffers = [buffer[: part.stop - start] for buffer in buffers]
            results = _chunk(hidden[part], weight, bias, tokens[part], temperature, direction_count, chunk_buffers)
            for column, values in zip((logprobs, entropies, *directions), results, strict=True):
                column[part] = values
        _keep(ctx, directions, hidden.dtype, entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return _gradient(ctx, *grad_outputs), None, None, None, None, None


class _ChosenBy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, logits_of: Callable[[Tensor], Tensor], tokens: Tensor, size: int, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        direction_count = 1 + entropy if ctx.needs_input_grad[0] else 0
        parts: list[tuple[Tensor, ...]] = []
        for start in range(0, len(tokens), size):
            part = slice(start, start + size)
            with torch.set_grad_enabled(direction_count > 0):
                state = hidden[part].detach().requires_grad_(direction_count > 0)  # [n, H]
                results = chosen_of(logits_of(state), tokens[part])
                # a token's log-probability depends on its own state alone, so the sum's gradient holds every token's
                directions = [
                    torch.autograd.grad(column.sum(), state, retain_graph=True)[0].float()
                    for column in results[:direction_count]
                ]
            parts.append((*(column.detach() for column in results), *directions))
        logprobs, entropies, *directions = (torch.cat(columns) for columns in zip(*parts, strict=True))
        _keep(ctx, directions, hidden.dtype, entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return _gradient(ctx, *grad_outputs), None, None, None, None


def chosen_of(logits: Tensor, tokens: Tensor, *, entropy_trains: bool = True) -> Chosen:
    """Compute log-probabilities and entropies from all logits at once.

    Args:
        logits: float32 ``[..., V]``, over the temperature.
        tokens: ``[...]``.
        entropy_trains: whether the entropy has a gradient.
    """
    normaliser = logits.logsumexp(-1)  # [...]
    logprobs = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - normaliser  # [...]
    with torch.set_grad_enabled(entropy_trains and torch.is_grad_enabled()):
        entropy = normaliser - (torch.softmax(logits, -1) * logits).sum(-1)  # [...]
    return Chosen(logprobs, entropy)


def _keep(ctx: Any, directions: Sequence[Tensor], dtype: torch.dtype, entropies: Tensor) -> None:
    """Keep for :func:`_gradient` the gradients with respect to the hidden states, ``[N, H]`` each, and their dtype."""
    ctx.save_for_backward(*directions)
    ctx.dtype = dtype
    if len(directions) < 2:
        ctx.mark_non_differentiable(entropies)


def _gradient(ctx: Any, of_logprobs: Tensor, of_entropy: Tensor) -> Tensor:
    """Return the gradient with respect to the hidden states, ``[N, H]``, from those of both outputs, ``[N]`` each."""
    directions = ctx.saved_tensors  # [N, H] each: ∂ log p_y / ∂h and, where the entropy trains, ∂ H / ∂h
    gradient = of_logprobs.unsqueeze(-1) * directions[0]  # [N, H]
    if len(directions) > 1:
        gradient += of_entropy.unsqueeze(-1) * directions[1]
    return gradient.to(ctx.dtype)


def _chunk(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    temperature: float,
    direction_count: int,
    buffers: list[Tensor],
) -> tuple[Tensor, ...]:
    """Compute log-probabilities and entropies ``[n]``, and as many gradients as wanted, float32 ``[n, H]`` each.

    Args:
        hidden: ``[n, H]``.
        weight: ``[V, H]``.
        bias: ``[V]``.
        tokens: ``[n]``.
        temperature: divides the logits.
        direction_count: 0, 1 or 2, see :class:`_Chosen`.
        buffers: written over, ``[n, V]`` each: in the head's type, then in float32 (the last two, of two or three).
    """
    logits, (logs, weights) = buffers[0], buffers[-2:]  # [n, V] each; the first two are one where the head is float32
    torch.mm(hidden, weight.T, out=logits)
    if bias is not None:
        logits.add_(bias)
    if logits is not logs:
        logs.copy_(logits)
    if temperature != 1.0:
        logs.div_(temperature)
    # log p_y = z_y − log Σ exp z, with the highest logit subtracted, so that exp cannot overflow
    logs.sub_(logs.amax(-1, keepdim=True))  # [n, V], z − max z
    token_logits = logs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)  # [n]
    torch.exp(logs, out=weights)  # [n, V], unnormalised p
    total = weights.sum(-1)  # [n]
    normaliser = total.log()  # [n]
    # H = log Σ exp z − Σ p z
    entropies = normaliser - logs.mul_(weights).sum(-1) / total  # [n]; logs is z · unnormalised p from here on
    directions: list[Tensor] = []
    if direction_count:  # (W_y − Wᵀ p) / τ
        directions.append((weight[tokens].float() - _mean(weights, weight, logits, total)) / temperature)
    if direction_count > 1:  # −Wᵀ (p ⊙ (log p + H)) / τ, where log p + H = z − normaliser + H
        surprise = logs.addcmul_(weights, (entropies - normaliser).unsqueeze(-1))  # [n, V], times the total
        directions.append(_mean(surprise, weight, logits, total) / -temperature)
    return token_logits - normaliser, entropies, *directions


def _mean(weights: Tensor, head: Tensor, buffer: Tensor, total: Tensor) -> Tensor:
    """Average the head's rows with weights ``weights / total``; float32 ``[n, H]``.

    Args:
        weights: ``[n, V]``.
        head: ``[V, H]``.
        buffer: ``[n, V]``, for the weights in the head's type, unless that is float32; in a narrower one, sums of what
            is not yet divided could overflow.
        total: ``[n]``.
    """
    if head.dtype == weights.dtype:
        return (weights @ head) / total.unsqueeze(-1)
    return (torch.div(weights, total.unsqueeze(-1), out=buffer) @ head).float()
