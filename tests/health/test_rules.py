"""Each health rule on series written by hand: what it finds, what it says, and what is nearly the same and healthy."""

from typing import Any

import msgspec
import pytest

from stackllama_engine.contract.health import Finding, Rule, as_data, finding_of
from stackllama_engine.contract.recipe import PPORecipe
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.health.ppo_rules import Seen
from stackllama_engine.health.rules import RULES, HealthRule
from stackllama_engine.health.watch import CLEAR, HealthWatch, WatchState
from stackllama_engine.health.window import Known, Window

STEPS = 30
HEALTHY: dict[str, float] = {
    "objective/scores": 1.0,
    "objective/scores_std": 1.0,
    "objective/kl": 2.0,
    "objective/kl_coef": 0.1,
    "response_length": 20.0,
    "val/num_tokens": 640.0,
    "val/num_eos_tokens": 30.0,  # of 32
    "val/length_correlation": 0.2,
    "val/repetition": 0.02,
    "val/scores_outside_range": 0.01,
    "val/ratio": 1.0,
    "val/var_explained": 0.5,
    "policy/clipfrac_avg": 0.1,
    "policy/approxkl_avg": 0.01,
    "policy/entropy_avg": 1.0,
    "reward/model": 1.0,
    "loss/value_avg": 0.5,
    "learning_rate": 1e-5,
    "ppo/updates": 4.0,
    "ppo/skipped_updates": 0.0,
}


def recipe(**keys: Any) -> PPORecipe:
    made = build_recipe(Stage.PPO, {"model_name_or_path": "demo", "reward_model_path": "demo", **keys})
    assert isinstance(made, PPORecipe)
    return made


def watch(late: dict[str, float], keys: dict[str, Any] | None = None, early: int = 10) -> list[Finding]:
    """Return the findings of a run that is healthy for ``early`` steps, then has other metrics."""
    health = HealthWatch(recipe(**(keys or {})))
    steps = [HEALTHY if step < early else HEALTHY | late for step in range(STEPS)]
    return [finding for step, metrics in enumerate(steps, 1) for finding in health.observe(step, metrics)]


def test_a_healthy_run_has_no_finding() -> None:
    assert watch({}) == []


def test_an_estimator_without_a_critic_has_no_finding() -> None:
    health = HealthWatch(recipe())
    for step in range(1, STEPS):
        metrics = {
            name: value for name, value in HEALTHY.items() if name not in ("loss/value_avg", "val/var_explained")
        }
        assert health.observe(step, metrics) == []


FOUND: list[tuple[Rule, dict[str, float], dict[str, Any], dict[str, str]]] = [
    ("kl_negative", {"objective/kl": -0.4}, {}, {}),
    ("kl_high", {"objective/kl": 13.0}, {}, {"kl_coef": "0.2"}),
    ("kl_high", {"objective/kl": 11.0}, {"adap_kl_ctrl": False}, {"kl_coef": "0.2"}),  # 0.55 per token
    ("ratio_off", {"val/ratio": 1.3}, {}, {"learning_rate": "1.5e-05"}),
    ("clipping_high", {"policy/clipfrac_avg": 0.5}, {}, {"learning_rate": "1.5e-05"}),
    ("policy_frozen", {"policy/approxkl_avg": 0.0}, {"learning_rate": 1e-9}, {"learning_rate": "3e-5"}),
    ("entropy_collapse", {"policy/entropy_avg": 0.1}, {}, {"ent_coef": "0.005"}),
    ("no_end", {"val/num_eos_tokens": 20.0}, {}, {"missing_eos_penalty": "2"}),
    (
        "reward_by_length",
        {"response_length": 40.0, "objective/scores": 3.0, "val/length_correlation": 0.8, "val/num_tokens": 1280.0},
        {},
        {"length_penalty": "0.01", "length_penalty_start": "20"},
    ),
    ("reward_by_repetition", {"val/repetition": 0.4, "objective/scores": 3.0}, {}, {"repetition_penalty": "1"}),
    ("scores_alike", {"objective/scores_std": 0.001}, {}, {}),
    ("scores_out_of_range", {"val/scores_outside_range": 0.5, "reward/model": 9.0}, {}, {"kl_coef": "0.2"}),
    ("critic_useless", {"val/var_explained": -0.5}, {}, {"vf_coef": "0.2"}),
    ("updates_skipped", {"ppo/skipped_updates": 3.0, "ppo/updates": 1.0}, {}, {"learning_rate": "1.5e-05"}),
]


