"""Stamp: detection of changes in a path by one stat."""

import os
import time
from pathlib import Path

from stackllama_console.readers.file_stamp import Stamp

OLD = 1_700_000_000


def test_unchanged_path_is_not_changed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    stamp = Stamp(file)
    assert stamp.changed(), "the first look is one"
    assert stamp.missing
    assert not stamp.changed()
    file.write_text("x")
    os.utime(file, (OLD, OLD))
    assert stamp.changed()
    assert not stamp.missing
    assert not stamp.changed()


def test_size_time_and_replacement_are_changes(tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    for path in (file, other):
        path.write_text("x")
        os.utime(path, (OLD, OLD))
    stamp = Stamp(file)
    stamp.changed()
    other.replace(file)
    assert stamp.changed(), "another inode"
    os.utime(file, (OLD, OLD + 1))
    assert stamp.changed()
    file.write_text("xy")
    os.utime(file, (OLD, OLD + 1))
    assert stamp.changed()
    file.unlink()
    assert stamp.changed()
    assert stamp.missing


def test_fresh_file_counts_as_changed(tmp_path: Path) -> None:
    soon = time.time() + 3600  # fresh for as long as this test takes
    os.utime(tmp_path, (soon, soon))
    stamp = Stamp(tmp_path)
    assert [stamp.changed() for _ in range(3)] == [True, True, True]
    os.utime(tmp_path, (OLD, OLD))
    assert [stamp.changed() for _ in range(3)] == [True, False, False]
