"""SFT and reward in the face of stops inside an evaluation, pauses, NaN, full memory and a full disk."""

import errno
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from stackllama_engine.contract import requests
from stackllama_engine.contract.errors import StageError
from stackllama_engine.contract.requests import Change
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import checkpoint, guard
from stackllama_engine.train.__main__ import _begin_again
from stackllama_engine.train.restart import Restart, Restarts
from stackllama_engine.train.run_callback import RunCallback

from .in_process import at_call, attempt
from .toy import COMMON

pytestmark = pytest.mark.slow

SFT = (
    *COMMON,
    "max_train_samples=16",
    "max_eval_samples=8",
    "warmup_steps=0",
    "max_steps=4",
    "max_length=64",
    "eval_steps=2",
    "save_steps=0",
    "per_device_train_batch_size=2",
    "gradient_accumulation_steps=1",
    "packing=false",
    "lora_dropout=0.1",
    "gradient_checkpointing=false",
)


class Again(BaseException):
    """In place of a fresh process."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    def execute() -> None:
        raise Again

    monkeypatch.setattr("stackllama_engine.train.restart._execute", execute)
    return Home(tmp_path / "home")


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


def test_a_stop_inside_an_evaluation_saves_and_leaves_and_the_evaluation_is_made_again(
    home: Home, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attempt(home, base, Stage.SFT, *SFT) as straight:
        straight.train()
    with attempt(home, base, Stage.SFT, *SFT) as first, monkeypatch.context() as patch:
        check_stop = at_call(1, lambda: first.run.request("stop"), RunCallback.check_stop)
        patch.setattr(RunCallback, "check_stop", check_stop)
        assert first.train() is None
    assert first.served == [{"request": "stop"}] and not first.metrics("eval_loss")
    path, _ = checkpoint.newest(first.run.checkpoints)
    assert path and checkpoint.step_of(path) == 2
    requests.forget_all(first.run)
    with attempt(home, base, Stage.SFT, *SFT, of=first.run) as second:
        assert second.train() is not None
    assert first.metrics("loss") | second.metrics("loss") == straight.metrics("loss")
    assert second.metrics("eval_loss") == straight.metrics("eval_loss")
    for name, tensor in weights(straight.run).items():
        assert torch.equal(weights(second.run)[name], tensor), name


def test_a_pause_serves_samples_a_change_and_a_save(home: Home, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[Any] = [("sample",), ("set", Change("learning_rate", 4e-3)), ("save",), ("continue",)]
    with attempt(home, base, Stage.SFT, *SFT, "lr_scheduler_type=linear") as one:
        requests.write(one.run, "pause")
        sleep = lambda _: requests.write(one.run, *turns.pop(0)) if turns else None  # noqa: E731
        monkeypatch.setattr("stackllama_engine.train.serving.time.sleep", sleep)
        one.train()
    assert [data["request"] for data in one.served] == ["pause", "sample", "set", "save", "continue"]
    assert one.metrics("learning_rate")[2] == pytest.approx(3e-3)  # three quarters of the new peak
    assert [path.name for path in one.run.checkpoints.iterdir()] == ["step-000001"]
    rows = [json.loads(line) for line in one.run.samples_file.read_text().splitlines()]
    assert len(rows) == 4 and {row["when"] for row in rows} == {"asked"} and all(row["length"] for row in rows)


def poison(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    """NaN in the gradients of chosen steps."""
    norm, calls = guard.Guarded._get_grad_norm, iter(range(1, 1000))

    def poisoned(trainer: Any, model: Any, grad_norm: Any = None) -> Any:
        if next(calls) in steps:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(float("nan"))
            grad_norm = torch.tensor(float("nan"))
        return norm(trainer, model, grad_norm)

    monkeypatch.setattr(guard.Guarded, "_get_grad_norm", poisoned)


def test_a_step_that_is_not_finite_is_skipped(home: Home, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, range(2, 4))
    with attempt(home, base, Stage.SFT, *SFT) as one:
        assert one.train() is not None
    assert "step 2 skipped: `grad_norm` is nan" in one.health and "step 3 skipped" in one.health
    assert one.metrics("grad_norm")[2] is None
    assert all(torch.isfinite(tensor).all() for tensor in weights(one.run).values())


def test_bad_steps_in_a_row_lead_back_with_half_the_learning_rate_until_there_is_an_end(
    home: Home, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (
        *SFT,
        "max_steps=6",
        "save_steps=2",
        "eval_steps=0",
        "max_skipped_steps=2",
        "max_rollbacks=1",
        "lr_scheduler_type=constant",
    )
    with attempt(home, base, Stage.SFT, *keys) as first, monkeypatch.context() as patch:
        poison(patch, range(3, 5))
        with pytest.raises(Again):
            first.train()
    asked = Restarts(first.run, 1, first.session.requests.signals).now
    assert (asked.count, asked.at_step, asked.learning_rate, asked.rollbacks) == (1, 2, 5e-4, 1)
    assert "rolled back from step 4 to step-000002" in asked.message
    later = Restarts(first.run, 2, first.session.requests.signals).now
    assert (later.count, later.at_step, later.learning_rate, later.rollbacks) == (0, 2, 5e-4, 1)
    with attempt(home, base, Stage.SFT, *keys, of=first.run) as second, monkeypatch.context() as patch:
        second.session.restarts.now = asked  # as the same attempt's fresh process reads it
        poison(patch, range(2, 4))
        with pytest.raises(StageError, match=r"Step 5: .*after 1 rollbacks.*learning_rate"):
            second.train()
    assert second.metrics("learning_rate")[3] == 5e-4 and asked.message in second.health


def test_smaller_batches_are_asked_of_every_rank_and_have_an_end(home: Home, base: Path) -> None:
    full = torch.OutOfMemoryError("CUDA out of memory")
    with attempt(home, base, Stage.SFT, *SFT, "gradient_accumulation_steps=3") as one:
        restarts = one.session.restarts
        one.session.reporter.phase("train")
        with pytest.raises(Again):
            _begin_again(full, one.recipe, one.session)
        asked = Restarts(one.run, 1, one.session.requests.signals).now
        assert (asked.per_device_train_batch_size, asked.gradient_accumulation_steps) == (1, 6)
        assert "out of GPU memory on rank 0 in phase train" in asked.message and "batch stays 6" in asked.message
        restarts.now = asked
        smaller = asked.applied(one.recipe)
        _begin_again(full, smaller, one.session)  # nothing left to halve: the failure stands
        one.session.reporter.phase("evaluate")
        with pytest.raises(Again):
            _begin_again(full, smaller, one.session)
        assert Restarts(one.run, 1, one.session.requests.signals).now.per_device_eval_batch_size == 2
        next_attempt = Restarts(one.run, 3, one.session.requests.signals).now  # of a run whose second one never began
        assert next_attempt.count == 0 and "continuing with the settings of attempt 1" in next_attempt.message
        assert next_attempt.applied(one.recipe) == msgspec.structs.replace(smaller, per_device_eval_batch_size=2)


def test_smaller_batches_train_the_same(home: Home, base: Path) -> None:
    keys = (*SFT, "lora_dropout=0", "eval_steps=0")
    with attempt(home, base, Stage.SFT, *keys) as whole:
        whole.train()
    with attempt(home, base, Stage.SFT, *keys) as halved:
        small = Restart(count=1, per_device_train_batch_size=1, gradient_accumulation_steps=2)
        halved.recipe = small.applied(halved.recipe)
        halved.train()
    for name, tensor in weights(whole.run).items():
        torch.testing.assert_close(weights(halved.run)[name], tensor, atol=1e-5, rtol=0)


def test_a_save_without_room_is_made_when_there_is_some(
    home: Home, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with attempt(home, base, Stage.SFT, *SFT, "save_steps=1", "eval_steps=0") as one, monkeypatch.context() as patch:
        patch.setattr("transformers.Trainer._save_rng_state", at_call(2, no_room, Trainer._save_rng_state))
        one.train()
    assert "step 2 was not saved; retrying when there is room" in one.health
    assert sorted(path.name for path in one.run.checkpoints.iterdir()) == [f"step-{n:06d}" for n in (2, 3, 4)]
