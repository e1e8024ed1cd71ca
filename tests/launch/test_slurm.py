"""Slurm by stand-ins for sbatch, scontrol, squeue and scancel; script, job and worker are real processes."""

import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from stackllama_engine.contract.errors import RefusedError, StackllamaError, UsageError
from stackllama_engine.contract.host import Host
from stackllama_engine.contract.recipe import AnyRecipe
from stackllama_engine.contract.recipe_io import dump_recipe, load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher, slurm, slurm_queue
from stackllama_engine.launch.processes import run_processes
from stackllama_engine.launch.recipe_changes import RecipeChangedError
from stackllama_engine.launch.reconcile import reconcile
from stackllama_engine.launch.run_requests import stop

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
    from stackllama_engine.contract.child_environment import source_path
    from stackllama_engine.launch.argv import RUN_MARK, Command
    launcher.build_command = lambda _recipe, run, _gpus: Command(
        argv=[sys.executable, {str(FAKE_WORKER)!r}, str(run), os.environ["FAKE_MODE"]],
        environment={{RUN_MARK: str(run), "STACKLLAMA_WORLD_SIZE": "1"}} | source_path(""),
    )
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the stand-ins keep their arguments; ``queue`` is what squeue shows."""
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
    """Run the script as Slurm does."""
    environment = os.environ | {
        "SLURM_JOB_ID": job,
        "FAKE_MODE": mode,
        "STACKLLAMA_STOP_GRACE": "0.3",
        "STACKLLAMA_TERM_GRACE": "0.3",
    }
    return subprocess.Popen(["sh", str(run.path / "slurm.sh")], env=environment, stderr=subprocess.PIPE, text=True)


def test_options_are_arguments_and_the_script_has_no_directive(home: Home, cluster: Path) -> None:
    words = ["time=8:00:00", "comment=a b; $(id) #SBATCH --uid=0"]
    run = slurm.submit(home, recipe(), "mine", words, ["tokenizer"])
    argv = (cluster / "sbatch").read_text().splitlines()
    assert argv == [
        "--parsable",
        "--job-name=mine",
        f"--output={run.path}/slurm-%j.txt",
        "--open-mode=append",
        "--requeue",
        "--signal=B:USR1@300",
        "--time=8:00:00",
        "--comment=a b; $(id) #SBATCH --uid=0",
        f"{run.path}/slurm.sh",
    ]
    script = (run.path / "slurm.sh").read_text()
    assert script == f"#!/bin/sh\nexec {sys.executable} -P -m stackllama_engine.launch.slurm {run.path}\n"
    assert run.read_json("slurm.json")["id"] == "4242" and run.read_launch().allow == ["tokenizer"]
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
        slurm.submit(home, recipe(), "mine", [word])
    assert home.runs() == [] and not (cluster / "sbatch").exists()


@pytest.mark.parametrize("part", ["a\n#SBATCH --uid=0", "a%jb", "a\\b", "a\u202eb"])
def test_hostile_homes_create_nothing(tmp_path: Path, cluster: Path, part: str) -> None:
    home = Home(tmp_path / part)
    with pytest.raises(UsageError, match="cannot be a run's path under Slurm"):
        slurm.submit(home, recipe(), "mine")
    assert not home.path.exists()


def test_a_path_with_blanks_and_quotes_stays_one_argument(tmp_path: Path, cluster: Path) -> None:
    run = slurm.submit(Home(tmp_path / "it's $(id); mine"), recipe(), "mine")
    job = start_job(run, "finish")
    assert job.wait(60) == 0, job.communicate()[1]
    assert run.read_state().phase == "finished"


def test_waiting_is_not_lost_until_the_job_has_gone(home: Home, cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = slurm.submit(home, recipe(), "mine")
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
    run = slurm.submit(home, recipe(), "mine")
    state = stop(run, wait=True)
    assert (state.phase, (cluster / "scancel").read_text()) == ("stopped", "4242\n")


def test_a_damaged_record_of_the_job_hinders_no_stop(home: Home, cluster: Path) -> None:
    run = slurm.submit(home, recipe(), "mine")
    run.write_state(msgspec.structs.replace(run.read_state(), phase="running", attempt=1))
    (run.path / "slurm.json").write_bytes(b"\xff")
    lock = run.acquire_lock()
    try:
        assert stop(run, wait=False).phase == "running"
    finally:
        run.release_lock(lock)
    assert list(run.requests()) == ["stop"] and not (cluster / "scancel").exists()


@pytest.mark.parametrize("mode", ["until-stopped", pytest.param("stubborn", marks=pytest.mark.slow)])
def test_signal_stop_requeue_resume(home: Home, cluster: Path, mode: str) -> None:
    """Saved where the worker listens; killed after the grace where it does not."""
    run = slurm.submit(home, recipe(), "mine")
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
    run = slurm.submit(home, recipe(), "mine")
    job = start_job(run, "finish", "77")
    assert job.wait(60) == 2
    assert run.read_state().phase == "queued" and not (run.path / "written-by-worker.txt").exists()


def stopped_job(home: Home, cluster: Path, *options: str) -> RunDir:
    """Make a run whose job was stopped by hand, and that Slurm no longer has."""
    run = slurm.submit(home, recipe(), "mine", options)
    job = start_job(run, "until-stopped")
    wait_for(lambda: (run.path / "worker.pid").exists() and run.read_state().phase == "running", 60)
    run.request("stop")
    assert job.wait(60) == 75, job.communicate()[1]
    (cluster / "queue").unlink()
    wait_for(lambda: not run.lock_is_held())
    return run


def command_of(error: RefusedError) -> list[str]:
    return shlex.split(str(error).partition("Submit it again: ")[2])


def test_resume_on_the_login_node_is_refused_with_the_command_that_resubmits(home: Home, cluster: Path) -> None:
    run = stopped_job(home, cluster, "time=8:00:00", "comment=a b; $(id)")
    first = (cluster / "sbatch").read_text()
    with pytest.raises(RefusedError, match="Submit it again: sbatch") as caught:
        launcher.resume(home, "mine")
    assert run.read_state().phase == "stopped" and len(run.attempt_dirs()) == 1
    subprocess.run(command_of(caught.value), check=True, stdout=subprocess.DEVNULL)
    assert (cluster / "sbatch").read_text() == first, "not the options it was submitted with"
    again = start_job(run, "finish", "5353")
    assert again.wait(60) == 0, again.communicate()[1]
    state = run.read_state()
    assert (state.phase, state.attempt, run.read_json("slurm.json")["id"]) == ("finished", 2, "5353")
    assert run.read_json("slurm.json")["options"]["time"] == "8:00:00"


def test_a_job_does_not_begin_with_a_recipe_that_changed_until_somebody_confirms_it(home: Home, cluster: Path) -> None:
    run = stopped_job(home, cluster)
    run.recipe_file.write_text(run.recipe_file.read_text().replace("\nseed: ", "\nseed: 7"))
    job = start_job(run, "finish", "5353")
    assert job.wait(60) == 3 and "its recipe has changed" in job.communicate()[1]
    assert run.read_state().phase == "stopped" and len(run.attempt_dirs()) == 1
    with pytest.raises(RecipeChangedError):
        launcher.resume(home, "mine")
    with pytest.raises(RefusedError, match="Submit it again: sbatch"):
        launcher.resume(home, "mine", recipe_changed=True)
    again = start_job(run, "finish", "5454")
    assert again.wait(60) == 0, again.communicate()[1]


@pytest.mark.long
def test_another_job_waits_until_slurm_has_forgotten_the_first(home: Home, cluster: Path) -> None:
    run = stopped_job(home, cluster)
    (cluster / "queue").write_text("4242\n5353\n")
    asked = (cluster / "squeue").read_text() if (cluster / "squeue").exists() else ""
    again = start_job(run, "finish", "5353")
    wait_for(lambda: (cluster / "squeue").exists() and (cluster / "squeue").read_text() != asked, 60)
    assert run.read_state().phase == "stopped" and len(run.attempt_dirs()) == 1
    (cluster / "queue").write_text("5353\n")
    assert again.wait(60) == 0, again.communicate()[1]
    assert run.read_state().attempt == 2


@pytest.mark.long
def test_a_run_submitted_by_an_earlier_version(home: Home, cluster: Path) -> None:
    """Its options were not written down: the command says so, and works."""
    run = stopped_job(home, cluster)
    run.write_json("slurm.json", {"id": "4242", "submitted": 1.0})
    (run.path / "slurm.sh").write_text("#!/bin/sh\nexec /no/such/python\n")
    with pytest.raises(RefusedError, match=r"Submit it again: sbatch .*slurm\.sh  # and \[the --sbatch-options"):
        launcher.resume(home, "mine")
    again = start_job(run, "finish", "5353")
    assert again.wait(60) == 0, again.communicate()[1]


def test_a_node_that_died_with_its_job(home: Home, cluster: Path) -> None:
    """Slurm starts the same job again on another one; until it has gone nobody calls the run lost."""
    run = slurm.submit(home, recipe(), "mine")
    gone = Host(name="node1", boot_id="another-boot")
    run.write_state(msgspec.structs.replace(run.read_state(), phase="running", attempt=1, host=gone))
    assert reconcile(run).phase == "running"
    again = start_job(run, "finish")
    assert again.wait(60) == 0, again.communicate()[1]
    assert (run.read_state().phase, run.read_state().attempt) == ("finished", 2)
    run.write_state(msgspec.structs.replace(run.read_state(), phase="running", ended=None, attempt=3, host=gone))
    (cluster / "queue").unlink()
    assert reconcile(run).phase == "lost"


def test_a_job_without_its_number_is_judged_by_no_clock_that_is_set(home: Home, cluster: Path) -> None:
    run = slurm.submit(home, recipe(), "mine")
    job = slurm_queue.job_of(run)
    assert job is not None and job.host is not None
    asked = msgspec.structs.replace(job, id="", submitted=time.time() + 3600)
    slurm_queue.write_job(run, asked)
    assert reconcile(run).phase == "queued"
    slurm_queue.write_job(run, msgspec.structs.replace(asked, host=Host(name="login2", boot_id="another-boot")))
    assert reconcile(run).phase == "queued"
    earlier = msgspec.structs.replace(job.host, clock=job.host.clock - 60)
    slurm_queue.write_job(run, msgspec.structs.replace(asked, host=earlier))
    assert reconcile(run).phase == "lost"


def test_what_cannot_be_submitted(home: Home, cluster: Path, tmp_path: Path) -> None:
    pipeline = load_recipe(Stage.PIPELINE, None, ["model_name_or_path=demo", "dataset_name=demo"])
    with pytest.raises(RefusedError, match="submit its stages"):
        slurm.submit(home, pipeline, "mine")
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 'error: invalid partition' >&2\nexit 1\n")
    with pytest.raises(StackllamaError, match="invalid partition"):
        slurm.submit(home, recipe(), "mine")
    assert home.run("mine").read_state().phase == "failed"
    (tmp_path / "bin" / "sbatch").unlink()
    with pytest.raises(RefusedError, match="no `sbatch` here"):
        slurm.submit(home, recipe(), "other")
    assert [run.id for run in home.runs()] == ["mine"]


def test_a_full_disk_leaves_no_half_of_a_submission(home: Home, cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "launch.json")

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "write_launch", full)
        with pytest.raises(RefusedError, match=r"No space left on device. Nothing was started, and `mine` is free"):
            slurm.submit(home, recipe(), "mine")
    assert list(home.runs_dir.iterdir()) == [] and not (cluster / "sbatch").exists()
    slurm.submit(home, recipe(), "mine")


def test_an_sbatch_that_does_not_answer(
    home: Home, cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\nexec sleep 600\n")
    monkeypatch.setattr(slurm, "_ANSWER", 0.2)
    with pytest.raises(StackllamaError, match=r"Run `mine`: `sbatch` did not answer within 0.2 s; check with `squeue`"):
        slurm.submit(home, recipe(), "mine")
    assert home.run("mine").read_state().phase == "failed"


@pytest.mark.parametrize("scontrol", [None, "#!/bin/sh\nexec sleep 600\n"], ids=["missing", "hangs"])
def test_a_job_that_cannot_be_requeued_stays_stopped_and_says_why(
    home: Home, cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scontrol: str | None
) -> None:
    tool = tmp_path / "bin" / "scontrol"
    if scontrol is None:
        tool.unlink()
        monkeypatch.setenv("PATH", str(tool.parent))
    else:
        tool.write_text(scontrol)
    monkeypatch.setattr(slurm, "_ANSWER", 0.2)
    run = home.create(Stage.SFT, dump_recipe(recipe()), "mine")
    stopped = msgspec.structs.replace(run.read_state(), phase="stopped", attempt=1, exit_code=75)
    slurm._requeue(run, stopped, "4242")
    state = run.read_state()
    assert (state.phase, state.exit_code) == ("stopped", 75) and state.cause is not None
    assert state.cause.startswith("Saved and stopped; requeueing job 4242 failed: `scontrol` ")
