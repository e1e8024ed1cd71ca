"""Longest text and largest token id that a model takes, read off its modules instead of its tokenizer.

Beyond a table of positions (GPT-2, OPT, BERT) or of embeddings there is nothing to look up: an index error on a CPU, a
device assert on a GPU. Rotary and ALiBi positions have no such end, but were trained up to one.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from ..contract.errors import StageError
from .reporting import Reporter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RESERVED = 8
"""Most rows of a position table that are no positions (OPT begins at 2)."""


class Positions(NamedTuple):
    """The longest text of a model."""

    tokens: int
    hard: bool
    """Whether the model fails on a longer one; otherwise it was not trained on any."""


def positions(model: Any) -> Positions | None:
    """Return the longest text that a model takes, or was trained on; None where neither is known."""
    config = model.config.get_text_config()
    if (table := getattr(config, "max_seq_len", None)) is not None:  # MPT's slopes are computed up to here
        return Positions(int(table), hard=True)
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    words = model.get_input_embeddings()
    tables = [usable for module in model.modules() if module is not words for usable in _tables(module, limit)]
    return Positions(min([limit, *tables]), hard=bool(tables))


def check_length(model: Any, name: str, tokens: int, keys: str, reporter: Reporter, what: str = "model") -> None:
    """Compare the longest text of a stage with what a model takes.

    Args:
        model: with or without an adapter.
        name: as the person named it.
        tokens: of the longest text.
        keys: the recipe's that make it this long, as ``key=value``.
        reporter: gets a notice of texts longer than any that the model was trained on.
        what: the model's part in the stage.

    Raises:
        StageError: the model has no positions for such a text.
    """
    limit = positions(model)
    if limit is None or tokens <= limit.tokens:
        return
    if limit.hard:
        raise StageError(
            f"{keys}: texts of {tokens} tokens are longer than the {limit.tokens} positions of the {what} {name}; "
            "shorten them, or use a model with a longer context."
        )
    reporter.health(
        f"{keys}: texts have up to {tokens} tokens, but the {what} {name} was trained on at most {limit.tokens} "
        "(`max_position_embeddings`); expect worse results beyond"
    )


def check_tokens(model: Any, tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    """Compare a tokenizer's ids with the rows of a model's embedding.

    Special tokens that no stage uses may lie beyond (Gemma 3 has one for images): text never becomes one of them.

    Raises:
        StageError: a token has no row.
    """
    rows = _rows(model)
    vocabulary = tokenizer.get_vocab()
    if max(vocabulary.values(), default=-1) < rows:
        return
    names: tuple[Any, ...] = ("pad_token_id", "eos_token_id", "bos_token_id", "unk_token_id")
    used = {getattr(tokenizer, name) for name in names}
    unused = set(tokenizer.all_special_ids) - used
    unused |= {index for index, token in tokenizer.added_tokens_decoder.items() if token.special} - used
    beyond = sorted((index, token) for token, index in vocabulary.items() if index >= rows and index not in unused)
    if beyond:
        index, token = beyond[0]
        raise StageError(
            f"{name}: the tokenizer's token {token!r} has id {index}, but the model's embedding has {rows} rows; "
            "use the tokenizer that the model was trained with, or enlarge the model (`resize_token_embeddings`) and "
            "save it."
        )


def _rows(model: Any) -> int:
    embedding = model.get_input_embeddings()
    embedding = embedding.get_base_layer() if hasattr(embedding, "get_base_layer") else embedding
    return int(embedding.weight.shape[0])


def _tables(module: nn.Module, limit: int) -> list[int]:
    """Return the number of positions in a module's own tables: learned ones, and precomputed sines (GPT-J)."""
    if isinstance(module, nn.Embedding):
        reserved = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa counts from behind the pad
        rows = module.num_embeddings
        return [min(limit, rows - reserved)] if limit <= rows <= limit + _RESERVED else []
    return [limit for buffer in module.buffers(recurse=False) if buffer.dim() == 2 and len(buffer) == limit]
