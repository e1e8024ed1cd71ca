"""Sizes from files: exact compared with transformers, and one clear message for a wrong or truncated file."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stackllama_engine.budget.architecture import Architecture
from stackllama_engine.budget.model_files import read_architecture
from stackllama_engine.budget.shapes import architecture_of
from stackllama_engine.contract.base import DEMO_BASE
from stackllama_engine.contract.errors import UsageError

from .conftest import LLAMA_7B

KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
)
UNTIED, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
# sizes in the order of KEYS, further keys, parameters that transformers 5.23 counts for the same configuration
COUNTED: list[tuple[str, tuple[int, ...], dict[str, Any], int]] = [
    ("llama", (4096, 32, 32, 32, 128, 11008, 32000), UNTIED, 6_738_415_616),
    ("llama", (3072, 28, 24, 8, 128, 8192, 128256), TIED, 3_212_749_824),
    ("llama", (4096, 32, 32, 8, 128, 11008, 32000), TIED | {"attention_bias": True, "mlp_bias": True}, 5_803_200_512),
    ("mistral", (4096, 32, 32, 8, 128, 14336, 32000), UNTIED, 7_241_732_096),
    ("qwen2", (4096, 32, 32, 32, 128, 22016, 151936), UNTIED, 12_049_846_272),
    ("qwen3", (4096, 32, 32, 32, 128, 22016, 151936), UNTIED, 12_049_461_248),
    ("gemma", (3072, 28, 16, 16, 256, 24576, 256000), {}, 8_537_680_896),
    ("gemma2", (2304, 26, 8, 4, 256, 9216, 256000), {}, 2_614_341_888),
    ("gemma3_text", (2304, 26, 8, 4, 256, 9216, 262208), {}, 2_628_658_432),
    ("phi", (2048, 24, 32, 32, 64, 8192, 51200), UNTIED, 1_418_270_720),
    ("phi3", (3072, 32, 32, 32, 96, 8192, 32064), UNTIED, 3_821_079_552),
    ("gpt_neox", (6144, 44, 64, 64, 96, 24576, 50432), UNTIED, 20_554_567_680),
    ("gpt2", (768, 12, 12, 12, 64, 3072, 50257), {"n_positions": 1024}, 124_439_808),
    ("stablelm", (2560, 32, 32, 32, 80, 6912, 50304), UNTIED, 2_795_443_200),
    ("olmo", (4096, 32, 32, 32, 128, 11008, 50304), UNTIED, 6_888_095_744),
    ("granite", (4096, 32, 32, 32, 128, 11008, 32000), UNTIED, 6_738_415_616),
    ("smollm3", (2048, 36, 16, 4, 128, 11008, 128256), TIED, 3_075_098_624),
    ("mixtral", (4096, 32, 32, 8, 128, 14336, 32000), UNTIED | {"num_local_experts": 8}, 46_702_792_704),
    (
        "qwen3_moe",
        (2048, 24, 32, 4, 64, 6144, 151936),
        UNTIED | {"num_experts": 128, "moe_intermediate_size": 768},
        15_350_731_776,
    ),
]


@pytest.mark.parametrize(("model_type", "sizes", "more", "parameters"), COUNTED)
def test_parameters_by_formula(model_type: str, sizes: tuple[int, ...], more: dict[str, Any], parameters: int) -> None:
    config = {"model_type": model_type, **dict(zip(KEYS, sizes, strict=True)), **more}
    found = architecture_of(config, "m", "config.json", frozenset())
    assert found.parameters == parameters
    assert found.unknown is None


def test_gpt2_names_of_older_configurations() -> None:
    config = {
        "model_type": "gpt2",
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "vocab_size": 50257,
    }
    assert architecture_of(config, "gpt2", "config.json", frozenset()).parameters == 124_439_808


def test_embedded_model_is_read() -> None:
    found = read_architecture(DEMO_BASE)
    assert (found.layers, found.hidden, found.heads, found.kv_heads, found.head_dim) == (3, 96, 4, 2, 24)
    assert (found.vocab, found.tied, found.experts) == (899, True, None)
    assert not any(linear.bias for linear in found.linears)
    assert (found.parameters, found.dtypes, found.rough, found.unknown) == (391_104, ("bfloat16",), None, None)
    assert found.bytes_on_disk == (DEMO_BASE / "model.safetensors").stat().st_size
    assert found.parameters * 2 < found.bytes_on_disk < found.parameters * 2 + 10_000


def test_a_configuration_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_7B))
    found = read_architecture(tmp_path)
    assert (found.parameters, found.bytes_on_disk, found.rough) == (6_738_415_616, 0, None)


def test_torch_dtype_of_older_files_is_read(tmp_path: Path) -> None:
    config = {key: value for key, value in LLAMA_7B.items() if key != "dtype"} | {"torch_dtype": "float16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_architecture(tmp_path).dtypes == ("float16",)


def test_files_decide_about_biases_and_count(tmp_path: Path, write_safetensors: Callable[..., Path]) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 10,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    shapes = {f"model.layers.0.self_attn.{name}_proj.weight": [8, 8] for name in "qkvo"}
    shapes |= {f"model.layers.0.mlp.{name}_proj.weight": [16, 8] for name in ("gate", "up", "down")}
    shapes |= {
        "model.layers.0.self_attn.q_proj.bias": [8],
        "model.embed_tokens.weight": [10, 8],
        "model.norm.weight": [8],
    }
    shapes |= {"model.layers.0.input_layernorm.weight": [8], "model.layers.0.post_attention_layernorm.weight": [8]}
    write_safetensors(tmp_path / "model.safetensors", shapes, "F32", 4)
    found = read_architecture(tmp_path)
    assert found.parameters == 4 * 64 + 3 * 128 + 8 + 80 + 24
    assert [one.name for one in found.linears if one.bias] == ["q_proj"]
    assert (found.dtypes, found.rough) == (("float32",), None)


def test_the_language_model_inside_a_configuration_with_a_vision_tower(tmp_path: Path) -> None:
    text = {
        "model_type": "gemma3_text",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 128,
        "vocab_size": 1000,
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    found = read_architecture(tmp_path)
    assert (found.model_type, found.hidden, found.tied) == ("gemma3_text", 64, True)


def test_an_unknown_architecture_says_so_and_is_not_counted_as_a_llama(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_7B, "model_type": "newest"}))
    found = read_architecture(tmp_path)
    assert found.unknown == "architecture `newest` is not known"
    assert found.parameters == 32000 * 4096 + 32 * 4096 * 4096


def test_missing_shards_are_named(tmp_path: Path, write_safetensors: Callable[..., Path]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_7B))
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    write_safetensors(tmp_path / shards["a"], {"a": [4, 4]})
    found = read_architecture(tmp_path)
    assert found.parameters == 6_738_415_616
    assert found.rough and "1 of 2 weight files are missing" in found.rough


def test_gguf_file_is_read(tmp_path: Path, write_gguf: Callable[..., Path]) -> None:
    metadata = {
        "general.architecture": "llama",
        "llama.embedding_length": 8,
        "llama.block_count": 1,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.feed_forward_length": 16,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.tokens": [f"token {i}" for i in range(50_000)],
        "tokenizer.ggml.token_type": list(range(50_000)),
    }
    tensors = {"token_embd.weight": [8, 50_000], "blk.0.attn_q.weight": [8, 8], "output_norm.weight": [8]}
    path = write_gguf(tmp_path / "m.gguf", metadata, tensors)
    found = read_architecture(path)
    assert (found.hidden, found.layers, found.heads, found.kv_heads, found.vocab) == (8, 1, 2, 1, 50_000)
    assert (found.tied, found.parameters, found.dtypes) == (True, 400_000 + 64 + 8, ("float32",))
    assert found.bytes_on_disk == path.stat().st_size


def test_gguf_file_truncated_anywhere_is_refused(tmp_path: Path, write_gguf: Callable[..., Path]) -> None:
    metadata = {"general.architecture": "llama", "llama.embedding_length": 8, "list": [1, 2], "words": ["a", "b"]}
    whole = write_gguf(tmp_path / "m.gguf", metadata, {"token_embd.weight": [8, 50]}).read_bytes()
    for length in range(0, len(whole)):
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError, match=r"truncated|not a GGUF file"):
            read_architecture(path)


HOSTILE_GGUF = {
    "endless string": b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 1 << 60),
    "endless keys": b"GGUF" + struct.pack("<IQQ", 3, 1, 1 << 60),
    "endless tensors": b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0),
    "endless array": b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, 1 << 60),
    "endless strings": b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 1 << 60),
    "array of arrays": b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1),
    "unknown type": b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 99) + bytes(64),
    "another version": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "no architecture": b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
    "something else": b"PK\x03\x04" + bytes(100),
    "empty": b"",
}


@pytest.mark.parametrize("content", HOSTILE_GGUF.values(), ids=HOSTILE_GGUF.keys())
def test_malicious_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"m\.gguf: "):
        read_architecture(path)


def _header(value: Any) -> bytes:
    data = json.dumps(value).encode() if not isinstance(value, bytes) else value
    return struct.pack("<Q", len(data)) + data


HOSTILE_SAFETENSORS = {
    "empty": b"",
    "cut length": b"\x01\x02",
    "endless header": struct.pack("<Q", 1 << 62) + b"{}",
    "cut header": struct.pack("<Q", 100) + b"{}",
    "no JSON": _header(b"\xff\xfe{"),
    "a list": _header([1]),
    "deep": _header(b"[" * 100_000),
    "no shape": _header({"a": {"dtype": "F32"}}),
    "negative shape": _header({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 0]}}),
    "endless shape": _header({"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 0]}}),
    "backwards": _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}) + bytes(4),
    "past the end": _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}),
}


@pytest.mark.parametrize("content", HOSTILE_SAFETENSORS.values(), ids=HOSTILE_SAFETENSORS.keys())
def test_malicious_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_7B))
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match=r"model\.safetensors: "):
        read_architecture(tmp_path)


HOSTILE_INDEX = {
    "outside": {"weight_map": {"a": "../../etc/passwd.safetensors"}},
    "no file name": {"weight_map": {"a": "/etc/passwd"}},
    "no map": {"weight_map": 3},
    "a list": [1],
}


@pytest.mark.parametrize("content", HOSTILE_INDEX.values(), ids=HOSTILE_INDEX.keys())
def test_malicious_index_is_refused(tmp_path: Path, content: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_7B))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="index"):
        read_architecture(tmp_path)


HOSTILE_CONFIG = [
    "",
    "[]",
    "null",
    "{",
    "[" * 100_000,
    '{"model_type": "llama"}',
    "\udcff",
    json.dumps({**LLAMA_7B, "hidden_size": 1 << 60}),
    json.dumps({**LLAMA_7B, "hidden_size": -1}),
    json.dumps({**LLAMA_7B, "num_hidden_layers": "32"}),
    json.dumps({**LLAMA_7B, "num_hidden_layers": True}),
    json.dumps({**LLAMA_7B, "num_attention_heads": 0}),
    json.dumps({**LLAMA_7B, "vocab_size": 1e300}),
    json.dumps({**LLAMA_7B, "hidden_size": 4, "num_attention_heads": 8}),
]


@pytest.mark.parametrize("content", HOSTILE_CONFIG)
def test_malicious_config_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(UsageError, match=r"config\.json: ") as caught:
        read_architecture(tmp_path)
    assert len(str(caught.value)) < 500


WRONG = ("model_type", "tie_word_embeddings", "hidden_act", "dtype", "text_config", "head_dim")


@pytest.mark.parametrize("wrong", WRONG)
def test_values_of_a_wrong_type_are_ignored_or_refused(tmp_path: Path, wrong: str) -> None:
    for value in ([], {}, 1.5, "x", None):
        (tmp_path / "config.json").write_text(json.dumps({**LLAMA_7B, wrong: value}))
        try:
            assert isinstance(read_architecture(tmp_path), Architecture)
        except UsageError as error:
            assert "config.json" in str(error)


def test_a_huge_config_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b" " * (5 << 20))
    with pytest.raises(UsageError, match="larger than any"):
        read_architecture(tmp_path)


def test_path_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(UsageError, match="no such directory"):
        read_architecture(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="it has no config"):
        read_architecture(tmp_path)
    with pytest.raises(UsageError, match=r"expected a directory with config\.json"):
        read_architecture(tmp_path / "file.txt")
