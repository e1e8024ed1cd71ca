"""Reward models: the reward stage's adapter on the shared base, or a model of its own.

One that was trained here reads prompt and response in the run's format. One from elsewhere whose tokenizer has a chat
template reads the whole conversation as that renders it, the response's end included, as such models are trained:
the messages before the response, or the question as one user turn, without the run's system prompt. One without a
template reads the run's format.

Texts longer than such a model reads (its positions, or its tokenizer's ``model_max_length``) lose the beginning of the
prompt; a begin token stays. That is so whatever the tokenizer's ``truncation_side``, and departs from a model that was
trained with a cut on the right: such a cut would drop the response, which is what is scored.

A model with two labels scores the second logit minus the first, ``reward_model_label`` chooses one of several.

Shapes: ``B`` responses, ``b`` of a micro-batch, ``T`` tokens of a text, ``H`` hidden width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...contract.base import find_base, read_identity
from ...contract.errors import StageError
from ...contract.prompt_format import PromptFormat, read_prompt_format
from ...contract.recipe import PPORecipe
from .. import limits, models, right_padding
from ..encoding import Encoder
from ..reporting import Reporter
from ..sharing import own_base
from .packing import longest_first
from .response_text import ResponseText
from .shared_base import REWARD, SharedBase, score_weight

_NO_LIMIT = 10**9
"""A tokenizer whose ``model_max_length`` is larger says nothing about it (transformers writes 1e30)."""


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
        _check_only_score(recipe)
        return SharedScorer(base, base.reward_adapter, encoder)
    if (path / "adapter_config.json").is_file():
        changed = own_base(path)
        why = f"its base is {read_identity(path)['name']}, the policy's {recipe.model_name_or_path}"
        why = f"its `{changed}` changes the base that it would share" if changed else why
        reporter.health(f"the reward model: {why}; a second model is held in memory")
    return SeparateScorer(recipe, base.device, encoder.format, reporter.health)


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
    def __call__(self, texts: Sequence[ResponseText], micro_batch_size: int, tokens: int | None = None) -> Tensor:
        """Compute scores, float32 ``[B]``; with ``tokens``, at most so many at a time, padding included."""
        device, pad = self._base.device, models.pad_id(self._encoder.tokenizer)
        scores = torch.empty(len(texts), device=device)
        encoded = [
            self._encoder.text_ids(response.question, response.text, response.messages, ended=response.ended)
            for response in texts
        ]
        with self._base.adapter(REWARD):
            for indices, input_ids, mask in _micro_batches(encoded, pad, micro_batch_size, tokens, device):
                # the score is the head's product with the hidden state of the last token
                positions = torch.arange(input_ids.shape[1], device=device).expand_as(input_ids)  # [b, T]
                seen = mask if self._base.masks_padding else None  # padding follows every text
                hidden = self._base.hidden(input_ids, seen, positions)  # [b, T, H]
                last = last_token(input_ids, pad)  # [b]
                pooled = hidden[torch.arange(len(last), device=device), last]  # [b, H]
                scores[indices] = self.head(pooled.float()).squeeze(-1)  # [b]
        return scores


class SeparateScorer:
    """A sequence-classification model of its own, with its own tokenizer.

    Args:
        recipe: names it.
        device: where it goes.
        prompt_format: the run's.
        notice: gets the number of texts that were too long.

    Raises:
        StageError: it cannot be loaded, has no score head, or none of its scores is chosen; or nothing says how it
            reads a conversation.
    """

    def __init__(
        self,
        recipe: PPORecipe,
        device: torch.device,
        prompt_format: PromptFormat,
        notice: Callable[[str], None] = print,
    ) -> None:
        assert recipe.reward_model_path
        name = recipe.reward_model_path
        self._device = device
        self._name = name
        self._notice = notice
        self._tokenizer = models.load_tokenizer(name, must_end=False)
        foreign = read_prompt_format(Path(name)) is None
        self._whole = foreign and self._tokenizer.chat_template is not None
        """Whether it reads what its own chat template renders."""
        if foreign and prompt_format.kind == "chat" and not self._whole:
            raise StageError(
                f"`reward_model_path={name}`: its tokenizer has no chat template, so nothing says how it reads a "
                "conversation; use a reward model that has one, or set `prompt_format` to another one than chat."
            )
        own = PromptFormat(kind="chat") if self._whole else prompt_format
        self._encoder = Encoder(self._tokenizer, own, whose=f"the reward model {name}")
        self.model = _load_separate(name, recipe, device)
        limits.check_tokens(self.model, self._tokenizer, f"`reward_model_path={name}`")
        self._label = _checked_label(recipe, self.model)
        self._most = _most_tokens(self.model, self._tokenizer)
        self._texts = self._cut = 0  # so far: all, and those that were too long
        self._tell_at = 1
        self.model.config.get_text_config().pad_token_id = self._tokenizer.pad_token_id
        self.model.eval().requires_grad_(False)
        right_padding.drop_masks(self.model, device, nullcontext(), bf16=False)

    def check_length(self, tokens: int, keys: str, reporter: Reporter) -> None:
        """Compare the longest text, counted in the policy's tokens, with what this model reads."""
        if self._most is not None and tokens > self._most:
            reporter.health(
                f"{keys}: texts have up to {tokens} tokens, and the reward model {self._name} reads {self._most}; of "
                "longer ones it reads the end"
            )

    @torch.no_grad()
    def __call__(self, texts: Sequence[ResponseText], micro_batch_size: int, tokens: int | None = None) -> Tensor:
        """Compute scores, float32 ``[B]``; with ``tokens``, at most so many at a time, padding included."""
        scores = torch.empty(len(texts), device=self._device)
        encoded = [self._shortened(self._encode(response)) for response in texts]
        pad = self._pad(encoded)
        self.model.config.get_text_config().pad_token_id = pad
        for indices, input_ids, mask in _micro_batches(encoded, pad, micro_batch_size, tokens, self._device):
            logits = self.model(input_ids=input_ids, attention_mask=mask).logits.float()  # [b, labels]
            scores[indices] = logits[:, 1] - logits[:, 0] if self._label is None else logits[:, self._label]  # [b]
        self._count(len(texts))
        return scores

    def _encode(self, response: ResponseText) -> list[int]:
        """Encode prompt and response; a tokenizer without an end token (BERT's) wraps the text in its own."""
        encoder, (question, text, ended, messages, *_) = self._encoder, response
        if self._whole:
            return encoder.conversation_ids(question, text.strip(), messages)
        if self._tokenizer.eos_token_id is not None:
            return encoder.text_ids(question, text, messages, ended=ended)
        ids: Any = self._tokenizer(encoder.text(question, text.strip(), messages), split_special_tokens=True)
        return ids["input_ids"]

    def _shortened(self, ids: list[int]) -> list[int]:
        """Drop tokens after a begin token until the rest fits."""
        if self._most is None or len(ids) <= self._most:
            return ids
        self._cut += 1
        begin = ids[:1] if ids[0] in (self._tokenizer.bos_token_id, self._tokenizer.cls_token_id) else []
        return begin + ids[len(ids) - self._most + len(begin) :]

    def _pad(self, encoded: Sequence[Sequence[int]]) -> int:
        """Return a token to pad with.

        transformers reads the score at the last token that is not padding. Where padding is the end token, that would
        be the one before the end; a model trained elsewhere was not read there.
        """
        pad = models.pad_id(self._tokenizer)
        if not self._whole or pad != self._tokenizer.eos_token_id:
            return pad
        used = {index for ids in encoded for index in ids}
        return next(index for index in range(len(used) + 1) if index not in used)

    def _count(self, texts: int) -> None:
        self._texts += texts
        if self._cut >= self._tell_at:
            self._tell_at = 2 * self._cut  # each time there are twice as many
            self._notice(
                f"the reward model {self._name} reads {self._most} tokens: {self._cut} of {self._texts} texts so far "
                "were longer, and lost the beginning of the prompt"
            )


