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
from stackllama_engine.health.watch import Active, WatchState
from stackllama_engine.health.window import WindowState
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


def reported(
    tmp_path: Path, before: list[tuple[str, int, bool]], step: int, state: WatchState | None = None
) -> list[tuple[str, int, bool]]:
    """Return what a second attempt reports as it resumes, of a run with these findings."""
    run = Home(tmp_path).create(Stage.PPO, "")
    run.attempt_dir(1).mkdir()
    first = Reporter(run, 1, is_main=True)
    for rule, at, is_cleared in before:
        first.finding(Finding(rule=rule, step=at, seen="it", cleared=is_cleared))
    first.end(0)
    run.attempt_dir(2).mkdir()
    second = Reporter(run, 2, is_main=True)
    recipe = PPORecipe(model_name_or_path="m", reward_model_path="r")
    session = SimpleNamespace(is_main=True, run=run, reporter=second, requests=None)
    checks = HealthChecks(recipe, cast("Session", session))
    checks.resume(step, state)
    assert state is None or checks.state == state
    second.end(0)
    events = EventReader(run.attempt_dir(2) / "events.jsonl").read()
    findings = [finding for event in events if (finding := finding_of(event.data))]
    return [(finding.rule, finding.step, finding.cleared) for finding in findings]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, [("kl_high", 0, True), ("no_end", 0, True)]),
        (8, [("no_end", 8, True), ("ratio_off", 7, False)]),  # whose clearing is undone
        (10, [("no_end", 10, True)]),
        (30, []),
    ],
)
def test_findings_and_clearings_of_steps_that_are_made_again_are_taken_back(
    tmp_path: Path, step: int, expected: list[tuple[str, int, bool]]
) -> None:
    before = [("kl_high", 5, False), ("no_end", 20, False), ("ratio_off", 7, False), ("ratio_off", 9, True)]
    assert reported(tmp_path, before, step) == expected


def test_a_checkpoint_says_which_findings_are_active_of_another_run_too(tmp_path: Path) -> None:
    active = {rule: Active(Finding(rule=rule, step=5, seen="it"), quiet=3) for rule in ("kl_high", "ratio_off")}
    state = WatchState(window=WindowState(newest=[(8, {"objective/kl": 1.0})]), active=active)
    assert reported(tmp_path, [("kl_high", 5, False), ("no_end", 12, False)], 8, state) == [
        ("no_end", 8, True),
        ("ratio_off", 5, False),
    ]
