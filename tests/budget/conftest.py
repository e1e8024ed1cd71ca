"""Model directories made by hand: configurations, and weight files that are headers with holes for data."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stackllama_engine.budget.architecture import Architecture
from stackllama_engine.budget.shapes import architecture_of

LLAMA_7B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
}
LLAMA_3B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "dtype": "bfloat16",
    "tie_word_embeddings": True,
}


@pytest.fixture
def llama_7b() -> Architecture:
    return architecture_of(LLAMA_7B, "llama-7b", "config.json", frozenset())


@pytest.fixture
def llama_3b() -> Architecture:
    return architecture_of(LLAMA_3B, "llama-3.2-3b", "config.json", frozenset())


@pytest.fixture
def write_safetensors() -> Callable[..., Path]:
    """Write a safetensors file with these tensors (name → shape) and a hole in place of the data."""

    def write(path: Path, tensors: dict[str, list[int]], dtype: str = "BF16", width: int = 2) -> Path:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, shape in tensors.items():
            size = width
            for dimension in shape:
                size *= dimension
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
            at += size
        data = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(data)) + data)
        os.truncate(path, 8 + len(data) + at)
        return path

    return write


@pytest.fixture
def write_gguf() -> Callable[..., Path]:
    """Write a GGUF file (version 3) of metadata and tensor shapes, without data."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def encode(value: Any) -> bytes:
        if isinstance(value, str):
            return struct.pack("<I", 8) + text(value)
        if isinstance(value, float):
            return struct.pack("<If", 6, value)
        if isinstance(value, list):
            if value and isinstance(value[0], str):
                return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
            return struct.pack("<IIQ", 9, 4, len(value)) + b"".join(struct.pack("<I", one) for one in value)
        return struct.pack("<II", 4, value)

    def write(path: Path, metadata: dict[str, Any], tensors: dict[str, list[int]]) -> Path:
        data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
        for key, value in metadata.items():
            data += text(key) + encode(value)
        for name, shape in tensors.items():
            data += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", 1, 0)
        path.write_bytes(data)
        return path

    return write
