"""PPO in the face of stops, pauses, full memory, NaN and a full disk."""

import errno
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stackllama_engine.contract import requests
from stackllama_engine.contract.disk_space import MIB, Free
from stackllama_engine.contract.errors import StageError
from stackllama_engine.contract.requests import Change
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import checkpoint, pending_writes
from stackllama_engine.train.ppo import rollout, trainer
from stackllama_engine.train.ppo.algorithm import Updater
from stackllama_engine.train.ppo.reward_function import RewardFunction
from stackllama_engine.train.saving import Saver

from .in_process import PPO, at_call, attempt

pytestmark = pytest.mark.slow


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, base: Path) -> dict[str, torch.Tensor]:
    """Train without any fault; return the weights."""
    with attempt(Home(tmp_path_factory.mktemp("straight")), base, Stage.PPO, *PPO) as undisturbed:
        undisturbed.train()
    return weights(undisturbed.run)


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    files = [run.adapter / name for name in ("adapter_model.safetensors", "value_head.safetensors")]
    return {f"{file.stem}.{name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_same(run: RunDir, expected: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    found = weights(run)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=tolerance, rtol=0)


def patch_call(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, then: Callable[[], None]) -> None:
    monkeypatch.setattr(owner, name, at_call(number, then, getattr(owner, name)))


STOPS = {
    "before training": (trainer.PPO, "evaluate", 1, None),
    "in the first rollout": (trainer.PPO, "_noise", 1, 0),
    "between two mini-batches": (Updater, "_mini_batch", 3, 1),  # the first of step 2 is applied
    "in the last evaluation": (trainer.PPO, "evaluate", 2, 3),
}


@pytest.mark.parametrize("where", STOPS)
def test_a_stop_abandons_the_step_and_it_is_made_again(
    where: str, home: Home, base: Path, straight: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, call, saved = STOPS[where]
    with attempt(home, base, Stage.PPO, *PPO) as first, monkeypatch.context() as patch:
        patch_call(patch, owner, name, call, lambda: first.run.request("stop"))
        assert first.train() is None
    path, _ = checkpoint.newest(first.run.checkpoints)
    assert (checkpoint.step_of(path) if path else None) == saved
    requests.forget_all(first.run)
    with attempt(home, base, Stage.PPO, *PPO, of=first.run) as second:
        assert second.train() is not None
    assert_same(second.run, straight)
    rows = [json.loads(line) for line in second.run.samples_file.read_text().splitlines()]
    assert [(row["step"], row.get("when")) for row in rows] == (
        [(0, "before")] * 4 + [(step, None) for step in (1, 2, 3) for _ in range(4)] + [(3, "after")] * 4
    )


def test_an_evaluation_that_was_broken_off_is_made_by_the_next_attempt(
    home: Home, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (*PPO, "eval_steps=1", "max_steps=2")
    with attempt(home, base, Stage.PPO, *keys) as first, monkeypatch.context() as patch:
        patch_call(patch, trainer.PPO, "evaluate", 2, lambda: first.run.request("stop"))
        assert first.train() is None
    requests.forget_all(first.run)
    assert list(first.metrics("eval/kl")) == [0]
    with attempt(home, base, Stage.PPO, *keys, of=first.run) as second:
        second.train()
    assert list(second.metrics("eval/kl")) == [1, 2]


class Script:
    """Requests written at each poll of a step boundary, in turn."""

    def __init__(self, run: RunDir, *turns: tuple[Any, ...]) -> None:
        self.run, self.turns = run, list(turns)

    def __call__(self, seconds: float = 0.0) -> None:
        if self.turns:
            requests.write(self.run, *self.turns.pop(0))


def test_a_pause_is_seen_and_serves_what_is_asked_meanwhile(
    home: Home, base: Path, straight: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with attempt(home, base, Stage.PPO, *PPO) as one:
        requests.write(one.run, "pause")
        script = Script(one.run, ("sample",), ("save",), ("continue",))
        monkeypatch.setattr("stackllama_engine.train.serving.time.sleep", script)
        one.train()
    assert [data["request"] for data in one.served] == ["pause", "sample", "save", "continue"]
    assert "paused after step 1" in one.health and "continued after step 1" in one.health
    assert "paused" in one.phases and list(one.run.requests()) == []
    assert [path.name for path in one.run.checkpoints.iterdir()] == ["step-000001"]
    asked = [json.loads(line) for line in one.run.samples_file.read_text().splitlines() if '"asked"' in line]
    assert len(asked) == 4 and {row["step"] for row in asked} == {1} and all(row["response"] for row in asked)
    assert_same(one.run, straight)  # none of it changed what is trained


def test_a_stop_ends_a_pause(home: Home, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with attempt(home, base, Stage.PPO, *PPO) as one:
        requests.write(one.run, "pause")
        monkeypatch.setattr("stackllama_engine.train.serving.time.sleep", lambda _: one.run.request("stop"))
        assert one.train() is None
    assert [path.name for path in one.run.checkpoints.iterdir()] == ["step-000001"]


def test_changed_values_hold_from_the_next_step_on_and_after_a_resume(
    home: Home, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (*PPO, "lr_scheduler_type=linear", "adap_kl_ctrl=false")
    with attempt(home, base, Stage.PPO, *keys) as first, monkeypatch.context() as patch:
        requests.write(first.run, "set", Change("kl_coef", 0.5))
        requests.write(first.run, "set", Change("learning_rate", 3e-3))
        patch_call(patch, Updater, "update", 3, lambda: first.run.request("stop"))
        assert first.train() is None
    assert first.metrics("objective/kl_coef") == {1: 0.2, 2: 0.5}
    assert first.metrics("learning_rate") == {1: 1e-3, 2: pytest.approx(2e-3)}  # 3e-3, two thirds of the way
    assert [(data["key"], data["value"]) for data in first.served[:2]] == [("learning_rate", 3e-3), ("kl_coef", 0.5)]
    requests.forget_all(first.run)
    with attempt(home, base, Stage.PPO, *keys, of=first.run) as second:
        second.train()
    assert second.metrics("objective/kl_coef") == {3: 0.5}
    assert second.metrics("learning_rate") == {3: pytest.approx(1e-3)}


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.")


def test_the_update_goes_on_in_smaller_micro_batches_with_the_same_gradients(
    home: Home, base: Path, straight: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with attempt(home, base, Stage.PPO, *PPO) as one, monkeypatch.context() as patch:
        patch_call(patch, Updater, "_micro_batch", 2, out_of_memory)
        one.train()
    assert "`per_device_train_batch_size: 2` and `gradient_accumulation_steps: 2`" in one.health
    assert "effective batch stays 4" in one.health
    assert_same(one.run, straight, tolerance=1e-5)


@pytest.mark.parametrize("part", ["sample", "policy_outputs"])
def test_sampling_and_scoring_continue_with_smaller_micro_batches(
    part: str, home: Home, base: Path, straight: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with attempt(home, base, Stage.PPO, *PPO) as one, monkeypatch.context() as patch:
        patch_call(patch, rollout, part, 3, lambda: _cpu_is_full())
        one.train()
    assert "`local_rollout_forward_batch_size: 2` on every rank (was 4)" in one.health
    assert_same(one.run, straight, tolerance=1e-5)


def _cpu_is_full() -> None:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to")


def test_there_is_an_end_to_halving(home: Home, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with attempt(home, base, Stage.PPO, *PPO) as one, monkeypatch.context() as patch:
        patch.setattr(Updater, "_micro_batch", lambda *_: out_of_memory())
        with pytest.raises(StageError, match=r"phase update with micro-batches of one response.*base_precision: nf4"):
            one.train()
    assert one.health.count("out of memory in phase update") == 2


class Poison:
    """NaN in what the reward function says, in chosen calls (the first is the evaluation before)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, calls: range) -> None:
        self.calls, self.count = calls, 0
        total = rollout.Rewards.total

        def poisoned(rewards: Any, parts: Any) -> torch.Tensor:
            self.count += 1
            return total(rewards, parts) * (float("nan") if self.count - 1 in self.calls else 1.0)

        monkeypatch.setattr(rollout.Rewards, "total", poisoned)


def test_a_step_that_is_not_finite_is_skipped(home: Home, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Poison(monkeypatch, range(2, 4))
    with attempt(home, base, Stage.PPO, *PPO) as one:
        assert one.train() is not None
    assert one.health.count("skipped: NaN or infinity in 4 scores") == 2
    assert "rolled back" not in one.health
    assert one.metrics("objective/scores")[2] is None  # a NaN is news
    assert one.metrics("ppo/updates") == {1: 2.0, 2: 0.0, 3: 0.0}


def test_bad_steps_in_a_row_lead_back_to_the_checkpoint_with_half_the_learning_rate(
    home: Home, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Poison(monkeypatch, range(3, 5))
    keys = (*PPO, "max_steps=4", "save_steps=2", "max_skipped_steps=2")
    with attempt(home, base, Stage.PPO, *keys) as one:
        assert one.train() is not None
    notice = "rolled back from step 4 to step-000002, rollback 1 of 2: continuing with learning_rate 0.0005 (halved)"
    assert notice in one.health
    assert one.metrics("learning_rate") == {1: 1e-3, 2: 1e-3, 3: 5e-4, 4: 5e-4}
    assert one.metrics("ppo/updates") == {1: 2.0, 2: 2.0, 3: 2.0, 4: 2.0}


def test_there_is_an_end_to_rolling_back(home: Home, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Poison(monkeypatch, range(1, 100))
    cause = r"Step 1: NaN or infinity in 4 scores.*after 2 rollbacks.*learning_rate"
    keys = (*PPO, "max_skipped_steps=1", "max_rollbacks=2")
    with attempt(home, base, Stage.PPO, *keys) as one, pytest.raises(StageError, match=cause):
        one.train()
    assert one.health.count("to the start") == 2
    assert not list(one.run.checkpoints.iterdir())


def interrupt() -> None:
    raise KeyboardInterrupt


def test_the_next_attempt_begins_as_the_one_before_went_on(
    home: Home, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (*PPO, "max_steps=4", "save_steps=2", "max_skipped_steps=2", "max_rollbacks=1")
    with attempt(home, base, Stage.PPO, *keys) as first, monkeypatch.context() as patch:
        patch_call(patch, Updater, "_micro_batch", 2, out_of_memory)
        Poison(patch, range(3, 5))  # steps 3 and 4
        patch_call(patch, trainer.PPO, "step", 5, interrupt)  # before a checkpoint holds what the rollback changed
        with pytest.raises(KeyboardInterrupt):
            first.train()
    with attempt(home, base, Stage.PPO, *keys, of=first.run) as second, monkeypatch.context() as patch:
        Poison(patch, range(100))
        with pytest.raises(StageError, match="after 1 rollbacks"):
            second.train()
    assert (second.recipe.per_device_train_batch_size, second.recipe.gradient_accumulation_steps) == (2, 2)
    assert "continuing with the settings of attempt 1: `per_device_train_batch_size: 2`" in second.health
    assert second.session.restarts.now.learning_rate == 5e-4
    with attempt(home, base, Stage.PPO, *keys, of=first.run) as third:
        third.train()
    assert third.metrics("learning_rate") == {3: 5e-4, 4: 5e-4}


def no_room(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_save_without_room_is_made_when_there_is_some(
    home: Home, base: Path, straight: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with attempt(home, base, Stage.PPO, *PPO, "save_steps=1") as one, monkeypatch.context() as patch:
        patch_call(patch, checkpoint, "seal", 2, no_room)
        one.train()
    assert "step 2 was not saved; retrying when there is room" in one.health
    assert sorted(path.name for path in one.run.checkpoints.iterdir()) == [f"step-{n:06d}" for n in (1, 2, 3)]
    assert_same(one.run, straight)


def test_a_stop_without_room_says_that_it_could_not_save(
    home: Home, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attempt(home, base, Stage.PPO, *PPO) as one, monkeypatch.context() as patch:
        patch.setattr(checkpoint, "seal", no_room)
        requests.write(one.run, "pause")
        patch.setattr("stackllama_engine.train.serving.time.sleep", lambda _: one.run.request("stop"))
        with pytest.raises(StageError, match="step 1 could not be saved; there is no checkpoint before it"):
            one.train()


def test_a_disk_that_fills_up_is_said_once(home: Home, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with attempt(home, base, Stage.PPO, *PPO, "save_steps=1") as one, monkeypatch.context() as patch:
        patch.setattr(pending_writes, "free", lambda _: Free(1000, None))
        one.train()
    assert one.health.count("less than 2 checkpoints") == 1
    assert one.health.count("no room is held back for a last checkpoint") == 1, "neither notice hides the other"


@pytest.fixture
def checkpoint_dir(tmp_path: Path) -> Path:
    """Make a checkpoint of 2 MiB."""
    folder = tmp_path / "checkpoints" / "step-000001"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(2 * MIB))
    return folder


def test_a_shortage_of_room_is_reported_once_until_there_is_enough(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [100 * MIB]
    monkeypatch.setattr(pending_writes, "free", lambda _: Free(free[0], None))
    pending = pending_writes.PendingWrites(RunDir(tmp_path), None)
    notices: list[str | None] = []
    for free[0] in (100 * MIB, MIB, MIB, 100 * MIB, MIB):
        notices.append(pending.shortage(checkpoint_dir))
    shortage = f"the disk has 1.0 MiB free, less than 2 checkpoints of 2.0 MiB: make room under {tmp_path}"
    assert notices == [None, shortage, None, None, shortage]


def test_a_missing_reserve_and_a_shortage_are_reported_independently(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending_writes, "free", lambda _: Free(MIB, None))
    pending = pending_writes.PendingWrites(RunDir(tmp_path), None)
    reserve, shortage = pending.measure(checkpoint_dir), pending.shortage(checkpoint_dir)
    assert reserve is not None and "the steps since a checkpoint may be lost" in reserve
    assert shortage is not None and "less than 2 checkpoints" in shortage
    assert (pending.measure(checkpoint_dir), pending.shortage(checkpoint_dir)) == (None, None)


def test_a_shortage_is_reported_before_the_first_save_of_a_resumed_run(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending_writes, "free", lambda _: Free(MIB, None))
    run, notices = RunDir(tmp_path), list[str]()
    reporter: Any = SimpleNamespace(run=run, disk=pending_writes.PendingWrites(run, None), health=notices.append)

    def no_room() -> None:
        assert len(notices) == 1 and "less than 2 checkpoints" in notices[0], "ahead of the attempt"
        raise OSError(errno.ENOSPC, "No space left on device")

    assert not Saver(reporter).save(2, no_room)
    assert notices[1:] == ["the disk is full: step 2 was not saved; retrying when there is room"]


def score_by_call(monkeypatch: pytest.MonkeyPatch, score: Callable[[int, int], list[float]]) -> None:
    """Let the reward function say what ``score`` does, given the number of the call, from 1, and of responses."""
    calls = itertools.count(1)

    def score_texts(self: Any, texts: Any) -> list[float]:
        return score(next(calls), len(texts))

    monkeypatch.setattr(RewardFunction, "__call__", score_texts)


def test_a_reward_that_fails_for_good_ends_the_run_after_what_was_trained_is_saved(
    home: Home, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sometimes(call: int, count: int) -> list[float]:
        if call == 3:  # evaluation, step 1, step 2
            raise StageError("the service is away")
        return [float("nan") if index == 0 else 1.0 for index in range(count)]  # one abstains

    score_by_call(monkeypatch, sometimes)
    with attempt(home, base, Stage.PPO, *PPO) as one:
        with pytest.raises(StageError, match="the service is away"):
            one.train()
        assert [path.name for path in one.run.checkpoints.iterdir()] == ["step-000001"]
        assert one.metrics("objective/scores")[1] == one.metrics("reward/length")[1] == 1.0
        assert one.metrics("reward/length_abstained")[1] == 0.25


def test_a_reward_that_abstains_from_everything_is_named_and_not_the_precision(
    home: Home, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RewardFunction, "__call__", lambda _, texts: [float("nan")] * len(texts))
    with attempt(home, base, Stage.PPO, *PPO) as one, pytest.raises(StageError) as caught:
        one.train()
    assert "`reward_funcs: toy_rewards:length` abstained from all 4 responses" in str(caught.value)
    assert "bf16" not in str(caught.value) and "reward_model_path" in str(caught.value)


def test_steps_without_scores_are_skipped_and_no_reason_to_roll_back(
    home: Home, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_evaluations(call: int, count: int) -> list[float]:
        return [1.0 if call in (1, 5) else float("nan")] * count

    score_by_call(monkeypatch, only_evaluations)
    with attempt(home, base, Stage.PPO, *PPO) as one:
        assert one.train()
    assert "step 3 skipped: `reward_funcs: toy_rewards:length` abstained from all 4" in one.health
    assert "rolled back" not in one.health


def test_a_comparison_that_fails_costs_nothing_of_the_training(
    home: Home, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def sometimes(self: Any, texts: Any) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 4:  # evaluation, the only step, evaluation, the comparison
            raise StageError("the service is away")
        return [1.0] * len(texts)

    monkeypatch.setattr(RewardFunction, "__call__", sometimes)
    with attempt(home, base, Stage.PPO, *PPO, "max_steps=1", "eval_temperatures=[0]") as one:
        with pytest.raises(StageError, match="the service is away"):
            one.train()
        assert [path.name for path in one.run.checkpoints.iterdir()] == ["step-000001"]


def test_other_held_out_questions_after_a_resume_are_answered_by_the_base_again(home: Home, base: Path) -> None:
    keys = (*PPO, "max_steps=1", "save_steps=1", "eval_temperatures=[0]")
    with attempt(home, base, Stage.PPO, *keys, "max_eval_samples=2") as first:
        first.train()
    more = (*PPO, "max_steps=2", "eval_temperatures=[0]", "max_eval_samples=3")
    with attempt(home, base, Stage.PPO, *more, of=first.run) as second:
        facts = second.train()
    assert facts is not None and facts["before"]["questions"] == facts["after"]["questions"] == 3
    assert "other held-out prompts" in second.health
    table = {row["name"]: row for row in facts["comparison"]}
    assert table["base, T = 1"]["kl"] == pytest.approx(0, abs=1e-5)
