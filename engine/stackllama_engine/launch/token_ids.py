"""The end and pad tokens that a stage will use, and their ids, from a tokenizer's files; nothing of it is loaded."""

from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
from msgspec import Struct

from ..contract.user_files import read_json

_MOST = 64 << 20
_T = TypeVar("_T")


class _Added(Struct, frozen=True):
    id: int
    content: str


class _Vocabulary(Struct, frozen=True):
    vocab: dict[str, int]


class _Tokenizer(Struct, frozen=True):
    model: msgspec.Raw
    added_tokens: list[_Added] = []


def special_ids(folder: Path) -> dict[str, tuple[str, int]]:
    """Return ``end`` and ``pad`` → token and id, as ``train.models.load_tokenizer`` chooses them.

    What the files do not say is left out.

    Args:
        folder: of a model or an adapter.
    """
    config = _read(folder / "tokenizer_config.json", dict[str, Any])
    tokenizer = _read(folder / "tokenizer.json", _Tokenizer)
    if config is None or tokenizer is None:
        return {}
    end, pad, unknown = (_content(config.get(f"{name}_token")) for name in ("eos", "pad", "unk"))
    if pad is None or pad == end:
        pad = unknown if unknown is not None and unknown != end else end
    ids: dict[str, tuple[str, int]] = {}
    for role, token in (("end", end), ("pad", pad)):
        if token is not None and (number := _id(token, tokenizer)) is not None:
            ids[role] = token, number
    return ids


def _id(token: str, tokenizer: _Tokenizer) -> int | None:
    for one in tokenizer.added_tokens:
        if one.content == token:
            return one.id
    try:
        return msgspec.json.decode(tokenizer.model, type=_Vocabulary).vocab.get(token)
    except msgspec.DecodeError:  # a list of pieces and scores (unigram)
        return None


def _content(token: Any) -> str | None:
    """Return a special token, written as text or as an object."""
    if isinstance(token, dict):
        token = cast("dict[str, Any]", token).get("content")
    return token if isinstance(token, str) else None


def _read(file: Path, kind: type[_T]) -> _T | None:
    """Read a file's content; None where it is missing, very large, or of another form."""
    try:
        return read_json(file, kind, _MOST)
    except (OSError, ValueError):
        return None
