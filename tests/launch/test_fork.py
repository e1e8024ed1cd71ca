"""Forks with a fake worker: what they start from, what they set, and what they refuse."""

import pytest

from stackllama_console.__main__ import main
from stackllama_engine.contract.checkpoints import problem
from stackllama_engine.contract.errors import RecipeError, RefusedError, UsageError
from stackllama_engine.contract.run_dir import ForkedFrom, Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher
from stackllama_engine.launch.fork import launch_fork, plan_fork
from stackllama_engine.launch.slurm_queue import Job, write_job

from .conftest import wait_for_phase
from .forkable import make_forkable


@pytest.fixture
def source(home: Home) -> RunDir:
    """Make a run of 40 steps with checkpoints of steps 10 and 20."""
    return make_forkable(home)


def test_a_fork_has_its_own_copy_and_says_where_it_comes_from(home: Home, source: RunDir, fake_stages: None) -> None:
    run = launch_fork(plan_fork(home, source, 10, ["warmup_steps=3"], None))
    assert run.id == "source-at-10"
    wait_for_phase(run, "finished")
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000010"]
    assert problem(run.checkpoints / "step-000010") is None
    launch = run.read_launch()
    assert (launch.forked_from, launch.parents) == (ForkedFrom(run="source", step=10), ["source"])
    assert "warmup_steps: 3" in run.recipe_file.read_text()
    assert plan_fork(home, source, 10, [], None).plan.name == "source-at-10-2"


def test_an_attempt_later_it_still_says_so(home: Home, source: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    from .conftest import fake_command

    modes = iter(("fail", "finish"))
    monkeypatch.setattr(launcher, "build_command", lambda _recipe, run_dir, _gpus: fake_command(run_dir, next(modes)))
    run = launch_fork(plan_fork(home, source, None, [], "fork"))
    wait_for_phase(run, "failed")
    launcher.resume(home, "fork")
    wait_for_phase(run, "finished")
    assert run.read_launch().forked_from == ForkedFrom(run="source", step=20)


def test_what_a_resume_would_keep_is_set_until_the_fork_has_saved(
    home: Home, source: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    from .conftest import fake_command

    modes = iter(("fail", "finish"))
    monkeypatch.setattr(launcher, "build_command", lambda _recipe, run_dir, _gpus: fake_command(run_dir, next(modes)))
    run = launch_fork(plan_fork(home, source, None, ["learning_rate=0.5"], "fork"))
    request = run.path / "control" / "set-learning_rate"
    assert request.read_text() == "0.5"
    wait_for_phase(run, "failed")  # before its first boundary
    request.unlink(missing_ok=True)
    launcher.resume(home, "fork")
    assert request.read_text() == "0.5"
    wait_for_phase(run, "finished")


def test_a_checkpoint_that_its_run_removes_meanwhile_is_named(home: Home, source: RunDir, fake_stages: None) -> None:
    fork = plan_fork(home, source, 10, [], "fork")
    (fork.checkpoint / "weights").unlink()
    with pytest.raises(RefusedError, match="step-000010 lacks weights, so nothing was started"):
        launch_fork(fork)
    assert [run.id for run in home.runs()] == ["source"]


def test_a_slurm_run_is_not_forked_on_the_login_node(home: Home, source: RunDir) -> None:
    write_job(source, Job(id="17", submitted=1.0))
    with pytest.raises(RefusedError, match="is a Slurm run, and a fork would train on this machine"):
        plan_fork(home, source, 10, [], None)


@pytest.mark.parametrize(
    ("step", "change", "error", "text"),
    [
        (15, "seed=1", UsageError, "has no checkpoint of step 15; it has those of 10, 20"),
        (10, "lora_r=3", RefusedError, "`lora_r` 16 → 3.*Launch a run from the start instead"),
        (10, "weight_decay=0.3", RefusedError, "`weight_decay`.*stays the checkpoint's.*`learning_rate`"),
        (20, "max_steps=20", RecipeError, "step-000020 has reached it; raise it"),
        (20, "max_steps=5", RecipeError, "step-000020 has reached it; raise it"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    home: Home, source: RunDir, step: int, change: str, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        plan_fork(home, source, step, [change], None)
    assert [run.id for run in home.runs()] == ["source"]


def test_the_command(home: Home, source: RunDir, fake_stages: None, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--home", str(home.path), "runs", "fork", "source", "--at", "10", "--name", "fork", "--follow", "--plain"]
    assert main([*words, "learning_rate=0.5"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == "fork" and "continues from step 10 of source" in printed.err
    assert main(["--home", str(home.path), "runs", "show", "fork"]) == 0
    assert "forked from  step 10 of source" in " ".join(capsys.readouterr().out.split("\n"))
    assert main([*words, "recipe.yaml"]) == 2
    assert "a fork has the recipe of `source`" in capsys.readouterr().err


def test_a_damaged_checkpoint_leaves_nothing_behind(home: Home, source: RunDir, fake_stages: None) -> None:
    fork = plan_fork(home, source, 10, [], "fork")
    (fork.checkpoint / "weights").write_text("damaged")
    with pytest.raises(RefusedError, match="weights is not as it was sealed"):
        launch_fork(fork)
    assert [run.id for run in home.runs()] == ["source"]


def test_a_run_that_trains_nothing_or_has_saved_nothing(home: Home) -> None:
    merge = home.create(Stage.MERGE, "adapter_path: x\n", "merge")
    with pytest.raises(RefusedError, match="a merge run, which has no checkpoints"):
        plan_fork(home, merge, None, [], None)
    young = home.create(Stage.SFT, "{}\n", "young")
    with pytest.raises(UsageError, match="`young` has no checkpoint to fork at"):
        plan_fork(home, young, None, [], None)
