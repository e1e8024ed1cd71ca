"""Training on a disk that fills: it waits, resumes by itself, or is saved and stopped, and nothing is lost."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.full_disk import MIB, SmallDisk, small_disk

from stackllama_engine.contract import events as events_module
from stackllama_engine.contract import requests
from stackllama_engine.contract.atomic_files import write_whole
from stackllama_engine.contract.disk_space import RESERVE, Reserve
from stackllama_engine.contract.errors import StageError
from stackllama_engine.contract.requests import WAITING_FOR_ROOM
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import checkpoint, disk_wait, models
from stackllama_engine.train.control import Requests
from stackllama_engine.train.restart import Restarts

from .in_process import PPO, Attempt, at_call, attempt
from .toy import COMMON, REWARD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_SMALL = ("max_train_samples=16", "max_eval_samples=8", "max_steps=6", "save_steps=2")
KEYS: dict[Stage, tuple[str, ...]] = {
    Stage.SFT: (
        *COMMON,
        *_SMALL,
        "warmup_steps=0",
        "max_length=64",
        "eval_steps=0",
        "per_device_train_batch_size=2",
        "gradient_accumulation_steps=1",
        "packing=false",
        "lora_dropout=0.1",
        "gradient_checkpointing=false",
    ),
    Stage.REWARD: (*REWARD, *_SMALL, "per_device_train_batch_size=2", "gradient_accumulation_steps=1"),
    Stage.PPO: (*PPO, "max_steps=4", "save_steps=2"),
}
EVERY_STAGE = [pytest.param(stage, marks=pytest.mark.long if stage is Stage.REWARD else ()) for stage in KEYS]


class Straight:
    """Result of each stage where nothing disturbs it; trained at its first use."""

    def __init__(self, home: Home, base: Path) -> None:
        self._home = home
        self._base = base
        self._made: dict[Stage, Attempt] = {}

    def __call__(self, stage: Stage) -> Attempt:
        if stage not in self._made:
            with attempt(self._home, self._base, stage, *KEYS[stage]) as one:
                assert one.train() is not None
            self._made[stage] = one
        return self._made[stage]


@pytest.fixture(scope="module")
def straight(shared_home: Home, base: Path) -> Straight:
    return Straight(shared_home, base)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 64 * MIB, inodes=2000) as disk:
        yield disk


@pytest.fixture
def home(disk: SmallDisk) -> Home:
    return Home(disk.path / "home")


@pytest.fixture
def few_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allocate so few bytes ahead that one long notice uses them up."""
    for name, size in (("_AHEAD", 16384), ("_ORDINARY", 12288), ("_URGENT", 4096)):
        monkeypatch.setattr(events_module, name, size)


def losses(one: Attempt) -> dict[int, float | None]:
    return one.metrics("loss/policy_avg" if one.recipe.stage is Stage.PPO else "loss")


def assert_same_weights(run: RunDir, other: RunDir) -> None:
    files = sorted(path.relative_to(other.path) for path in other.adapter.rglob("*.safetensors"))
    assert files
    for name in files:
        found, wanted = load_file(run.path / name), load_file(other.path / name)
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            assert torch.equal(found[key], tensor), f"{name}: {key}"


def freed_while_it_waits(monkeypatch: pytest.MonkeyPatch, disk: SmallDisk, polls: int = 2) -> None:
    """Make room again after some polls, each time the run waits."""
    counted = iter(range(1, 1000))

    def sleep(_: float) -> None:
        if next(counted) % polls == 0:
            disk.clear()

    monkeypatch.setattr("stackllama_engine.train.disk_wait.time.sleep", sleep)


