"""PPO learns as well as TRL 1.12.0's, from the same base, reward model, prompts and settings.

TRL's side was recorded (``record_trl.py``); ours runs here, through the real command, for the same seeds. Both are
evaluated by the same function, question by question, at the training temperature and below it, down to greedy.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from stackllama_engine.contract.run_dir import Home
from stackllama_engine.train import models

from . import parts
from .evaluate import METRICS, evaluate
from .record_trl import EVALUATION_SEED, HERE
from .training import train

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

SCORE, KL, UTILITY = range(len(METRICS))
LAST = 10
"""The training objective is averaged over this many last batches."""
SHARE = 0.15
"""Share of TRL's gain that may be missing."""
RECORDED: dict[str, Any] = json.loads((HERE / "trl.json").read_text(encoding="utf-8"))
TRL: dict[str, Tensor] = {name: value.float() for name, value in load_file(HERE / "trl.safetensors").items()}
KL_COEF = float(parts.settings()["kl_coef"])


class Compared(NamedTuple):
    """Our mean and TRL's, and the standard error of their difference."""

    ours: float
    theirs: float
    error: float


def compared(ours: Tensor, theirs: Tensor) -> Compared:
    """Compare values ``[seeds, questions]`` of two sides: paired by question, with the spread over seeds added."""
    difference = (ours - theirs).mean(0)  # [questions]
    by_question = float(difference.var(correction=1)) / len(difference)
    by_seed = sum(float(side.mean(1).var(correction=1)) / len(side) for side in (ours, theirs))
    return Compared(float(ours.mean()), float(theirs.mean()), math.sqrt(by_question + by_seed))


def check(what: str, found: Compared, gain: float, *, lower_is_better: bool = False) -> None:
    """Require that ours is better, or worse by at most two standard errors and 15 % of TRL's gain."""
    behind = (found.ours - found.theirs) * (1 if lower_is_better else -1)
    print(f"{what}: ours {found.ours:.3f}, TRL {found.theirs:.3f}, ± {found.error:.3f}")
    assert behind <= min(2 * found.error, SHARE * abs(gain)), (what, found, gain)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> parts.Parts:
    return parts.make(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def runs(made: parts.Parts, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Train the recorded seeds; return the run directories."""
    home = Home(tmp_path_factory.mktemp("home"))
    return [run.path for run in train(made, home, RECORDED["seeds"], logging_steps=1, max_eval_samples=8)]


@pytest.fixture(scope="module")
def ours(made: parts.Parts, runs: list[Path]) -> Tensor:
    """Evaluate our policies: ``[seeds, temperatures, 3, questions]``, as TRL's."""
    tokenizer = models.load_tokenizer(str(made.base))
    base = AutoModelForCausalLM.from_pretrained(made.base, dtype=torch.float32).eval()
    reward_model = AutoModelForSequenceClassification.from_pretrained(made.classifier, dtype=torch.float32).eval()
    keys = parts.settings()
    how: dict[str, Any] = {
        "length": keys["response_length"],
        "penalty": keys["missing_eos_penalty"],
        "seed": EVALUATION_SEED,
    }
    found: list[Tensor] = []
    for path in runs:
        fresh = AutoModelForCausalLM.from_pretrained(made.base, dtype=torch.float32)
        policy = PeftModel.from_pretrained(fresh, path / "adapter").eval()
        columns = [
            evaluate(policy, base, reward_model, tokenizer, temperature=t, **how) for t in RECORDED["temperatures"]
        ]
        found.append(torch.stack(columns))
    return torch.stack(found)


def test_the_recording_is_of_todays_demo() -> None:
    message = "data, base, reward model or recipe changed: record TRL again (tests/outcomes/record_trl.py)"
    assert RECORDED["fingerprint"] == parts.fingerprint(), message


def test_trls_gain_on_the_demo_exceeds_its_error(made: parts.Parts) -> None:
    """TRL's gain is far above its error, and leaves room above it."""
    gain = TRL["trl"][:, 0, SCORE] - TRL["base"][0, SCORE]  # [seeds, questions]
    by_question = gain.mean(0)
    error = math.sqrt(float(by_question.var()) / len(by_question) + float(gain.mean(1).var()) / len(gain))
    assert float(gain.mean()) >= 5 * error
    assert float(TRL["trl"][:, :, UTILITY].mean((0, 2)).max()) < 0.9  # the best there is: 1


def test_the_objective_in_training_is_trls(runs: list[Path]) -> None:
    """Penalised score − coefficient × KL, of the last ten batches."""
    mine, theirs, first = [], [], []
    for path, seed in zip(runs, RECORDED["seeds"], strict=True):
        lines = (path / "attempts" / "001" / "events.jsonl").read_text(encoding="utf-8").splitlines()
        metrics = [event["metrics"] for event in map(json.loads, lines) if event["kind"] == "metrics"]
        values = [row["objective/rlhf_reward"] for row in metrics if "objective/rlhf_reward" in row]
        curve = [row["objective/rlhf_reward"] for row in RECORDED["curves"][str(seed)]]
        assert len(values) == len(curve)
        mine.append(values[-LAST:])
        theirs.append(curve[-LAST:])
        first.append(curve[0])
    found = compared(torch.tensor(mine), torch.tensor(theirs))
    check("objective", found, found.theirs - sum(first) / len(first))


def objective(side: Tensor) -> Tensor:
    """Compute score − KL coefficient × KL at the training temperature, ``[seeds, questions]``."""
    return side[..., 0, SCORE, :] - KL_COEF * side[..., 0, KL, :]


def test_held_out_outcomes_are_trls(ours: Tensor) -> None:
    """At the training temperature: score, KL, utility, and what PPO optimises."""
    theirs, base = TRL["trl"], TRL["base"]  # [seeds, temperatures, 3, questions], [temperatures, 3, questions]
    for metric in (SCORE, KL, UTILITY):
        found = compared(ours[:, 0, metric], theirs[:, 0, metric])
        gain = found.theirs - float(base[0, metric].mean())
        check(f"{METRICS[metric]} at T = 1", found, gain, lower_is_better=metric == KL)
    found = compared(objective(ours), objective(theirs))
    check("objective at T = 1", found, found.theirs - float(objective(base).mean()))


def test_held_out_outcomes_are_trls_over_a_sweep_of_temperatures(ours: Tensor) -> None:
    """Compare the whole sweep, greedy included, at once, so that no single temperature fails by chance.

    Each temperature by itself only has to keep its share of the gain.
    """
    theirs, base = TRL["trl"], TRL["base"]
    for metric in (SCORE, UTILITY):
        found = compared(ours[:, :, metric].mean(1), theirs[:, :, metric].mean(1))
        check(f"{METRICS[metric]} over the sweep", found, found.theirs - float(base[:, metric].mean()))
        for index, temperature in enumerate(RECORDED["temperatures"]):
            one = compared(ours[:, index, metric], theirs[:, index, metric])
            print(f"{METRICS[metric]} at T = {temperature:g}: ours {one.ours:.3f}, TRL {one.theirs:.3f}")
            assert one.theirs - one.ours <= SHARE * (one.theirs - float(base[index, metric].mean()))
