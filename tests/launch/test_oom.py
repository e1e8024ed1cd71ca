"""Detection of the kernel's out-of-memory killer, and of the limit that was hit."""

from pathlib import Path

import pytest

from stackllama_engine.launch.oom import Killer, OomWatch

from .cgroup_tree import GIB, Tree

JOB = "system.slice/slurmstepd.scope/job_4711"
TASK = f"{JOB}/step_0/user/task_0"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_oom_watch_names_slurms_limit_two_cgroups_above(tree: Tree) -> None:
    tree.version_2(f"/{TASK}")
    tree.put(JOB, memory_max=16 * GIB, memory_peak=15 * GIB, memory_events__local="low 0\noom 0\noom_kill 0")
    tree.put(TASK, memory_max="max", memory_events="low 0\noom 0\noom_kill 2")
    watch = OomWatch(tree.root)
    assert watch.poll().active is False
    tree.put(TASK, memory_events="low 0\noom 0\noom_kill 3")
    tree.put(JOB, memory_events__local="low 0\noom 1\noom_kill 0", memory_peak=16 * GIB)
    assert watch.poll() == Killer(
        active=True,
        limit=16 * GIB,
        peak=16 * GIB,
        whose=f"Slurm's memory limit of job 4711 (`--mem`; memory.max of cgroup /{JOB})",
    )


def test_oom_watch_names_the_limit_that_was_hit(tree: Tree) -> None:
    """A parent that its other children filled."""
    tree.version_2("/a/b")
    tree.put("a", memory_max=16 * GIB, memory_events__local="oom 4")
    tree.put("a/b", memory_max=8 * GIB, memory_events="oom_kill 0", memory_events__local="oom 0")
    watch = OomWatch(tree.root)
    tree.put("a", memory_events__local="oom 5")
    tree.put("a/b", memory_events="oom_kill 1")
    assert watch.poll() == Killer(active=True, limit=16 * GIB, whose="memory.max of cgroup /a")


def test_oom_watch_ignores_kills_outside_the_cgroup(tree: Tree) -> None:
    tree.version_2("/a")
    tree.put("a", memory_max="max", memory_events="oom_kill 0")
    watch = OomWatch(tree.root)
    tree.killed(1)
    assert watch.poll() == Killer(active=False, limit=64 * GIB, whose="this machine's memory")


def test_oom_watch_falls_back_to_the_machines_count(tree: Tree) -> None:
    watch = OomWatch(tree.root)
    tree.killed(1)
    assert watch.poll().active is True
    (tree.root / "proc/vmstat").unlink()
    assert watch.poll().active is None


def test_oom_watch_of_cgroup_version_1(tree: Tree) -> None:
    tree.version_1("/slurm/uid_0/job_12/step_0")
    folder = "memory/slurm/uid_0/job_12"
    tree.put(folder, memory_limit_in_bytes=4 * GIB, memory_max_usage_in_bytes=4 * GIB)
    tree.put(f"{folder}/step_0", memory_limit_in_bytes=9223372036854771712, memory_oom_control="oom_kill 0")
    watch = OomWatch(tree.root)
    tree.put(f"{folder}/step_0", memory_oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 1")
    found = watch.poll()
    assert (found.active, found.limit, found.peak) == (True, 4 * GIB, 4 * GIB)
    assert found.whose.startswith("Slurm's memory limit of job 12 (`--mem`; memory.limit_in_bytes of cgroup /slurm/")
