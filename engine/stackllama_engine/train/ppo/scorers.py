"""Reward models: the reward stage's adapter on the shared base, or a model of its own.

Shapes: ``B`` responses, ``b`` of a micro-batch, ``T`` tokens of a text, ``H`` hidden width.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...contract.base import find_base, read_identity
from ...contract.errors import StageError
from ...contract.prompt_format import PromptFormat
from ...contract.recipe import PPORecipe
from .. import limits, models
from ..encoding import Encoder
from ..reporting import Reporter
from ..sharing import own_base
from .packing import longest_first
from .response_text import ResponseText
from .shared_base import REWARD, SharedBase, score_weight


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
