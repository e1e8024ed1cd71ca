"""2 score: reward components of a response, each kept apart, and their weighted sum.

score = ``reward_model_weight`` · reward model + ``reward_fn_weight`` · function
− ``length_penalty`` · tokens beyond ``length_penalty_start`` − ``repetition_penalty`` · share of repeated n-grams.

A function may abstain from a response: its component is then NaN, and left out of the sum. Where there is no reward
model either, the score is the mean of the other responses' (:func:`fill_abstained`), which favours it neither way.

After the sum come normalisation and clipping (:class:`RewardScaling`), then the baseline and the penalty of a missing
end (:func:`final_scores`).

The reward model is the reward stage's adapter on the shared base, or a model of its own. It reads prompt and response
as text, in the template and encoding of its training.

Shapes: ``B`` responses, ``b`` of a micro-batch, ``T`` tokens of a text, ``H`` hidden width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...contract.base import find_base, read_identity
from ...contract.errors import StageError
from ...contract.prompt_format import Message, PromptFormat
from ...contract.recipe import PPORecipe
from .. import limits, models
from ..encoding import Encoder
from ..reporting import Reporter
from ..sharing import own_base
from . import losses
from .losses import Moments
from .packing import longest_first
from .reward_function import RewardFunction
from .shared_base import REWARD, SharedBase, score_weight

PREFIX = "reward/"
MODEL = f"{PREFIX}model"
FUNCTION = f"{PREFIX}function"
ABSTAINED = f"{PREFIX}function_abstained"
"""Share of the responses that the function abstained from."""
LENGTH = f"{PREFIX}length_penalty"
REPETITION = f"{PREFIX}repetition_penalty"


class Unscored(StageError):
    """A rollout could not be scored; the policy is as sound as it was, and worth saving."""


class ResponseText(NamedTuple):
    """A response as text, as reward model and function read it."""

    question: str
    text: str
    ended: bool
    """True: it ended with an end token."""
    messages: list[Message] | None = None
    """The conversation that is the prompt, where the source has one."""
    columns: Mapping[str, Any] = MappingProxyType({})
    """Further columns of the prompt's row."""


@dataclass(frozen=True)
class Scores:
    """The scores of a rollout on their way into the rewards, ``[B]`` each; all but the first in PPO's units."""

    raw: Tensor
    """The weighted sum of the components."""
    scaled: Tensor
    """After normalisation and clipping."""
    final: Tensor
    """After the baseline and what a missing end costs."""


class Rewards:
    """The reward components of a recipe.

    Args:
        recipe: the PPO recipe.
        base: where the reward model's adapter goes, when it belongs to the same base.
        encoder: of the run's prompt format, with the policy's tokenizer.
        reporter: gets a notice of a second model in memory.

    Raises:
        StageError: reward model or function cannot be had.
    """

    def __init__(self, recipe: PPORecipe, base: SharedBase, encoder: Encoder, reporter: Reporter) -> None:
        self._recipe = recipe
        self._device = base.device
        self._stops = encoder.stop_ids
        self._model = load_scorer(recipe, base, encoder, reporter) if recipe.reward_model_path else None
        self._function = (
            RewardFunction(recipe.reward_fn, recipe.reward_fn_path, reporter.health) if recipe.reward_fn else None
        )

    def check_length(self, tokens: int, keys: str, reporter: Reporter) -> None:
        """Compare the longest text with what a reward model of its own takes; see :func:`..limits.check_length`."""
        if self._model:
            self._model.check_length(tokens, keys, reporter)

    def components(
        self, texts: Sequence[ResponseText], responses: Sequence[Sequence[int]], micro_batch_size: int
    ) -> dict[str, Tensor]:
        """Compute each component under its metric's name, float32 ``[B]``.

        The model's and the function's are as they returned them, penalties at most 0.

        Args:
            texts: responses as text, ``B`` of them.
            responses: their tokens, the end token included.
            micro_batch_size: responses that the reward model reads at once.

        Raises:
            StageError: the function failed.
        """
        recipe = self._recipe
        components: dict[str, Tensor] = {}
        if self._model:
            components[MODEL] = self._model(texts, micro_batch_size)
        if self._function:
            components[FUNCTION] = self._column(
                self._function([response.question for response in texts], [response.text for response in texts])
            )
        if recipe.length_penalty:
            excess = [excess_length(len(ids), recipe.length_penalty_start) for ids in responses]
            components[LENGTH] = -recipe.length_penalty * self._column(excess)
        if recipe.repetition_penalty:
            without_end = [ids[:-1] if ids[-1] in self._stops else ids for ids in responses]
            shares = [repeated_share(ids, recipe.repetition_n_grams) for ids in without_end]
            components[REPETITION] = -recipe.repetition_penalty * self._column(shares)
        return components

    def total(self, components: Mapping[str, Tensor]) -> Tensor:
        """Compute the weighted sum of :meth:`components`, float32 ``[B]``; NaN where :func:`abstained`."""
        weights = {MODEL: self._recipe.reward_model_weight, FUNCTION: self._recipe.reward_fn_weight}
        weighted = [
            weights.get(name, 1.0) * (values.nan_to_num(0) if name == FUNCTION else values)  # an abstention adds 0
            for name, values in components.items()
        ]
        return torch.stack(weighted).sum(0).masked_fill(abstained(components), torch.nan)  # [B]

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)


