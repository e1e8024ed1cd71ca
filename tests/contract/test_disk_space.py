"""Free disk space, and the reserve on a full disk."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.full_disk import MIB, small_disk

from stackllama_engine.contract.disk_space import Free, Reserve, append_whole, free
from stackllama_engine.contract.events import EventReader, EventWriter
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage


def statvfs(**values: int) -> SimpleNamespace:
    return SimpleNamespace(**{"f_bavail": 100, "f_frsize": 4096, "f_files": 50, "f_favail": 7} | values)


def test_free_without_inode_count_is_not_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: statvfs())
    assert free(tmp_path) == Free(409_600, 7)
    monkeypatch.setattr(os, "statvfs", lambda _: statvfs(f_files=0, f_favail=0))  # btrfs
    found = free(tmp_path)
    assert found == Free(409_600, None) and not found.is_full and found.holds(4096, 10_000)
    monkeypatch.setattr(os, "statvfs", lambda _: statvfs(f_favail=0))
    assert free(tmp_path).is_full


def test_free_names_what_is_short() -> None:
    assert Free(3 * MIB, None).against(12 * MIB, 20) == "3.0 MiB free of the 12 MiB a checkpoint needs"
    assert Free(90 * MIB, 3).against(12 * MIB, 20) == "3 inodes free of the 20 a checkpoint needs"


def test_append_whole_writes_all_or_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", MIB) as disk:
        path = disk.path / "samples.jsonl"
        append_whole(path, b"first\n")
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            append_whole(path, b"x" * 100_000)
        assert path.read_bytes() == b"first\n"
        disk.clear()
        append_whole(path, b"x" * 100_000)
        assert path.stat().st_size == 100_006


def test_reserve_can_be_used_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8 * MIB, inodes=100) as disk:
        reserve = Reserve(disk.path)
        assert reserve.hold(2 * MIB, 10) and reserve.held >= 2 * MIB
        disk.fill()
        disk.take_inodes()
        with pytest.raises(OSError, match="No space left"):
            (disk.path / "checkpoint").write_bytes(bytes(MIB))
        reserve.release()
        assert reserve.held == 0
        for number in range(10):
            (disk.path / f"checkpoint-{number}").write_bytes(bytes(MIB // 10))


def test_reserve_that_does_not_fit_holds_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2 * MIB) as disk:
        reserve = Reserve(disk.path)
        with pytest.raises(OSError, match="No space left"):
            reserve.hold(4 * MIB, 3)
        assert reserve.held == 0 and list(disk.path.iterdir()) == []


def test_urgent_and_last_event_are_written_first_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", MIB) as disk:
        path = disk.path / "events.jsonl"
        writer = EventWriter(path)
        writer.write("phase", phase="train")
        disk.fill()
        step = 0
        while not writer.waits:
            step += 1
            writer.write("progress", step=step)
        writer.write("phase", phase="waits", data={"reason": "no room"}, urgent=True)
        writer.write("end", data={"exit_code": 75, "cause": "x" * 8000})
        assert writer.waits
        *before, waits, end = EventReader(path).read()
        assert [event.step for event in before[1:]] == list(range(1, step))
        assert (waits.phase, waits.data, end.data["exit_code"]) == ("waits", {"reason": "no room"}, 75)
        disk.clear()
        writer.close()
        *_, late, told = EventReader(path).read()
        assert late.step == step and "were delayed" in told.data["message"]
        assert writer.lost == 0 and path.stat().st_blocks * 512 <= path.stat().st_size + 4096, "allocated ahead"


def test_state_is_written_on_a_full_disk_from_the_spare_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2 * MIB, inodes=100) as disk:
        run = Home(disk.path / "home").create(Stage.SFT, "{}")
        state = run.read_state()
        run.keep_spare_state()
        disk.fill()
        disk.take_inodes()
        lines = ["a line of the log " * 20] * 20
        run.write_state(type(state)(stage=state.stage, phase="stopped", exit_code=75, last_lines=lines))
        found = run.read_state()
        assert (found.phase, found.exit_code, found.last_lines) == ("stopped", 75, lines)
