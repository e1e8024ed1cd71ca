"""Deletion of runs: ended runs are deleted whole; living runs stay whole."""

import os
import shutil
from pathlib import Path

import pytest

from stackllama_engine.contract.errors import RefusedError, UsageError
from stackllama_engine.contract.run_dir import Home, Launch, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.leftovers import leftovers, remove_leftovers
from stackllama_engine.launch.remove import remove, users_of


def _run(home: Home, name: str, stage: Stage, phase: str = "finished", parents: tuple[str, ...] = ()) -> RunDir:
    run = home.create(stage, "# nothing\n", name)
    run.write_state(State(stage=stage, phase=phase, created=1.0))  # type: ignore[arg-type]
    run.write_launch(Launch(argv=[], cwd="/", host="h", created=1.0, parents=list(parents)))
    return run


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_remove_frees_the_name_of_an_ended_run(home: Home) -> None:
    run = _run(home, "old", Stage.SFT)
    (run.path / "adapter").mkdir()
    (run.path / "adapter" / "weights").write_bytes(b"x" * 100)
    assert remove(home, "old") == ["old"]
    assert list(home.runs_dir.iterdir()) == []
    assert home.create(Stage.SFT, "# again\n", "old").id == "old"


def test_remove_of_a_pipeline_deletes_its_own_stages_only(home: Home) -> None:
    _run(home, "p", Stage.PIPELINE)
    _run(home, "p-sft", Stage.SFT, parents=("p",))
    _run(home, "p-reward", Stage.REWARD, parents=("elsewhere",))  # another pipeline's, with a matching name
    assert sorted(remove(home, "p")) == ["p", "p-sft"]
    assert [run.id for run in home.runs()] == ["p-reward"]


def test_remove_refuses_a_pipeline_with_a_living_child(home: Home) -> None:
    _run(home, "p", Stage.PIPELINE)
    child = _run(home, "p-sft", Stage.SFT, phase="running", parents=("p",))
    lock = child.acquire_lock()
    try:
        with pytest.raises(RefusedError, match=r"p-sft.*alive"):
            remove(home, "p")
    finally:
        os.close(lock)
    assert {run.id for run in home.runs()} == {"p", "p-sft"}


def test_users_of_lists_dependent_runs(home: Home) -> None:
    _run(home, "base", Stage.MERGE)
    _run(home, "rm", Stage.REWARD, parents=("base",))
    assert users_of(home, "base") == ["rm"]
    assert users_of(home, "rm") == []


def test_an_interrupted_deletion_is_a_leftover_and_a_running_one_is_not(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def cut_short(path: Path) -> None:
        seen.extend(each.busy for each in leftovers(home))
        raise OSError(5, "Input/output error", str(path))

    _run(home, "old", Stage.SFT)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut_short)
        with pytest.raises(RefusedError, match="Input/output error"):
            remove(home, "old")
    assert seen == [True] and home.runs() == []
    (left,) = leftovers(home)
    assert left.path.name.startswith(".deleted-old-") and (left.of, left.busy) == ("deletion", False)
    assert remove_leftovers(home) == ([left.path.name], []) and list(home.runs_dir.iterdir()) == []


def test_remove_refuses_an_unknown_run(home: Home) -> None:
    with pytest.raises(UsageError, match="No run `nothing`"):
        remove(home, "nothing")
