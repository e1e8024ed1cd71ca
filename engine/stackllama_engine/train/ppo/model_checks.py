"""Checks of PPO's assumptions about a model, measured once at load against the model's own forward pass.

- Its logits are its output head times the hidden states of its trunk, which is how :class:`.shared_base.SharedBase`
  computes every log-probability. Those of a model that projects, scales or caps in between are computed by its own
  code; where even that does not agree, the model is refused.
- A row in a padded batch has the log-probabilities that it has alone.
- So it has while it is sampled: adapter merged, keys and states cached, finished rows removed, and, on a GPU, each
  token's step a CUDA graph. A shortcut that changes them is turned off.
- So has a critic in the upper layers that begins with kept states; else its passes begin with the token ids.

A few short rows, with the policy's adapter moved at random so that it matters. The difference of two passes is the mean
over positions of Σ p · |Δ log p| over the vocabulary, in nats per token.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...contract.errors import StageError
from ...contract.recipe import PPORecipe
from .. import models
from ..encoding import Encoder
from ..faults import memory_that_ran_out
from ..left_out import left_out
from ..reporting import Reporter
from .shared_base import CRITIC, POLICY, SharedBase
from .static_decoder import obstacle, open_decoder

_TEXT = "How do I keep coffee beans fresh for longer than a week, and does it matter how I grind them?"
_LENGTHS = ((13, 6), (5, 9), (9, 3))
"""Tokens of prompt and response of each row."""
_NOISE = 0.02
"""Standard deviation of what is added to the adapter's weights for as long as is measured."""
_EXACT, _ROUNDED, _QUANTISED = 1e-3, 0.05, 0.1
"""Largest difference that passes for rounding, in nats per token: in float32, in 16 bits, and with inputs rounded to
8 bits, whose outliers depend on the batch."""
_SAME = 0.01
"""Factor on these limits for the head, where both sides do the same arithmetic, so that even a cap shows that hardly
changes small logits."""

Row = tuple[list[int], list[int]]
"""Prompt and response."""


class Difference(NamedTuple):
    """Difference of one way to compute log-probabilities from the model's own."""

    nats: float
    """Per token; infinite where something is not finite."""
    error: str = ""
    """Error that the model raised instead."""

    def __str__(self) -> str:
        return f"fails ({self.error})" if self.error else f"is off by {self.nats:.2g} nats per token"


def check_policy(recipe: PPORecipe, base: SharedBase, encoder: Encoder, reporter: Reporter) -> None:
    """Measure the policy; turn off the shortcuts of sampling that do not agree, and report it.

    Raises:
        StageError: PPO cannot compute this model's log-probabilities.
    """
    rows, limit = _rows(encoder), _limit(recipe, base)
    base.report = reporter.health
    batch = max(recipe.local_rollout_forward_batch_size, recipe.micro_batch_size)
    with _moved_adapter(base), torch.no_grad():
        own = [_own(base, [*prompt, *response]) for prompt, response in rows]
        _check_head(recipe, base, rows, own, _SAME * limit)
        if batch > 1:
            _check_padding(recipe, base, rows, own, limit)
        if base.below_critic:
            _check_critic(base, rows, _SAME * limit)
        if not recipe.use_vllm or recipe.eval_temperatures or recipe.eval_best_of:  # which vLLM does not sample
            groups = [rows] if recipe.local_rollout_forward_batch_size > 1 else [[row] for row in rows]
            _choose_decoding(base, groups, own, models.pad_id(encoder.tokenizer), limit, reporter)


def _check_head(recipe: PPORecipe, base: SharedBase, rows: Sequence[Row], own: Sequence[Tensor], limit: float) -> None:
    for base.plain_head in (True, False):
        difference = _measure(own, lambda: [_alone(base, [*prompt, *response]) for prompt, response in rows])
        if difference.nats <= limit:
            return _check_width(recipe, base)
    raise StageError(
        f"`model_name_or_path={recipe.model_name_or_path}`: {_kind(base)} computes its logits from more than its last "
        f"hidden states, and PPO, which computes them from these, {difference}; use another model."
    )


def _check_width(recipe: PPORecipe, base: SharedBase) -> None:
    first = torch.zeros(1, 1, dtype=torch.int64, device=base.device)
    width = base.hidden(first, None, first).shape[-1]
    if base.has_critic and width != base.value_head.in_features:
        raise StageError(
            f"`model_name_or_path={recipe.model_name_or_path}`: hidden states of {_kind(base)} are {width} wide, and "
            f"its output head reads {base.value_head.in_features}, so that PPO's value head does not fit; use another "
            "model."
        )


