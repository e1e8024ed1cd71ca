"""Slurm by stand-ins for sbatch, scontrol, squeue and scancel; script, job and worker are real processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stackllama_engine.contract.errors import RefusedError, StackllamaError, UsageError
from stackllama_engine.contract.recipe import AnyRecipe
from stackllama_engine.contract.recipe_io import dump_recipe, load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import slurm, slurm_queue
from stackllama_engine.launch.processes import run_processes
from stackllama_engine.launch.reconcile import reconcile, stop

from .conftest import FAKE_WORKER, wait_for

TOOLS = {
    "sbatch": 'printf "%s\\n" "$@" > "$SLURM_TEST/sbatch"; echo "4242;cluster"',
    "scontrol": 'echo "$@" >> "$SLURM_TEST/scontrol"',
    "scancel": 'echo "$@" >> "$SLURM_TEST/scancel"',
    "squeue": 'echo "$@" >> "$SLURM_TEST/squeue"; cat "$SLURM_TEST/queue" 2>/dev/null || true',
}
FAKE_STAGE = f"""\
import os, sys
if "stackllama_engine.launch.slurm" in sys.orig_argv:
    from stackllama_engine.launch import launcher
    from stackllama_engine.launch.argv import RUN_MARK, Command, source_path
    launcher.build_command = lambda _recipe, run, _gpus: Command(
        argv=[sys.executable, {str(FAKE_WORKER)!r}, str(run), os.environ["FAKE_MODE"]],
        environment={{RUN_MARK: str(run), "STACKLLAMA_WORLD_SIZE": "1"}} | source_path(""),
    )
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-ins keep what they were told; ``queue`` is what squeue shows."""
    for name, body in TOOLS.items():
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\n{body}\n")
        tool.chmod(0o700)
    site = tmp_path / "site" / "sitecustomize.py"
    site.parent.mkdir()
    site.write_text(FAKE_STAGE)
    told = tmp_path / "told"
    told.mkdir()
    (told / "queue").write_text("17\n4242\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("SLURM_TEST", str(told))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(slurm_queue, "_queue", slurm_queue._Queue())
    for name in ("_ASK_AGAIN", "_ASK_AGAIN_MISSING", "_JUST_NOW"):
        monkeypatch.setattr(slurm_queue, name, 0.0)
    return told


def recipe(*words: str) -> AnyRecipe:
    return load_recipe(Stage.SFT, None, ["model_name_or_path=gpt2", "use_cpu=true", *words])


def start_job(run: RunDir, mode: str, job: str = "4242") -> subprocess.Popen[str]:
    """What Slurm does with the script."""
    environment = os.environ | {
        "SLURM_JOB_ID": job, "FAKE_MODE": mode, "STACKLLAMA_STOP_GRACE": "0.3", "STACKLLAMA_TERM_GRACE": "0.3",
    }  # fmt: skip
    return subprocess.Popen(["sh", str(run.path / "slurm.sh")], env=environment, stderr=subprocess.PIPE, text=True)


def test_options_are_arguments_and_the_script_has_no_directive(home: Home, cluster: Path) -> None:
    run = slurm.submit(home, Stage.SFT, recipe(), "mine", ["time=8:00:00", "comment=a b; $(id) #SBATCH --uid=0"])
    argv = (cluster / "sbatch").read_text().splitlines()
    assert argv == [
        "--parsable", "--job-name=mine", f"--output={run.path}/slurm-%j.txt", "--open-mode=append", "--requeue",
        "--signal=B:USR1@300", "--time=8:00:00", "--comment=a b; $(id) #SBATCH --uid=0", f"{run.path}/slurm.sh",
    ]  # fmt: skip
    script = (run.path / "slurm.sh").read_text()
    assert script == f"#!/bin/sh\nexec {sys.executable} -P -m stackllama_engine.launch.slurm {run.path}\n"
    assert run.read_json("slurm.json")["id"] == "4242"
    assert (run.path / "slurm.sh").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "word",
    [
        "time",
        "=1",
        "time=",
        "time=1\n#SBATCH --uid=0",
        "-p=x",
        "Time=1",
        "wrap=rm",
        "output=/tmp/x",
        "signal=TERM@5",
        "comment=\u202ex",
    ],
)
def test_hostile_options_create_nothing(home: Home, cluster: Path, word: str) -> None:
    with pytest.raises(UsageError, match="--sbatch-option"):
        slurm.submit(home, Stage.SFT, recipe(), "mine", [word])
    assert home.runs() == [] and not (cluster / "sbatch").exists()


@pytest.mark.parametrize("part", ["a\n#SBATCH --uid=0", "a%jb", "a\\b", "a\u202eb"])
def test_hostile_homes_create_nothing(tmp_path: Path, cluster: Path, part: str) -> None:
    home = Home(tmp_path / part)
    with pytest.raises(UsageError, match="cannot be a run's path under Slurm"):
        slurm.submit(home, Stage.SFT, recipe(), "mine")
    assert not home.path.exists()


def test_a_path_with_blanks_and_quotes_stays_one_argument(tmp_path: Path, cluster: Path) -> None:
    run = slurm.submit(Home(tmp_path / "it's $(id); mine"), Stage.SFT, recipe(), "mine")
    job = start_job(run, "finish")
    assert job.wait(60) == 0, job.communicate()[1]
    assert run.read_state().phase == "finished"


def test_waiting_is_not_lost_until_the_job_has_gone(home: Home, cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = slurm.submit(home, Stage.SFT, recipe(), "mine")
    monkeypatch.setattr("stackllama_engine.launch.reconcile._QUEUED_SECONDS", -1.0)
    assert reconcile(run).phase == "queued"
    (cluster / "queue").unlink()
    assert reconcile(run).phase == "lost"


@pytest.mark.parametrize("squeue", ["echo 1; echo 2", "sleep 60"], ids=["answers", "hangs"])
def test_many_runs_cost_one_squeue(
    home: Home, cluster: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, squeue: str
) -> None:
    (tmp_path / "bin" / "squeue").write_text(f'#!/bin/sh\necho "$@" >> "$SLURM_TEST/squeue"\n{squeue}\n')
    monkeypatch.setattr("stackllama_engine.launch.reconcile._QUEUED_SECONDS", -1.0)
    monkeypatch.setattr(slurm_queue, "_ASK_AGAIN", 600.0)
    monkeypatch.setattr(slurm_queue, "_ASK_AGAIN_MISSING", 600.0)
    monkeypatch.setattr(slurm_queue, "_TIMEOUT", 1.0)
    phases: list[str] = []
    for number in range(6):
        run = home.create(Stage.SFT, dump_recipe(recipe()), f"run-{number}")
        run.write_json("slurm.json", {"id": str(number), "submitted": 1.0})
        phases.append(reconcile(run).phase)
    asked = (cluster / "squeue").read_text().splitlines()
    assert asked == [f"--noheader --user={os.getuid()} --format=%i"]
    there = "queued" if squeue == "sleep 60" else "lost"  # nobody is called lost without evidence
    assert phases == [there, "queued", "queued", there, there, there]


def test_stopping_what_waits_cancels_its_job(home: Home, cluster: Path) -> None:
    run = slurm.submit(home, Stage.SFT, recipe(), "mine")
    state = stop(run, wait=True)
    assert (state.phase, (cluster / "scancel").read_text()) == ("stopped", "4242\n")


@pytest.mark.parametrize("mode", ["until-stopped", pytest.param("stubborn", marks=pytest.mark.slow)])
def test_signal_stop_requeue_resume(home: Home, cluster: Path, mode: str) -> None:
    """Saved where the worker listens; killed after the grace where it does not."""
    run = slurm.submit(home, Stage.SFT, recipe(), "mine")
    job = start_job(run, mode)
    ready = run.path / ("worker.pid" if mode == "until-stopped" else "orphan.pid")
    wait_for(lambda: ready.exists() and run.read_state().phase == "running", 60)
    job.send_signal(signal.SIGUSR1)
    code = job.wait(60)
    assert code == (75 if mode == "until-stopped" else 128 + signal.SIGKILL), job.communicate()[1]
    assert (cluster / "scontrol").read_text() == "requeue 4242\n"
    assert run_processes(run.path) == []
    assert reconcile(run).phase == "queued"
    again = start_job(run, "finish")
    assert again.wait(60) == 0, again.communicate()[1]
    state = run.read_state()
    assert (state.phase, state.attempt) == ("finished", 2)


def test_a_job_of_another_run_does_nothing(home: Home, cluster: Path) -> None:
    run = slurm.submit(home, Stage.SFT, recipe(), "mine")
    job = start_job(run, "finish", "77")
    assert job.wait(60) == 2
    assert run.read_state().phase == "queued" and not (run.path / "written-by-worker.txt").exists()


def test_what_cannot_be_submitted(home: Home, cluster: Path, tmp_path: Path) -> None:
    pipeline = load_recipe(Stage.PIPELINE, None, ["model_name_or_path=demo", "dataset_name=demo"])
    with pytest.raises(RefusedError, match="submit its stages"):
        slurm.submit(home, Stage.PIPELINE, pipeline, "mine")
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 'error: invalid partition' >&2\nexit 1\n")
    with pytest.raises(StackllamaError, match="invalid partition"):
        slurm.submit(home, Stage.SFT, recipe(), "mine")
    assert home.run("mine").read_state().phase == "failed"
    (tmp_path / "bin" / "sbatch").unlink()
    with pytest.raises(RefusedError, match="no `sbatch` here"):
        slurm.submit(home, Stage.SFT, recipe(), "other")
    assert [run.id for run in home.runs()] == ["mine"]
