"""``launch`` and ``resume``: exactly one winner, nothing leaked, nothing left open, and detached for good."""

import errno
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from stackllama_engine.contract.base import DEMO_BASE
from stackllama_engine.contract.child_environment import source_path
from stackllama_engine.contract.env_settings import NAMES
from stackllama_engine.contract.errors import RefusedError, StackllamaError, UsageError
from stackllama_engine.contract.recipe import AnyRecipe
from stackllama_engine.contract.recipe_io import build_recipe, load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher
from stackllama_engine.launch.leftovers import leftovers
from stackllama_engine.launch.processes import run_processes, send
from stackllama_engine.launch.reconcile import reconcile
from stackllama_engine.launch.run_requests import stop

from .conftest import Runs, wait_for, wait_for_phase

CANARY = "canary-7f3a9c-never-write-this"

RELIABILITY = Path(__file__).parents[2] / "docs" / "reliability.md"

HOSTILE = [
    "../escape",
    "a/b",
    "a\nb",
    "a;b",
    "$(id)",
    "`id`",
    "-rf",
    "--name",
    "A",
    ".hidden",
    "",
    " ",
    "a\u202eb",
    "a\x1b[2Jb",
    "x" * 65,
    "a\x00b",
]


def recipe(**values: object) -> AnyRecipe:
    return build_recipe(Stage.SFT, {"model_name_or_path": "gpt2", "use_cpu": True, **values})