def _check_padding(
    recipe: PPORecipe, base: SharedBase, rows: Sequence[Row], own: Sequence[Tensor], limit: float
) -> None:
    difference = _measure(own, lambda: _together(base, rows))
    if difference.nats > limit:
        raise StageError(
            f"`model_name_or_path={recipe.model_name_or_path}`: {_kind(base)} in a padded batch {difference} against "
            "each row alone; set `local_rollout_forward_batch_size=1` and `per_device_train_batch_size=1`, so that "
            "nothing is padded, or use another model."
        )


def _check_critic(base: SharedBase, rows: Sequence[Row], limit: float) -> None:
    texts = [[*prompt, *response] for prompt, response in rows]
    whole = [_by_critic(base, ids, begins_above=False) for ids in texts]
    difference = _measure(whole, lambda: [_by_critic(base, ids, begins_above=True) for ids in texts])
    if difference.nats > limit:
        base.critic_runs_whole(f"on states kept from below its layers, {_kind(base)} {difference}")


def _choose_decoding(
    base: SharedBase, groups: Sequence[Sequence[Row]], own: Sequence[Tensor], pad: int, limit: float, reporter: Reporter
) -> None:
    """Set ``base.decoding`` to the fastest mode that agrees."""
    if (merging := _measure(own, lambda: _inside_sampling(base, groups))).nats > limit:
        base.decoding = replace(base.decoding, merge=False)
        reporter.health(
            f"sampling with the adapter merged into {_kind(base)} {merging}: it stays unmerged, which is slower"
        )
    failures: list[str] = []
    for changes, loss in (
        ({}, ""),
        ({"drop_rows": False}, "finished rows stay in the batch"),
        ({"cache": False}, "the whole text is read again for every token, which is much slower"),
    ):
        base.decoding = replace(base.decoding, **{"drop_rows": True, "cache": True, **changes})
        difference = _measure(own, lambda: _decoded(base, groups, pad))
        if difference.nats <= limit:
            if failures:
                reporter.health(f"{'; '.join(failures)}: {loss}")
            if base.device.type == "cuda" and not left_out("graph"):
                _try_graph(base, groups, own, pad, limit)
            return
        failures.append(
            f"sampling from {_kind(base)} with a cache{'' if failures else ' and without finished rows'} {difference}"
        )
    raise StageError(f"{failures[-1]}, and so it does without a cache; use another model.")


def _try_graph(
    base: SharedBase, groups: Sequence[Sequence[Row]], own: Sequence[Tensor], pad: int, limit: float
) -> None:
    """Set ``base.decoding.static`` where a token's step can be captured and agrees; report why not."""
    if not base.decoding.cache:  # which has been reported
        return
    if reason := obstacle(base.base):
        base.decode_without_graph(reason)
        return
    base.decoding = replace(base.decoding, static=True)
    difference = _measure(own, lambda: _decoded(base, groups, pad))
    if difference.nats > limit:
        base.decode_without_graph(f"with one, sampling from {_kind(base)} {difference}")


def _measure(own: Sequence[Tensor], compute: Callable[[], Sequence[Tensor]]) -> Difference:
    """Measure the difference of some log-probabilities from a model's own, ``[T, V]`` per row.

    What the model raises means that it cannot do this, and becomes the result; only a lack of memory is raised.
    """
    try:
        others = compute()
    except Exception as error:
        if memory_that_ran_out(error) is not None:
            raise
        return Difference(float("inf"), f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}")
    nats = max(float(difference(one, other)) for one, other in zip(own, others, strict=True))
    return Difference(nats if nats == nats else float("inf"))


def difference(own: Tensor, other: Tensor) -> Tensor:
    """Compute the mean over positions of Σ p · |Δ log p|, a scalar.

    Args:
        own: log-probabilities, ``[T, V]``; ``p`` are theirs.
        other: log-probabilities, ``[T, V]``.
    """
    likely = own.exp()
    return torch.where(likely > 0, likely * (own - other).abs(), 0).sum(-1).mean()


def _own(base: SharedBase, ids: list[int]) -> Tensor:
    """Compute the model's own log-probabilities of a row alone, over the temperature; ``[T, V]``."""
    with base.autocast():
        logits = base.model(input_ids=torch.tensor([ids], device=base.device), use_cache=False).logits[0]
    return torch.log_softmax(logits.float() / base.temperature, -1)


def _alone(base: SharedBase, ids: list[int]) -> Tensor:
    """Compute PPO's log-probabilities of a row alone, ``[T, V]``."""
    positions = torch.arange(len(ids), device=base.device).unsqueeze(0)
    hidden = base.hidden(torch.tensor([ids], device=base.device), None, positions)
    return torch.log_softmax(base.logits(hidden)[0], -1)


