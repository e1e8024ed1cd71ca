"""Training command: argv, environment and accelerate configuration. Never a shell.

Every stage is ``accelerate launch … -m stackllama_engine.train STAGE RUN_DIR``. What surprises in accelerate, and
why each thing is spelled out here (``accelerate/commands/launch.py``):

- A person's own ``default_config.yaml`` is read unless ``--config_file`` is given: the run gets a file of its own.
- ``--cpu --num_processes 2`` starts one process; ``--multi_gpu`` with ``ACCELERATE_USE_CPU=true`` starts two (gloo).
- Without ``--num_cpu_threads_per_process`` it divides by a core count that is unknown in some containers
  (:mod:`..contract.threads` knows how many cores there are, and what a stage gets of them).
- ``--rdzv_backend c10d`` with ``store_type=file`` gives torchrun a file (:mod:`.rendezvous_dir`) instead of a server on
  all interfaces, which its own choice, ``static``, is. A sign of life every five seconds has no reader where it is
  alone.
- ``--main_process_port 0``: without it accelerate looks whether 29500 is in use. Nothing listens on it.
- One process's exit code becomes 1 whatever it was, a signal's as well: :mod:`..train.accelerate_cli` keeps it.
- One process that sees several GPUs becomes ``DataParallel`` in the Trainer: it is shown as many as it uses.
"""

import os
import shlex
import sys
from pathlib import Path

import yaml
from msgspec import Struct
from msgspec.structs import replace

from ..contract.child_environment import source_path
from ..contract.recipe import AnyRecipe, MergeRecipe, PipelineRecipe
from ..contract.threads import stage_threads, thread_environment
from .process_marks import RUN_MARK

ACCELERATE_FILE = "accelerate.yaml"
SHUTDOWN_SECONDS = 120
"""How long torchrun lets its workers save after SIGTERM before it kills them; its own default is 30."""

FORWARDED_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""What torchrun passes on to its workers: its own choice and SIGUSR1, which Slurm sends before the time is up. It
reads ``PET_SIGNALS_TO_HANDLE`` as its option ``--signals-to-handle``, which `accelerate launch` does not take."""

_SEVERAL = ["--multi_gpu", "--rdzv_backend", "c10d", "--rdzv_conf", "store_type=file,keep_alive_interval=86400"]

CPU_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
"""For training on a CPU: glibc keeps what tensors gave back instead of returning it to the kernel, which would hand it
out again page by page, zeroed (300,000 page faults a PPO update otherwise). 32 MiB is the most that every glibc takes
as the size from which memory is asked of the kernel."""


class Command(Struct, frozen=True, kw_only=True):
    """The command that starts one run.

    Attributes:
        argv: the command, program first.
        environment: what is added to the inherited environment; no secrets.
        files: small files, by name, that the command expects in the run directory.
    """

    argv: list[str]
    environment: dict[str, str]
    files: dict[str, str] = {}

    def in_shell(self) -> str:
        """Return the command quoted for a shell, its environment first."""
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*assignments, shlex.join(self.argv)])

    def in_directory(self, planned: Path, run_dir: Path) -> "Command":
        """Return this command with ``run_dir`` in place of the path that it was built for."""

        def moved(text: str) -> str:
            is_inside = text == str(planned) or text.startswith(f"{planned}/")
            return f"{run_dir}{text[len(str(planned)) :]}" if is_inside else text

        argv = [moved(word) for word in self.argv]
        return replace(self, argv=argv, environment={key: moved(text) for key, text in self.environment.items()})


def build_command(recipe: AnyRecipe, run_dir: Path, gpus: list[str]) -> Command:
    """Build the command of a resolved recipe.

    Args:
        recipe: with ``num_processes`` filled in.
        run_dir: absolute; need not exist.
        gpus: visible GPUs, as named in ``CUDA_VISIBLE_DEVICES``.
    """
    python_path = source_path(os.environ.get("PYTHONPATH", ""))
    environment = {RUN_MARK: str(run_dir), "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"} | python_path
    if isinstance(recipe, PipelineRecipe):
        argv = [sys.executable, "-m", "stackllama_engine.launch.pipeline", str(run_dir)]
        return Command(argv=argv, environment=environment | {"STACKLLAMA_WORLD_SIZE": "1"})
    processes = recipe.num_processes or 1
    on_cpu = recipe.use_cpu or not gpus
    precision = _mixed_precision(recipe)
    threads = stage_threads(recipe, on_cpu=on_cpu, processes=processes)
    argv = [
        sys.executable,
        "-m",
        "stackllama_engine.train.accelerate_cli",
        "launch",
        "--config_file",
        str(run_dir / ACCELERATE_FILE),
        "--num_machines",
        "1",
        "--num_processes",
        str(processes),
        *(_SEVERAL if processes > 1 else []),
        "--mixed_precision",
        precision,
        "--main_process_port",
        "0",
        "--num_cpu_threads_per_process",
        str(threads),
        "-m",
        "stackllama_engine.train",
        str(recipe.stage),
        str(run_dir),
    ]
    environment["STACKLLAMA_WORLD_SIZE"] = str(processes)
    environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(SHUTDOWN_SECONDS)
    environment["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # whatever a library asks of `torch.load`: no code from pickles
    if processes > 1 and "GLOO_SOCKET_IFNAME" not in os.environ:
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # all of them are on this machine
    environment["PET_SIGNALS_TO_HANDLE"] = FORWARDED_SIGNALS
    environment["ACCELERATE_USE_CPU"] = str(on_cpu).lower()
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = "" if on_cpu else ",".join(gpus[:processes])
    environment |= thread_environment(threads)
    if on_cpu:
        environment |= {name: value for name, value in CPU_MEMORY.items() if name not in os.environ}
    files = {ACCELERATE_FILE: _accelerate_yaml(processes, on_cpu, precision)}
    return Command(argv=argv, environment=environment, files=files)


def _mixed_precision(recipe: AnyRecipe) -> str:
    if isinstance(recipe, (MergeRecipe, PipelineRecipe)):
        return "no"
    return "bf16" if recipe.bf16 else "fp16" if recipe.fp16 else "no"


def _accelerate_yaml(processes: int, on_cpu: bool, precision: str) -> str:
    values = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU" if processes > 1 else "NO",
        "num_machines": 1,
        "num_processes": processes,
        "machine_rank": 0,
        "mixed_precision": precision,
        "use_cpu": on_cpu,
    }
    return yaml.safe_dump(values, sort_keys=False)
