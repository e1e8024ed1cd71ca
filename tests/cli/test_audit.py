"""`audit`: what it prints of an audit that the run has, its page of plots, what it refuses."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stackllama_engine.contract.audit import AUDIT_FILE, Audit, Baseline, Bucket, Finding, Interval, Probe, Reliability
from stackllama_engine.contract.recipe import PPORecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Launch, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.reward_model_check import audit_notices

HALF = Interval(0.5, 0.25, 0.75)
AUDIT = Audit(
    pairs=1200,
    questions=300,
    ties=2,
    accuracy=Interval(0.71, 0.68, 0.74),
    baselines=[Baseline(name="longer wins", accuracy=Interval(0.7, 0.66, 0.74), lead=Interval(0.01, -0.02, 0.04))],
    by_length=[Bucket(label="-40 to -3 tokens", pairs=600, accuracy=HALF)],
    by_margin=[Bucket(label="0.1 to 2", pairs=600, accuracy=HALF)],
    calibration=[Reliability(predicted=0.6, observed=0.55, pairs=1198)],
    calibration_error=0.05,
    length_correlation=0.42,
    repetition_correlation=-0.1,
    probes=[Probe(name="three times over", texts=64, change=0.8, wins=Interval(0.8, 0.7, 0.9))],
    verdict="bad",
    findings=[
        Finding(verdict="bad", text="a response <repeated> scores higher"),
        Finding(verdict="doubtful", text="x"),
    ],
)


@pytest.fixture
def audited(make_run: Callable[..., RunDir]) -> RunDir:
    run = make_run(Stage.REWARD, "judge")
    run.write_json(AUDIT_FILE, msgspec.to_builtins(AUDIT))
    return run


def test_it_prints_verdict_findings_and_figures(audited: RunDir, run_main: Callable[..., Any]) -> None:
    done = run_main("audit", "judge")
    assert done.code == 0
    first, second, *_ = done.out.splitlines()
    assert first == "judge: bad" and second == "  bad: a response <repeated> scores higher"
    for text in ("71.0 % (68.0–74.0)  (1,200 pairs of 300 questions, 2 ties apart)", "+1.0 points (-2.0 to +4.0)"):
        assert text in done.out
    assert json.loads(run_main("audit", "judge", "--json").out) == {"run": "judge"} | msgspec.to_builtins(AUDIT)


def test_the_page_of_plots_is_svg_and_is_not_overwritten(
    audited: RunDir, run_main: Callable[..., Any], tmp_path: Path
) -> None:
    page = tmp_path / "page.svg"
    assert run_main("audit", "judge", "--svg", str(page)).code == 0
    texts = [element.text for element in ET.parse(page).iter("{http://www.w3.org/2000/svg}text")]
    assert "judge: bad, 1,200 pairs of 300 questions" in texts and "three times over" in texts
    done = run_main("audit", "judge", "--svg", str(page))
    assert done.code == 2 and "exists already" in done.err


def test_the_runs_own_page_says_the_verdict(audited: RunDir, run_main: Callable[..., Any]) -> None:
    (audited.path / "result.json").write_text('{"accuracy": 0.71}')
    shown = run_main("runs", "show", "judge").out
    assert "audit: bad; all of it: `stackllama-console audit judge`" in shown and "<repeated> scores higher" in shown


def test_other_runs_are_refused(make_run: Callable[..., RunDir], run_main: Callable[..., Any]) -> None:
    make_run(Stage.SFT, "tuned")
    make_run(Stage.REWARD, "failed-judge", phase="failed")
    assert "only reward models are audited" in run_main("audit", "tuned").err
    assert "failed-judge` is failed" in run_main("audit", "failed-judge").err


def test_a_damaged_audit_is_named_with_the_way_out(audited: RunDir, run_main: Callable[..., Any]) -> None:
    (audited.path / AUDIT_FILE).write_text("{")
    done = run_main("audit", "judge")
    assert done.code != 0 and "audit.json" in done.err and "--again" in done.err


def test_a_launch_of_ppo_says_what_the_audit_says(audited: RunDir) -> None:
    recipe = load_recipe(Stage.PPO, None, ["model_name_or_path=m", f"reward_model_path={audited.adapter}"])
    assert isinstance(recipe, PPORecipe)
    said = "the audit of the reward model judge says bad: a response <repeated> scores higher"
    assert audit_notices(recipe) == [said]
    (audited.path / AUDIT_FILE).unlink()
    assert audit_notices(recipe) == []


def test_a_merged_reward_model_has_the_audit_of_the_run_that_trained_it(
    audited: RunDir, make_run: Callable[..., RunDir]
) -> None:
    merge = make_run(Stage.MERGE, "joined")
    recipe = load_recipe(Stage.PPO, None, ["model_name_or_path=m", f"reward_model_path={merge.merged}"])
    assert audit_notices(recipe) == []
    merge.write_launch(Launch(argv=[], cwd="/", host="h", created=0, parents=["judge"]))
    assert audit_notices(recipe)[0].startswith("the audit of the reward model judge says bad: ")