def _by_critic(base: SharedBase, ids: list[int], *, begins_above: bool) -> Tensor:
    """Compute what the output head makes of the critic's states of a row alone, ``[T, V]``."""
    kept: list[Tensor] = []
    if begins_above and base.reference_is_base:
        with base.reference(), base.keeping_lower_states(kept.append):
            _alone(base, ids)
    elif begins_above:
        tokens = torch.tensor([ids], device=base.device)
        kept.append(base.lower_states(tokens, torch.ones_like(tokens), 1, padded=False))
    with base.adapter(CRITIC), base.beginning_with(kept[0]) if kept else nullcontext():
        return _alone(base, ids)


def _together(base: SharedBase, rows: Sequence[Row]) -> list[Tensor]:
    """Compute PPO's log-probabilities, prompts padded on the left and responses on the right; ``[T, V]`` per row."""
    left, right = (max(len(row[side]) for row in rows) for side in (0, 1))
    ids = torch.zeros(len(rows), left + right, dtype=torch.int64, device=base.device)
    mask = torch.zeros_like(ids)
    spans = [slice(left - len(prompt), left + len(response)) for prompt, response in rows]
    for index, (span, (prompt, response)) in enumerate(zip(spans, rows, strict=True)):
        ids[index, span] = torch.tensor([*prompt, *response], device=base.device)
        mask[index, span] = 1
    hidden = base.hidden(ids, mask, (mask.cumsum(1) - 1).clamp(min=0))
    return [torch.log_softmax(base.logits(hidden[index, span]), -1) for index, span in enumerate(spans)]


def _inside_sampling(base: SharedBase, groups: Sequence[Sequence[Row]]) -> list[Tensor]:
    """Compute PPO's log-probabilities of each row alone, as the policy is while it is sampled."""
    with base.sampling():
        return [_alone(base, [*prompt, *response]) for group in groups for prompt, response in group]


def _decoded(base: SharedBase, groups: Sequence[Sequence[Row]], pad: int) -> list[Tensor]:
    """Compute log-probabilities while the given responses are decoded token by token."""
    with base.sampling():
        return [logprobs for group in groups for logprobs in _decoded_together(base, group, pad)]


def _decoded_together(base: SharedBase, rows: Sequence[Row], pad: int) -> list[Tensor]:
    longest = max(len(response) for _, response in rows)
    with closing(open_decoder(base, [prompt for prompt, _ in rows], longest, pad)) as decoder:
        hidden, alive = decoder.prefill(), list(range(len(rows)))
        states = [list(hidden[index, -len(prompt) :].unbind()) for index, (prompt, _) in enumerate(rows)]
        for position in range(longest):
            keep = [row for row, index in enumerate(alive) if len(rows[index][1]) > position]
            if len(keep) < len(alive) and decoder.drops_rows:
                decoder.keep(torch.tensor(keep, device=base.device))
                alive = [alive[row] for row in keep]
            tokens = [(rows[index][1] + [pad] * longest)[position] for index in alive]
            hidden = decoder.step(torch.tensor(tokens, device=base.device))
            for row, index in enumerate(alive):
                if position < len(rows[index][1]):
                    states[index].append(hidden[row, -1])
    return [torch.log_softmax(base.logits(torch.stack(row)), -1) for row in states]


def _rows(encoder: Encoder) -> list[Row]:
    ids = encoder.prompt(_TEXT)
    longest = max(prompt + response for prompt, response in _LENGTHS)
    ids = (ids * longest)[:longest]
    return [(ids[:prompt], ids[prompt : prompt + response]) for prompt, response in _LENGTHS]


def _limit(recipe: PPORecipe, base: SharedBase) -> float:
    if recipe.quantised:
        return _QUANTISED
    return _EXACT if base.base.dtype == torch.float32 and not recipe.bf16 else _ROUNDED


@contextmanager
def _moved_adapter(base: SharedBase) -> Iterator[None]:
    """Move the policy's adapter away from the identity that it begins as; restore it afterwards, bit for bit."""
    generator = torch.Generator().manual_seed(0)  # global random numbers are the run's
    weights = [parameter for name, parameter in base.model.named_parameters() if f".{POLICY}." in name]
    before = [weight.detach().clone() for weight in weights]
    try:
        for weight in weights:
            noise = _NOISE * torch.randn(weight.shape, generator=generator)
            weight.data.add_(noise.to(weight.device, weight.dtype))
        yield
    finally:
        for weight, original in zip(weights, before, strict=True):
            weight.data.copy_(original)


def _kind(base: SharedBase) -> str:
    return str(base.base.config.model_type)
