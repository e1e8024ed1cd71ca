"""Staging of prepared directories: leftovers of a killed process are removed, those in use stay."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from stackllama_engine.contract.errors import RefusedError
from stackllama_engine.data import prepare as prepare_module
from stackllama_engine.data.__main__ import main
from stackllama_engine.data.prepare import prepare
from stackllama_engine.data.staging import own_staging


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def _killed(posts: Path, out: Path) -> None:
    prepare_module.to_markdown = lambda _html: os._exit(9)  # type: ignore[assignment]
    prepare(posts, out)


def test_leftover_of_a_killed_prepare_is_removed_and_reported(dump: Any, tmp_path: Path) -> None:
    path = dump.write(dump.forum(5))
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(path, tmp_path / "out"))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert names(tmp_path) == [".out.preparing", "Posts.xml"] and names(tmp_path / ".out.preparing") != []
    told: list[str] = []
    assert prepare(path, tmp_path / "out", on_notice=told.append).pairs == 15
    assert names(tmp_path) == ["Posts.xml", "out"]
    assert told == [f"{tmp_path / '.out.preparing'} was left by an interrupted `data prepare` and has been removed"]


def test_staging_of_a_running_prepare_is_refused(dump: Any, tmp_path: Path) -> None:
    path = dump.write(dump.forum(5))
    with own_staging(tmp_path / "out") as staging:
        (staging / "mine").touch()
        with pytest.raises(RefusedError, match="is being prepared by another process"):
            prepare(path, tmp_path / "out")
        assert names(staging) == ["mine"]
    assert names(tmp_path) == ["Posts.xml"]


def test_leftover_of_an_older_version_is_only_reported(
    dump: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dump.write(dump.forum(5))
    (tmp_path / ".a[b].tmp-0123abcd").mkdir()
    assert main(["prepare", str(path), "--out", str(tmp_path / "a[b]")]) == 0
    assert ".a[b].tmp-0123abcd was left by an earlier version; remove it unless" in capsys.readouterr().err
    assert (tmp_path / ".a[b].tmp-0123abcd").is_dir()