def abstained(components: Mapping[str, Tensor]) -> Tensor:
    """Return which responses have no score, because the function abstained and there is no reward model; bool ``[B]``.

    A reward model abstains from none.
    """
    if MODEL in components or FUNCTION not in components:
        return torch.zeros_like(components[MODEL], dtype=torch.bool)
    return components[FUNCTION].isnan()


def fill_abstained(scores: Tensor, missing: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Fill missing scores with the mean of the others over all ranks; NaN if there are no others.

    Args:
        scores: ``[B]``.
        missing: which of them are missing, bool ``[B]``.
        reduce: sum over all ranks; every rank calls it.
    """
    total, count = reduce(torch.stack([scores.masked_fill(missing, 0).double().sum(), (~missing).double().sum()]))
    return torch.where(missing, (total / count).to(scores.dtype), scores)


class RewardScaling:
    """Scores in comparable units: normalised by the running statistics of all scores so far, then clipped.

    Score reparameterisation of PPO-max (arXiv:2307.04964, section 5.3.1). What it remembers is the same on every rank.

    Per rollout: :meth:`update`, then :meth:`scale`.

    Args:
        normalise: subtract the running mean, then divide by the running standard deviation.
        cliprange: clip to ± this afterwards; None: do not clip.
        reduce: sum over all ranks.
    """

    def __init__(self, normalise: bool, cliprange: float | None, reduce: Callable[[Tensor], Tensor]) -> None:
        self.moments = Moments()
        self._normalise = normalise
        self._cliprange = cliprange
        self._reduce = reduce

    def update(self, scores: Tensor) -> None:
        """Merge the total scores of a rollout, ``[B]``, into the running statistics; collective."""
        if self._normalise:
            self.moments = self.moments.merge(self._moments(scores))

    def scale(self, scores: Tensor) -> Tensor:
        """Normalise by the running statistics, then clip; ``[B]`` in and out."""
        scores = self._normalised(scores)
        return scores if self._cliprange is None else scores.clamp(-self._cliprange, self._cliprange)

    def metrics(self, scores: Tensor) -> dict[str, float]:
        """Return running mean and standard deviation, and the fraction of ``scores``, ``[B]``, that is clipped.

        Each only where it is in use; collective.
        """
        metrics: dict[str, float] = {}
        if self._normalise:
            metrics |= {"objective/score_mean": self.moments.mean, "objective/score_std": self.moments.std}
        if self._cliprange is not None:
            outside = (self._normalised(scores).abs() > self._cliprange).double().sum()
            clipped, count = self._reduce(torch.stack([outside, torch.full_like(outside, len(scores))])).tolist()
            metrics["objective/score_clipfrac"] = clipped / count
        return metrics

    def _normalised(self, scores: Tensor) -> Tensor:
        return losses.normalise(scores, self.moments) if self._normalise else scores

    def _moments(self, scores: Tensor) -> Moments:
        """Compute those of all ranks, in float64, so that the number of ranks makes no measurable difference."""
        scores = scores.double()  # [B]
        count, total = self._reduce(torch.stack([torch.full_like(scores[0], len(scores)), scores.sum()])).tolist()
        mean = total / count
        return Moments(count, mean, float(self._reduce((scores - mean).pow(2).sum())))


def final_scores(recipe: PPORecipe, scores: Tensor, texts: Sequence[ResponseText]) -> Tensor:
    """Subtract the baseline; penalise or replace the scores of responses without an end token; ``[B]``.

    Args:
        scores: in the units of the recipe's reward scaling, ``[B]``.
        texts: ``B`` of them.
    """
    return with_ends(recipe, scores - recipe.reward_baseline, texts)


def with_ends(recipe: PPORecipe, scores: Tensor, texts: Sequence[ResponseText]) -> Tensor:
    """Penalise or replace the scores, ``[B]``, of responses without an end token."""
    ended = torch.tensor([response.ended for response in texts], device=scores.device)  # bool [B]
    scores = scores - recipe.eos_penalty * ~ended
    if recipe.missing_eos_reward is not None:
        scores = scores.masked_fill(~ended, recipe.missing_eos_reward)
    return scores


def excess_length(tokens: int, start: int) -> int:
    """Count tokens beyond ``start``; 0 for a response that is not longer.

    Length and repetition are known ways of cheating a reward model: StackLLaMA's policy learned to repeat code fences
    (https://huggingface.co/blog/stackllama).
    """
    return max(0, tokens - start)


def repeated_share(ids: Sequence[int], n: int) -> float:
    """Compute the share of a response's n-grams that occur in it before: 1 − distinct-n (arXiv:1510.03055, section 5).

    Args:
        ids: the response's tokens, without its end token.
        n: tokens of an n-gram.

    Returns:
        0 where no n-gram comes twice (or there is none), near 1 where one is repeated over and over.
    """
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def load_scorer(
    recipe: PPORecipe, base: SharedBase, encoder: Encoder, reporter: Reporter
) -> "SharedScorer | SeparateScorer":
    """Load the reward model of the recipe; on the shared base when it was trained on that base.

    Raises:
        StageError: it cannot be loaded, or has no score head.
    """
    assert recipe.reward_model_path
    path = Path(recipe.reward_model_path)
    if base.reward_adapter:
        return SharedScorer(base, base.reward_adapter, encoder)
    if (path / "adapter_config.json").is_file():
        changed = own_base(path)
        why = f"its base is {read_identity(path)['name']}, the policy's {recipe.model_name_or_path}"
        why = f"its `{changed}` changes the base that it would share" if changed else why
        reporter.health(f"the reward model: {why}; a second model is held in memory")
    return SeparateScorer(recipe, base.device, encoder.format)


class SharedScorer:
    """The reward adapter and score head on the policy's own base: no second model in memory."""

    def __init__(self, base: SharedBase, path: Path, encoder: Encoder) -> None:
        base.add_adapter_from(path, REWARD)
        self._base = base
        self._encoder = encoder
        weight = score_weight(path).to(base.device, torch.float32)
        self.head = nn.Linear(weight.shape[1], 1, bias=False, device=base.device, dtype=torch.float32)
        self.head.weight = nn.Parameter(weight, requires_grad=False)

    def check_length(self, tokens: int, keys: str, reporter: Reporter) -> None:
        """Do nothing: the policy's own check holds for this model, which is the policy's base."""

    @torch.no_grad()
    def __call__(self, texts: Sequence[ResponseText], micro_batch_size: int) -> Tensor:
        """Compute scores, float32 ``[B]``."""
        scores = torch.empty(len(texts), device=self._base.device)
        device = self._base.device
        with self._base.adapter(REWARD):
            for indices, input_ids, mask in _micro_batches(self._encoder, texts, micro_batch_size, device):
                # the score is the head's product with the hidden state of the last token
                hidden = self._base.hidden(input_ids, mask, (mask.cumsum(1) - 1).clamp(min=0))  # [b, T, H]
                last = last_token(input_ids, models.pad_id(self._encoder.tokenizer))  # [b]
                pooled = hidden[torch.arange(len(last), device=device), last]  # [b, H]
                scores[indices] = self.head(pooled.float()).squeeze(-1)  # [b]
        return scores


class SeparateScorer:
    """A sequence-classification model of its own, with its own tokenizer."""

    def __init__(self, recipe: PPORecipe, device: torch.device, prompt_format: PromptFormat) -> None:
        assert recipe.reward_model_path
        name = recipe.reward_model_path
        self._device = device
        self._name = name
        self._tokenizer = models.load_tokenizer(name, must_end=False)
        self._encoder = Encoder(self._tokenizer, prompt_format)
        self.model = _load_separate(name, recipe, device)
        limits.check_tokens(self.model, self._tokenizer, f"`reward_model_path={name}`")
        most = limits.positions(self.model)
        self._most = most.tokens if most and most.hard else None
        self.model.config.get_text_config().pad_token_id = self._tokenizer.pad_token_id
        self.model.eval().requires_grad_(False)

    def check_length(self, tokens: int, keys: str, reporter: Reporter) -> None:
        """Compare the longest text, counted in the policy's tokens, with what this model takes."""
        limits.check_length(self.model, self._name, tokens, keys, reporter, "reward model")

    @torch.no_grad()
    def __call__(self, texts: Sequence[ResponseText], micro_batch_size: int) -> Tensor:
        """Compute scores, float32 ``[B]``."""
        scores = torch.empty(len(texts), device=self._device)
        for indices, input_ids, mask in _micro_batches(self._encoder, texts, micro_batch_size, self._device):
            if self._most is not None and input_ids.shape[1] > self._most:
                raise StageError(
                    f"`reward_model_path={self._name}`: a text has {input_ids.shape[1]} of its tokens, and it takes "
                    f"{self._most}; lower `max_prompt_length` or `response_length`, or use another reward model."
                )
            scores[indices] = self.model(input_ids=input_ids, attention_mask=mask).logits.squeeze(-1).float()  # [b]
        return scores


def last_token(input_ids: Tensor, pad: int) -> Tensor:
    """Find the index of the rightmost token that is not padding, as transformers' sequence classification does.

    Args:
        input_ids: ``[b, T]``.
        pad: id of the padding token.

    Returns:
        int64 ``[b]``.
    """
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)  # [T]
    return (positions * (input_ids != pad)).argmax(1)


def _encode(encoder: Encoder, response: ResponseText) -> list[int]:
    """Encode prompt and response; a tokenizer without an end token (BERT's) wraps the text in its own."""
    if encoder.tokenizer.eos_token_id is not None:
        return encoder.text_ids(response.question, response.text, response.messages, ended=response.ended)
    text = encoder.text(response.question, response.text.strip(), response.messages)
    ids: Any = encoder.tokenizer(text, split_special_tokens=True)["input_ids"]
    return ids


def _load_separate(name: str, recipe: PPORecipe, device: torch.device) -> Any:
    path = Path(name)
    if not (path / "adapter_config.json").is_file():
        return models.load_plain(name, None, recipe.dtype, device, reward=True)
    source = find_base(path)
    base = models.load_plain(source.name, source.revision, recipe.dtype, device, reward=True, new_head=True)
    score_weight(path)  # a reward adapter without its head would score at random
    return models.load_adapter(base, path).merge_and_unload()


def _micro_batches(
    encoder: Encoder, texts: Sequence[ResponseText], micro_batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield micro-batches, longest first: indices ``[b]``, token ids and attention mask ``[b, T]``.

    Texts are padded on the right.
    """
    encoded = [torch.tensor(_encode(encoder, response)) for response in texts]
    for indices in longest_first(range(len(encoded)), lambda index: len(encoded[index]), micro_batch_size):
        ids = [encoded[index] for index in indices]
        mask = [torch.ones_like(row) for row in ids]
        yield (
            torch.tensor(indices, device=device),
            nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=models.pad_id(encoder.tokenizer)).to(device),
            nn.utils.rnn.pad_sequence(mask, batch_first=True).to(device),
        )