@pytest.mark.parametrize(("rule", "late", "keys", "first"), FOUND)
def test_rule_finds_it_once_and_says_what_to_try(
    rule: Rule, late: dict[str, float], keys: dict[str, Any], first: dict[str, str]
) -> None:
    (finding,) = watch(late, keys)
    assert finding.rule == rule and 10 < finding.step <= 30
    assert finding.seen and finding.means.endswith(".")
    assert (finding.tries[0] if finding.tries else {}) == first
    for changes in finding.tries:  # each can be applied
        recipe(**(keys | {key: _value(text) for key, text in changes.items()}))
    assert finding_of(as_data(finding)) == finding
    assert finding.message.endswith(f"(docs/health.md#{rule})")


def test_what_is_set_already_is_doubled_and_both_sides_of_a_clip_range_are_named() -> None:
    (finding,) = watch({"policy/entropy_avg": 0.1}, {"ent_coef": 0.01})
    assert finding.tries[0] == {"ent_coef": "0.02"}
    (finding,) = watch({"policy/clipfrac_avg": 0.5}, {"cliprange": 0.1, "epsilon_high": 0.3})
    assert "clipped at `cliprange=0.1` and `epsilon_high=0.3` over" in finding.seen


def test_value_loss_spike_is_one_step_far_above_the_others() -> None:
    health = HealthWatch(recipe())
    losses = [0.5] * 25 + [5.0] + [0.5] * 4
    found = [
        finding.rule
        for step, loss in enumerate(losses, 1)
        for finding in health.observe(step, HEALTHY | {"loss/value_avg": loss})
    ]
    assert found == ["value_loss_spike"]


def test_value_loss_spike_is_silent_where_the_usual_loss_is_0() -> None:
    health = HealthWatch(recipe())
    losses = [0.0] * 25 + [5.0, 0.0]  # rewards that are mostly 0, which the critic predicts
    assert not any(health.observe(step, HEALTHY | {"loss/value_avg": loss}) for step, loss in enumerate(losses, 1))


def test_a_rule_that_fails_is_reported_once_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(window: Window, recipe: PPORecipe) -> Seen | None:
        raise ZeroDivisionError("by 0")

    monkeypatch.setattr("stackllama_engine.health.watch.RULES", (HealthRule("kl_high", fail, "It."), *RULES[2:]))
    notices: list[str] = []
    health = HealthWatch(recipe(), notify=notices.append)
    late = HEALTHY | {"val/ratio": 1.3}
    found = [finding.rule for step in range(1, 6) for finding in health.observe(step, late)]
    assert found == ["ratio_off"]
    assert notices == [
        "the health rule kl_high failed after step 1 and is left out from now on: ZeroDivisionError: by 0"
    ]
    with pytest.raises(ZeroDivisionError):
        HealthWatch(recipe()).observe(1, late)


NEARLY: list[tuple[dict[str, float], dict[str, Any]]] = [
    ({"objective/kl": 11.0}, {}),  # the controller still pushes
    ({"objective/kl": 13.0, "response_length": 100.0, "val/num_tokens": 3200.0}, {"adap_kl_ctrl": False}),
    ({"policy/approxkl_avg": 0.0, "learning_rate": 1e-8}, {}),  # the end of a schedule
    ({"val/num_eos_tokens": 0.0}, {"random_length_limits": [8, 32]}),
    ({"response_length": 40.0, "val/num_tokens": 1280.0, "val/length_correlation": 0.8}, {}),  # scores do not rise
    ({"objective/scores": 3.0, "response_length": 40.0, "val/num_tokens": 1280.0}, {}),  # not because of the length
    ({"val/repetition": 0.4}, {}),
    ({"objective/scores_std": 0.1}, {}),
]


@pytest.mark.parametrize(("late", "keys"), NEARLY)
def test_nearly_the_same_is_no_finding(late: dict[str, float], keys: dict[str, Any]) -> None:
    assert watch(late, keys) == []


def test_one_step_without_metrics_silences_no_rule() -> None:
    late = HEALTHY | {"policy/entropy_avg": 0.1}
    health, skipped = HealthWatch(recipe()), {"objective/scores": 1.0, "ppo/updates": 0.0}
    rows = [HEALTHY, skipped, *[HEALTHY] * 8, *[late if step % 2 else skipped for step in range(20)]]
    found = [finding.rule for step, row in enumerate(rows, 1) for finding in health.observe(step, row)]
    assert found == ["entropy_collapse"]


