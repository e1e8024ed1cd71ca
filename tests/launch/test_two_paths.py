"""One home by two paths: either path finds the same run and processes, and never starts a second trainer."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stackllama_engine.contract.errors import RefusedError, UsageError
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.launch import launcher
from stackllama_engine.launch.processes import identify, run_processes, send
from stackllama_engine.launch.reconcile import reconcile
from stackllama_engine.launch.run_requests import stop

from .conftest import Runs, fake_command, wait_for, wait_for_phase


@pytest.fixture
def by_link(runs: Runs, tmp_path: Path) -> Home:
    """Return the home of ``runs`` through a symbolic link."""
    (tmp_path / "link").symlink_to(runs.home.path)
    return Home(tmp_path / "link")


def lose_supervisor(run: RunDir) -> None:
    wait_for(lambda: (run.path / "worker.pid").exists())
    supervisor = run.read_state().supervisor
    assert supervisor is not None and send(supervisor, signal.SIGKILL)
    wait_for(lambda: not run.lock_is_held())


def test_resumed_by_the_other_path_it_has_one_trainer(
    runs: Runs, by_link: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.start("until-stopped", "mine")
    lose_supervisor(run)
    monkeypatch.setattr(
        launcher, "build_command", lambda _recipe, run_dir, _gpus: fake_command(run_dir, "until-stopped")
    )
    first = (run.path / "worker.pid").read_text()
    launcher.resume(by_link, "mine")
    wait_for(lambda: (run.path / "worker.pid").read_text() not in ("", first))
    assert identify(int(first)) is None, "the first trainer still runs beside the second"
    assert [process.pid for process in run_processes(run.path)] == [int((run.path / "worker.pid").read_text())]
    with pytest.raises(RefusedError, match="alive"):
        launcher.resume(runs.home, "mine")
    assert stop(run, wait=True).phase == "stopped"


def test_reconcile_finds_a_run_by_an_unresolved_path(runs: Runs, by_link: Home, tmp_path: Path) -> None:
    """The directory itself counts, also where some code was given another path of it."""
    run = runs.start("until-stopped", "mine")
    lose_supervisor(run)
    assert reconcile(RunDir(tmp_path / "link" / "runs" / "mine")).phase == "lost"
    assert run_processes(run.path) == []


def test_home_resolves_links_to_one_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path / "real" / "deep")
    for path in (tmp_path / "link", Path("..") / ".." / "link", Path("../../real"), Path("..")):
        assert Home(path).path == (tmp_path / "real").resolve()
    monkeypatch.setenv("STACKLLAMA_HOME", str(tmp_path / "link"))
    assert Home().path == (tmp_path / "real").resolve()
    try:
        Home(tmp_path / "loop")  # Python 3.13 finds out only when it is used
    except UsageError as error:
        assert "leads to itself" in str(error)


@pytest.mark.skipif(os.getuid() != 0, reason="a bind mount needs root")
def test_a_run_seen_by_a_bind_mount_has_one_trainer(runs: Runs, tmp_path: Path) -> None:
    run = runs.start("until-stopped", "mine")
    lose_supervisor(run)
    (tmp_path / "bound").mkdir()
    code = """
import sys
from pathlib import Path
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.launch.reconcile import reconcile
print(reconcile(Home(Path(sys.argv[1])).run("mine")).cause)
"""
    mounted = f'mount --bind "{runs.home.path}" "{tmp_path}/bound" && exec "$0" -c "$1" "{tmp_path}/bound"'
    looked = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted, sys.executable, code], capture_output=True, text=True, check=False
    )
    if looked.returncode and "unshare" in looked.stderr + looked.stdout:
        pytest.skip(f"no mount namespace here: {looked.stderr.strip()}")
    assert "1 of its processes were still running and were killed" in looked.stdout, looked.stderr
    assert run_processes(run.path) == [] and wait_for_phase(run, "lost")
