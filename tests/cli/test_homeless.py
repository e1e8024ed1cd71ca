"""A user without a home directory: one sentence, or `--home` instead; and `~somebody`."""

import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stackllama_console import __main__ as entry
from stackllama_console import crash
from stackllama_console.paths import state_dir
from stackllama_engine.contract.redact import secret_values


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """``HOME`` unset and the user not in the password database, as in many containers."""

    def unknown(user: object) -> None:
        raise KeyError(f"getpwuid(): uid not found: {user}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)
    for name in ("HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME"):
        monkeypatch.setenv(name, "")  # so that what is set below is taken back
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("words", [["runs", "ls"], ["info"], ["launch", "sft", "model_name_or_path=demo"]])
def test_no_home_directory_is_a_sentence(
    words: list[str], run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STACKLLAMA_HOME")
    result = run_main(*words)
    assert result.code == 2 and result.err.count("\n") == 1
    assert "HOME is not set" in result.err and "STACKLLAMA_HOME" in result.err


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("option", [True, False])
def test_runs_home_stands_in_for_the_home_directory(
    option: bool, run_main: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if option:
        monkeypatch.delenv("STACKLLAMA_HOME")
    given = ["--home", str(tmp_path / "home")] if option else []
    assert run_main(*given, "runs", "ls").code == 0
    info = run_main(*given, "info", "--json").json()
    assert str(tmp_path / "home") in str(info["settings"])
    assert state_dir() == tmp_path / "home/.local/state/stackllama"  # so the console and its settings work as well


@pytest.mark.usefixtures("homeless")
def test_crash_is_reported_without_a_home_directory(
    run_main: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise ValueError("broken")

    monkeypatch.delenv("STACKLLAMA_HOME")
    monkeypatch.setattr(entry, "handler", lambda _: broken)
    monkeypatch.setattr(crash.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    result = run_main("runs", "ls")
    (file,) = (tmp_path / "temporary").glob("crash-*.txt")
    assert result.code == 1 and f"unexpected ValueError: broken; the trace is in {file}" in result.err


@pytest.mark.parametrize(
    "words", [["open", "~nobody9/x"], ["--home", "~nobody9/x", "runs", "ls"], ["data", "preview", "~nobody9/x"]]
)
def test_home_of_nobody_is_a_sentence(words: list[str], run_main: Callable[..., Any]) -> None:
    result = run_main(*words)
    assert result.code == 2
    assert "the home directory `~nobody9` is not known" in result.err


def test_secrets_of_the_home_directory_are_found_without_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password of-the-netrc\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert secret_values({}) == {"of-the-netrc": "netrc:api.wandb.ai"}  # of the password database, were HOME unset
    assert secret_values({"HF_TOKEN_PATH": "~nobody9/token", "HOME": "/nowhere"}) == {}
