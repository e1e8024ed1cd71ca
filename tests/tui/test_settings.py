"""Settings: kept whole, private, tolerant of what is damaged or of a newer version."""

import os
from pathlib import Path

import pytest

from stackllama_console.settings import Settings, load_settings, save_settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "stackllama" / "settings.json"


def test_missing_file_is_the_defaults_without_a_notice(file: Path) -> None:
    assert load_settings(file) == (Settings(), None)


def test_what_is_saved_is_loaded_and_nobody_else_can_read_it(file: Path) -> None:
    settings = Settings(theme="paper", stage="ppo", smoothing=0.9)
    settings.remember_model("gpt2")
    before = os.umask(0)
    try:
        assert save_settings(settings, file) is None
    finally:
        os.umask(before)
    assert load_settings(file) == (settings, None)
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in file.parent.iterdir()] == ["settings.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"theme": 3}', b"\xff\xfe", b'{"recent_models": "x"}'])
def test_a_damaged_file_is_one_sentence_and_the_defaults(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    settings, error = load_settings(file)
    assert settings == Settings()
    assert error is not None and str(file) in error and "\n" not in error
    assert file.read_bytes() == content


def test_keys_of_a_newer_version_are_ignored(file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_text('{"theme": "paper", "of_tomorrow": [1]}')
    assert load_settings(file) == (Settings(theme="paper"), None)


def test_recent_models_are_newest_first_without_doubles_and_bounded() -> None:
    settings = Settings()
    for index in range(20):
        settings.remember_model(f"model-{index}")
    settings.remember_model("model-15")
    assert settings.model == "model-15"
    assert settings.recent_models[:3] == ["model-15", "model-19", "model-18"]
    assert len(settings.recent_models) == len(set(settings.recent_models)) == 12


def test_unwritable_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    error = save_settings(Settings(), tmp_path / "state" / "stackllama" / "settings.json")
    assert error is not None and "cannot be written" in error and "\n" not in error
