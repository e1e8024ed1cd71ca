"""One rollout: what was sampled, everything computed from it before the update, and the worker that does it.

Shapes: ``B`` responses, ``P`` longest prompt, ``R`` longest response; ``b``, ``p`` and ``r`` of a micro-batch.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ...contract.errors import StageError
from ...contract.recipe import PPORecipe
from ...data import demo_data
from ...data.kinds import DEMO
from .. import models
from ..encoding import Encoder
from ..faults import BatchSizes
from ..session import Session
from . import losses
from .packing import Lengths, PackedBatch
from .prompts import Prompt
from .response_text import ResponseText
from .rewards import PREFIX, Rewards, Unscored, fill_abstained, with_ends
from .sampling import Noise, Responses, sample
from .shared_base import Outputs, SharedBase
from .thoughts import Thought, thoughts_of
from .vllm_sampler import VllmSampler

Sampler = Callable[[Sequence[Sequence[int]], Sequence[Noise], Sequence[int]], Responses]
"""Prompts, their noise and the tokens that end a response → responses."""


@dataclass(frozen=True)
class Rollout:
    """Prompts padded on the left, responses on the right, and everything computed from them before the update."""

    input_ids: Tensor
    """int64 ``[B, P + R]``."""
    attention_mask: Tensor
    """int64 ``[B, P + R]``."""
    mask: Tensor
    """float32 ``[B, R]``: 1 on response tokens, the end token included."""
    texts: list[ResponseText]
    """The responses as text, ``B`` of them."""
    old: Outputs
    """Outputs of the policy that sampled, float32 ``[B, R]`` each."""
    ref_logprobs: Tensor
    """Log-probabilities of the reference, float32 ``[B, R]``."""
    scores: Tensor
    """The weighted sum of the components, float32 ``[B]``."""
    components: dict[str, Tensor] = field(default_factory=dict)
    """Reward components, by their metric's name; float32 ``[B]`` each."""
    thoughts: list[Thought] = field(default_factory=list)
    """Thoughts of the responses, ``B`` of them."""
    abstained: Tensor | None = None
    """Responses whose score is only the mean of others', because every function abstained; bool ``[B]``."""
    lower: Tensor | None = None
    """What the lowest layer of a critic in the upper layers reads, ``[B, P + R, H]`` in the model's dtype, every row
    from the left; None: the critic reads the token ids."""

    @property
    def responses(self) -> int:
        """``R``."""
        return self.mask.shape[1]

    @cached_property
    def lengths(self) -> Lengths:
        """Lengths of prompts and responses."""
        return lengths_of(self.attention_mask, self.responses)

    def select(self, batch: PackedBatch) -> "Rollout":
        """Select what the update reads of a micro-batch, as wide as its longest prompt and response."""
        return replace(
            self,
            input_ids=batch.select_tokens(self.input_ids, self.responses),  # [b, p + r]
            attention_mask=batch.select_tokens(self.attention_mask, self.responses),  # [b, p + r]
            mask=batch.select_response(self.mask),  # [b, r]
            old=Outputs(*(batch.select_response(column) for column in self.old)),  # [b, r] each
            texts=[],
            thoughts=[],
            lower=None if self.lower is None else batch.select_states(self.lower),  # [b, t, H]
        )


class LowerStates:
    """Collects :attr:`Rollout.lower` from micro-batches, in any order.

    Args:
        rows: ``B``.
        width: ``T``, at least the tokens of the longest row.
    """

    def __init__(self, rows: int, width: int) -> None:
        self._rows, self._width = rows, width
        self.states: Tensor | None = None
        """``[B, T, H]``; None: none was put in yet."""

    def put(self, batch: PackedBatch, states: Tensor) -> None:
        """Copy the states of a micro-batch, ``[b, t, H]``, into their rows."""
        if self.states is None:
            self.states = states.new_zeros(self._rows, self._width, states.shape[-1])
        self.states[batch.indices, : states.shape[1]] = states


