"""The directory in which ranks meet: private, usable, and never the same one twice."""

import errno
import fcntl
import tempfile
from pathlib import Path

import pytest

from stackllama_engine.launch import meeting


def without_dev_shm(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    real = tempfile.mkdtemp

    def mkdtemp(*, prefix: str, dir: Path) -> str:
        if str(dir) == "/dev/shm":
            raise PermissionError(errno.EACCES, "no shared memory here", str(dir))
        return real(prefix=prefix, dir=dir)

    monkeypatch.setattr(meeting.tempfile, "mkdtemp", mkdtemp)
    monkeypatch.setattr(meeting.tempfile, "gettempdir", lambda: str(temporary))


def test_it_is_its_owners_alone_and_another_one_each_time(tmp_path: Path) -> None:
    first, second = (meeting.make_meeting_place(tmp_path) for _ in range(2))
    try:
        assert first != second
        assert {place.stat().st_mode & 0o777 for place in (first, second)} == {0o700}
        assert list(first.iterdir()) == []
    finally:
        meeting.remove_meeting_place(first)
        meeting.remove_meeting_place(second)
    assert not first.exists() and not second.exists()


def test_where_files_cannot_be_locked_it_lies_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary, attempt = tmp_path / "temporary", tmp_path / "attempt"
    temporary.mkdir()
    attempt.mkdir()
    without_dev_shm(monkeypatch, temporary)
    assert meeting.make_meeting_place(attempt).parent == temporary
    real = fcntl.flock
    refused: list[int] = []

    def flock(descriptor: int, operation: int) -> None:
        if not refused:
            refused.append(descriptor)
            raise OSError(errno.ENOLCK, "No locks available")
        real(descriptor, operation)

    monkeypatch.setattr(meeting.fcntl, "flock", flock)
    assert meeting.make_meeting_place(attempt).parent == attempt
    assert len(list(temporary.iterdir())) == 1, "the directory without locks was removed again"


def test_nowhere_is_an_error_that_names_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_dev_shm(monkeypatch, tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="gone"):
        meeting.make_meeting_place(tmp_path / "gone")
