"""What judges a response: the reward stage's adapter on the shared base, or a model of its own.

Question and answer reach the reward model through text, in the template and encoding of its training.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ...contract.base import find_base, read_identity
from ...contract.errors import StageError
from ...contract.recipe import PPORecipe
from ...data.template import text
from .. import limits, models
from ..report import Reporter
from ..rows import encode_text
from ..sharing import own_base
from .batches import longest_first
from .shared_base import REWARD, SharedBase, score_weight

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Answer(NamedTuple):
    """A response as the judge sees it."""

    question: str
    text: str
    ended: bool
    """Whether it ended with the end token."""


class Scorer(Protocol):
    """Answers in, one score each out."""

    def __call__(self, answers: Sequence[Answer]) -> Tensor:
        """Scores, float32 ``[B]`` on the base's device."""
        ...


def load_scorer(
    recipe: PPORecipe, base: SharedBase, tokenizer: "PreTrainedTokenizerBase", reporter: Reporter
) -> "SharedScorer | SeparateScorer":
    """The reward model of the recipe; on the shared base when it was trained on that base.

    Raises:
        StageError: it cannot be loaded, or has no score head.
    """
    assert recipe.reward_model_path
    path = Path(recipe.reward_model_path)
    size = recipe.local_rollout_forward_batch_size
    if base.reward_adapter:
        return SharedScorer(base, base.reward_adapter, tokenizer, size)
    if (path / "adapter_config.json").is_file():
        changed = own_base(path)
        why = f"its base is {read_identity(path)['name']}, the policy's {recipe.model_name_or_path}"
        why = f"its `{changed}` changes the base that it would share" if changed else why
        reporter.health(f"the reward model: {why}; a second model is held in memory")
    return SeparateScorer(recipe, base.device, size)


class SharedScorer:
    """The reward adapter and score head on the policy's own base: no second model in memory."""

    def __init__(self, base: SharedBase, path: Path, tokenizer: "PreTrainedTokenizerBase", batch_size: int) -> None:
        base.add_adapter_from(path, REWARD)
        self._base = base
        self._tokenizer = tokenizer
        self.batch_size = batch_size
        weight = score_weight(path).to(base.device, torch.float32)
        self.head = nn.Linear(weight.shape[1], 1, bias=False, device=base.device, dtype=torch.float32)
        self.head.weight = nn.Parameter(weight, requires_grad=False)

    def check_length(self, tokens: int, keys: str, reporter: Reporter) -> None:
        """The policy's own check holds for this model, which is the policy's base."""

    @torch.no_grad()
    def __call__(self, answers: Sequence[Answer]) -> Tensor:
        """Scores, float32 ``[B]``."""
        scores = torch.empty(len(answers), device=self._base.device)
        with self._base.adapter(REWARD):
            for places, input_ids, mask in _batches(self._tokenizer, answers, self.batch_size, self._base.device):
                hidden = self._base.hidden(input_ids, mask, (mask.cumsum(1) - 1).clamp(min=0))
                last = last_token(input_ids, models.pad_id(self._tokenizer))
                pooled = hidden[torch.arange(len(last), device=last.device), last]
                scores[places] = self.head(pooled.float()).squeeze(-1)
        return scores


class SeparateScorer:
    """A sequence-classification model of its own, with its own tokenizer."""

    def __init__(self, recipe: PPORecipe, device: torch.device, batch_size: int) -> None:
        assert recipe.reward_model_path
        name = recipe.reward_model_path
        self._device = device
        self.batch_size = batch_size
        self._name = name
        self._tokenizer = models.load_tokenizer(name, must_end=False)
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
    def __call__(self, answers: Sequence[Answer]) -> Tensor:
        """Scores, float32 ``[B]``."""
        scores = torch.empty(len(answers), device=self._device)
        for places, input_ids, mask in _batches(self._tokenizer, answers, self.batch_size, self._device):
            if self._most is not None and input_ids.shape[1] > self._most:
                raise StageError(
                    f"`reward_model_path={self._name}`: a text has {input_ids.shape[1]} of its tokens, and it takes "
                    f"{self._most}; lower `max_prompt_length` or `response_length`, or use another reward model."
                )
            scores[places] = self.model(input_ids=input_ids, attention_mask=mask).logits.squeeze(-1).float()
        return scores


def last_token(input_ids: Tensor, pad: int) -> Tensor:
    """Index of the rightmost token that is not padding, as transformers' sequence classification finds it. ``[B]``."""
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    return (positions * (input_ids != pad)).argmax(1)


def _encode(tokenizer: "PreTrainedTokenizerBase", answer: Answer) -> list[int]:
    """Token ids of question and answer. A tokenizer without an end token (BERT's) wraps the text in its own."""
    if tokenizer.eos_token_id is not None:
        return encode_text(tokenizer, *answer)
    ids: Any = tokenizer(text(answer.question, answer.text.strip()), split_special_tokens=True)["input_ids"]
    return ids


def _load_separate(name: str, recipe: PPORecipe, device: torch.device) -> Any:
    path = Path(name)
    if not (path / "adapter_config.json").is_file():
        return models.load_plain(name, None, recipe.dtype, device, reward=True)
    found = find_base(path)
    base = models.load_plain(found.name, found.revision, recipe.dtype, device, reward=True, new_head=True)
    score_weight(path)  # a reward adapter without its head would score at random
    return models.load_adapter(base, path).merge_and_unload()


def _batches(
    tokenizer: "PreTrainedTokenizerBase", answers: Sequence[Answer], size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The longest texts first, so that those of a batch are about as long: places ``[b]`` of at most ``size`` answers,
    their token ids and attention mask, padded on the right, ``[b, T]``."""
    texts = [torch.tensor(_encode(tokenizer, answer)) for answer in answers]
    for places in longest_first(range(len(texts)), lambda place: len(texts[place]), size):
        ids = [texts[place] for place in places]
        mask = [torch.ones_like(row) for row in ids]
        yield (
            torch.tensor(places, device=device),
            nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=models.pad_id(tokenizer)).to(device),
            nn.utils.rnn.pad_sequence(mask, batch_first=True).to(device),
        )