@pytest.mark.parametrize("stage", EVERY_STAGE)
def test_run_waits_for_room_for_events_checkpoint_and_result_and_trains_the_same(
    stage: Stage,
    home: Home,
    base: Path,
    disk: SmallDisk,
    straight: Straight,
    few_events: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = straight(stage)
    freed_while_it_waits(monkeypatch, disk)
    with attempt(home, base, stage, *KEYS[stage]) as one, monkeypatch.context() as patch:

        def fill_with_events() -> None:
            disk.fill()
            one.session.reporter.health("x" * 9000)

        patch.setattr(Requests, "poll", at_call(1, fill_with_events, Requests.poll))
        patch.setattr(checkpoint, "seal", at_call(2, disk.fill, checkpoint.seal))
        patch.setattr(PeftModel, "save_pretrained", before_the_result(disk.fill))
        assert one.train() is not None
    assert one.health.count(f"{WAITING_FOR_ROOM} after step") == one.health.count("there is room on the disk again")
    assert f"{WAITING_FOR_ROOM} after step 1" in one.health, "events"
    assert "was not saved; retrying when there is room" in one.health
    steps = one.recipe.max_steps
    assert f"{WAITING_FOR_ROOM} after step {steps}: 0 MiB free of the" in one.health, "the result"
    assert one.phases.count(WAITING_FOR_ROOM) >= 3
    waits = [event for event in one.events if event.kind == "phase" and event.phase == WAITING_FOR_ROOM]
    assert all("a checkpoint needs" in event.data["reason"] for event in waits)
    assert losses(one) == losses(wanted) and [event.seq for event in one.events].count(0) == 1
    assert sorted(event.seq for event in one.events) == list(range(len(one.events))), "every event, once"
    assert_same_weights(one.run, wanted.run)
    if stage is Stage.PPO:
        assert one.run.samples_file.read_bytes() == wanted.run.samples_file.read_bytes()
    assert not (one.run.path / RESERVE).exists()


def before_the_result(then: Callable[[], None]) -> Callable[..., Any]:
    """PEFT's ``save_pretrained``, before which ``then`` is called once when it is the result's."""
    save = PeftModel.save_pretrained
    done: list[bool] = []

    def saving(self: Any, folder: str, *arguments: Any, **named: Any) -> Any:
        if folder.endswith(".tmp-adapter") and not done:
            done.append(True)
            then()
        return save(self, folder, *arguments, **named)

    return saving


@pytest.mark.parametrize(
    ("stage", "what"),
    [
        pytest.param(stage, what, marks=() if (stage, what) == (Stage.PPO, "blocks") else pytest.mark.long)
        for stage in KEYS
        for what in ("blocks", "inodes")
    ],
)
def test_run_without_room_is_saved_and_stopped_and_resumes_to_the_same(
    stage: Stage,
    what: str,
    home: Home,
    base: Path,
    disk: SmallDisk,
    straight: Straight,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = straight(stage)
    monkeypatch.setenv("STACKLLAMA_DISK_PATIENCE", "0")
    with attempt(home, base, stage, *KEYS[stage]) as one, monkeypatch.context() as patch:
        patch.setattr(Requests, "poll", at_call(2, disk.fill if what == "blocks" else disk.take_inodes, Requests.poll))
        assert one.train() is None, "it stopped"
        assert one.session.reporter.stop_cause is not None
        assert one.session.reporter.stop_cause.startswith("The disk is full: ")
        assert "Saved and stopped after step 2" in one.session.reporter.stop_cause
    assert what == "inodes" or disk.free < 3 * MIB, "it lies where the reserve was"
    found, skipped = checkpoint.newest(one.run.checkpoints)
    assert found is not None and checkpoint.step_of(found) == 2 and skipped == []
    disk.clear()
    requests.forget_all(one.run)
    with attempt(home, base, stage, *KEYS[stage], of=one.run) as second:
        assert second.train() is not None
    assert losses(one) | losses(second) == losses(wanted)
    assert_same_weights(one.run, wanted.run)


def test_run_without_room_stops_where_an_evaluation_is_due(
    home: Home, base: Path, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation breaks off and leaves the saving to whoever began it."""

    def fill() -> None:
        disk.fill()
        one.session.reporter.disk.write("rows", lambda: write_whole(one.run.path / "rows", bytes(100_000)))

    monkeypatch.setenv("STACKLLAMA_DISK_PATIENCE", "0")
    with attempt(home, base, Stage.SFT, *KEYS[Stage.SFT], "eval_steps=3") as one, monkeypatch.context() as patch:
        patch.setattr(Requests, "poll", at_call(3, fill, Requests.poll))
        assert one.train() is None, "it stopped"
        assert "Saved and stopped after step 3" in str(one.session.reporter.stop_cause)
    found, _ = checkpoint.newest(one.run.checkpoints)
    assert found is not None and checkpoint.step_of(found) == 3 and 3 not in one.metrics("eval_loss")


@pytest.mark.long
def test_stop_is_served_while_the_run_waits_for_room(
    home: Home, base: Path, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attempt(home, base, Stage.SFT, *KEYS[Stage.SFT]) as one, monkeypatch.context() as patch:
        patch.setattr(Requests, "poll", at_call(2, disk.fill, Requests.poll))
        patch.setattr(disk_wait.time, "sleep", lambda _: one.run.request("stop"))
        assert one.train() is None
        assert one.session.reporter.stop_cause and "after step 2, as asked" in one.session.reporter.stop_cause
    found, _ = checkpoint.newest(one.run.checkpoints)
    assert found is not None and checkpoint.step_of(found) == 2


def test_a_result_that_finds_no_room_for_good_is_in_the_last_checkpoint(
    home: Home, base: Path, disk: SmallDisk, straight: Straight, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody takes the room as soon as it is given back: the resume trains nothing again."""
    monkeypatch.setenv("STACKLLAMA_DISK_PATIENCE", "0")
    release = Reserve.release

    def taken(self: Reserve) -> None:
        release(self)
        disk.fill()

    keys = KEYS[Stage.SFT]
    with attempt(home, base, Stage.SFT, *keys) as one, monkeypatch.context() as patch:
        patch.setattr(PeftModel, "save_pretrained", before_the_result(disk.fill))
        patch.setattr(Reserve, "release", taken)
        assert one.train() is None
        cause = one.session.reporter.stop_cause
    assert cause and cause.startswith("The disk is full: what was trained could not be written. step-000006 holds all")
    assert not one.run.adapter.exists() and not (one.run.path / ".tmp-adapter").exists()
    disk.clear()
    with attempt(home, base, Stage.SFT, *keys, of=one.run) as second:
        assert second.train() is not None
    assert losses(second) == {}, "nothing was trained again"
    assert_same_weights(one.run, straight(Stage.SFT).run)


@pytest.mark.long
def test_a_save_that_finds_no_room_in_the_reserve_names_the_disk(
    home: Home, base: Path, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STACKLLAMA_DISK_PATIENCE", "0")
    release = Reserve.release
    monkeypatch.setattr(Reserve, "release", lambda self: (release(self), disk.fill()))
    with attempt(home, base, Stage.SFT, *KEYS[Stage.SFT]) as one, monkeypatch.context() as patch:
        patch.setattr(Requests, "poll", at_call(2, disk.fill, Requests.poll))
        with pytest.raises(StageError, match=r"The disk is full in phase save: .* step 2 could not be saved"):
            one.train()
    disk.clear()


def test_restart_notes_wait_for_room(home: Home, base: Path, disk: SmallDisk) -> None:
    with attempt(home, base, Stage.SFT, *KEYS[Stage.SFT]) as one:
        restarts, watch = one.session.restarts, one.session.reporter.disk
        restarts.disk = watch
        disk.fill()
        restarts.note(rollbacks=1)
        assert restarts.now.rollbacks == 1 and watch.waits
        assert watch.poll() == "0 MiB free of the 2.0 MiB a checkpoint needs", "1 MiB, and 1 MiB more"
        disk.clear()
        assert watch.poll() is None and not watch.waits
        assert Restarts(one.run, 1, one.session.requests.signals).now.rollbacks == 1


def test_file_system_that_cannot_reserve_room_is_reported_once(
    home: Home, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stackllama_engine.contract.disk_space.preallocate", lambda *_: False)
    with attempt(home, base, Stage.SFT, *KEYS[Stage.SFT], "max_steps=1", "save_steps=0") as one:
        assert one.train() is not None
    assert one.health.count("cannot hold back room for a last checkpoint") == 1
    assert msgspec.json.decode((one.run.attempt_dir(1) / "events.jsonl").read_bytes().splitlines()[-1])["kind"] == "end"


@pytest.fixture
def adapter(straight: Straight) -> Path:
    return straight(Stage.SFT).run.adapter


@pytest.mark.parametrize("when", [pytest.param("before", marks=pytest.mark.long), "while it is written"])
def test_a_merge_without_room_names_the_bytes_and_leaves_nothing(
    when: str, home: Home, base: Path, disk: SmallDisk, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (f"adapter_path={adapter}", "use_cpu=true", "dtype=float32")
    with attempt(home, base, Stage.MERGE, *keys) as one, monkeypatch.context() as patch:
        if when == "before":
            patch.setattr(models, "load_plain", at_call(1, disk.fill, models.load_plain))
        else:
            patch.setattr(models, "save_model", at_call(1, lambda: disk.fill(leave=100_000), models.save_model))
        with pytest.raises(StageError, match=MERGE_CAUSE) as caught:
            one.train()
    assert "\n" not in str(caught.value)
    assert [path.name for path in one.run.path.iterdir() if "merged" in path.name or ".tmp" in path.name] == []
    disk.clear()
    with attempt(home, base, Stage.MERGE, *keys, of=one.run) as second:
        assert second.train() is not None
    assert (second.run.merged / "model.safetensors").is_file()


MERGE_CAUSE = (
    r"The disk is full: the merged model takes [\d.]+ MiB \([\d,]{7,} bytes\) under .*, where there are [\d.]+ MiB "
    "free. Nothing of it was left behind; make room, then resume"
)
