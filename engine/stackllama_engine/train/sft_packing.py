"""Packed batches in which no answer sees another: one collator, and a check that the model supports it.

Positions restart with every document and no mask is passed; from both transformers derives a mask in which a token
sees its own document alone (``masking_utils.find_packed_sequence_indices``), unless attention takes the bounds of
documents instead (:mod:`.varlen`). Rows stay ``[B, L]``. TRL's own collator lays the whole batch end to end instead,
which flash attention's kernels for ragged batches need, but every other kernel would pay for with a mask of
``[B·L, B·L]``; it is used with ``flash_attention_2``, ``_3`` and ``_4`` alone.

Not every model listens: some make their masks without positions (gpt-oss) and receive prebuilt masks, some take no
positions, some mix tokens outside of attention. So it is measured (:func:`leak`).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_masks_for_generate
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ..contract.errors import StageError
from ..contract.recipe import SFTRecipe
from . import varlen
from .faults import memory_that_ran_out
from .loading import one_line

MOST_LEAK = 0.1
"""Largest share of the change that a document undergoes when it openly follows another one. Rounding is far below, the
smallest fault above."""
_LENGTH = 12  # tokens of each of the two documents that are measured

Batch = dict[str, Any]


class Collator:
    """Batches of fine-tuning: packed rows with their documents apart, other rows padded.

    Args:
        pad_token_id: fills up rows.
        flat: whether packed rows are laid end to end, for flash attention.
        masks: whether padded rows get a mask; see :mod:`.right_padding`.
    """

    def __init__(self, pad_token_id: int, *, flat: bool, masks: bool = True) -> None:
        self._padded = DataCollatorForLanguageModeling(pad_token_id)
        self._packed = DataCollatorForLanguageModeling(pad_token_id, padding_free=flat, return_position_ids=not flat)
        self._flat = flat
        self._masks = masks

    def __call__(self, rows: list[Batch]) -> Batch:
        """Collate a batch; one without a mask also has ``num_tokens``, ``[B]``, which the trainer removes again."""
        if "seq_lengths" not in rows[0]:
            batch = self._padded(rows)
            if not self._masks:
                batch["num_tokens"] = batch.pop("attention_mask").sum(dim=1)  # [B]
                length = batch["input_ids"].shape[1]  # L; TRL looks for a mask or positions
                batch["position_ids"] = torch.arange(length).expand(len(rows), length)  # [B, L]
            return batch
        batch = self._packed(rows)
        if not self._flat:
            tokens = batch.pop("attention_mask").sum(dim=1)  # [B]; with a mask, positions are not looked at
            batch["num_tokens"] = tokens
            # TRL gives padding position 0 throughout, a document per token; it is one more document
            padding = torch.arange(batch["input_ids"].shape[1]) - tokens.unsqueeze(1)  # [B, L], from 0 where it begins
            batch["position_ids"] = torch.where(padding < 0, batch["position_ids"], padding)
            # The first token of a document is predicted from the one before, which is another's.
            batch["labels"][batch["position_ids"] == 0] = -100
        return batch


def keeps_apart(recipe: SFTRecipe) -> bool:
    """Return whether a recipe packs several answers into a row and keeps them apart."""
    return recipe.packing and recipe.packing_strategy != "wrapped"


def check_apart(recipe: SFTRecipe, model: Any, collator: Collator, autocast: Any) -> None:
    """Refuse a model that would train across the documents of a packed row.

    Args:
        recipe: for its words.
        model: as it is trained, on its device.
        collator: as it is trained with.
        autocast: the trainer's context around a forward pass.

    Raises:
        StageError: it does not keep them apart.
    """
    try:
        with autocast:
            share = leak(model, collator)
            if share > MOST_LEAK:
                give_masks(model)
                share = leak(model, collator)
    except Exception as error:  # a forward that knows no positions, or cannot do with these
        if memory_that_ran_out(error) is not None:
            raise
        why = f"it takes no position ids ({type(error).__name__}: {one_line(error)})"
    else:
        if share <= MOST_LEAK:
            return
        why = f"measured, a document is changed by the one before it by {share:.0%} of what an open one would change"
    raise StageError(
        f"`packing_strategy={recipe.packing_strategy}`: {recipe.model_name_or_path} does not keep packed answers "
        f"apart: {why}. Use `packing=false`, or `packing_strategy=wrapped` to train across them."
    )


def leave_masks_out(model: Any, collator: Collator, autocast: Any) -> bool:
    """Let attention take the bounds of documents instead of masks; return False where it still mixes them."""
    handle = varlen.keep_apart(model)
    try:
        with autocast:
            if leak(model, collator) <= MOST_LEAK:
                return True
    except Exception as error:  # attention that bounds alone do not describe
        if memory_that_ran_out(error) is not None:
            raise
    handle.remove()
    return False


def give_masks(model: Any) -> None:
    """Give a model prebuilt masks, from the positions of packed rows, instead of letting it make them itself."""
    model.get_decoder().register_forward_pre_hook(_with_masks, with_kwargs=True)


def _with_masks(trunk: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    ids, positions = kwargs.get("input_ids"), kwargs.get("position_ids")
    if ids is None or positions is None or kwargs.get("attention_mask") is not None:
        return args, kwargs
    parameter = next(trunk.parameters())
    embeddings = parameter.new_empty(*ids.shape, 1)  # of which only shape, device and dtype are looked at
    masks = create_masks_for_generate(trunk.config, embeddings, None, None, positions)  # type: ignore[arg-type]
    return args, kwargs | {"attention_mask": masks}


def leak(model: Any, collator: Collator) -> float:
    """Measure how much a document's logits change with its place in a packed row, relative to doing so in one text.

    0: not at all; 1: as if the documents were one.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids: list[int] = torch.randint(vocabulary, (2 * _LENGTH,), generator=generator).tolist()
    turned = ids[_LENGTH:] + ids[:_LENGTH]
    lengths = [_LENGTH, _LENGTH]
    packed = collator([{"input_ids": row, "seq_lengths": lengths} for row in (ids, turned)])
    joined = {"input_ids": torch.tensor([ids, turned])}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            apart, together = (_difference(model, batch) for batch in (packed, joined))
    finally:
        model.train(was_training)
    return apart / together if together else float(apart > 0)


def _difference(model: Any, batch: Batch) -> float:
    """Return the mean difference of one document's logits, second in the first row and first in the second row."""
    device = model.get_input_embeddings().weight.device
    inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    for name in ("labels", "num_tokens"):
        inputs.pop(name, None)
    logits = model(**inputs, use_cache=False).logits.float()
    rows = logits.reshape(2, 2 * _LENGTH, -1)  # flat batches are one row
    return float((rows[0, _LENGTH:] - rows[1, :_LENGTH]).abs().mean())
