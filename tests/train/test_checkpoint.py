"""Sealing, verifying, choosing and deleting checkpoints; no model is needed."""

import json
from pathlib import Path
from typing import Any

import pytest

from stackllama_engine.contract import checkpoints as contract
from stackllama_engine.contract.events import EventReader
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import checkpoint
from stackllama_engine.train.checkpoint import Retention
from stackllama_engine.train.reporting import Reporter


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = Home(tmp_path).create(Stage.SFT, "", "mine")
    run.attempt_dir(1).mkdir()
    return run


@pytest.fixture
def reporter(run: RunDir) -> Reporter:
    return Reporter(run, 1, is_main=True)


def write(run: RunDir, step: int, *, by_time: bool = False, **metrics: float) -> Path:
    staging = checkpoint.staging_dir(run.checkpoints, step)
    (staging / "inner").mkdir()
    (staging / "weights").write_bytes(f"weights {step}".encode())
    (staging / "inner" / "state").write_bytes(b"state")
    return checkpoint.seal(staging, run.checkpoints, step, metrics, by_time=by_time)


def names(run: RunDir) -> list[int]:
    return [checkpoint.step_of(path) for path in contract.sealed(run.checkpoints)]


def notices(run: RunDir) -> list[str]:
    events = EventReader(run.attempt_dir(1) / "events.jsonl").read()
    return [event.data["message"] for event in events if event.kind == "health"]


DAMAGE = {
    "weights is not as it was sealed": lambda path: (path / "weights").write_bytes(b"weights 4"),
    "lacks inner/state": lambda path: (path / "inner" / "state").unlink(),
    "has no manifest": lambda path: (path / "manifest.json").unlink(),
    "has an unreadable manifest": lambda path: (path / "manifest.json").write_bytes(b'{"step": 3, "fi'),
    "holds pytorch_model.bin, which was not sealed": lambda path: (path / "pytorch_model.bin").write_bytes(b"x"),
    "holds link, which was not sealed": lambda path: (path / "link").symlink_to("/etc/passwd"),
    "weights is not a file": lambda path: (
        (path / "weights").rename(path.parent / "elsewhere"),
        (path / "weights").symlink_to(path.parent / "elsewhere"),
    ),
    "has the manifest of step 9": lambda path: (path / "manifest.json").write_text(
        json.dumps(json.loads((path / "manifest.json").read_text()) | {"step": 9})
    ),
    "is a link": lambda path: (path.rename(path.parent / "x"), path.symlink_to(path.parent / "x")),
}


@pytest.mark.parametrize("reason", list(DAMAGE))
def test_damaged_checkpoint_is_named_and_skipped(run: RunDir, reporter: Reporter, reason: str) -> None:
    older, path = write(run, 2), write(run, 3)
    assert contract.problem(path) is None
    DAMAGE[reason](path)
    assert reason in (contract.problem(path) or "")
    assert checkpoint.to_resume(reporter) == older
    assert reason in notices(run)[0] and notices(run)[0].startswith("checkpoint step-000003")
    assert notices(run)[-1] == "resuming from step-000002"


def test_what_was_never_sealed_is_removed_and_never_resumed_from(run: RunDir, reporter: Reporter) -> None:
    (checkpoint.staging_dir(run.checkpoints, 7) / "weights").write_bytes(b"half")
    assert checkpoint.to_resume(reporter) is None
    assert list(run.checkpoints.iterdir()) == []
    assert notices(run) == ["removed .tmp-000007, an incomplete checkpoint"]


def test_the_newest_stay_with_milestones_and_the_best(run: RunDir) -> None:
    keep = Retention(newest=2, every=4, metric="eval_loss", greater_is_better=False)
    losses = {1: 5.0, 2: 1.0, 3: 2.0, 4: float("nan"), 5: 3.0, 6: 3.0, 7: 1.5}
    for step, loss in losses.items():
        write(run, step, eval_loss=loss)
        assert checkpoint.rotate(run.checkpoints, keep) == []
        assert len(names(run)) <= keep.at_most(step)
    assert names(run) == [2, 4, 6, 7]
    assert contract.read_manifest(run.checkpoints / "step-000004").metrics == {}  # NaN is no measurement
    write(run, 8, eval_loss=0.5)
    checkpoint.rotate(run.checkpoints, keep)
    assert names(run) == [4, 7, 8]


def test_the_best_of_a_reward_is_the_highest_and_of_equals_the_newest(run: RunDir) -> None:
    keep = Retention(newest=1, metric="eval/mean_reward")
    for step, reward in ((1, 2.0), (2, 2.0), (3, 1.0), (4, 0.0)):
        write(run, step, by_time=False, **{"eval/mean_reward": reward})
        checkpoint.rotate(run.checkpoints, keep)
    assert names(run) == [2, 4]


def test_those_by_time_count_as_any_other_where_there_is_a_limit(run: RunDir) -> None:
    for step in range(1, 6):
        write(run, step, by_time=step != 2)
        checkpoint.rotate(run.checkpoints, Retention(newest=2, every=3))
    assert names(run) == [3, 4, 5]


