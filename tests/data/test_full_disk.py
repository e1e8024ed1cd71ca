"""`data prepare` on a full disk: one message with the size, nothing left behind, nothing else touched."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.full_disk import MIB, small_disk

from stackllama_engine.contract.child_environment import source_path
from stackllama_engine.data.prepare import prepare as prepare_here


def prepare(posts: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "stackllama_console", "data", "prepare", str(posts), "--out", str(out)]
    return subprocess.run(argv, capture_output=True, text=True, env=os.environ | source_path(""), check=False)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "room", ["none", pytest.param("for the posts", marks=pytest.mark.long), "for the pairs", "but no inodes"]
)
def test_prepare_on_a_full_disk_reports_the_size_and_leaves_nothing(room: str, dump: Any, tmp_path: Path) -> None:
    posts = dump.write(dump.forum(800))
    size = posts.stat().st_size
    with small_disk(tmp_path / "disk", 4 * MIB, inodes=200) as disk:
        old = disk.path / "old"
        prepare_here(dump.write(dump.forum(5), "Few.xml"), old)
        before = content(old)
        if room == "but no inodes":
            disk.take_inodes()
        else:
            disk.fill(leave={"none": 0, "for the posts": 100_000, "for the pairs": 400_000}[room])
        left = disk.free
        done = prepare(posts, disk.path / "new")
        assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
        assert f"The disk is full: {disk.path / 'new'} could not be written, and nothing of it was left" in done.stderr
        assert f"({size:,} bytes)" in done.stderr and " MiB free" in done.stderr
        assert (room == "but no inodes") == ("free, and 0 inodes" in done.stderr)
        assert sorted(path.name for path in disk.path.iterdir() if not path.name.startswith("somebody")) == ["old"]
        assert content(old) == before and disk.free == left
        disk.clear()
        assert prepare_here(posts, disk.path / "new").pairs == 2400
