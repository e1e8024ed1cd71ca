"""Health rules in a PPO run: findings are events, `pause_on` stops it, and a resumed run does not repeat them."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from stackllama_engine.contract.events import EventReader
from stackllama_engine.contract.health import Finding, finding_of
from stackllama_engine.contract.recipe import PPORecipe
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import checkpoint
from stackllama_engine.train.ppo.health_checks import HealthChecks
from stackllama_engine.train.reporting import Reporter
from stackllama_engine.train.session import Session

from .in_process import PPO, Attempt, attempt

pytestmark = pytest.mark.slow

RATES = ("learning_rate=1e-12", "max_steps=12", "logging_steps=5", "lr_scheduler_type=constant")


def found(one: Attempt) -> list[tuple[str, int, bool]]:
    findings = [finding_of(event.data) for event in one.events if event.kind == "health"]
    return [(finding.rule, finding.step, finding.cleared) for finding in findings if finding]


def test_pause_on_saves_and_stops_and_a_resumed_run_goes_on(tmp_path: Path, base: Path) -> None:
    keys = (*PPO, *RATES, "pause_on=[policy_frozen]")
    home = Home(tmp_path / "home")
    with attempt(home, base, Stage.PPO, *keys) as first:
        assert first.train() is None  # stopped as if somebody had asked for it
    assert found(first) == [("policy_frozen", 10, False)]
    cause = first.session.reporter.stop_cause or ""
    assert cause.startswith("`pause_on` stopped the run after step 10: policy_frozen, step 10: 10 updates changed")
    saved, _ = checkpoint.newest(first.run.checkpoints)
    assert saved and checkpoint.step_of(saved) == 10
    with attempt(home, base, Stage.PPO, *keys, of=first.run) as second:
        assert second.train() is not None
    assert found(second) == []


@pytest.mark.parametrize(("step", "cleared"), [(0, ["kl_high", "no_end"]), (10, ["no_end"]), (30, [])])
def test_what_was_found_in_steps_that_are_made_again_is_cleared(tmp_path: Path, step: int, cleared: list[str]) -> None:
    run = Home(tmp_path).create(Stage.PPO, "")
    run.attempt_dir(1).mkdir()
    before = Reporter(run, 1, is_main=True)
    for rule, at, is_cleared in (("kl_high", 5, False), ("no_end", 20, False), ("ratio_off", 7, False)):
        before.finding(Finding(rule=rule, step=at, seen="it", cleared=is_cleared))
    before.finding(Finding(rule="ratio_off", step=9, seen="it", cleared=True))
    before.end(0)
    run.attempt_dir(2).mkdir()
    after = Reporter(run, 2, is_main=True)
    recipe = PPORecipe(model_name_or_path="m", reward_model_path="r")
    session = SimpleNamespace(is_main=True, run=run, reporter=after, requests=None)
    HealthChecks(recipe, cast("Session", session)).resume(step)
    after.end(0)
    events = EventReader(run.attempt_dir(2) / "events.jsonl").read()
    findings = [finding for event in events if (finding := finding_of(event.data))]
    assert [(finding.rule, finding.cleared) for finding in findings] == [(rule, True) for rule in cleared]
