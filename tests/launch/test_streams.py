"""Started with standard streams closed: the run keeps its lock, and nothing of ours is number 0, 1 or 2."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from stackllama_engine.contract.child_environment import source_path
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.launch.reconcile import reconcile
from stackllama_engine.launch.run_requests import stop

from .conftest import Runs, wait_for

ROOT = Path(__file__).parents[2]


def python(code: str, closed: str, *arguments: str) -> int:
    """Exit code of Python code in a process whose streams a shell has closed: ``<&- >&-``."""
    paths = [str(ROOT), str(ROOT / "console"), *source_path(os.environ.get("PYTHONPATH", "")).values()]
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, check=False).returncode


def test_lock_descriptor_is_above_the_standard_streams(runs: Runs) -> None:
    run = runs.create("one")
    code = """
        import os, sys
        from pathlib import Path
        from stackllama_engine.contract.run_dir import RunDir
        lock = RunDir(Path(sys.argv[1])).acquire_lock()
        sys.exit(0 if lock > 2 and not os.get_inheritable(lock) else 1)
    """
    assert python(code, "<&- >&- 2>&-", str(run.path)) == 0


def test_standard_streams_are_opened_and_inherited() -> None:
    code = """
        import os, subprocess, sys
        from stackllama_engine.contract.streams import open_standard_streams
        open_standard_streams()
        print("to nobody", flush=True)
        sys.stderr.write("to nobody")
        links = {os.readlink(f"/proc/self/fd/{number}") for number in range(3)}
        child = subprocess.run(["sh", "-c", "for n in 0 1 2; do [ -e /proc/self/fd/$n ] || exit 1; done"])
        sys.exit(0 if sys.stdin.read() == "" and links == {"/dev/null"} and child.returncode == 0 else 1)
    """
    assert python(code, "<&- >&- 2>&-") == 0


def test_a_run_launched_with_stdin_closed_runs(runs: Runs, home: Home) -> None:
    code = """
        import sys
        from stackllama_console.__main__ import main
        from stackllama_engine.launch import launcher
        from tests.launch.conftest import fake_command
        launcher.build_command = lambda recipe, run_dir, gpus: fake_command(run_dir, "until-stopped")
        recipe = ["model_name_or_path=demo", "dataset_name=demo", "use_cpu=true"]
        sys.exit(main(["--home", sys.argv[1], "launch", "sft", *recipe, "--name", "one"]))
    """
    assert python(code, "<&- >&- 2>&-", str(home.path)) == 0
    run = home.run("one")
    wait_for(lambda: run.read_state().phase == "running" or run.read_state().has_ended)
    assert run.lock_is_held()
    assert reconcile(run).phase == "running"  # reconcile kills a run without a lock holder
    assert stop(run, wait=True).phase == "stopped"
