"""The code of ``reward_funcs``: recorded at launch; a changed one runs at resume only when confirmed."""

import hashlib
import json
from pathlib import Path

import pytest

from stackllama_engine.contract.errors import RefusedError, UsageError
from stackllama_engine.contract.recipe import AnyRecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher
from stackllama_engine.launch.function_hash import (
    FunctionChangedError,
    check_functions,
    reward_functions,
    unrecorded_notice,
)

from .conftest import Runs, fake_command, wait_for_phase

GOOD = "def judge(*, questions, responses):\n    return [0.0 for _ in responses]\n"
EVIL = GOOD + "import os\nos.system('id')\n"
DEMO = ("model_name_or_path=demo", "dataset_name=demo", "load_in_8bit=false")


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    file = folder / "judges.py"
    file.write_text(GOOD)
    return file


@pytest.fixture
def run(runs: Runs, code: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """Make a failed PPO run with a function."""
    monkeypatch.setattr(launcher, "build_command", lambda _recipe, run_dir, _gpus: fake_command(run_dir, "fail"))
    run = launcher.launch(launcher.plan(runs.home, ppo(code), "p"))
    wait_for_phase(run, "failed")
    return run


def ppo(code: Path) -> AnyRecipe:
    return load_recipe(Stage.PPO, None, (*DEMO, "reward_funcs=judges:judge", f"reward_func_paths=[{code.parent}]"))


def test_launch_refuses_a_plan_whose_reward_function_changed(home: Home, code: Path) -> None:
    planned = launcher.plan(home, ppo(code), "p")
    code.write_text(EVIL)
    with pytest.raises(RefusedError, match=r"has changed since this launch was planned\. Launch it again\."):
        launcher.launch(planned)
    assert list(home.runs()) == []


def attempts(run: RunDir) -> int:
    wait_for_phase(run, "failed")
    return len(run.attempt_dirs())


def recorded(run: RunDir) -> object:
    return json.loads((run.path / "launch.json").read_text()).get("reward_funcs", "nothing")


def forget(run: RunDir) -> None:
    """Rewrite the record as by a version that recorded nothing."""
    launch = json.loads((run.path / "launch.json").read_text())
    del launch["reward_funcs"]
    (run.path / "launch.json").write_text(json.dumps(launch))


def test_the_file_and_its_hash_are_in_launch_json(run: RunDir, code: Path) -> None:
    digest = hashlib.sha256(GOOD.encode()).hexdigest()
    assert recorded(run) == [{"reference": "judges:judge", "file": str(code), "sha256": digest}]


def test_the_same_code_is_resumed_without_a_word(run: RunDir, home: Home) -> None:
    launcher.resume(home, "p")
    assert attempts(run) == 2


def test_changed_code_is_resumed_only_when_somebody_says_so_and_is_then_what_counts(
    run: RunDir, home: Home, code: Path
) -> None:
    code.write_text(EVIL)
    with pytest.raises(FunctionChangedError) as refused:
        launcher.resume(home, "p")
    assert str(code) in str(refused.value) and "has changed since the launch" in str(refused.value)
    assert "runs resume p --reward-fn-changed" in str(refused.value) and refused.value.exit_code == 3
    assert attempts(run) == 1, "nothing was started"
    launcher.resume(home, "p", function_changed=True)
    assert attempts(run) == 2
    launcher.resume(home, "p")
    assert attempts(run) == 3
    code.write_text(GOOD)
    with pytest.raises(FunctionChangedError):
        launcher.resume(home, "p")


def test_the_same_code_in_another_place_and_another_function_are_changes(
    run: RunDir, home: Home, code: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "judges.py").write_text(GOOD)
    whole = run.recipe_file.read_text()
    for before, after, said in (
        (str(code.parent), str(other), f"is now {other / 'judges.py'}; it was launched with {code}"),
        ("judges:judge", "judges:other", "it was launched with `judges:judge`"),
    ):
        run.recipe_file.write_text(whole.replace(before, after))
        with pytest.raises(FunctionChangedError, match=said):
            launcher.resume(home, "p", recipe_changed=True)
    assert attempts(run) == 1


def test_a_function_that_the_launch_did_not_know_is_a_change(
    runs: Runs, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.start("fail", "s")
    wait_for_phase(run, "failed")
    assert recorded(run) == []
    with pytest.raises(FunctionChangedError, match="it was launched without one"):
        check_functions(run, ppo(code))


def test_the_record_of_a_version_with_one_function_still_counts(run: RunDir, home: Home, code: Path) -> None:
    launch = json.loads((run.path / "launch.json").read_text())
    (launch["reward_fn"],) = launch.pop("reward_funcs")
    (run.path / "launch.json").write_text(json.dumps(launch))
    assert check_functions(run, ppo(code)) == reward_functions(ppo(code))
    code.write_text(EVIL)
    with pytest.raises(FunctionChangedError, match="has changed since the launch"):
        launcher.resume(home, "p")


def test_one_more_function_is_a_change_and_one_less_is_none(run: RunDir, code: Path) -> None:
    keys = (*DEMO, "reward_funcs=judges:judge,msgspec.json:decode")
    two = load_recipe(Stage.PPO, None, (*keys, f"reward_func_paths=[{code.parent}, null]"))
    with pytest.raises(FunctionChangedError, match=r"`reward_funcs: msgspec.json:decode` .* with `judges:judge`"):
        check_functions(run, two)
    assert check_functions(run, load_recipe(Stage.PPO, None, (*DEMO, "reward_model_path=rm"))) == []


def test_code_that_is_gone_is_said_before_anything_is_started(run: RunDir, home: Home, code: Path) -> None:
    code.unlink()
    with pytest.raises(UsageError, match="`judges` is no longer in"):
        launcher.resume(home, "p")
    assert attempts(run) == 1


def test_a_run_of_an_older_version_gets_its_record_at_the_first_resume(run: RunDir, home: Home, code: Path) -> None:
    forget(run)
    code.write_text(EVIL)
    digest = hashlib.sha256(EVIL.encode()).hexdigest()
    notice = unrecorded_notice(run, ppo(code))
    assert notice and f"from now on it is {code} with SHA-256 {digest[:12]}" in notice
    launcher.resume(home, "p")
    assert attempts(run) == 2
    assert recorded(run) == [{"reference": "judges:judge", "file": str(code), "sha256": digest}]
    assert unrecorded_notice(run, ppo(code)) is None


def test_an_installed_function_is_its_module_s_file_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage does not look in the working directory; it does in PYTHONPATH, before what is installed."""
    recipe = load_recipe(Stage.PPO, None, (*DEMO, "reward_funcs=msgspec.json:decode"))
    (tmp_path / "msgspec").mkdir()
    (tmp_path / "msgspec" / "json.py").write_text("def decode(*, questions, responses): ...")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (found,) = reward_functions(recipe)
    assert found.file.endswith("site-packages/msgspec/json.py")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (shadowed,) = reward_functions(recipe)
    assert shadowed.file == str(tmp_path / "msgspec" / "json.py")


def test_a_pipeline_s_function_is_that_of_its_ppo_section(code: Path) -> None:
    keys = (*DEMO, "ppo.reward_funcs=judges:judge", f"ppo.reward_func_paths=[{code.parent}]")
    alone, whole = reward_functions(ppo(code)), reward_functions(load_recipe(Stage.PIPELINE, None, keys))
    assert alone == whole and len(alone) == 1
    assert reward_functions(load_recipe(Stage.PIPELINE, None, DEMO)) == []
