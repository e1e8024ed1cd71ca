"""One real stage under umask 000, with secrets in the environment that every process of it prints."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from stackllama_engine.contract.checkpoints import read_manifest
from stackllama_engine.contract.child_environment import source_path
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.launch.processes import run_processes
from stackllama_engine.train import checkpoint

from .toy import SFT, wait_for

pytestmark = pytest.mark.slow

SECRETS = {"HF_TOKEN": "hf_canary-of-a-real-run", "WANDB_API_KEY": "wandb-canary-of-a-real-run"}
CHATTY = """\
import atexit, os, sys
if any("stackllama_engine" in word for word in sys.orig_argv):
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        secret = os.environ[name]
        os.write(2, f"{secret} from C\\n".encode())
        atexit.register(print, f"{secret} from Python", flush=True)
"""


class Launched:
    """A finished run, what its command printed, and the ports its processes listened on meanwhile."""

    def __init__(self, base: Path, tmp: Path) -> None:
        self.tmp = tmp
        (tmp / "site").mkdir(parents=True)
        (tmp / "site" / "sitecustomize.py").write_text(CHATTY)
        self.keys = [f"model_name_or_path={base}", *SFT, "max_steps=2", "save_steps=1", "eval_steps=1"]
        self.keys += ["metric_for_best_model=eval_loss", "save_total_limit=1"]
        self.printed = self.command("launch", "sft", *self.keys, "--dry-run")
        self.printed += self.command("launch", "sft", *self.keys, "--name", "mine")
        self.run: RunDir = Home(tmp / "user" / "home").run("mine")
        self.ports: set[tuple[str, int]] = set()
        self.looks = 0
        self.state = wait_for(self.run, lambda state: self._look() or (state.has_ended and not self.run.lock_is_held()))

    def command(self, *words: str) -> str:
        environment = os.environ | SECRETS | {"HOME": str(self.tmp / "user"), "PYTHONPATH": str(self.tmp / "site")}
        for name in ("CONFIG", "STATE", "CACHE", "DATA"):
            environment[f"XDG_{name}_HOME"] = str(self.tmp / "user" / name.lower())
        environment["PYTHONPATH"] = os.pathsep.join(
            [environment["PYTHONPATH"], source_path(os.environ.get("PYTHONPATH", ""))["PYTHONPATH"]]
        )
        argv = [sys.executable, "-m", "stackllama_console", *words, "--home", str(self.tmp / "user" / "home")]
        done = subprocess.run(argv, env=environment, umask=0, capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    def _look(self) -> bool:
        for process in run_processes(self.run.path):
            self.looks += 1
            try:
                connections = psutil.Process(process.pid).net_connections("inet")
            except psutil.Error:  # it has just ended
                continue
            self.ports |= {(str(c.laddr[0]), int(c.laddr[1])) for c in connections if c.status == psutil.CONN_LISTEN}
        return False


@pytest.fixture(scope="module")
def launched(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    return Launched(base, tmp_path_factory.mktemp("private"))


def test_it_finishes_and_its_secrets_are_nowhere(launched: Launched) -> None:
    log = (launched.run.attempt_dir(1) / "log.txt").read_text()
    assert launched.state.phase == "finished", log
    files = [path for path in (launched.tmp / "user").rglob("*") if path.is_file()]
    for secret in SECRETS.values():
        assert secret not in launched.printed
        assert [path for path in files if secret.encode() in path.read_bytes()] == []
        assert f"{'*' * len(secret)} from C" in log  # the accelerate launcher and the worker
    assert "<HF_TOKEN> from Python" in log


def test_everything_is_the_owners_alone(launched: Launched) -> None:
    paths = [launched.run.path.parents[1], *launched.run.path.parents[1].rglob("*")]
    wrong = {
        str(path): oct(path.stat().st_mode)
        for path in paths
        if stat.S_IMODE(path.stat().st_mode) != (0o700 if path.is_dir() else 0o600)
    }
    assert wrong == {}


def test_its_checkpoints_know_what_was_measured(launched: Launched) -> None:
    newest, _ = checkpoint.newest(launched.run.checkpoints)
    assert newest is not None and newest.name == "step-000002"
    assert {"loss", "eval_loss"} <= read_manifest(newest).metrics.keys()


def test_one_process_listens_on_no_port(launched: Launched) -> None:
    assert launched.looks > 2
    assert launched.ports == set()
