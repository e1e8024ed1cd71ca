"""Weights are read into the page cache while libraries are imported: which files, and how much of them."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from stackllama_engine.train import read_ahead as module
from stackllama_engine.train.read_ahead import read_ahead, weight_files


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    for number, size in enumerate((250, 100), 1):
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(bytes(size))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return the places and lengths that the kernel is asked for, 100 bytes at a time and 600 free."""
    places: list[tuple[int, int]] = []
    monkeypatch.setattr(module, "_BLOCK", 100)
    monkeypatch.setattr(module, "_free", lambda: 1200)
    monkeypatch.setattr(module.os, "posix_fadvise", lambda _, start, length, __: places.append((start, length)))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return places


def finished(recipe: object) -> bool:
    """Read ahead to the end; False where there was nothing to do."""
    thread = read_ahead(recipe)
    if thread is not None:
        thread.join(30)
    return thread is not None


def test_every_file_of_the_base_is_read_in_order(base: Path, asked: list[tuple[int, int]]) -> None:
    assert finished(SimpleNamespace(model_name_or_path=str(base), reward_model_path=None))
    assert asked == [(0, 100), (100, 100), (200, 100), (0, 100)]


def test_no_more_than_half_of_what_is_free_is_read(
    base: Path, asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_free", lambda: 400)
    assert finished(SimpleNamespace(model_name_or_path=str(base)))
    assert asked == [(0, 100), (100, 100)]


def test_one_process_per_machine_reads(
    base: Path, asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not finished(SimpleNamespace(model_name_or_path=str(base)))
    assert asked == []


def test_hub_ids_and_missing_files_are_left_to_the_loader(tmp_path: Path, asked: list[tuple[int, int]]) -> None:
    assert not finished(SimpleNamespace(model_name_or_path="someone/model", reward_model_path=str(tmp_path / "none")))
    assert asked == []


def test_adapters_and_gguf_files_are_weights(base: Path, tmp_path: Path) -> None:
    adapter, gguf = tmp_path / "adapter", tmp_path / "model.gguf"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"x")
    gguf.write_bytes(b"x")
    recipe = SimpleNamespace(model_name_or_path=str(gguf), reward_model_path=str(adapter))
    assert list(weight_files(recipe)) == [gguf, adapter / "adapter_model.safetensors"]


def test_free_memory_is_known_here() -> None:
    assert module._free() > 1 << 20
