"""Atomic files, private modes, run ids, the lock and requests."""

import errno
import multiprocessing
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stackllama_engine.contract.atomic_files import make_private_dir, open_private, write_whole
from stackllama_engine.contract.errors import DamagedError, ExitCode, RefusedError, UsageError
from stackllama_engine.contract.run_dir import ENDED, Home, RunDir, State, check_run_id
from stackllama_engine.contract.stages import Stage


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# files


def test_write_whole_replaces(tmp_path: Path) -> None:
    file = tmp_path / "f"
    write_whole(file, b"one")
    write_whole(file, b"two")
    assert file.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [file]


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "f"
    write_whole(file, b"one")

    def no_room(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError, match="No space"):
        write_whole(file, b"two")
    assert file.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [file]


def test_readers_see_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # many writes, quickly
    file = tmp_path / "f"
    texts = [bytes([65 + number]) * 100_000 for number in range(2)]
    write_whole(file, texts[0])
    done = threading.Event()

    def write() -> None:
        for number in range(300):
            write_whole(file, texts[number % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen: set[bytes] = set()
    while not done.is_set():
        seen.add(file.read_bytes())
    writer.join()
    assert seen <= set(texts)


def test_private_modes_do_not_depend_on_the_umask(tmp_path: Path, no_umask: None) -> None:
    make_private_dir(tmp_path / "a" / "b" / "c")
    assert [mode(tmp_path / part) for part in ("a", "a/b", "a/b/c")] == [0o700] * 3
    write_whole(tmp_path / "f", b"")
    os.close(open_private(tmp_path / "g", os.O_CREAT | os.O_WRONLY))
    assert mode(tmp_path / "f") == mode(tmp_path / "g") == 0o600


def test_existing_parents_keep_their_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    make_private_dir(tmp_path / "a")
    assert mode(tmp_path) == 0o755
    with pytest.raises(FileExistsError):
        make_private_dir(tmp_path / "a")


# homes and ids


@pytest.mark.parametrize("text", ["a", "0", "sft-1", "a.b_c-d", "x" * 64, "a..b"])
def test_valid_run_ids_are_accepted(text: str) -> None:
    assert check_run_id(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "../a",
        "a/b",
        "/a",
        "-a",
        "_a",
        ".a",
        "A",
        "a b",
        "a\n",
        "\na",
        "a\x00",
        "é",
        "a\u202e",
        "x" * 65,
        "$(a)",
    ],
)
def test_texts_that_are_no_run_ids(text: str, home: Home) -> None:
    with pytest.raises(UsageError) as caught:
        check_run_id(text)
    assert caught.value.exit_code == ExitCode.USAGE and str(caught.value).isprintable()
    with pytest.raises(UsageError):
        home.run(text)
    if text:
        with pytest.raises(UsageError):
            home.create(Stage.SFT, "", text)


def test_home_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("STACKLLAMA_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Home().path == tmp_path / ".local/share/stackllama"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")  # the specification has such a value ignored
    assert Home().path == tmp_path / ".local/share/stackllama"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert Home().path == Path("/data/stackllama")
    monkeypatch.setenv("STACKLLAMA_HOME", "~/mine")
    assert Home().path == tmp_path / "mine"
    assert Home(Path("/else")).path == Path("/else")


def test_created_run_has_recipe_state_and_folders(home: Home) -> None:
    run = home.create(Stage.SFT, "a: 1\n")
    assert run.id.startswith("sft-") and check_run_id(run.id)
    assert run.recipe_file.read_text() == "a: 1\n"
    state = run.read_state()
    assert (state.stage, state.phase, state.attempt, state.has_ended) == (Stage.SFT, "queued", 0, False)
    assert abs(state.created - time.time()) < 5
    with pytest.raises(RefusedError, match="exists already"):
        home.create(Stage.SFT, "", run.id)


def test_generated_run_ids_are_unique(home: Home) -> None:
    assert len({home.create(Stage.SFT, "").id for _ in range(5)}) == 5


def test_runs_are_listed_by_age_without_other_entries(home: Home, tmp_path: Path) -> None:
    for number, name in enumerate(["c", "a", "b"]):
        run = home.create(Stage.SFT, "", name)
        run.write_state(msgspec.structs.replace(run.read_state(), created=float(number)))
    (home.runs_dir / "empty").mkdir()
    (home.runs_dir / "UPPER").mkdir()
    (home.runs_dir / "file").touch()
    (home.runs_dir / "link").symlink_to(home.runs_dir / "a")
    assert [run.id for run in home.runs()] == ["c", "a", "b"]
    assert Home(tmp_path / "none").runs() == []


def test_damaged_state_is_an_error_that_names_the_file(home: Home) -> None:
    run = home.create(Stage.SFT, "", "a")
    for content in (b"", b"{", b'{"stage":"sft"}', b'{"stage":"x","phase":"running"}', b"\xff", b"\x00" * 20):
        (run.path / "state.json").write_bytes(content)
        with pytest.raises(UsageError, match=r"state\.json cannot be read"):
            run.read_state()
        assert [found.id for found in home.runs()] == ["a"], "a damaged run must not hide the others"


def test_state_round_trips(home: Home) -> None:
    run = home.create(Stage.PPO, "", "a")
    state = State(stage=Stage.PPO, phase="failed", attempt=3, created=1.5, cause='"quoted"\n\x1b', last_lines=["é"])
    run.write_state(state)
    assert run.read_state() == state and state.has_ended
    assert {"finished", "failed", "stopped", "lost"} == ENDED


def test_result_and_lineage_round_trip(home: Home) -> None:
    run = home.create(Stage.SFT, "", "a")
    assert run.read_json("result.json") == {}
    run.write_json("result.json", {"loss": [1, 2.5, None]})
    assert run.read_json("result.json") == {"loss": [1, 2.5, None]}


def test_attempt_dirs_are_in_order(home: Home) -> None:
    run = home.create(Stage.SFT, "", "a")
    for number in (10, 2, 1):
        make_private_dir(run.attempt_dir(number))
    assert [path.parent.name for path in run.events_files()] == ["001", "002", "010"]


# lock and requests


def try_lock(path: Path, winners: "multiprocessing.Queue[bool]") -> None:
    try:
        RunDir(path).acquire_lock()
    except RefusedError:
        winners.put(False)
    else:
        winners.put(True)
        time.sleep(4)  # longer than the losers wait


def test_lock_has_one_holder_and_ends_with_it(home: Home) -> None:
    run = home.create(Stage.SFT, "", "a")
    assert not run.lock_is_held()
    context = multiprocessing.get_context("fork")
    winners: multiprocessing.Queue[bool] = context.Queue()
    processes = [context.Process(target=try_lock, args=(run.path, winners)) for _ in range(3)]
    for process in processes:
        process.start()
    assert sorted(winners.get(timeout=10) for _ in processes) == [False, False, True]
    assert run.lock_is_held()
    for process in processes:
        process.kill()
        process.join()
    assert not run.lock_is_held()
    os.close(run.acquire_lock())


def test_lock_is_held_does_not_disturb_an_acquire(home: Home) -> None:
    run = home.create(Stage.SFT, "", "a")
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            run.lock_is_held()

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(50):
            os.close(run.acquire_lock())
    finally:
        done.set()
        for looker in lookers:
            looker.join()


def test_requests_are_listed_and_removed_when_served(home: Home) -> None:
    run = home.create(Stage.SFT, "", "a")
    assert list(run.requests()) == []
    run.request("stop")
    run.request("save")
    run.request("stop")
    assert list(run.requests()) == ["save", "stop"]
    run.served("stop")
    run.served("stop")
    assert list(run.requests()) == ["save"]


def test_entries_other_than_files_are_not_requests(home: Home) -> None:
    run = home.create(Stage.SFT, "", "a")
    (run.control / "stop").mkdir()
    os.mkfifo(run.control / "save")
    (run.control / "pause").symlink_to("/dev/zero")
    assert list(run.requests()) == []
    for what in ("stop", "save", "pause"):
        with pytest.raises(OSError, match=what):
            run.request(what)
    shutil.rmtree(run.control)
    run.request("stop")
    assert list(run.requests()) == ["stop"]
    shutil.rmtree(run.control)
    run.control.write_text("")
    assert list(run.requests()) == []


@pytest.mark.parametrize(
    ("put", "said"),
    [
        (lambda path: path.mkdir(), "a directory, not a regular file"),
        (lambda path: os.mkfifo(path), "a pipe, not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "a link, not a regular file"),
        (lambda path: path.write_bytes(b'{"stage": "sft", "phase": "fail\xffed"}'), "not UTF-8"),
        (lambda path: path.write_bytes(b'{"a":' * 100_000), "nested too deeply"),
        (lambda path: path.write_bytes(b'{"stage": "sft", "phase": "failed", "created": 1e999}'), "out of range"),
        (lambda path: path.write_bytes(b'{"stage": "sft", "phase": "failed", "created": 1e300}'), "$.created"),
        (lambda path: path.write_bytes(b'{"stage": "sft", "phase": "failed", "exit_code": 4096}'), "<= 255"),
        (lambda path: path.touch() or os.truncate(path, 80 << 20), "larger than"),
    ],
)
def test_anything_in_place_of_a_record_is_one_error(home: Home, put: Any, said: str) -> None:
    run = home.create(Stage.SFT, "", "a")
    (run.path / "state.json").unlink()
    put(run.path / "state.json")
    with pytest.raises(DamagedError) as caught:
        run.read_state()
    assert said in str(caught.value) and "runs repair a" in str(caught.value)
    assert [found.id for found in home.runs()] == ["a"]


def test_attempt_dirs_ignore_other_names(home: Home) -> None:
    run = home.create(Stage.SFT, "", "a")
    for name in ("001", "010", "²", "٣٣٣", "-01", "x", "9999999999"):
        (run.attempts / name).mkdir()
    (run.attempts / "002").touch()
    (run.attempts / "003").symlink_to(run.attempts)
    assert [path.name for path in run.attempt_dirs()] == ["001", "010"]


def test_full_disk_names_the_file_and_leaves_no_half_run(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    home.create(Stage.SFT, "a: 1\n", "before")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: .*/a\.json") as caught:
            write_whole(home.path / "a.json", b"{}")
        assert caught.value.errno == errno.ENOSPC and not list(home.path.glob(".a.json*"))
        with pytest.raises(RefusedError, match=r"runs/mine/recipe\.yaml cannot be written: No space left on device"):
            home.create(Stage.SFT, "a: 1\n", "mine")
    assert home.create(Stage.SFT, "a: 1\n", "mine").id == "mine"  # the name is free
