"""CPU threads of the processes that this package starts.

PyTorch, NumPy and the tokenizers start a thread per core of the machine unless they are told otherwise. That is too
many where the process may use fewer (its CPU affinity, a container's quota) or others use them too: OpenMP's threads
spin while they wait for each other, so each barrier then costs a time slice of the scheduler. Products of small
matrices gain nothing from a second thread, and a process that feeds a GPU gains little.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from .base import read_identity
from .cgroups import ROOT, Cgroup, cgroups
from .errors import StageError
from .recipe import AnyRecipe, MergeRecipe, PipelineRecipe

MOST_ON_GPU = 4
MOST_ON_CPU = 8
"""Most threads of a process that computes on a GPU, and on a CPU."""
SMALL_BASE = 8 << 20
"""Bytes of weights below which a base computes with one thread; the demo's has 0.8 MB."""

_OPENMP = "OMP_NUM_THREADS"
_RAYON = "RAYON_NUM_THREADS"
"""What PyTorch, NumPy and Arrow read, and what the tokenizers read."""


def usable_cores(root: Path = ROOT) -> int:
    """Return the cores that this process may use: its CPU affinity, or less where a cgroup has a quota.

    A quota of half a core more is rounded down: a thread too many is one that the others wait for.

    Args:
        root: of the file system; another one in tests.
    """
    quotas = [quota for cgroup in cgroups(root, controller="cpu") if (quota := _quota(cgroup)) is not None]
    return max(1, int(min([len(os.sched_getaffinity(0)), *quotas])))


def threads_per_process(
    base: str | Path | None = None, *, on_cpu: bool = True, processes: int = 1, root: Path = ROOT
) -> int:
    """Return the CPU threads of a process: ``OMP_NUM_THREADS`` where a person has set it.

    Args:
        base: local weights that it computes with; a hub id counts as large.
        on_cpu: whether it computes there.
        processes: that share the cores.
        root: of the file system; another one in tests.
    """
    if own := _own_choice(os.environ):
        return own
    if base is not None and (size := _weight_bytes(Path(base))) and size < SMALL_BASE:
        return 1
    return max(1, min(MOST_ON_CPU if on_cpu else MOST_ON_GPU, usable_cores(root) // processes))


def stage_threads(recipe: AnyRecipe, *, on_cpu: bool, processes: int) -> int:
    """Return the CPU threads of each process of a stage."""
    return threads_per_process(_base_of(recipe), on_cpu=on_cpu, processes=processes)


def thread_environment(threads: int) -> dict[str, str]:
    """Return the environment variables that set a process's threads; what a person has set stays."""
    wanted = {_OPENMP: str(threads), _RAYON: str(threads)}
    own = {_OPENMP} if _own_choice(os.environ) else set[str]()
    own |= {_RAYON} if os.environ.get(_RAYON) else set[str]()
    return {name: value for name, value in wanted.items() if name not in own}


def _own_choice(environment: Mapping[str, str]) -> int | None:
    """Return the threads that a person has set; of a list for nested regions (``4,2``) the first."""
    first = environment.get(_OPENMP, "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def _quota(cgroup: Cgroup) -> float | None:
    """Return the cores that a cgroup's quota amounts to; None where it has none."""
    if cgroup.version == 2:
        quota, _, period = (cgroup.text("cpu.max") or "").strip().partition(" ")  # "150000 100000", "max 100000"
    else:
        quota, period = ((cgroup.text(f"cpu.cfs_{name}_us") or "").strip() for name in ("quota", "period"))  # "-1"
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return None
    return int(quota) / int(period)


def _weight_bytes(path: Path) -> int | None:
    """Return the size of local weights; None where there are none."""
    try:
        files = [path] if path.suffix == ".gguf" else [*path.glob("*.safetensors")] if path.is_dir() else []
        return sum(file.stat().st_size for file in files) or None
    except OSError:  # not readable: the stage says so when it loads them
        return None


def _base_of(recipe: AnyRecipe) -> str | None:
    if isinstance(recipe, PipelineRecipe):
        return None
    if not isinstance(recipe, MergeRecipe):
        return recipe.model_name_or_path
    try:
        return recipe.base_model_name_or_path or str(read_identity(Path(recipe.adapter_path))["name"])
    except (StageError, OSError):  # the merge says so when it looks for it
        return None