@dataclass(frozen=True)
class Advantages:
    """Inputs of the update besides the rollout, float32 ``[B, R]`` each; see :func:`.algorithm.compute_advantages`."""

    kl: Tensor
    advantages: Tensor
    returns: Tensor | None
    """None: the estimator has no value function, and the update leaves the critic as it is."""
    loss_mask: Tensor | None = None
    """1 on tokens that are in the loss; None: on all response tokens."""
    ref_logprobs: Tensor | None = None
    """The reference's log-probabilities, where the loss holds the KL penalty; None: it is in the rewards."""
    kl_coef: float = 0.0
    """Weight of the KL penalty in the loss."""
    zero_std: Tensor | None = None
    """Groups without a spread of scores, bool ``[G]``; None: there are no groups."""

    def select(self, batch: PackedBatch) -> "Advantages":
        """Select those of a micro-batch, ``[b, r]`` each."""

        def of(column: Tensor | None) -> Tensor | None:
            return None if column is None else batch.select_response(column)

        return Advantages(
            kl=batch.select_response(self.kl),
            advantages=batch.select_response(self.advantages),
            returns=of(self.returns),
            loss_mask=of(self.loss_mask),
            ref_logprobs=of(self.ref_logprobs),
            kl_coef=self.kl_coef,
        )


