"""`launch`, `runs stop`, `runs resume`, `merge`: through the real launcher and supervisor, with a scripted worker."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.launch.conftest import wait_for

from stackllama_engine.contract.child_environment import source_path
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import FunctionFile, Home, Launch, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher
from stackllama_engine.launch.argv import RUN_MARK, Command
from stackllama_engine.launch.processes import kill_run_processes, send

WORKER = Path(__file__).with_name("scripted_worker.py")
DEMO = ["model_name_or_path=demo", "dataset_name=demo", "load_in_8bit=false"]


@pytest.fixture
def scripted(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, float], None]]:
    """Every launch starts the scripted worker, with so many steps of so many seconds."""

    def use(steps: int, pause: float) -> None:
        def build(_recipe: Any, run_dir: Path, _gpus: Any) -> Command:
            argv = [sys.executable, str(WORKER), str(run_dir), str(steps), str(pause)]
            return Command(argv=argv, environment={RUN_MARK: str(run_dir), **source_path("")})

        monkeypatch.setattr(launcher, "build_command", build)

    yield use
    for run in home.runs():
        if supervisor := run.read_state().supervisor:
            send(supervisor, signal.SIGKILL)
        kill_run_processes(run.path)


def test_dry_run_prints_command_and_recipe_and_creates_nothing(
    run_main: Callable[..., Any], home: Home, tmp_path: Path
) -> None:
    result = run_main("launch", "sft", *DEMO, "learning_rate=2e-5", "--dry-run")
    assert result.code == 0
    assert "accelerate" in result.out.splitlines()[0]
    values = yaml.safe_load(result.out)
    assert (values["learning_rate"], values["dataset_name"]) == (2e-5, "demo")
    file = tmp_path / "again.yaml"
    file.write_text(result.out)  # what was printed is a recipe
    assert load_recipe(Stage.SFT, file).learning_rate == 2e-5  # type: ignore[union-attr]
    assert not home.path.exists()


def test_dry_run_json(run_main: Callable[..., Any], home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary_0123456789")
    result = run_main("pipeline", *DEMO, "ppo.learning_rate=3e-5", "--dry-run", "--json")
    document = result.json()
    assert "stackllama_engine.launch.pipeline" in document["argv"]
    assert document["recipe"]["ppo"]["learning_rate"] == 3e-5
    assert "canary" not in result.out + result.err
    assert not home.path.exists()


def test_a_finding_refuses_with_3_until_it_is_allowed(run_main: Callable[..., Any], home: Home, tmp_path: Path) -> None:
    rows = (f'{{"question": "q {index}", "response_j": "a", "response_k": "b"}}\n' for index in range(400))
    (tmp_path / "pairs.jsonl").write_text("".join(rows))
    data = [*DEMO, f"dataset_name={tmp_path / 'pairs.jsonl'}", "dataset_train_split=all", "--dry-run"]
    refused = run_main("launch", "sft", *data)
    assert refused.code == 3 and "evaluation measures memory" in refused.err
    assert "add `--allow eval-prompts`" in refused.err
    allowed = run_main("launch", "sft", *data, "--allow", "eval-prompts")
    assert allowed.code == 0 and "# note: `dataset_test_split=evaluation`: " in allowed.out
    assert "(allowed: eval-prompts)" in allowed.out
    unknown = run_main("pipeline", *DEMO, "--allow", "anything", "--dry-run")
    assert unknown.code == 2 and "the findings that can be allowed are tokenizer, eval-prompts" in unknown.err


def test_on_end_of_a_launch_and_of_a_resume_is_handed_to_the_supervisor(
    run_main: Callable[..., Any], home: Home, scripted: Callable[[int, float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STACKLLAMA_ON_END", "")  # put back afterwards
    scripted(1000, 0.05)
    assert run_main("launch", "sft", *DEMO, "--name", "one", "--on-end", "echo first").code == 0
    assert run_main("runs", "stop", "one").code == 0
    logs = [home.run("one").attempt_dir(number) / "supervisor.txt" for number in (1, 2)]
    wait_for(lambda: logs[0].exists() and "first" in logs[0].read_text())
    assert run_main("runs", "resume", "one", "--on-end", "echo second").code == 0
    assert run_main("runs", "stop", "one").code == 0
    wait_for(lambda: logs[1].exists() and "on_end (stopped): exit code 0\nsecond" in logs[1].read_text())


def test_launch_prints_the_id_and_returns(
    run_main: Callable[..., Any], home: Home, scripted: Callable[[int, float], None]
) -> None:
    scripted(1000, 0.05)
    result = run_main("launch", "sft", *DEMO, "--name", "one")
    assert (result.code, result.out) == (0, "one\n")
    assert "runs watch one" in result.err and "runs stop one" in result.err
    assert home.run("one").lock_is_held()
    assert run_main("launch", "sft", *DEMO, "--name", "one").code == 3


def test_stop_waits_and_resume_goes_on(
    run_main: Callable[..., Any], home: Home, scripted: Callable[[int, float], None]
) -> None:
    scripted(1000, 0.02)
    run_main("launch", "sft", *DEMO, "--name", "one")
    wait_until(lambda: "step 2" in run_main("runs", "logs", "one").out)
    stopped = run_main("runs", "stop", "one")
    assert stopped.code == 0
    assert "stopped, exit code 75" in stopped.err and "runs resume one" in stopped.err
    state = home.run("one").read_state()
    assert (state.phase, state.exit_code) == ("stopped", 75)
    (saved,) = (int(path.name[5:]) for path in home.run("one").checkpoints.iterdir())

    scripted(saved + 3, 0.01)
    resumed = run_main("runs", "resume", "one", "--follow")
    assert (resumed.code, resumed.out) == (0, "one\n")
    assert f"{saved + 3}/{saved + 3} loss" in resumed.err and "finished" in resumed.err
    assert run_main("runs", "logs", "one", "--attempt", "2").out.startswith(f"step {saved + 1}\n")
    assert run_main("runs", "resume", "one").code == 3
    assert run_main("runs", "stop", "one").code == 0


class Terminal(io.StringIO):
    """Standard input of somebody at a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def changed(make_run: Callable[..., RunDir], tmp_path: Path) -> RunDir:
    """Make a stopped PPO run whose reward function has changed since launch."""
    code = tmp_path / "judges.py"
    code.write_text("def judge(*, questions, responses): ...\n")
    keys = ["reward_funcs=judges:judge", f"reward_func_paths=[{tmp_path}]", "load_in_8bit=false", "num_processes=1"]
    run = make_run(Stage.PPO, "p", "stopped", overrides=keys)
    function = FunctionFile(reference="judges:judge", file=str(code), sha256="0" * 64)
    run.write_launch(Launch(argv=["x"], cwd="/", host="h", created=0.0, reward_funcs=[function]))
    return run