def in_a_process(code: str, *arguments: str, umask: int | None = None) -> subprocess.Popen[str]:
    """Run launcher code as a process group leader of its own, with the fake worker."""
    preamble = f"""
        import os, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from stackllama_engine.contract.recipe_io import build_recipe
        from stackllama_engine.contract.run_dir import Home
        from stackllama_engine.contract.stages import Stage
        from stackllama_engine.launch import launcher
        from tests.launch.conftest import fake_command
        home = Home(Path(sys.argv[1]))
        launcher.build_command = lambda recipe, run_dir, gpus: fake_command(run_dir, sys.argv[2])
        recipe = build_recipe(Stage.SFT, {{"model_name_or_path": "gpt2", "use_cpu": True}})
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(preamble) + textwrap.dedent(code), *arguments],
        env=os.environ | source_path(""),
        start_new_session=True,
        umask=-1 if umask is None else umask,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_launch_returns_at_once_and_the_run_finishes(runs: Runs, home: Home, fake_stages: None) -> None:
    run = launcher.launch(launcher.plan(home, recipe(), "mine", parents=["elder"]))
    assert not run.read_state().has_ended  # nobody waited for it
    assert run.id == "mine" and wait_for_phase(run, "finished").attempt == 1
    launched = run.read_launch()
    assert launched.argv[-2:] == [str(run.path), "finish"] and launched.cwd == str(run.path)
    assert launched.parents == ["elder"] and launched.versions["torch"] and launched.host
    assert launched.environment["STACKLLAMA_RUN"] == str(run.path)
    assert launched.environment["STACKLLAMA_ATTEMPT"] == "1"
    assert load_recipe(Stage.SFT, run.recipe_file) == recipe(
        num_processes=1, base_precision="dtype", gradient_checkpointing=False
    )


def test_two_launches_of_one_name_have_one_winner(runs: Runs, home: Home) -> None:
    code = """
        try:
            launcher.launch(launcher.plan(home, recipe, "same"))
        except launcher.RefusedError as error:
            print(error); sys.exit(3)
    """
    launches = [in_a_process(code, str(home.path), "until-stopped") for _ in range(4)]
    results = [(launch.communicate()[0], launch.returncode) for launch in launches]
    assert sorted(code for _, code in results) == [0, 3, 3, 3], results
    run = home.run("same")
    wait_for(lambda: (run.path / "worker.pid").exists())
    assert len(run_processes(run.path)) == 1
    assert len(run.attempt_dirs()) == 1


def test_killing_the_launchers_group_leaves_the_run_alone(runs: Runs, home: Home) -> None:
    code = """
        import signal
        launcher.launch(launcher.plan(home, recipe, "mine"))
        os.killpg(0, signal.SIGKILL)
    """
    launch = in_a_process(code, str(home.path), "until-stopped")
    launch.wait()
    assert launch.returncode == -signal.SIGKILL
    run = home.run("mine")
    wait_for(lambda: (run.path / "worker.pid").exists())
    state = wait_for_phase(run, "running")
    assert reconcile(run) == state
    assert state.supervisor is not None
    assert os.getsid(state.supervisor.pid) != launch.pid, "still in the terminal's session"
    assert stop(run, wait=True).exit_code == 75


@pytest.mark.slow  # a dozen launches
def test_launcher_killed_at_any_moment_leaves_no_half_run(runs: Runs, home: Home) -> None:
    """Whatever was reached: no run, one that is lost without survivors, or one that lives."""
    seen: set[str] = set()
    code = """
        print("go", flush=True)
        launcher.launch(launcher.plan(home, recipe, sys.argv[3]))
    """
    for number in range(12):
        launch = in_a_process(code, str(home.path), "until-stopped", f"r{number}")
        assert launch.stdout is not None
        launch.stdout.readline()
        time.sleep(number * 0.008)
        os.killpg(launch.pid, signal.SIGKILL)
        launch.wait()
        launch.stdout.close()
    for run in home.runs():
        wait_for(lambda run=run: run.read_state().phase in ("queued", "running", "lost") or not run.lock_is_held())
        state = reconcile(run)
        seen.add(state.phase)
        if state.phase == "running":
            assert run.lock_is_held() and len(run_processes(run.path)) == 1
        else:
            assert state.phase in ("queued", "lost") and run_processes(run.path) == []
    assert seen <= {"queued", "lost", "running"}


def test_resume_is_a_new_attempt(runs: Runs, home: Home, fake_stages: None) -> None:
    run = runs.start("until-stopped", "mine")
    wait_for_phase(run, "running")
    with pytest.raises(RefusedError, match="alive"):
        launcher.resume(home, "mine")
    stop(run, wait=True)
    wait_for(lambda: not run.lock_is_held())
    run.request("stop")  # asked too late; it must not stop the next attempt
    launcher.resume(home, "mine")
    state = wait_for_phase(run, "finished")
    assert (state.attempt, state.exit_code, state.cause) == (2, 0, None)
    assert [path.name for path in run.attempt_dirs()] == ["001", "002"]
    assert run.read_launch().environment["STACKLLAMA_ATTEMPT"] == "2"
    with pytest.raises(RefusedError, match="finished"):
        launcher.resume(home, "mine")


def test_resume_of_a_lost_run_ends_its_survivors_first(runs: Runs, home: Home, fake_stages: None) -> None:
    run = runs.start("stubborn", "mine")
    wait_for(lambda: (run.path / "orphan.pid").exists())
    supervisor = run.read_state().supervisor
    assert supervisor is not None and send(supervisor, signal.SIGKILL)
    wait_for(lambda: not run.lock_is_held())
    launcher.resume(home, "mine")
    assert wait_for_phase(run, "finished").attempt == 2
    assert run_processes(run.path) == []


def test_nothing_is_started_while_anything_of_the_old_attempt_lives(
    runs: Runs, home: Home, fake_stages: None, tmp_path: Path
) -> None:
    """A run that has ended, as its state and its lock say, and a process that carries its mark."""
    run = runs.start("until-stopped", "mine")
    wait_for(lambda: (run.path / "worker.pid").exists())
    stop(run, wait=True)
    wait_for(lambda: not run.lock_is_held())
    left = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], env=os.environ | {"STACKLLAMA_RUN": str(run.path)}
    )
    try:
        wait_for(lambda: len(run_processes(run.path)) == 1)
        with pytest.raises(RefusedError, match=f"still alive \\({left.pid}\\)"):
            launcher.resume(home, "mine")
        assert run.read_state().phase == "stopped" and len(run.attempt_dirs()) == 1
    finally:
        left.kill()
        left.wait()
    launcher.resume(home, "mine")
    assert wait_for_phase(run, "finished").attempt == 2


def test_a_disk_that_fills_during_a_launch_leaves_no_run(
    runs: Runs, home: Home, fake_stages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(run: RunDir, _launch: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run.path / "launch.json"))

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "write_launch", full)
        with pytest.raises(RefusedError, match=r"launch\.json cannot be written: No space left.*`mine` is free again"):
            launcher.launch(launcher.plan(home, recipe(), "mine"))
    assert home.runs() == [] and leftovers(home) == []
    assert wait_for_phase(launcher.launch(launcher.plan(home, recipe(), "mine")), "finished").attempt == 1


def test_supervisor_that_does_not_start_is_reported(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.create("mine")
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such interpreter >&2\nexit 3\n")
    broken.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(StackllamaError, match="supervisor could not be started"):
        runs.again(run, "finish")
    assert run.read_state().phase == "failed"
    assert "no such interpreter" in (run.attempt_dir(1) / "supervisor.txt").read_text()


def test_everything_is_private_whatever_the_umask(runs: Runs, tmp_path: Path) -> None:
    home = Home(tmp_path / "new" / "home")
    code = 'launcher.launch(launcher.plan(home, recipe, "mine"))'
    launch = in_a_process(code, str(home.path), "finish", umask=0)
    assert launch.wait() == 0
    run = home.run("mine")
    wait_for_phase(run, "finished")
    wait_for(lambda: not run.lock_is_held())
    paths = [tmp_path / "new", home.path, home.runs_dir, run.path, *run.path.rglob("*")]
    modes = {str(path): stat.S_IMODE(path.stat().st_mode) for path in paths}
    assert (run.path / "written-by-worker.txt") in paths
    assert {path: oct(mode) for path, mode in modes.items() if mode != (0o700 if Path(path).is_dir() else 0o600)} == {}


def test_secrets_are_named_and_never_written(
    runs: Runs, home: Home, fake_stages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    planned = launcher.plan(home, recipe())
    assert CANARY not in repr(planned)
    run = launcher.launch(launcher.plan(home, recipe(), "mine"))
    wait_for_phase(run, "finished")
    assert set(run.read_launch().secrets) >= {"HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD"}
    assert "HF_HUB_OFFLINE" not in run.read_launch().secrets
    wait_for(lambda: not run.lock_is_held())
    files = [path for path in home.path.rglob("*") if path.is_file()]
    assert len(files) >= 6
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


def test_secrets_reach_the_worker(runs: Runs, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    run = runs.start("until-stopped")
    wait_for_phase(run, "running")
    worker = run.read_state().worker
    assert worker is not None
    assert f"HF_TOKEN={CANARY}".encode() in Path(f"/proc/{worker.pid}/environ").read_bytes().split(b"\0")
    assert CANARY.encode() not in Path(f"/proc/{worker.pid}/cmdline").read_bytes()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_create_nothing(home: Home, tmp_path: Path, fake_stages: None, name: str) -> None:
    with pytest.raises(UsageError, match="not a run name"):
        launcher.launch(launcher.plan(home, recipe(), name))
    with pytest.raises(UsageError, match="not a run name"):
        launcher.resume(home, name)
    assert list(tmp_path.iterdir()) == []


def test_symlinked_run_is_no_run(runs: Runs, home: Home, tmp_path: Path) -> None:
    run = runs.create("mine")
    (home.runs_dir / "other").symlink_to(run.path)
    with pytest.raises(UsageError, match="No run `other`"):
        launcher.resume(home, "other")
    assert [run.id for run in home.runs()] == ["mine"]


def test_plan_touches_nothing(home: Home, tmp_path: Path) -> None:
    planned = launcher.plan(home, recipe(), "mine")
    assert planned.command.argv[-3:] == ["stackllama_engine.train", "sft", str(home.runs_dir / "mine")]
    assert "num_processes: 1\n" in planned.recipe_yaml
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["a lot", "-1", "nan", "inf"])
@pytest.mark.parametrize("name", ["STALL_FLOOR", "STOP_GRACE", "DISK_CRITICAL"])
def test_a_wrong_setting_is_refused_before_anything_is_created(
    home: Home, fake_stages: None, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"STACKLLAMA_{name}", value)
    with pytest.raises(UsageError, match=f"STACKLLAMA_{name}='{value}' must be a non-negative number"):
        launcher.launch(launcher.plan(home, recipe(), "mine"))
    assert home.runs() == []


def test_every_documented_setting_is_checked() -> None:
    documented = re.findall(r"^\| `(STACKLLAMA_\w+)` \|", RELIABILITY.read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(NAMES)


def test_launch_carries_out_the_confirmed_plan(
    runs: Runs, home: Home, monkeypatch: pytest.MonkeyPatch, fake_stages: None
) -> None:
    planned = launcher.plan(home, recipe(), parents=["elder"])
    assert planned.command.argv[-2] == str(home.runs_dir / "RUN_ID")

    def rebuilt(*_: object) -> None:
        pytest.fail("the command was built again")

    monkeypatch.setattr(launcher, "build_command", rebuilt)
    run = launcher.launch(planned)
    launched = run.read_launch()
    assert launched.argv == planned.command.in_directory(planned.run_dir, run.path).argv
    assert launched.argv[-2] == str(run.path) and "RUN_ID" not in repr(launched)
    assert launched.parents == ["elder"] and run.recipe_file.read_text() == planned.recipe_yaml
    wait_for_phase(run, "finished")


def test_launch_refuses_a_plan_whose_gpus_changed(
    home: Home, fake_stages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "visible_gpus", list)
    planned = launcher.plan(home, recipe(), "mine")
    monkeypatch.setattr(launcher, "visible_gpus", lambda: ["0"])
    with pytest.raises(RefusedError, match="visible GPUs have changed"):
        launcher.launch(planned)
    assert list(home.runs()) == []


def test_launch_refuses_a_plan_whose_name_was_taken(runs: Runs, home: Home, fake_stages: None) -> None:
    planned = launcher.plan(home, recipe(), "mine")
    runs.create("mine")
    with pytest.raises(RefusedError, match="exists already"):
        launcher.launch(planned)


def test_launch_refuses_a_plan_whose_model_is_gone(home: Home, tmp_path: Path, fake_stages: None) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO_BASE, model)
    keys = [f"model_name_or_path={model}", "dataset_name=demo", "use_cpu=true"]
    planned = launcher.plan(home, load_recipe(Stage.SFT, None, keys), "mine")
    shutil.rmtree(model)
    with pytest.raises(UsageError, match="is not found here"):
        launcher.launch(planned)
    assert list(home.runs()) == []


def test_launch_refuses_a_plan_whose_model_is_another_by_now(
    home: Home, tmp_path: Path, fake_stages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    planned = launcher.plan(home, recipe(), "mine")
    shutil.copytree(DEMO_BASE, tmp_path / "gpt2")  # a local directory comes before the hub
    with pytest.raises(RefusedError, match="inputs name has changed"):
        launcher.launch(planned)
    assert list(home.runs()) == []


def test_unwritable_home(fake_stages: None) -> None:
    with pytest.raises(RefusedError, match="cannot be written"):
        launcher.launch(launcher.plan(Home(Path("/proc/nowhere")), recipe(), "mine"))


def test_run_directory_is_found_from_another_directory(
    runs: Runs, tmp_path: Path, fake_stages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = launcher.launch(launcher.plan(Home(Path("relative")), recipe(), "mine"))
    assert run.path == tmp_path / "relative" / "runs" / "mine"
    wait_for_phase(RunDir(run.path), "finished")
