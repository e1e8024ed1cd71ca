"""Whether a path has changed, told by one stat."""

import os
import time
from pathlib import Path

from stackllama_console.readers.file_stamp import Stamp

OLD = 1_700_000_000


def test_what_stays_is_no_change(tmp_path: Path) -> None:
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


def test_what_is_too_fresh_to_tell_is_looked_at_again(tmp_path: Path) -> None:
    soon = time.time() + 3600  # fresh for as long as this test takes
    os.utime(tmp_path, (soon, soon))
    stamp = Stamp(tmp_path)
    assert [stamp.changed() for _ in range(3)] == [True, True, True]
    os.utime(tmp_path, (OLD, OLD))
    assert [stamp.changed() for _ in range(3)] == [True, False, False]