def test_changed_code_is_confirmed_by_an_option_where_nobody_can_be_asked(
    changed: RunDir, run_main: Callable[..., Any], scripted: Callable[[int, float], None]
) -> None:
    scripted(2, 0.01)
    refused = run_main("runs", "resume", "p")
    assert refused.code == 3 and "has changed since the launch" in refused.err and "--reward-fn-changed" in refused.err
    assert not changed.attempt_dir(2).exists()
    assert run_main("runs", "resume", "p", "--reward-fn-changed", "--follow").code == 0


@pytest.mark.parametrize("answer", ["y", "n", ""])
def test_changed_code_is_asked_about_at_a_terminal(
    answer: str,
    changed: RunDir,
    run_main: Callable[..., Any],
    scripted: Callable[[int, float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted(2, 0.01)
    monkeypatch.setattr("sys.stdin", Terminal(f"{answer}\n"))
    result = run_main("runs", "resume", "p")
    assert "has changed since the launch" in result.err and "Run it as it is now? [y/N]" in result.err
    assert result.code == (0 if answer == "y" else 3)
    assert changed.attempt_dir(2).exists() == (answer == "y")


def test_an_old_run_s_code_is_recorded_and_said_at_its_first_resume(
    changed: RunDir, run_main: Callable[..., Any], scripted: Callable[[int, float], None]
) -> None:
    scripted(2, 0.01)
    changed.write_launch(Launch(argv=["x"], cwd="/", host="h", created=0.0))
    result = run_main("runs", "resume", "p", "--follow")
    assert result.code == 0 and "did not record its code; from now on it is" in result.err


def test_stop_without_waiting(run_main: Callable[..., Any], home: Home, scripted: Callable[[int, float], None]) -> None:
    scripted(1000, 0.02)
    run_main("launch", "sft", *DEMO, "--name", "one")
    result = run_main("runs", "stop", "one", "--no-wait", "--json")
    assert result.code == 0
    assert result.json()["run"] == "one"
    assert run_main("runs", "watch", "one").code == 75
    assert home.run("one").read_state().phase == "stopped"


def test_follow_ends_with_the_runs_code_and_json_is_one_document(
    run_main: Callable[..., Any], scripted: Callable[[int, float], None]
) -> None:
    scripted(4, 0.01)
    result = run_main("launch", "sft", *DEMO, "--name", "one", "--follow", "--json")
    assert result.code == 0
    document = result.json()
    assert (document["run"], document["state"], document["exit_code"]) == ("one", "finished", 0)
    assert "sft 4/4 loss 1" in result.err


def test_logs_follow_until_the_end(run_main: Callable[..., Any], scripted: Callable[[int, float], None]) -> None:
    scripted(10, 0.05)
    run_main("launch", "sft", *DEMO, "--name", "one")
    assert run_main("runs", "logs", "one", "-f").out == "".join(f"step {step}\n" for step in range(1, 11))


def test_merge_launches_a_merge_of_the_run(
    run_main: Callable[..., Any], home: Home, scripted: Callable[[int, float], None]
) -> None:
    scripted(2, 0.01)
    run_main("launch", "sft", *DEMO, "--name", "one", "--follow")
    home.run("one").adapter.mkdir()
    result = run_main("merge", "one", "dtype=float32", "--name", "two")
    assert (result.code, result.out) == (0, "two\n")
    recipe = yaml.safe_load(home.run("two").recipe_file.read_text())
    assert (recipe["adapter_path"], recipe["dtype"]) == (str(home.run("one").adapter), "float32")
    assert home.run("two").read_launch().parents == ["one"]
    assert run_main("merge", "nosuch-run").code == 2


def test_ctrl_c_leaves_the_run_alone(home: Home, scripted: Callable[[int, float], None]) -> None:
    scripted(1000, 0.05)
    run = launcher.launch(launcher.plan(home, load_recipe(Stage.SFT, None, DEMO), "one"))
    environment = {**os.environ, **source_path(os.environ.get("PYTHONPATH", ""))}
    environment["PYTHONPATH"] += f"{os.pathsep}{Path(__file__).resolve().parents[2] / 'console'}"
    watcher = subprocess.Popen(
        [sys.executable, "-m", "stackllama_console", "runs", "watch", "one"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert watcher.stderr is not None
    assert watcher.stderr.readline() == "-- one\n"
    os.killpg(watcher.pid, signal.SIGINT)
    _, said = watcher.communicate(timeout=60)
    assert watcher.returncode == 130
    assert "one is still running" in said and "runs stop one" in said and "Traceback" not in said
    assert run.lock_is_held() and not run.read_state().has_ended


def wait_until(what: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--sbatch-option", "time=1"], "needs --slurm"),
        (["--slurm", "--after", "x"], "Use --sbatch-option dependency=afterany:JOB."),
        (["--slurm", "--dry-run"], "--dry-run and --slurm exclude each other"),
        (["--slurm", "--canary"], "--canary and --slurm exclude each other"),
        (["--slurm", "--sbatch-option", "wrap=id"], "--sbatch-option wrap"),
    ],
)
def test_slurm_options_that_do_not_fit(words: list[str], expected: str, run_main: Callable[..., Any]) -> None:
    result = run_main("launch", "sft", "model_name_or_path=demo", *words)
    assert result.code == 2
    assert expected in result.err


def test_a_launch_after_another_run_waits_and_says_so(
    home: Home, run_main: Callable[..., Any], scripted: Callable[[int, float], None]
) -> None:
    scripted(1000, 0.05)
    assert run_main("launch", "sft", *DEMO, "--name", "one").code == 0
    launched = run_main("launch", "sft", *DEMO, "--name", "two", "--after", "one")
    assert launched.code == 0 and "two is waiting for one to end, in the background" in launched.err
    listed = {run["run"]: run for run in run_main("runs", "ls", "--json").json()["runs"]}
    assert (listed["two"]["state"], listed["two"]["at"]) == ("queued", "waiting for one to end")
    assert "waiting for one to end" in run_main("runs", "ls").out
    assert "waiting for one to end" in run_main("runs", "show", "two").out
    stopped = run_main("runs", "stop", "two")
    assert stopped.code == 0 and "stopped while it waited" in stopped.err
    assert not home.run("one").read_state().has_ended
    nowhere = run_main("launch", "sft", *DEMO, "--after", "nowhere")
    assert nowhere.code == 2 and "No run `nowhere`" in nowhere.err
