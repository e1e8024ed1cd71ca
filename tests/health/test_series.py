"""Health rules on recorded runs of the demo: nothing on healthy ones, the right finding early on broken ones.

Thresholds were fixed on seeds below 5 and are shown on the others. ``scripts/health_series.py`` records the runs.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from stackllama_engine.contract.base import DEMO_BASE
from stackllama_engine.contract.health import Finding
from stackllama_engine.contract.recipe import PipelineRecipe, PPORecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.health.watch import HealthWatch
from stackllama_engine.health.window import Known

SERIES = sorted((Path(__file__).parent / "series").glob("*.json"))
DEMO = DEMO_BASE / "demo.yaml"
RIGHT = {
    "over_optimised": {"kl_high"},
    "constant_reward": {"scores_alike"},
    "length_reward": {"reward_by_length", "no_end"},
    "headless_reward": {"scores_alike"},
    "wrong_template": {"entropy_high"},
    "frozen": {"policy_frozen"},
}
"""Case → rules of which one must find it."""
WITHIN = 20
"""Steps until the finding."""


def findings(series: dict[str, Any]) -> list[Finding]:
    pipeline = load_recipe(Stage.PIPELINE, DEMO)
    assert isinstance(pipeline, PipelineRecipe)
    demo = [f"{key}={json.dumps(value)}" for key, value in pipeline.ppo.items()]
    words = ["model_name_or_path=demo", "reward_model_path=demo", *demo, *series["keys"]]
    recipe = load_recipe(Stage.PPO, None, words)
    assert isinstance(recipe, PPORecipe)
    health = HealthWatch(recipe, Known(base_loss=series["base_loss"], score_std=series["score_std"]))
    rows = zip(*series["metrics"].values(), strict=True)
    return [
        finding
        for step, row in zip(series["steps"], rows, strict=True)
        for finding in health.observe(step, dict(zip(series["metrics"], row, strict=True)))
    ]


@pytest.mark.parametrize("file", SERIES, ids=lambda file: file.stem)
def test_recorded_run_has_the_right_finding_and_a_healthy_one_has_none(file: Path) -> None:
    series = json.loads(file.read_text(encoding="utf-8"))
    found = [finding for finding in findings(series) if not finding.cleared]
    if series["case"] == "healthy":
        assert found == []
    else:
        assert any(each.rule in RIGHT[series["case"]] and each.step <= WITHIN for each in found), found
