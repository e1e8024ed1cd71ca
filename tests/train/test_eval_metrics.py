"""Evaluation metrics over all tokens and pairs, whatever the batches."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.trainer_utils import EvalLoopOutput

from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train.eval_metrics import TokenWeighted

from .in_process import attempt
from .toy import REWARD, SFT


class Base:
    """As much of a Trainer as an evaluation takes: it knows the mean of each batch."""

    accelerator = SimpleNamespace(gather_for_metrics=lambda rows: rows)

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs

    def compute_loss_context_manager(self) -> Any:
        return torch.autocast("cpu", enabled=False)

    def evaluation_loop(self, metric_key_prefix: str) -> EvalLoopOutput:
        losses = [self.prediction_step(model, batch, True)[0] for batch in self.batches]  # type: ignore[attr-defined]
        metrics = {f"{metric_key_prefix}_loss": float(sum(losses) / len(losses))}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=2)  # type: ignore[arg-type]


class Trainer(TokenWeighted, Base):
    """The mixin on it."""


def model(*, nll: list[list[float]], mask: list[list[int]], **_: Any) -> Any:
    losses, valid = torch.tensor(nll), torch.tensor(mask)
    return SimpleNamespace(
        log_probs=-losses * valid, label_mask=valid, entropy=valid * 0.5, is_top1=valid * (losses < 2)
    )


def test_every_token_weighs_the_same() -> None:
    rows = [
        {"nll": [[1.0, 1.0, 1.0, 1.0]], "mask": [[1, 1, 1, 1]]},
        {"nll": [[5.0, 9.0, 9.0, 9.0]], "mask": [[1, 0, 0, 0]]},
    ]
    together = [{"nll": rows[0]["nll"] + rows[1]["nll"], "mask": rows[0]["mask"] + rows[1]["mask"]}]
    expected = {"eval_loss": 9 / 5, "eval_entropy": 0.5, "eval_mean_token_accuracy": 4 / 5}  # the mean of means is 3
    for batches in (rows, together):
        assert Trainer(batches).evaluation_loop(metric_key_prefix="eval").metrics == pytest.approx(expected)


@pytest.mark.long
def test_the_loss_does_not_depend_on_the_batches(base: Path, shared_home: Home, tmp_path: Path) -> None:
    """Through the stages, on texts of very different lengths, in the scheduled evaluation and in the last one."""
    lines = [
        f'{{"question": "How {n}?", "response_j": "{"take a hammer " * n}", "response_k": "{"no " * (7 - n)}"}}\n'
        for n in range(1, 7)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    keys = (
        f"dataset_name={tmp_path / 'rows.jsonl'}",
        "dataset_train_split=all",
        "dataset_test_split=all",
        "max_steps=2",
        "save_steps=0",
        "eval_steps=1",
        "max_length=128",
        "dtype=float32",
        "max_eval_samples=5",
    )
    for stage, common in ((Stage.SFT, SFT), (Stage.REWARD, REWARD)):
        found: list[Any] = []
        for size in (1, 4):
            with attempt(shared_home, base, stage, *common, *keys, f"per_device_eval_batch_size={size}") as one:
                one.train()
                found.append(list(one.metrics("eval_loss").values()))
        assert len(found[0]) == 2 and found[0] == pytest.approx(found[1], rel=1e-5)