def pad_tokens(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Build token ids ``[B, P + R]``, attention mask ``[B, P + R]`` and response mask ``[B, R]``."""
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
    """Read lengths from the attention mask ``[B, P + R]``."""
    split = attention_mask.shape[1] - responses
    prompt_lengths = attention_mask[:, :split].sum(1)  # [B]
    response_lengths = attention_mask[:, split:].sum(1)  # [B]
    lengths = torch.stack([prompt_lengths, response_lengths]).tolist()  # [2, B], one transfer from the device
    return Lengths(prompts=lengths[0], responses=lengths[1])


@torch.no_grad()
def policy_outputs(
    base: SharedBase,
    input_ids: Tensor,
    attention_mask: Tensor,
    responses: int,
    micro_batch_size: int,
    each_batch: Callable[[], None] = lambda: None,
    mini_batches: int = 1,
    tokens: int | None = None,
    *,
    run_separate_critic: bool = True,
    keep: LowerStates | None = None,
    lower: Tensor | None = None,
) -> Outputs:
    """Compute outputs of the active adapter, one micro-batch at a time; 0 beyond a micro-batch's longest response.

    With the update's micro-batch size and mini-batches, its first epoch sees bit-for-bit the same log-probabilities.

    Args:
        base: its active adapter reads.
        input_ids: ``[B, P + R]``.
        attention_mask: ``[B, P + R]``.
        responses: ``R``.
        micro_batch_size: responses per forward pass.
        each_batch: called before each micro-batch; what it raises ends the pass.
        mini_batches: number of consecutive parts that are cut into micro-batches separately.
        tokens: most tokens per forward pass, padding included, instead of so many responses.
        run_separate_critic: False leaves out the pass of a critic with an adapter of its own, and its values are 0.
        keep: collects the states below such a critic's adapter, where the active adapter is in no layer below it.
        lower: such states, which its passes begin with.
    """
    columns = [torch.zeros(len(input_ids), responses, device=input_ids.device) for _ in Outputs._fields]  # [B, R] each
    lengths = lengths_of(attention_mask, responses)
    for indices in torch.arange(len(input_ids)).chunk(mini_batches):
        for batch in lengths.packed(indices.tolist(), micro_batch_size, input_ids.device, tokens):
            each_batch()
            ids = batch.select_tokens(input_ids, responses)  # [b, p + r]
            attention = batch.select_tokens(attention_mask, responses)  # [b, p + r]
            with nullcontext() if keep is None else base.keeping_lower_states(partial(keep.put, batch)):
                outputs = base.outputs(
                    ids,
                    attention,
                    batch.response,
                    run_separate_critic=run_separate_critic,
                    padded=batch.padded,
                    width=batch.width,
                    lower=None if lower is None else batch.select_states(lower),
                )  # [b, r] each
            for column, values in zip(columns, outputs, strict=True):
                column[batch.indices, : batch.response] = values
    return Outputs(*columns)


@torch.no_grad()
def lower_states(
    base: SharedBase,
    input_ids: Tensor,
    attention_mask: Tensor,
    responses: int,
    micro_batch_size: int,
    each_batch: Callable[[], None] = lambda: None,
    tokens: int | None = None,
) -> Tensor:
    """Compute :attr:`Rollout.lower` by the layers below the critic's alone; arguments as :func:`policy_outputs`."""
    lengths = lengths_of(attention_mask, responses)
    kept = LowerStates(*input_ids.shape)
    for batch in lengths.packed(range(len(input_ids)), micro_batch_size, input_ids.device, tokens):
        each_batch()
        ids = batch.select_tokens(input_ids, responses)  # [b, p + r]
        attention = batch.select_tokens(attention_mask, responses)  # [b, p + r]
        states = base.lower_states(ids, attention, batch.response, padded=batch.padded, width=batch.width)
        kept.put(batch, states)  # [b, t, H]
    assert kept.states is not None
    return kept.states


def sequence_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum ``values``, ``[B, R]``, over the tokens of each response; ``[B]``."""
    return losses.masked(values, mask).sum(1)


class RolloutWorker:
    """Generates and scores rollouts on this rank, without collectives except where stated.

    Args:
        recipe: the PPO recipe.
        session: tells between two pieces of work whether a stop waits; sums over all ranks.
        base: policy and reference.
        encoder: of the run's prompt format.
        rewards: scores responses.
        batch_sizes: micro-batch sizes.
    """

    def __init__(
        self,
        recipe: PPORecipe,
        session: Session,
        base: SharedBase,
        encoder: Encoder,
        rewards: Rewards,
        batch_sizes: BatchSizes,
    ) -> None:
        self._recipe = recipe
        self._base = base
        self._encoder = encoder
        self._tokenizer = encoder.tokenizer
        self._rewards = rewards
        self._batch_sizes = batch_sizes
        self._leave: Callable[[], None] = session.requests.leave_early
        self._reduce = session.reduce
        self._vllm: Sampler | None = VllmSampler(recipe, session, base) if recipe.use_vllm else None

    def respond(
        self, prompts: Sequence[Prompt], noise: Sequence[Noise], stops: Sequence[int], group_size: int = 1
    ) -> Responses:
        """1 sample: generate one response per prompt; ``group_size`` prompts in a row are the same one.

        Raises:
            LeftEarly: a stop waits.
            StageError: vLLM found no memory.
        """
        ids = [prompt.ids for prompt in prompts]
        if self._vllm is not None:
            return self._vllm(ids, noise, stops)
        return self._sample_here(ids, noise, stops, group_size)

    def respond_here(
        self,
        prompts: Sequence[Prompt],
        noise: Sequence[Noise],
        stops: Sequence[int],
        acting: AbstractContextManager[None],
    ) -> Responses:
        """Generate as :meth:`respond`, but never through vLLM, with the model that ``acting`` makes active.

        Raises:
            LeftEarly: a stop waits.
        """
        with acting:
            return self._sample_here([prompt.ids for prompt in prompts], noise, stops)

    def _sample_here(
        self, prompts: Sequence[Sequence[int]], noise: Sequence[Noise], stops: Sequence[int], group_size: int = 1
    ) -> Responses:
        pad, micro_batch_size = models.pad_id(self._tokenizer), self._batch_sizes.rollout_micro_batch_size
        return sample(self._base, prompts, noise, stops, pad, self._leave, micro_batch_size, group_size)

    @torch.no_grad()
    def score(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Sequence[int]],
        acting: AbstractContextManager[None] | None = None,
        *,
        run_critic: bool = True,
    ) -> Rollout:
        """2 score and 3 evaluate; the policy's own log-probabilities and values as well.

        Args:
            prompts: ``B`` of them.
            responses: one per prompt.
            acting: context in which the model that sampled is active, where that was not the policy.
            run_critic: False, where nobody reads the values: a separate critic's are 0.

        Raises:
            LeftEarly: a stop waits.
            StageError: a function of the user's failed.
        """
        pad = models.pad_id(self._tokenizer)
        input_ids, attention_mask, mask = pad_tokens(
            [prompt.ids for prompt in prompts], responses, pad, self._base.device
        )  # [B, P + R], [B, P + R], [B, R]
        width = mask.shape[1]  # R
        texts = [self._decode(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        self._leave()
        # score: the reward model reads the responses as text
        micro_batch_size, tokens = self._batch_sizes.rollout_micro_batch_size, self._batch_sizes.micro_batch_tokens
        components = self._rewards.components(texts, responses, micro_batch_size, tokens)  # [B] each
        # reference: log-probabilities without the policy's adapter; on the way, what a critic in the upper layers
        # reads, unless the reference has an adapter of its own
        reads_lower = run_critic and self._base.below_critic > 0
        shape = input_ids, attention_mask, width, micro_batch_size, self._leave
        kept = LowerStates(*input_ids.shape) if reads_lower and self._base.reference_is_base else None
        with self._base.reference():
            reference = policy_outputs(self._base, *shape, tokens=tokens, keep=kept)  # [B, R] each
        lower = kept.states if kept else lower_states(self._base, *shape, tokens) if reads_lower else None
        # old: those of the policy that sampled, in the update's micro-batches, so that its first ratio is exactly 1
        with acting or nullcontext():
            old = policy_outputs(
                self._base,
                input_ids,
                attention_mask,
                width,
                self._batch_sizes.micro_batch_size,
                self._leave,
                self._recipe.num_mini_batches,
                tokens,
                run_separate_critic=run_critic,
                lower=lower,
            )  # [B, R] each
        return Rollout(
            input_ids=input_ids,
            attention_mask=attention_mask,
            mask=mask,
            texts=texts,
            old=old,
            ref_logprobs=reference.logprobs,
            scores=self._rewards.total(components),
            components=components,
            thoughts=thoughts_of(
                self._tokenizer, [prompt.ids for prompt in prompts], responses, [text.ended for text in texts]
            ),
            lower=lower,
        )

    def fill_abstained(self, rollout: Rollout) -> Rollout:
        """Give responses without a score the mean of the others; collective."""
        if not self._recipe.reward_funcs:
            return rollout
        missing = self._rewards.abstained(rollout.components)  # bool [B]
        return replace(rollout, scores=fill_abstained(rollout.scores, missing, self._reduce), abstained=missing)

    def _decode(self, prompt: Prompt, response: Sequence[int]) -> ResponseText:
        ended = response[-1] in self._encoder.stop_ids
        text = self._tokenizer.decode(list(response[:-1] if ended else response), skip_special_tokens=True)
        own = self._encoder.trimmed(str(text))
        return ResponseText(prompt.question, own, ended, prompt.messages, prompt.columns, ids=response)

    def rows(self, rollout: Rollout, kl: Tensor) -> list[dict[str, Any]]:
        """Make one row per response, as in ``samples.jsonl``; ``kl`` is ``[B]``."""
        rows: list[dict[str, Any]] = []
        lengths = rollout.mask.sum(1).int().tolist()
        components = {name: values.tolist() for name, values in rollout.components.items()}
        scores = with_ends(self._recipe, rollout.scores, rollout.texts).tolist()
        columns = zip(rollout.texts, rollout.scores.tolist(), scores, kl.tolist(), lengths, strict=True)
        for index, (text, reward, score, response_kl, length) in enumerate(columns):
            row = {
                "question": text.question,
                "response": text.text,
                "reward": reward,
                "score": score,
                "kl": response_kl,
                "length": length,
                "ended": text.ended,
                "rewards": {
                    name.removeprefix(PREFIX): values[index]
                    for name, values in components.items()
                    if not math.isnan(values[index])  # abstained
                },
            }
            if text.columns:
                row["columns"] = dict(text.columns)
            if self._recipe.dataset_name == DEMO:
                row["utility"] = demo_data.utility(text.question, text.text)
            rows.append(row)
        return rows

    def not_finite(self, rollout: Rollout) -> str | None:
        """Describe what of a rollout is NaN or infinite, over all ranks; None: nothing is. Collective."""
        logprobs = (losses.masked(each, rollout.mask) for each in (rollout.old.logprobs, rollout.ref_logprobs))
        bad = torch.stack([(~torch.isfinite(tensor)).sum() for tensor in (rollout.scores, *logprobs)])
        scores, policy, reference = self._reduce(bad).tolist()
        if not (scores or policy or reference):
            return None
        if self.nothing_scored(rollout) and not (policy or reference):
            names = ", ".join(self._recipe.reward_funcs)
            return f"`reward_funcs: {names}` abstained from all {scores} responses, and there is no reward model"
        return (
            f"NaN or infinity in {scores} scores, {policy} log-probabilities of the policy and {reference} of the "
            "reference"
        )

    def check_finite(self, rollout: Rollout) -> None:
        """Raise on every rank if anything is not finite.

        Raises:
            Unscored: no response has a score.
            StageError: a score or log-probability is NaN or infinite.
        """
        if not (bad := self.not_finite(rollout)):
            return
        if self.nothing_scored(rollout):
            raise Unscored(f"{bad}: return a number for some of them, or set `reward_model_path` as well.")
        raise StageError(
            f"{bad}. Use `bf16: true` or `dtype: bfloat16` instead of float16, or lower `learning_rate`; "
            "checkpoints are untouched."
        )

    def nothing_scored(self, rollout: Rollout) -> bool:
        """Return whether no response of any rank has a score, after :meth:`fill_abstained`; the same on every rank.

        A mean of others fills a gap, so that gaps on all of a rank mean that there is no other on any rank.
        """
        if not self._recipe.reward_funcs or self._recipe.reward_model_path is not None:
            return False
        return bool((rollout.scores.isnan() & self._rewards.abstained(rollout.components)).all())