def test_steps_that_are_made_again_leave_nothing_in_the_window() -> None:
    made, straight = Window(Known()), Window(Known())
    rates = [1.0, 2.0, 9.0, 9.0, 3.0, 2.0]
    for step, rate in zip((1, 2, 3, 4, 3, 4), rates, strict=True):
        made.add(step, {"learning_rate": rate, "objective/kl": float(step)})
    for step, rate in zip((1, 2, 3, 4), (*rates[:2], *rates[4:]), strict=True):
        straight.add(step, {"learning_rate": rate, "objective/kl": float(step)})
    assert made.state == straight.state and made.peak("learning_rate") == 3.0
    made.add(5, {"objective/kl": 5.0, "time/rollout": 1.0})
    assert made.early("objective/kl") == [1.0, 2.0, 3.0, 4.0, 5.0] == made.newest("objective/kl", 5)
    assert made.early("learning_rate") == [] == made.newest("learning_rate", 5)
    assert made.newest("learning_rate", 2) == [3.0, 2.0]


def test_a_value_that_is_not_finite_is_no_finding_and_no_error() -> None:
    assert watch({name: float("nan") for name in HEALTHY}) == []


def test_a_finding_clears_after_some_steps_without_it_and_may_come_again() -> None:
    health = HealthWatch(recipe())
    values = [2.0] * 10 + [20.0] * 6 + [2.0] * 20 + [20.0] * 6
    seen = [
        (step, finding.rule, finding.cleared)
        for step, kl in enumerate(values, 1)
        for finding in health.observe(step, HEALTHY | {"objective/kl": kl})
    ]
    assert [each[1:] for each in seen] == [("kl_high", False), ("kl_high", True), ("kl_high", False)]
    last = max(step for step in range(17, 25) if sum(values[step - 5 : step]) / 5 > 12)
    assert seen[1][0] == last + CLEAR


def test_a_resumed_watch_keeps_its_first_steps_and_does_not_repeat_what_was_found() -> None:
    late = HEALTHY | {"policy/entropy_avg": 0.1}
    before = HealthWatch(recipe())
    rows = [HEALTHY if step < 10 else late for step in range(20)]
    found = [finding for step, row in enumerate(rows, 1) for finding in before.observe(step, row)]
    after = HealthWatch(recipe())
    for step, row in enumerate(rows, 1):
        after.remember(step, row)
    after.restore(found)
    assert [after.observe(step, late) for step in range(21, 30)] == [[]] * 9
    forgetful = HealthWatch(recipe())
    assert [forgetful.observe(step, late) for step in range(21, 30)] == [[]] * 9  # what it calls early is low already


def test_a_watch_from_a_checkpoint_is_the_uninterrupted_one() -> None:
    rows = [HEALTHY | {"objective/kl": 20.0 if 9 < step < 16 else 2 + step / 7} for step in range(40)]
    straight, before, after = HealthWatch(recipe()), HealthWatch(recipe()), HealthWatch(recipe())
    found = [straight.observe(step, row) for step, row in enumerate(rows, 1)]
    for step, row in enumerate(rows[:20], 1):  # the finding of step 14 or so has not cleared
        before.observe(step, row)
    saved = msgspec.json.encode(before.state)
    for step, row in enumerate(rows[20:25], 21):  # lost
        before.observe(step, row)
    after.state = before.state = msgspec.json.decode(saved, type=WatchState)
    assert list(after.active) == ["kl_high"]
    for one in (after, before):
        assert [one.observe(step, row) for step, row in enumerate(rows[20:], 21)] == found[20:]
        assert one.state == straight.state
    assert [finding.cleared for each in found for finding in each] == [False, True]


def test_malformed_findings_are_other_notices() -> None:
    assert finding_of(None) is None and finding_of({"message": "text"}) is None
    assert finding_of({"finding": {"rule": 3}}) is None and finding_of({"finding": "x"}) is None


def test_the_table_has_every_rule_once() -> None:
    from typing import get_args

    assert [rule.name for rule in RULES] == list(get_args(Rule))


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    return float(text) if not text.isdigit() else int(text)
