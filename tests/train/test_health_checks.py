"""Health rules in a PPO run: findings are events, `pause_on` stops it, and a resumed run does not repeat them."""

from pathlib import Path

import pytest

from stackllama_engine.contract.health import finding_of
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import checkpoint

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
