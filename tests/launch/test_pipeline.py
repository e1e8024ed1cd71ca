"""The real coordinator and supervisors, with fake workers as the six children of a pipeline named ``p``."""

import json
import signal
import sys
from pathlib import Path

import pytest

from stackllama_engine.contract.child_environment import source_path
from stackllama_engine.contract.children import CHILDREN
from stackllama_engine.contract.errors import RefusedError, UsageError
from stackllama_engine.contract.events import EventReader, EventWriter
from stackllama_engine.contract.recipe import AnyRecipe, MergeRecipe, PPORecipe, RewardRecipe
from stackllama_engine.contract.recipe_io import build_recipe, dump_recipe, load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher
from stackllama_engine.launch.argv import RUN_MARK, Command
from stackllama_engine.launch.function_hash import FunctionChangedError
from stackllama_engine.launch.pipeline import Coordinator
from stackllama_engine.launch.processes import run_processes, send
from stackllama_engine.launch.reconcile import reconcile
from stackllama_engine.launch.run_requests import stop

from .conftest import Runs, wait_for, wait_for_phase

COORDINATOR = Path(__file__).with_name("fake_pipeline.py")
ORDER = ["sft", "sft-merged", "reward", "reward-merged", "ppo", "ppo-merged"]


@pytest.fixture(autouse=True)
def fake_coordinator(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(_recipe: AnyRecipe, run_dir: Path, _gpus: list[str]) -> Command:
        environment = {RUN_MARK: str(run_dir), "STACKLLAMA_WORLD_SIZE": "1"} | source_path("")
        return Command(argv=[sys.executable, str(COORDINATOR), str(run_dir)], environment=environment)

    monkeypatch.setattr(launcher, "build_command", command)


def recipe() -> AnyRecipe:
    return build_recipe(Stage.PIPELINE, {"model_name_or_path": "gpt2", "load_in_8bit": False, "sft": {"max_steps": 7}})


def start(home: Home, monkeypatch: pytest.MonkeyPatch, **modes: str) -> RunDir:
    monkeypatch.setenv("FAKE_MODES", json.dumps({key.replace("_", "-"): mode for key, mode in modes.items()}))
    return launcher.launch(launcher.plan(home, recipe(), "p", allow=["tokenizer"]))


def phases(home: Home) -> dict[str, tuple[str, int]]:
    return {run.id: (run.read_state().phase, run.read_state().attempt) for run in home.runs()}


def test_runs_six_children_in_order_and_wires_them(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(home, monkeypatch)
    state = wait_for_phase(run, "finished")
    assert (state.exit_code, state.attempt) == (0, 1)

    children = run.read_json("result.json")["children"]
    assert list(children) == ORDER
    assert all(child["result"]["loss"] == 1.5 and child["seconds"] > 0 for child in children.values())
    created = [home.run(f"p-{suffix}").read_state().created for suffix in ORDER]
    assert created == sorted(created)

    base, runs_dir = str(home.run("p-sft-merged").merged), home.runs_dir
    sft = load_recipe(Stage.SFT, runs_dir / "p-sft" / "recipe.yaml")
    reward = load_recipe(Stage.REWARD, runs_dir / "p-reward" / "recipe.yaml")
    ppo = load_recipe(Stage.PPO, runs_dir / "p-ppo" / "recipe.yaml")
    assert isinstance(reward, RewardRecipe) and isinstance(ppo, PPORecipe)
    assert (getattr(sft, "max_steps", None), getattr(sft, "num_processes", None)) == (7, 1)
    assert reward.model_name_or_path == ppo.model_name_or_path == base
    assert ppo.reward_model_path == str(home.run("p-reward").adapter)
    for suffix in ("sft", "reward", "ppo"):
        merge = load_recipe(Stage.MERGE, runs_dir / f"p-{suffix}-merged" / "recipe.yaml")
        assert isinstance(merge, MergeRecipe) and merge.adapter_path == str(home.run(f"p-{suffix}").adapter)
    assert home.run("p-ppo").read_launch().parents == ["p-sft-merged", "p-reward", "p"]
    assert {tuple(home.run(f"p-{suffix}").read_launch().allow) for suffix in ORDER} == {("tokenizer",)}

    events = list(EventReader(run.attempt_dir(1) / "events.jsonl").read())
    assert [event.phase for event in events if event.kind == "phase"] == [f"p-{suffix}" for suffix in ORDER]
    assert [(event.step, event.total_steps) for event in events if event.kind == "progress"] == [
        (step, 6) for step in range(7)
    ]
    assert events[-1].kind == "end" and events[-1].data["exit_code"] == 0


def test_what_a_cut_launch_left_of_a_child_is_removed_and_the_child_made_anew(home: Home) -> None:
    run = home.create(Stage.PIPELINE, dump_recipe(recipe()), "p")
    run.attempt_dir(1).mkdir()
    events = EventWriter(run.attempt_dir(1) / "events.jsonl")
    for name in ("control", "attempts", "checkpoints"):  # as versions before this one made them first
        (home.runs_dir / "p-sft" / name).mkdir(parents=True)
    coordinator = Coordinator(run, events)
    assert coordinator._find("p-sft") is None and not (home.runs_dir / "p-sft").exists()
    home.create(Stage.SFT, "# stage: sft\n", "p-sft")
    assert coordinator._find("p-sft") is not None
    events.close()


@pytest.mark.slow
def test_failing_child_ends_it_and_resume_goes_on_from_there(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(home, monkeypatch, reward="fail")
    state = wait_for_phase(run, "failed")
    assert (state.exit_code, state.cause) == (1, "Run `p-reward` failed: out of memory in train")
    assert list(run.read_json("result.json")["children"]) == ["sft", "sft-merged"]

    wait_for(lambda: not run.lock_is_held())
    monkeypatch.setenv("FAKE_MODES", "{}")
    launcher.resume(home, "p")
    wait_for_phase(run, "finished")
    assert phases(home) == {
        "p": ("finished", 2),
        "p-sft": ("finished", 1),
        "p-sft-merged": ("finished", 1),
        "p-reward": ("finished", 2),
        "p-reward-merged": ("finished", 1),
        "p-ppo": ("finished", 1),
        "p-ppo-merged": ("finished", 1),
    }
    assert list(run.read_json("result.json")["children"]) == ORDER


@pytest.mark.slow
def test_stop_stops_the_child_and_both_can_be_resumed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(home, monkeypatch, sft="until-stopped")
    wait_for(lambda: (home.runs_dir / "p-sft" / "worker.pid").exists())
    state = stop(run, wait=True)
    assert (state.phase, state.exit_code) == ("stopped", 75)
    child = home.run("p-sft").read_state()
    assert (child.phase, child.exit_code, child.cause) == ("stopped", 75, "saved")

    wait_for(lambda: not run.lock_is_held())
    monkeypatch.setenv("FAKE_MODES", "{}")
    launcher.resume(home, "p")
    wait_for_phase(run, "finished")
    assert phases(home)["p-sft"] == ("finished", 2)


def test_child_that_somebody_stopped_stops_the_pipeline(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(home, monkeypatch, sft_merged="until-stopped")
    wait_for(lambda: (home.runs_dir / "p-sft-merged" / "worker.pid").exists())
    stop(home.run("p-sft-merged"), wait=True)
    state = wait_for_phase(run, "stopped")
    assert (state.exit_code, state.cause) == (75, "Run `p-sft-merged` was stopped. saved")


@pytest.mark.slow
def test_coordinator_killed_leaves_its_child_to_a_later_attempt(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(home, monkeypatch, sft="until-stopped")
    worker = home.runs_dir / "p-sft" / "worker.pid"
    wait_for(worker.exists)
    for process in (run.read_state().supervisor, run.read_state().worker):
        assert process is not None
        send(process, signal.SIGKILL)
    wait_for(lambda: not run.lock_is_held())
    assert reconcile(run).phase == "lost"
    child = home.run("p-sft")
    wait_for_phase(child, "running")  # a run of its own, with a supervisor of its own
    assert reconcile(child).phase == "running"

    monkeypatch.setenv("FAKE_MODES", "{}")
    launcher.resume(home, "p")
    wait_for_phase(run, "running")
    assert len(run_processes(child.path)) == 1, "the living child was not started twice"
    stop(run, wait=True)
    assert reconcile(child).exit_code == 75


def test_names_that_its_children_need(home: Home) -> None:
    home.create(Stage.SFT, "", "p-reward")
    with pytest.raises(RefusedError, match="`p-reward` exists already"):
        launcher.plan(home, recipe(), "p")
    with pytest.raises(UsageError, match="not a run name"):
        launcher.plan(home, recipe(), "x" * 60)
    assert [run.id for run in home.runs()] == ["p-reward"]


def test_children_are_those_of_the_protocol() -> None:
    assert [child.suffix for child in CHILDREN] == ORDER


def test_stop_of_a_lost_pipeline_stops_the_child_that_goes_on_alone(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(home, monkeypatch, sft="until-stopped")
    wait_for((home.runs_dir / "p-sft" / "worker.pid").exists)
    supervisor = run.read_state().supervisor
    assert supervisor is not None and send(supervisor, signal.SIGKILL)
    wait_for(lambda: not run.lock_is_held())
    assert stop(run, wait=True).phase == "lost"
    assert home.run("p-sft").read_state().exit_code == 75


@pytest.mark.slow
def test_foreign_run_with_a_childs_name_is_not_taken_for_a_child(
    runs: Runs, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(home, monkeypatch, sft="until-stopped")
    wait_for((home.runs_dir / "p-sft" / "worker.pid").exists)
    wait_for_phase(runs.start("finish", "p-sft-merged"), "finished")
    stop(run, wait=True)
    wait_for(lambda: not run.lock_is_held())
    monkeypatch.setenv("FAKE_MODES", "{}")
    launcher.resume(home, "p")
    state = wait_for_phase(run, "failed")
    assert state.exit_code == 3
    assert state.cause is not None and "not a child of `p`" in state.cause


def judged(folder: Path) -> tuple[Path, AnyRecipe]:
    """Make a reward function's file, and a pipeline that uses it."""
    code = folder / "judges.py"
    code.write_text("def judge(*, questions, responses): ...\n")
    function = {"reward_funcs": ["judges:judge"], "reward_func_paths": [str(folder)]}
    return code, build_recipe(Stage.PIPELINE, {"model_name_or_path": "gpt2", "load_in_8bit": False, "ppo": function})


@pytest.mark.long
def test_a_function_that_changes_before_its_stage_ends_the_pipeline_until_it_is_confirmed(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, recipe = judged(tmp_path)
    monkeypatch.setenv("FAKE_MODES", json.dumps({"ppo": "fail"}))
    run = launcher.launch(launcher.plan(home, recipe, "p"))
    wait_for_phase(run, "failed")
    monkeypatch.setenv("FAKE_MODES", "{}")
    code.write_text("def judge(*, questions, responses): ... # changed\n")
    with pytest.raises(FunctionChangedError, match="resume p --reward-fn-changed"):
        launcher.resume(home, "p")
    launcher.resume(home, "p", function_changed=True)  # once for the pipeline, and its stage
    wait_for_phase(run, "finished")
    assert home.run("p-ppo").read_launch().reward_funcs == run.read_launch().reward_funcs


def test_a_function_that_changes_while_the_pipeline_runs_is_not_executed(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, recipe = judged(tmp_path)
    monkeypatch.setenv("FAKE_MODES", json.dumps({"reward-merged": "until_released"}))
    run = launcher.launch(launcher.plan(home, recipe, "p"))
    before = home.runs_dir / "p-reward-merged"
    wait_for(lambda: (before / "launch.json").is_file(), seconds=60)
    code.write_text("def judge(*, questions, responses): ... # changed\n")
    (before / "release").touch()
    state = wait_for_phase(run, "failed")
    assert state.exit_code == 3 and f"{code}, which holds `reward_funcs: judges:judge`, has changed" in (
        state.cause or ""
    )
    assert "resume p --reward-fn-changed" in (state.cause or "")
    assert not (home.runs_dir / "p-ppo").exists()
