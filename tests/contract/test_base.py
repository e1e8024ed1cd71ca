"""Identity of an adapter's base, and where it is found."""

import json
from pathlib import Path

import pytest

from stackllama_engine.contract.base import base_identity, find_base, read_identity, same_base
from stackllama_engine.contract.errors import StageError


def make_base(path: Path, content: bytes = b"same") -> Path:
    path.mkdir(parents=True)
    header = json.dumps({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content)
    (path / "config.json").write_text("{}")
    return path


def make_adapter(path: Path, named: str | None, base: Path | None = None) -> Path:
    """As PEFT leaves it; with ``base``, as a stage does."""
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": named}))
    if base:
        (path / "base.json").write_text(json.dumps(base_identity(str(base), None)))
    return path


def test_fingerprint_ignores_files_without_weights(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    before = base_identity(str(base), None)
    (base / "training_args.bin").write_bytes(b"a pickle")
    assert same_base(before, base_identity(str(base), None))


def test_older_fingerprint_with_bin_files_still_matches(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    (base / "training_args.bin").write_bytes(b"a pickle")
    now = base_identity(str(base), None)
    recorded = {"name": str(base), "revision": None, "fingerprint": now["fingerprint_with_bin"]}
    assert recorded["fingerprint"] != now["fingerprint"] and same_base(recorded, now)
    assert not same_base(recorded, base_identity(str(make_base(tmp_path / "other", b"else")), None))


def test_moved_base_is_found_by_fingerprint(tmp_path: Path) -> None:
    base = make_base(tmp_path / "a")
    adapter = make_adapter(tmp_path / "adapter", str(base), base)
    moved = base.rename(tmp_path / "b")
    found = find_base(adapter, None, [tmp_path / "missing", make_base(tmp_path / "c", b"else"), moved])
    assert found.name == str(moved)
    assert found.notice == f"the adapter's base, recorded as {base}, is now {moved} (same weights)"


def test_missing_base_error_names_both_paths_and_the_fix(tmp_path: Path) -> None:
    base = make_base(tmp_path / "a")
    adapter = make_adapter(tmp_path / "adapter", str(base), base)
    base.rename(tmp_path / "b")
    with pytest.raises(
        StageError, match=rf"{base}, which {adapter} was trained on, does not exist any more: give its base"
    ):
        find_base(adapter)
    make_base(base, b"else")
    with pytest.raises(StageError, match="has other weights now: give its base with `base_model_name_or_path"):
        find_base(adapter)


def test_given_base_is_compared_by_fingerprint(tmp_path: Path) -> None:
    base, other = make_base(tmp_path / "a"), make_base(tmp_path / "other", b"else")
    adapter = make_adapter(tmp_path / "adapter", str(base), base)
    moved = base.rename(tmp_path / "b")
    assert find_base(adapter, str(moved)).name == str(moved)
    with pytest.raises(StageError, match=rf"`base_model_name_or_path: {other}` is not the base of {adapter}.*{base}"):
        find_base(adapter, str(other))


def test_adapter_without_base_uses_the_given_one(tmp_path: Path) -> None:
    base, adapter = make_base(tmp_path / "a"), make_adapter(tmp_path / "adapter", None)
    for ask in (lambda: read_identity(adapter), lambda: find_base(adapter)):
        with pytest.raises(StageError, match=r"adapter_config.json names no base .*base_model_name_or_path=PATH"):
            ask()
    found = find_base(adapter, str(base))
    assert found.name == str(base) and found.notice is not None and "names no base" in found.notice


def test_missing_base_of_a_foreign_adapter_is_reported(tmp_path: Path) -> None:
    base, adapter = make_base(tmp_path / "a"), make_adapter(tmp_path / "adapter", "/somewhere/else/a")
    with pytest.raises(StageError, match="names /somewhere/else/a as its base, which does not exist: give its path"):
        find_base(adapter)
    found = find_base(adapter, str(base))
    assert (
        found.name == str(base) and found.notice is not None and "without a fingerprint to confirm it" in found.notice
    )


def test_relative_base_is_searched_above_the_adapter(tmp_path: Path) -> None:
    base = make_base(tmp_path / "models" / "a")
    adapter = make_adapter(tmp_path / "models" / "adapter", "models/a")
    assert find_base(adapter).name == str(base)
    assert find_base(make_adapter(tmp_path / "hub", "org/a")).name == "org/a"  # no such path: a hub id


def test_damaged_adapter_files_are_named(tmp_path: Path) -> None:
    base = make_base(tmp_path / "a")
    (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:20])
    with pytest.raises(StageError, match=r"a/model\.safetensors is truncated or not a safetensors file"):
        base_identity(str(base), None)
    adapter = make_adapter(tmp_path / "adapter", "x")
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(StageError, match=r"adapter/adapter_config\.json cannot be read"):
        read_identity(adapter)
