"""Tokenizers compared at launch, from ``tokenizer.json`` and what lies beside it; none is loaded.

A reward model that is held apart from the policy reads text with its own tokenizer. One that is an adapter on the
policy's base reads the tokens of the policy's tokenizer, and so does an adapter that PPO continues.
"""

import filecmp
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from msgspec import Struct

from ..contract.base import read_identity, same_base
from ..contract.errors import StageError
from ..contract.recipe import PPORecipe, TrainedRecipe
from ..contract.stages import Stage
from ..contract.user_files import read_json
from .base_check import own_base

_MOST = 64 << 20
_WITHOUT_DEFAULTS = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes without an end token of their own; others have one where the file does not say (GPT-2's)."""
_ROLES = {"reward_model_path": "the reward model", "policy_adapter_path": "the adapter"}


class _Added(Struct, frozen=True):
    id: int
    content: str


class _Model(Struct, frozen=True):
    vocab: dict[str, int] | list[tuple[str, float]]
    merges: list[str | tuple[str, str]] = []


class _Tokenizer(Struct, frozen=True):
    model: _Model
    added_tokens: list[_Added] = []

    @property
    def ids(self) -> dict[str, int]:
        """Every token's id."""
        vocab = self.model.vocab
        own = vocab if isinstance(vocab, dict) else {token: index for index, (token, _) in enumerate(vocab)}
        return own | {one.content: one.id for one in self.added_tokens}

    @property
    def merges(self) -> list[str]:
        """Merges of byte pairs; newer files write the two parts apart."""
        return [one if isinstance(one, str) else " ".join(one) for one in self.model.merges]


def find_other_tokenizer(recipe: TrainedRecipe, model: Path) -> str | None:
    """Find an adapter that reads the policy's tokens but was trained with another tokenizer.

    Args:
        recipe: with its inputs resolved.
        model: directory of its model.
    """
    if not isinstance(recipe, PPORecipe):
        return None
    for key, role in _ROLES.items():
        adapter = Path(getattr(recipe, key) or "")
        if not (adapter / "adapter_config.json").is_file() or not _shares_base(adapter, recipe):
            continue
        files = adapter / "tokenizer.json", model / "tokenizer.json"
        if all(file.is_file() for file in files) and (difference := _difference(*files, *map(_version, files))):
            return (
                f"`{key}={adapter}`: {role} reads the tokens of the policy's tokenizer ({model}), which is not the one "
                f"that it was trained with: {difference}. Use one tokenizer for both, or merge the reward model and "
                "name the merged one, which reads text by itself."
            )
    return None


def find_no_end_token(model: Path) -> str | None:
    """Find a tokenizer without an end token, which every stage needs."""
    config = _read(model / "tokenizer_config.json")
    if config is None or not (model / "tokenizer.json").is_file():
        return None
    map_ = _read(model / "special_tokens_map.json") or {}
    unnamed = "eos_token" not in config and config.get("tokenizer_class", _WITHOUT_DEFAULTS[0]) in _WITHOUT_DEFAULTS
    if map_.get("eos_token") is not None or not (unnamed or config.get("eos_token", "") is None):
        return None
    return (
        f"{model}: the tokenizer has no end-of-sequence token, so no response would ever end; name one as `eos_token` "
        "in tokenizer_config.json."
    )


def find_ordinary_stop(recipe: TrainedRecipe, model: Path) -> str | None:
    """Find an end token of ``generation_config.json`` that is a token of ordinary text, where responses would end.

    Other differences from the tokenizer's end token are none: every stage ends at both.
    """
    config = _read(model / "generation_config.json") if recipe.stage is not Stage.REWARD else None
    named: Any = (config or {}).get("eos_token_id")
    stops = cast("list[Any]", named if isinstance(named, list) else [named])
    tokenizer = _tokenizer(model / "tokenizer.json") if named is not None else None
    if tokenizer is None:
        return None
    end = (_read(model / "tokenizer_config.json") or {}).get("eos_token")
    special = {one.id for one in tokenizer.added_tokens}
    text = {number: token for token, number in tokenizer.ids.items() if number not in special and token != end}
    for stop in stops:
        if stop in text:
            return (
                f"{model / 'generation_config.json'}: responses end at the token {stop}, which is {text[stop]!r} to "
                "the tokenizer and occurs in ordinary text; correct `eos_token_id` there."
            )
    return None


def _shares_base(adapter: Path, recipe: TrainedRecipe) -> bool:
    try:
        return same_base(read_identity(adapter), own_base(recipe))
    except StageError:  # said by the row `adapter-base`
        return False


def _version(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=16)
def _difference(one: Path, other: Path, _first: tuple[int, int], _second: tuple[int, int]) -> str | None:
    """Describe in what two tokenizers differ; None: in nothing that changes tokens, or a file cannot be read."""
    if filecmp.cmp(one, other, shallow=False):
        return None
    mine, theirs = _tokenizer(one), _tokenizer(other)
    if mine is None or theirs is None:
        return None
    if differing := sorted(set(mine.ids.items()) ^ set(theirs.ids.items()), key=lambda pair: pair[1]):
        tokens = {token for token, _ in differing}
        return f"{len(tokens)} tokens have other ids or are missing, such as {differing[0][0][:40]!r}"
    return "their merges differ" if mine.merges != theirs.merges else None


def _tokenizer(file: Path) -> _Tokenizer | None:
    try:
        return read_json(file, _Tokenizer, _MOST)
    except (OSError, ValueError):  # missing, very large, or of another form
        return None


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return read_json(file, dict[str, Any])
    except (OSError, ValueError):  # missing, or of another form
        return None
