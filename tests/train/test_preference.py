"""The preference stage: TRL's loss with the base as its reference, its evaluation, resuming."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import log_softmax, logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer

from stackllama_engine.contract.errors import RecipeError
from stackllama_engine.contract.events import EventReader
from stackllama_engine.contract.metrics import metrics_of
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.data import demo_data

from .in_process import attempt, finish
from .toy import COMMON, run_stage

KEYS = (*COMMON, "warmup_steps=0", "max_steps=4", "save_steps=2", "max_length=128", "beta=0.3")
BETA = 0.3
HELD_OUT = ("eval_loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


@pytest.mark.slow
def test_it_trains_through_the_real_command(shared_home: Home, base: Path) -> None:
    run = run_stage(shared_home, Stage.PREFERENCE, f"model_name_or_path={base}", *KEYS, "eval_steps=2")
    result = run.read_json("result.json")
    assert result["loss_first"] == pytest.approx(math.log(2), abs=1e-6)  # the policy begins as its reference
    assert result["loss_last"] < result["loss_first"] and result["rewards/accuracies"] > 0.5
    assert any(tensor.abs().sum() > 0 for name, tensor in weights(run).items() if "lora_B" in name)
    described = {metric.name for metric in metrics_of(Stage.PREFERENCE)}
    written = list(EventReader(run.attempt_dir(1) / "events.jsonl").read())
    assert "tokenizing" in [event.data["doing"] for event in written if event.kind == "activity"]
    events = [event for event in written if event.kind == "metrics"]
    assert not {name for event in events for name in event.metrics} - described


@pytest.mark.slow
def test_held_out_metrics_are_those_of_plain_transformers_whatever_the_batches(tmp_path: Path, base: Path) -> None:
    run, facts = finish(Home(tmp_path / "home"), base, Stage.PREFERENCE, *KEYS, "per_device_eval_batch_size=3")
    _, others = finish(Home(tmp_path / "other"), base, Stage.PREFERENCE, *KEYS, "per_device_eval_batch_size=8")
    assert [facts[name] for name in HELD_OUT] == pytest.approx([others[name] for name in HELD_OUT], abs=1e-5)

    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    reference: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    policy: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), run.adapter
    )

    def log_probability(model: Any, prompt: list[int], response: list[int]) -> float:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double()
        return float(log_softmax(logits, dim=-1)[range(len(response)), response].sum())

    rewards: list[list[float]] = []
    for row in itertools.islice(demo_data.generate("evaluation"), 8):
        prompt = tokenizer(f"Question: {row['question']}\n\nAnswer: ", add_special_tokens=False)["input_ids"]
        both: list[float] = []
        for column in ("response_j", "response_k"):
            response = tokenizer(row[column], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            change = log_probability(policy, prompt, response) - log_probability(reference, prompt, response)
            both.append(BETA * change)
        rewards.append(both)
    chosen, rejected = torch.tensor(rewards).T
    margins = chosen - rejected
    by_hand = {
        "eval_loss": -logsigmoid(margins).mean(),
        "rewards/accuracies": (margins > 0).float().mean(),
        "rewards/margins": margins.mean(),
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
    }
    assert {name: facts[name] for name in by_hand} == pytest.approx({k: float(v) for k, v in by_hand.items()}, abs=1e-4)


@pytest.mark.slow
def test_resumed_is_uninterrupted_to_the_bit(tmp_path: Path, base: Path) -> None:
    keys = (*KEYS, "lr_scheduler_type=constant")
    whole, _ = finish(Home(tmp_path / "whole"), base, Stage.PREFERENCE, *keys)
    home = Home(tmp_path / "parts")
    with attempt(home, base, Stage.PREFERENCE, *keys, "max_steps=2") as first:
        assert first.train() is not None
    with attempt(home, base, Stage.PREFERENCE, *keys, of=first.run) as second:
        assert second.train() is not None
    assert weights(whole).keys() == weights(first.run).keys()
    assert all(torch.equal(tensor, weights(first.run)[name]) for name, tensor in weights(whole).items())


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_train_as_one(shared_home: Home, base: Path) -> None:
    keys = (f"model_name_or_path={base}", *KEYS, "max_eval_samples=7", "per_device_eval_batch_size=2")
    one = run_stage(shared_home, Stage.PREFERENCE, *keys, "per_device_train_batch_size=4")
    two = run_stage(shared_home, Stage.PREFERENCE, *keys, "per_device_train_batch_size=2", "num_processes=2")
    alone, together = (run.read_json("result.json") for run in (one, two))
    assert alone["pairs"] == together["pairs"] == 7
    assert [alone[name] for name in HELD_OUT] == pytest.approx([together[name] for name in HELD_OUT], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("losses", ["ipo", "[sigmoid, sft]", "apo_zero"])
def test_other_losses_of_trl(tmp_path: Path, base: Path, losses: str) -> None:
    _, facts = finish(Home(tmp_path), base, Stage.PREFERENCE, *KEYS, "max_steps=1", f"loss_type={losses}")
    assert facts["steps"] == 1 and math.isfinite(facts["loss_last"])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"use_peft": False}, "its reference is the base without the adapter"),
        ({"lora_dropout": 0.1}, "set `lora_dropout: 0`"),
        ({"loss_type": ["ipo", "ipo"]}, "names a loss twice"),
        ({"loss_type": "exo_pair"}, "needs `label_smoothing` above 0"),
        ({"loss_weights": [1, 2]}, "2 entries for 1 losses"),
        ({"loss_weights": [-1]}, "finite, not negative, and not all 0"),
        ({"loss_weights": [0]}, "not all 0"),
        ({"loss_weights": [float("nan")]}, "weights are finite"),
        ({"loss_weights": [float("inf")]}, "weights are finite"),
        ({"label_smoothing": 0.1}, "is of no effect with `loss_type: sigmoid`"),
        ({"loss_type": "dpo"}, "loss_type"),
    ],
)
def test_keys_that_do_not_belong_together_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        build_recipe(Stage.PREFERENCE, {"model_name_or_path": "m"} | keys)
