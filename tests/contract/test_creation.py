"""Atomic creation of runs: killed, refused or raced at any moment, the name is free or the run is whole."""

import errno
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from stackllama_engine.contract import creation, run_dir, working
from stackllama_engine.contract.errors import RefusedError, UsageError
from stackllama_engine.contract.run_dir import Home, kind_of
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.leftovers import leftovers, remove_leftovers

RECIPE = "# stage: sft\nmodel_name_or_path: demo\n"


def _create(home: Path, name: str, die_at: int, died: Any) -> None:
    """Create a run, and die at its nth fsync or rename, as by SIGKILL."""
    calls = 0

    def counted(real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == die_at:
                os._exit(9)
            return real(*arguments, **named)

        return call

    os.fsync, os.mkdir, os.rename = counted(os.fsync), counted(os.mkdir), counted(os.rename)
    Home(home).create(Stage.SFT, RECIPE, name)
    died.value = calls
    os._exit(0)


def test_create_killed_at_any_moment_leaves_a_whole_run_or_a_free_name(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    home = Home(tmp_path / "home")
    home.create(Stage.SFT, RECIPE, "first")
    last = context.Value("i", 0)
    moment, whole = 0, 0
    while not last.value:
        moment += 1
        name = f"run-{moment}"
        process = context.Process(target=_create, args=(home.path, name, moment, last))
        process.start()
        process.join(60)
        assert process.exitcode in (0, 9)
        if (home.runs_dir / name).exists():
            whole += 1
            assert home.run(name).read_state().phase == "queued" and home.run(name).recipe_file.read_text() == RECIPE
        else:
            home.create(Stage.SFT, RECIPE, name)
    assert moment > 8 and whole >= 1
    left = leftovers(home)
    assert left and all(each.of == "launch" and not each.busy for each in left)
    assert {run.id for run in home.runs()} == {"first", *(f"run-{number}" for number in range(1, moment + 1))}
    removed, busy = remove_leftovers(home)
    assert (removed, busy) == ([each.path.name for each in left], []) and leftovers(home) == []


def _race(home: Path, name: str, ready: Any, won: Any) -> None:
    ready.wait()
    try:
        Home(home).create(Stage.SFT, RECIPE, name)
    except RefusedError as error:
        assert "exists already" in str(error)
    else:
        with won.get_lock():
            won.value += 1
    os._exit(0)


def test_one_of_three_concurrent_creates_succeeds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for number in range(10):
        ready, won = context.Barrier(3), context.Value("i", 0)
        processes = [context.Process(target=_race, args=(tmp_path, f"r{number}", ready, won)) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0, 0]
        assert won.value == 1
    assert leftovers(Home(tmp_path)) == []


def test_create_never_replaces_an_existing_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it appeared after the first check: the rename itself refuses."""
    home = Home(tmp_path)
    kept = home.create(Stage.SFT, "a: 1\n", "mine")
    checked: list[Path] = []
    monkeypatch.setattr(run_dir, "check_free", checked.append)
    with pytest.raises(RefusedError, match="exists already"):
        home.create(Stage.SFT, "b: 2\n", "mine")
    assert checked == [kept.path] and kept.recipe_file.read_text() == "a: 1\n"


def test_directory_being_written_is_not_a_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)
    seen: list[Any] = []
    rename = os.rename

    def look_then_rename(*arguments: Any) -> None:
        seen.append((leftovers(home), remove_leftovers(home)))
        rename(*arguments)

    monkeypatch.setattr(os, "rename", look_then_rename)
    home.create(Stage.SFT, RECIPE, "mine")
    (found, (removed, busy)) = seen[0]
    assert [each.busy for each in found] == [True] and removed == [] and len(busy) == 1
    assert home.run("mine").read_state().phase == "queued"


def test_create_waits_for_a_process_that_checks_the_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`runs ls` asks who works on a hidden directory at the moment in which it was made and not marked."""
    home = Home(tmp_path)
    home.create(Stage.SFT, RECIPE, "before")
    flock, tries = working.fcntl.flock, []

    def busy_at_first(descriptor: int, operation: int) -> None:
        tries.append(operation)
        if len(tries) == 1:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        flock(descriptor, operation)

    monkeypatch.setattr(working.fcntl, "flock", busy_at_first)
    assert home.create(Stage.SFT, RECIPE, "mine").id == "mine" and len(tries) == 2


def test_create_retries_if_its_directory_was_removed_as_a_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    made: list[Path] = []
    make = creation.make_private_dir

    def made_and_removed(path: Path) -> None:
        make(path)
        made.append(path)
        if len(made) == 1:
            assert remove_leftovers(home) == ([path.name], [])

    monkeypatch.setattr(creation, "make_private_dir", made_and_removed)
    assert home.create(Stage.SFT, RECIPE, "mine").recipe_file.read_text() == RECIPE
    assert leftovers(home) == []


def test_leftover_of_an_older_version_is_reported_and_removable(tmp_path: Path) -> None:
    home = Home(tmp_path)
    half = home.runs_dir / "half"
    for name in ("control", "attempts", "checkpoints"):
        (half / name).mkdir(parents=True)
    assert kind_of(half) == "leftover" and home.runs() == []
    with pytest.raises(UsageError, match=r"left by an interrupted launch.*runs rm half"):
        home.run("half")
    with pytest.raises(RefusedError, match="runs rm half"):
        home.create(Stage.SFT, RECIPE, "half")
    (half / "attempts" / "001").mkdir()  # it was started: a run whose state was lost
    assert kind_of(half) == "run" and [run.id for run in home.runs()] == ["half"]


def test_create_on_a_full_disk_frees_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_at_the_end(_: object) -> None:
        if (home.runs_dir / "mine").exists():
            full()

    for name, refuse in (("fsync", full), ("rename", full), ("fsync", full_at_the_end)):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(RefusedError, match=r"runs/mine.* cannot be written: No space left on device"):
                home.create(Stage.SFT, RECIPE, "mine")
        assert leftovers(home) == [] and not any(home.runs_dir.iterdir())
    assert home.create(Stage.SFT, RECIPE, "mine").id == "mine"