def test_without_a_limit_one_by_time_stays_until_the_next(run: RunDir) -> None:
    """How many hours a run takes nobody knows, nor how much room these would."""
    keep = Retention(newest=None)
    for step in range(1, 10):
        write(run, step, by_time=step not in (4, 8))
        checkpoint.rotate(run.checkpoints, keep)
        assert names(run)[-1] == step and len(names(run)) <= keep.at_most(step, 4)
    assert names(run) == [4, 8, 9]


def test_missing_metric_is_no_notice_for_a_checkpoint_by_time(run: RunDir, reporter: Reporter) -> None:
    for step in (1, 2):
        staging = checkpoint.staging_dir(run.checkpoints, step)
        checkpoint.publish(reporter, staging, step, Retention(newest=1, metric="eval_loss"), by_time=step == 1)
    assert notices(run) == ["no `eval_loss` was measured at step 2, so it cannot be the best (none)"]


@pytest.mark.parametrize(("damaged", "last"), [((3, 4), 2), ((2, 3, 4), 1)])
def test_the_last_that_verifies_is_never_deleted(run: RunDir, damaged: tuple[int, ...], last: int) -> None:
    for step in (1, 2, 3, 4):
        write(run, step)
    for step in damaged:
        (run.checkpoints / f"step-{step:06d}" / "weights").write_bytes(b"gone bad")
    reasons = checkpoint.rotate(run.checkpoints, Retention(newest=2))
    assert names(run) == [last, 3, 4]
    assert reasons[-1] == f"step-{last:06d} stays: it is the newest that verifies"
    assert checkpoint.newest(run.checkpoints)[0] == run.checkpoints / f"step-{last:06d}"
    write(run, 5)  # whole: nothing that is damaged needs to be worked around
    assert checkpoint.rotate(run.checkpoints, Retention(newest=1)) == []
    assert names(run) == [5]


def test_what_cannot_be_read_is_not_the_best(run: RunDir) -> None:
    for step in (1, 2, 3):
        write(run, step, reward=float(step == 1))
    (run.checkpoints / "step-000001" / "manifest.json").write_bytes(b'{"step": 1, "me')
    assert checkpoint.rotate(run.checkpoints, Retention(newest=1, metric="reward")) == []
    assert names(run) == [3]


@pytest.mark.parametrize(
    ("keys", "greater"),
    [
        (["metric_for_best_model=eval_loss"], False),
        (["metric_for_best_model=eval/mean_reward"], True),
        (["metric_for_best_model=eval_loss", "greater_is_better=true"], True),
    ],
)
def test_what_is_better_follows_from_the_metric_unless_the_recipe_says(keys: list[str], greater: bool) -> None:
    given = ["model_name_or_path=demo", "dataset_name=demo", "save_total_limit=2", "keep_every_steps=500", *keys]
    recipe: Any = load_recipe(Stage.SFT, None, given)
    metric = recipe.metric_for_best_model
    assert Retention.of(recipe) == Retention(newest=2, every=500, metric=metric, greater_is_better=greater)


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(run: RunDir) -> None:
    path = write(run, 3)
    (path / "weights").unlink()
    write(run, 3)
    assert contract.problem(path) is None
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000003"]


def test_killed_while_a_checkpoint_is_replaced_there_is_still_one(
    run: RunDir, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(run, 3)

    plain = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if self.is_dir():
            raise KeyboardInterrupt
        return plain(self, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", killed)
        write(run, 3)
    assert not first.exists()
    assert checkpoint.to_resume(reporter) == first and contract.problem(first) is None
    assert [path.name for path in run.checkpoints.iterdir()] == [first.name]


def test_a_link_is_deleted_and_not_what_it_points_to(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (run.checkpoints / "step-000001").symlink_to(tmp_path / "precious")
    write(run, 2)
    checkpoint.rotate(run.checkpoints, Retention(newest=1))
    assert names(run) == [2]
    assert (tmp_path / "precious").is_dir()


def test_what_was_measured_at_the_step_is_sealed_with_it(run: RunDir, reporter: Reporter) -> None:
    keep = Retention(newest=1, metric="eval_loss", greater_is_better=False)
    for step, metrics in ((1, {"eval_loss": 1.0}), (2, {"loss": 0.1}), (3, {"eval_loss": 2.0})):
        reporter.metrics(step, {"grad_norm": 1.0})
        reporter.metrics(step, metrics)
        staging = checkpoint.staging_dir(run.checkpoints, step)
        (staging / "weights").write_bytes(b"x")
        checkpoint.publish(reporter, staging, step, keep)
    assert names(run) == [1, 3]
    assert contract.read_manifest(run.checkpoints / "step-000001").metrics == {"grad_norm": 1.0, "eval_loss": 1.0}
    assert notices(run) == ["no `eval_loss` was measured at step 2, so it cannot be the best (grad_norm, loss)"]
