"""Repair of a damaged run from its other files, or a refusal; damaged files are kept."""

import os
from pathlib import Path

import msgspec
import pytest

from stackllama_engine.contract import run_lock
from stackllama_engine.contract.errors import DamagedError, RefusedError
from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.run_dir import Home, Launch, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.remove import remove
from stackllama_engine.launch.repair import repair, stage_of

RECIPE = "# stage: ppo\nmodel_name_or_path: demo\n"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def _run(
    home: Home, recipe: str = RECIPE, *, end: dict[str, object] | None, name: str = "one", attempts: int = 2
) -> RunDir:
    """Make a run whose newest attempt may have an ``end`` event, with a byte of its state flipped."""
    run = home.create(Stage.PPO, recipe, name)
    for attempt in range(1, attempts + 1):
        run.attempt_dir(attempt).mkdir()
        events = EventWriter(run.attempt_dir(attempt) / "events.jsonl")
        events.write("progress", step=attempt, total_steps=9)
        if end is not None and attempt == attempts:
            events.write("end", data=end)
        events.close()
    run.write_state(State(stage=Stage.PPO, phase="running", attempt=attempts, created=5.0))
    (run.path / "state.json").write_bytes(b"\xff" + (run.path / "state.json").read_bytes())
    return run


@pytest.mark.parametrize(
    ("end", "phase", "code"),
    [
        ({"exit_code": 0, "cause": None}, "finished", 0),
        ({"exit_code": 75, "cause": "saved"}, "stopped", 75),
        ({"exit_code": 1, "cause": "NaN"}, "failed", 1),
        ({"exit_code": 10**30, "cause": {"odd": []}}, "failed", 1),
        (None, "lost", None),
    ],
)
def test_repair_takes_the_outcome_of_the_newest_attempt(
    home: Home, end: dict[str, object] | None, phase: str, code: int | None
) -> None:
    run = _run(home, end=end)
    damaged = (run.path / "state.json").read_bytes()
    with pytest.raises(DamagedError, match=r"state\.json cannot be read: .*runs repair one"):
        run.read_state()
    (said,) = repair(home, "one")
    state = run.read_state()
    assert (state.stage, state.phase, state.attempt, state.exit_code) == (Stage.PPO, phase, 2, code)
    assert state.ended is not None and abs(state.created - run.recipe_file.stat().st_mtime) < 1e-3
    assert f"ppo, {phase}, attempt 2" in said and "state.json.damaged-1" in said
    assert (run.path / "state.json.damaged-1").read_bytes() == damaged
    assert repair(home, "one") == []


def test_repair_finds_the_stage_in_recipe_launch_or_name(home: Home) -> None:
    nothing = _run(home, "model_name_or_path: demo\n", end=None, name="nothing")
    assert stage_of(nothing) is None
    with pytest.raises(RefusedError, match=r"names the stage.*# stage: sft.*runs rm nothing"):
        repair(home, "nothing")
    assert not (nothing.path / "state.json.damaged-1").exists()
    nothing.write_launch(
        Launch(argv=["python", "-m", "stackllama_engine.train", "reward", "x"], cwd="/", host="h", created=1.0)
    )
    assert stage_of(nothing) is Stage.REWARD
    assert stage_of(_run(home, "\xff", end=None, name="merge-20260101-120000-abcd")) is Stage.MERGE
    assert stage_of(_run(home, "# stage: nonsense\n", end=None, name="odd")) is None


@pytest.mark.parametrize("name", ["launch.json", "result.json", "lineage.json", "slurm.json"])
def test_repair_sets_other_records_aside(home: Home, name: str) -> None:
    run = _run(home, end={"exit_code": 1})
    repair(home, "one")
    before = run.read_state()
    (run.path / name).mkdir()
    assert repair(home, "one") == [f"{name} could not be read; it was renamed to {name}.damaged-1."]
    assert run.read_state() == before and not (run.path / name).exists()


def test_repair_rebuilds_a_missing_state(home: Home) -> None:
    run = _run(home, end={"exit_code": 0})
    (run.path / "state.json").unlink()
    assert [each.id for each in home.runs()] == ["one"]
    repair(home, "one")
    (run.path / "state.json").unlink()
    os.mkfifo(run.path / "state.json")
    repair(home, "one")
    assert run.read_state().phase == "finished"


def test_repair_refuses_a_living_run(home: Home) -> None:
    run = _run(home, end=None)
    lock = run.acquire_lock()
    try:
        with pytest.raises(RefusedError, match="alive"):
            repair(home, "one")
        with pytest.raises(RefusedError, match="alive"):
            remove(home, "one")
    finally:
        os.close(lock)
    assert not list(run.path.glob("*.damaged-*"))


def test_repair_without_flock_releases_the_lock(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine cannot see that the repairing process has ended."""
    monkeypatch.setattr(run_lock, "try_flock", lambda _descriptor, _operation: None)
    run = _run(home, end={"exit_code": 0})
    repair(home, "one")
    assert (run.path / "lock.d").is_dir() and list((run.path / "lock.d").iterdir()) == []


def test_repair_refuses_a_run_that_may_be_alive_elsewhere(home: Home) -> None:
    elsewhere = Launch(argv=[], cwd="/", host="another-machine", created=1.0)
    silent, ended = _run(home, end=None, name="silent"), _run(home, end={"exit_code": 0}, name="ended")
    for run in (silent, ended):
        run.write_launch(elsewhere)
    with pytest.raises(RefusedError, match="was started on another-machine and may be alive there"):
        repair(home, "silent")
    assert not list(silent.path.glob("*.damaged-*"))
    assert "finished" in repair(home, "ended")[0]


def test_remove_works_on_and_beside_a_damaged_run(home: Home) -> None:
    _run(home, end=None, name="damaged")
    whole = _run(home, end={"exit_code": 0}, name="whole")
    repair(home, "whole")
    (whole.path / "launch.json").write_bytes(b"{")
    assert remove(home, "damaged") == ["damaged"]
    assert remove(home, "whole") == ["whole"] and list(home.runs_dir.iterdir()) == []


def test_remove_works_without_a_regular_lock_file(home: Home) -> None:
    run = _run(home, end={"exit_code": 0})
    repair(home, "one")
    (run.path / "lock").unlink()
    (run.path / "lock").mkdir()
    assert remove(home, "one") == ["one"]


def test_repair_writes_records_that_can_be_read(home: Home) -> None:
    """Bounds of the state hold for whatever an end event may say."""
    for code in (-1, 256, True, "0", 1.5, None):
        run = _run(
            home, end={"exit_code": code, "cause": "x"}, name=f"run-{str(code).lower().replace('.', '-').strip('-')}"
        )
        repair(home, run.id)
        assert run.read_state().exit_code == 1
        assert msgspec.json.decode((run.path / "state.json").read_bytes(), type=State) == run.read_state()
