"""Headers of GGUF files: metadata and tensor shapes, without the ``gguf`` package (it loads numpy).

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Little-endian, versions 2 and 3. The file is read
front to back through a window of 1 MiB; strings and arrays that are not needed are skipped.
"""

import math
import struct
import typing
from pathlib import Path
from typing import Any, BinaryIO

from msgspec import Struct

from ..contract.errors import UsageError
from ..contract.user_files import open_file

_MOST_HEADER = 256 << 20
_MOST_STRING = 1 << 20
_MOST_TENSORS = 200_000
_MOST_KEYS = 10_000
_WINDOW = 1 << 20
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_STRINGS = 4_000_000
_KEPT = 512
"""Longest array of numbers that is kept: some models have one value per layer."""

_MODEL_TYPES = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi2": "phi",
    "phi3": "phi3",
    "gptneox": "gpt_neox",
    "gpt2": "gpt2",
    "stablelm": "stablelm",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
}
_LENGTH = "length of "
_ENDLESS = "its header has no end"


class Header(Struct, frozen=True, kw_only=True):
    """Header of a GGUF file."""

    metadata: dict[str, Any]
    """Scalars and short arrays of numbers; of long arrays only ``length of KEY``."""
    tensors: dict[str, tuple[int, ...]]
    """Name → dimensions, the fastest-varying first."""

    @property
    def parameters(self) -> int:
        """Elements of all tensors except the tables of rotary frequencies."""
        return sum(math.prod(shape) for name, shape in self.tensors.items() if "rope_" not in name)

    @property
    def modules(self) -> frozenset[str]:
        """Tensors that decide about biases and tied weights, by their names in safetensors files."""
        renamed = {"output.weight": "lm_head.weight", "token_embd.weight": "model.embed_tokens.weight"}
        return frozenset(renamed[name] for name in renamed if name in self.tensors)


def read_header(path: Path) -> Header:
    """Read the metadata and tensor shapes of a ``.gguf`` file.

    Raises:
        UsageError: truncated, malicious, or of another version.
        OSError: unreadable.
    """
    with open_file(path) as file:
        reader = _Reader(file, path)
        if reader.take(4) != b"GGUF":
            raise UsageError(f"{path}: not a GGUF file.")
        version, tensors, keys = reader.unpack("<I"), reader.unpack("<Q"), reader.unpack("<Q")
        if version not in (2, 3):
            raise UsageError(f"{path}: GGUF version {version} is not supported; convert it to version 2 or 3.")
        if tensors > _MOST_TENSORS or keys > _MOST_KEYS:
            raise UsageError(f"{path}: {tensors} tensors and {keys} keys are more than any model has.")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            name = reader.string()
            kind = reader.unpack("<I")
            if kind == _ARRAY:
                values, count = reader.array()
                metadata[_LENGTH + name] = count
                if values is not None:
                    metadata[name] = values
            else:
                metadata[name] = reader.string() if kind == _STRING else reader.scalar(kind)
        shapes: dict[str, tuple[int, ...]] = {}
        for _ in range(tensors):
            name = reader.string()
            shapes[name] = reader.shape()
    return Header(metadata=metadata, tensors=shapes)


def as_config(header: Header, path: Path) -> dict[str, Any]:
    """Convert the metadata to the keys of ``config.json``.

    Raises:
        UsageError: the file names no architecture.
    """
    metadata = header.metadata
    kind = metadata.get("general.architecture")
    if not isinstance(kind, str):
        raise UsageError(f"{path}: names no architecture (`general.architecture`).")

    def value(key: str) -> Any:
        entry = metadata.get(f"{kind}.{key}")
        return max(typing.cast("list[Any]", entry), default=None) if isinstance(entry, list) else entry

    embedding = header.tensors.get("token_embd.weight", ())
    config = {
        "model_type": _MODEL_TYPES.get(kind, kind),
        "hidden_size": value("embedding_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "head_dim": value("attention.key_length"),
        "intermediate_size": value("feed_forward_length"),
        "max_position_embeddings": value("context_length"),
        "vocab_size": value("vocab_size")
        or (embedding[1] if len(embedding) == 2 else None)
        or metadata.get(f"{_LENGTH}tokenizer.ggml.tokens"),
        "num_experts": value("expert_count"),
        "num_experts_per_tok": value("expert_used_count"),
        "moe_intermediate_size": value("expert_feed_forward_length"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
    }
    return {key: entry for key, entry in config.items() if entry is not None}


class _Reader:
    """Forward reader with a window; refuses to read beyond the file's end or a plausible header's."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._data = b""
        self._at = 0
        self._before = 0
        """Bytes of the file before the window."""

    def take(self, count: int) -> bytes:
        """Read the next ``count`` bytes."""
        if self._at + count > len(self._data):
            self._fill(count)
        self._at += count
        return self._data[self._at - count : self._at]

    def unpack(self, layout: str) -> int:
        """Read one number."""
        size = struct.calcsize(layout)
        return struct.unpack(layout, self.take(size))[0]

    def scalar(self, kind: int) -> int | float | bool:
        """Read one number of a GGUF type."""
        if kind not in _SCALARS:
            raise self._invalid(f"value type {kind}")
        return self.unpack(f"<{_SCALARS[kind]}")

    def string(self) -> str:
        """Read one string."""
        length = self.unpack("<Q")
        if length > _MOST_STRING:
            raise self._invalid(f"a string of {length} bytes")
        return self.take(length).decode("utf-8", "replace")

    def array(self) -> tuple[list[Any] | None, int]:
        """Read a short array of numbers, else None; and its number of elements."""
        kind, count = self.unpack("<I"), self.unpack("<Q")
        if kind == _STRING and count > _MOST_STRINGS:
            raise self._invalid(_ENDLESS)
        if kind == _STRING:
            for _ in range(count):
                length = struct.unpack("<Q", self.take(8))[0]
                self._skip(length)
            return None, count
        if kind not in _SCALARS:
            raise self._invalid(f"an array of type {kind}")
        if count > _KEPT:
            self._skip(count * struct.calcsize(f"<{_SCALARS[kind]}"))
            return None, count
        return [self.scalar(kind) for _ in range(count)], count

    def shape(self) -> tuple[int, ...]:
        """Read the dimensions of one tensor; its type and offset are skipped."""
        rank = self.unpack("<I")
        if rank > 8:
            raise self._invalid(f"a tensor of {rank} dimensions")
        dimensions = tuple(self.unpack("<Q") for _ in range(rank))
        if math.prod(dimensions) > 1 << 50:
            raise self._invalid(f"a tensor of shape {dimensions}")
        self.take(12)
        return dimensions

    def _skip(self, count: int) -> None:
        if self._at + count <= len(self._data):
            self._at += count
            return
        if self._before + self._at + count > _MOST_HEADER:
            raise self._invalid(_ENDLESS)
        count -= len(self._data) - self._at
        self._before += len(self._data) + count
        self._data, self._at = b"", 0
        self._file.seek(self._before)

    def _fill(self, count: int) -> None:
        if self._before + self._at + count > _MOST_HEADER:
            raise self._invalid(_ENDLESS)
        rest = self._data[self._at :]
        self._before += self._at
        self._data, self._at = rest + self._file.read(max(_WINDOW, count)), 0
        if len(self._data) < count:
            raise UsageError(f"{self._path}: truncated: it ends inside its header; copy or download it again.")

    def _invalid(self, what: str) -> UsageError:
        return UsageError(f"{self._path}: truncated or not a GGUF file: {what}.")
