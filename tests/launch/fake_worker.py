"""A worker that speaks the protocol without training: ``python fake_worker.py RUN_DIR MODE``."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from stackllama_engine.contract.base import DEMO_BASE
from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.health import Finding, as_data
from stackllama_engine.contract.run_dir import RunDir


class Worker:
    """One method per mode; each returns the exit code."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        print(f"fake worker: {sys.argv[2]}", flush=True)
        self.events = EventWriter(run.attempt_dir(int(os.environ["STACKLLAMA_ATTEMPT"])) / "events.jsonl")
        self.events.write("phase", phase="train")

    def end(self, code: int, cause: str | None = None) -> int:
        self.events.write("end", data={"exit_code": code, "cause": cause})
        return code

    def finish(self) -> int:
        self.run.write_json("result.json", {"loss": 1.5, "recipe": self.run.recipe_file.read_text()})
        (self.run.path / "written-by-worker.txt").write_text("x")
        for output in (self.run.adapter, self.run.merged):
            output.mkdir()
        return self.end(0)

    def measured(self) -> int:
        peaks = {"rss": float(700 << 20)}
        self.events.write("memory", phase="train", metrics=peaks, data={"phase": {"rss": float(600 << 20)}})
        return self.end(0)

    def measured_and_hang(self) -> int:
        self.measured()
        (self.run.path / "measured").touch()
        return self.deaf()

    def out_of_memory(self) -> int:
        """Run out of memory on the demo's model, whose files are here."""
        recipe = self.run.recipe_file.read_text().replace("gpt2", str(DEMO_BASE)).replace("8bit: true", "8bit: false")
        self.run.recipe_file.write_text(recipe)
        cause = "Out of memory in phase train. Halve it. (DefaultCPUAllocator: can't allocate memory)"
        return self.end(1, cause)

    def find(self) -> int:
        """Report two findings of health rules, and clear one."""
        for rule, cleared in (("kl_high", False), ("no_end", False), ("kl_high", True)):
            finding = Finding(rule=rule, step=3, seen="it is so", means="It is bad.", cleared=cleared)
            self.events.write("health", data=as_data(finding))
        return self.end(0)

    def fail(self) -> int:
        return self.end(1, "out of memory in train")

    def code(self) -> int:
        print("RuntimeError: no such thing")
        return 7

    def wordless(self) -> int:
        """End at SIGUSR1 without having said anything."""
        signal.signal(signal.SIGUSR1, lambda *_: os._exit(1))
        (self.run.path / "worker.pid").write_text(str(os.getpid()))
        return self.deaf()

    def leak(self) -> int:
        """Write a secret past every Python stream, to a health event, to a file and as the last words."""
        secret = os.environ["HF_TOKEN"]
        os.write(1, f"from C: {secret}\n".encode())
        self.events.write("health", data={"message": f"library says {secret}", "rows": [{secret: secret}]})
        self.run.write_json("result.json", {"url": f"https://me:{secret}@host"})
        os.write(2, f"RuntimeError: bad token {secret}".encode())
        return 7

    def leak_and_lose(self) -> int:
        """Leak, and kill the supervisor at the same moment."""
        supervisor = self.run.read_state().supervisor
        assert supervisor is not None
        os.kill(supervisor.pid, signal.SIGSTOP)
        self.leak()
        os.kill(supervisor.pid, signal.SIGKILL)
        return self.deaf()

    def kill(self) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 1

    def orphan(self) -> int:
        self._start_orphan()
        return self.end(0)

    def orphan_crash(self) -> int:
        self._start_orphan()
        return self.kill()

    def hang_after_end(self) -> int:
        self.end(0)
        return self.deaf()

    def stubborn(self) -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._start_orphan()
        return self.deaf()

    def deaf(self) -> int:
        """Neither poll for requests nor handle SIGTERM."""
        time.sleep(600)
        return 1

    def until_released(self) -> int:
        while not (self.run.path / "release").exists():
            time.sleep(0.02)
        return self.finish()

    def until_stopped(self) -> int:
        signals: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
        (self.run.path / "worker.pid").write_text(str(os.getpid()))
        while not signals and "stop" not in self.run.requests():
            time.sleep(0.01)
        self.events.write("checkpoint", step=3)
        return self.end(75, None if os.environ.get("FAKE_SILENT") else "saved")

    def trains(self) -> int:
        self.events.write("progress", step=1)
        return self.until_stopped()

    def slow_to_save(self) -> int:
        """Has saved once, for a second; and takes as long when it stops: longer than the tests' patience."""
        self.events.write("progress", step=2)
        time.sleep(1.2)
        self.events.write("checkpoint", step=2)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        (self.run.path / "worker.pid").write_text(str(os.getpid()))
        while "stop" not in self.run.requests():
            time.sleep(0.01)
        time.sleep(1.2)
        return self.end(75, "saved")

    def saves_silently(self) -> int:
        """Trains; stops when asked to, and does not say why."""
        self.events.write("progress", step=1)
        while "stop" not in self.run.requests():
            time.sleep(0.01)
        return self.end(75)

    def unmarked(self) -> int:
        """End, and leave a process that does not carry the run's mark."""
        self._start_orphan(environment={})
        return self.end(0)

    def lost_a_rank(self, code: int = 1, cause: str | None = "RuntimeError in phase train: Connection closed.") -> int:
        """Act as `accelerate launch` of two ranks: one is killed; the other says something, and ends as well."""
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", "import time; time.sleep(600)", str(self.run.path)],
                env=os.environ | {"RANK": str(rank)},
            )
            for rank in range(2)
        ]
        (self.run.path / "rank-1.pid").write_text(str(ranks[1].pid))
        status = ranks[1].wait()
        self.end(code, cause)
        ranks[0].terminate()
        ranks[0].wait()
        for rank in (1, 0):  # as torchelastic's table has it
            number = status if rank == 1 else -signal.SIGTERM
            print(f"  rank      : {rank} (local_rank: {rank})\n  exitcode  : {number} (pid: {ranks[rank].pid})")
        return 1

    def stopped_without_a_rank(self) -> int:
        """Lose a rank; the other, told to end by torchelastic, saves and says that it stopped."""
        return self.lost_a_rank(75, None)

    def _start_orphan(self, environment: dict[str, str] | None = None) -> None:
        """Start a process in a session of its own, deaf to SIGTERM, whose parent will be gone."""
        code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
        orphan = subprocess.Popen(
            [sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE, env=environment
        )
        assert orphan.stdout is not None
        orphan.stdout.readline()
        (self.run.path / "orphan.pid").write_text(str(orphan.pid))


def wrapper(run_dir: str, silent: bool) -> int:
    """Act as `accelerate launch` of one process: die of SIGTERM and leave the worker."""
    environment = os.environ | ({"FAKE_SILENT": "1"} if silent else {})
    return subprocess.run([sys.executable, __file__, run_dir, "until-stopped"], env=environment).returncode


if __name__ == "__main__":
    run_dir, mode = sys.argv[1:]
    if mode.endswith("wrapper"):
        sys.exit(wrapper(run_dir, silent=mode == "silent-wrapper"))
    sys.exit(getattr(Worker(RunDir(Path(run_dir))), mode.replace("-", "_"))())