def _checked_label(recipe: PPORecipe, model: Any) -> int | None:
    """Return the index of the logit that is the score; None: the difference of two.

    Raises:
        StageError: there is no such one, or there are several and none is chosen.
    """
    count, label = int(model.config.num_labels), recipe.reward_model_label
    names = ", ".join(str(name) for name in list(model.config.id2label.values())[:4])
    returns = f"`reward_model_path={recipe.reward_model_path}` returns {count} scores per text ({names})"
    if count == 1:
        _check_only_score(recipe)
    if label is not None and label >= count:
        raise StageError(f"`reward_model_label={label}`: {returns}; choose one from 0 to {count - 1}.")
    if label is None and count > 2:
        raise StageError(f"{returns}, but a reward is one number; choose one with `reward_model_label`, from 0.")
    return 0 if count == 1 else label


def _check_only_score(recipe: PPORecipe) -> None:
    """Refuse another label than the first of a model with one score.

    Raises:
        StageError: it is another.
    """
    if recipe.reward_model_label:
        raise StageError(
            f"`reward_model_label={recipe.reward_model_label}`: `reward_model_path={recipe.reward_model_path}` returns "
            "one score per text; leave the label out."
        )


def _most_tokens(model: Any, tokenizer: Any) -> int | None:
    """Return the most tokens that a model reads: it has no more positions, or was trained on no longer texts."""
    positions = limits.positions(model)
    known = [positions.tokens] if positions else []
    if 0 < tokenizer.model_max_length < _NO_LIMIT:
        known.append(int(tokenizer.model_max_length))
    return min(known, default=None)


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


def _load_separate(name: str, recipe: PPORecipe, device: torch.device) -> Any:
    path = Path(name)
    if not (path / "adapter_config.json").is_file():
        return models.load_plain(name, None, recipe.dtype, device, reward=True, several_labels=True)
    source = find_base(path)
    base = models.load_plain(source.name, source.revision, recipe.dtype, device, reward=True, new_head=True)
    score_weight(path)  # a reward adapter without its head would score at random
    return models.load_adapter(base, path).merge_and_unload()


def _micro_batches(
    encoded: Sequence[Sequence[int]], pad: int, micro_batch_size: int, tokens: int | None, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield micro-batches, longest first: indices ``[b]``, token ids and attention mask ``[b, T]``.

    Texts are padded on the right.
    """
    for indices in longest_first(range(len(encoded)), lambda index: len(encoded[index]), micro_batch_size, tokens):
        ids = [torch.tensor(encoded[index]) for index in indices]
        mask = [torch.ones_like(row) for row in ids]
        yield (
            torch.tensor(indices, device=device),
            nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad).to(device),
            nn.utils.rnn.pad_sequence(mask, batch_first=True).to(device),
        )
