"""A stage resumed with another recipe does what its notice says, and refuses what its weights were not made for."""

import json
from pathlib import Path

import pytest
import yaml
from tests.old_runs import lay_out

from stackllama_engine.contract.errors import StageError
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage

from .in_process import attempt
from .toy import SFT

pytestmark = pytest.mark.slow

FEW = (*SFT, "save_steps=1", "max_train_samples=16", "max_eval_samples=1", "lr_scheduler_type=constant")


def test_the_rate_stays_the_steps_are_applied_and_both_are_said(base: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with attempt(home, base, Stage.SFT, *FEW, "max_steps=1") as first:
        assert first.train() is not None
    saved = first.run.checkpoints / "step-000001"
    assert {"recipe.yaml", "base.json"} <= set(json.loads((saved / "manifest.json").read_text())["files"])
    changed = ("max_steps=3", "save_steps=3", "learning_rate=0.5")
    with attempt(home, base, Stage.SFT, *FEW, *changed, of=first.run) as second:
        facts = second.train()
    assert facts is not None and facts["steps"] == 3
    assert "applied from now on: " in second.health
    assert "`max_steps` 1 → 3" in second.health and "`save_steps` 1 → 3" in second.health
    assert sorted(path.name for path in first.run.checkpoints.iterdir()) == ["step-000001", "step-000003"]
    assert "kept from the checkpoint: `learning_rate` stays 0.001, not 0.5" in second.health
    assert second.metrics("learning_rate")[2] == pytest.approx(1e-3)


@pytest.mark.parametrize(("name", "step"), [("sft-stopped", 2), ("ppo-stopped", 1)])
def test_another_rank_is_refused_with_an_older_checkpoint_too(tmp_path: Path, name: str, step: int) -> None:
    home = Home(lay_out(tmp_path))
    run = home.run(name)
    keys = [f"{key}={json.dumps(value)}" for key, value in yaml.safe_load(run.recipe_file.read_text()).items()]
    refused = rf"since step-00000{step} was saved.*`lora_r` 2 → 4"
    with (
        attempt(home, tmp_path / "base", run.read_state().stage, *keys, "lora_r=4", of=run) as one,
        pytest.raises(StageError, match=refused),
    ):
        one.train()
