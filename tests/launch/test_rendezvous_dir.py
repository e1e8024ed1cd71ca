"""The rendezvous directory of ranks: private, usable, and new each time."""

import errno
import fcntl
import tempfile
from pathlib import Path

import pytest

from stackllama_engine.launch import rendezvous_dir


def without_dev_shm(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    real = tempfile.mkdtemp

    def mkdtemp(*, prefix: str, dir: Path) -> str:
        if str(dir) == "/dev/shm":
            raise PermissionError(errno.EACCES, "no shared memory here", str(dir))
        return real(prefix=prefix, dir=dir)

    monkeypatch.setattr(rendezvous_dir.tempfile, "mkdtemp", mkdtemp)
    monkeypatch.setattr(rendezvous_dir.tempfile, "gettempdir", lambda: str(temporary))


def test_rendezvous_dir_is_private_and_new_each_time(tmp_path: Path) -> None:
    attempts = [tmp_path / "001", tmp_path / "002"]
    for attempt in attempts:
        attempt.mkdir()
    places = [rendezvous_dir.make_rendezvous_dir(attempt) for attempt in attempts]
    try:
        assert places[0] != places[1]
        assert {place.stat().st_mode & 0o777 for place in places} == {0o700}
        assert list(places[0].iterdir()) == []
    finally:
        for attempt in attempts:
            rendezvous_dir.remove_rendezvous_dir(attempt)
    assert not any(place.exists() for place in places) and list(tmp_path.glob("*/*")) == []


def test_remove_rendezvous_dir_leaves_other_directories(tmp_path: Path) -> None:
    rendezvous_dir.remove_rendezvous_dir(tmp_path)  # of one process: there is none
    (tmp_path / "precious").mkdir()
    (tmp_path / "meeting").symlink_to(tmp_path / "precious")
    rendezvous_dir.remove_rendezvous_dir(tmp_path)
    assert (tmp_path / "precious").is_dir()


@pytest.mark.parametrize("where", ["elsewhere/stackllama-mine", "temporary/../elsewhere/stackllama-mine"])
def test_remove_rendezvous_dir_leaves_a_directory_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(rendezvous_dir.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    place = tmp_path / "elsewhere" / "stackllama-mine"
    place.mkdir(parents=True, mode=0o700)
    (place / "torchrun").touch()
    (tmp_path / "meeting").symlink_to(tmp_path / where)
    rendezvous_dir.remove_rendezvous_dir(tmp_path)
    assert [path.name for path in place.iterdir()] == ["torchrun"]
    assert not (tmp_path / "meeting").is_symlink()


@pytest.mark.parametrize("what", ["holds more", "is open to others", "is a link"])
def test_remove_rendezvous_dir_leaves_foreign_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(rendezvous_dir.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    attempt, place, real = tmp_path / "attempt", tmp_path / "temporary" / "stackllama-mine", tmp_path / "real"
    for folder in (attempt, tmp_path / "temporary", real):
        folder.mkdir(mode=0o700)
    if what == "is a link":
        place.symlink_to(real)
    else:
        place.mkdir(mode=0o700)
    if what == "is open to others":
        place.chmod(0o755)
    (place / ("precious" if what == "holds more" else "torchrun")).touch()
    (attempt / "meeting").symlink_to(place)
    rendezvous_dir.remove_rendezvous_dir(attempt)
    assert len(list(place.iterdir())) == 1
    assert list(attempt.iterdir()) == []


def test_remove_rendezvous_dir_removes_the_ranks_files(tmp_path: Path) -> None:
    place = rendezvous_dir.make_rendezvous_dir(tmp_path)
    for name in ("torchrun", "ranks-0", "ranks-11"):
        (place / name).touch()
    rendezvous_dir.remove_rendezvous_dir(tmp_path)
    assert not place.exists() and list(tmp_path.iterdir()) == []


def test_rendezvous_dir_moves_where_files_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary, attempt, other = tmp_path / "temporary", tmp_path / "attempt", tmp_path / "other"
    for folder in (temporary, attempt, other):
        folder.mkdir()
    without_dev_shm(monkeypatch, temporary)
    assert rendezvous_dir.make_rendezvous_dir(attempt).parent == temporary
    real = fcntl.flock
    refused: list[int] = []

    def flock(descriptor: int, operation: int) -> None:
        if not refused:
            refused.append(descriptor)
            raise OSError(errno.ENOLCK, "No locks available")
        real(descriptor, operation)

    monkeypatch.setattr(rendezvous_dir.fcntl, "flock", flock)
    assert rendezvous_dir.make_rendezvous_dir(other).parent == other
    assert len(list(temporary.iterdir())) == 1, "the directory without locks was removed again"


def test_rendezvous_dir_without_a_usable_directory_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_dev_shm(monkeypatch, tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="gone"):
        rendezvous_dir.make_rendezvous_dir(tmp_path / "gone")
