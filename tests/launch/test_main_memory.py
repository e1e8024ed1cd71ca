"""Main memory that a process may use, where control groups nest."""

from pathlib import Path

import pytest

from stackllama_engine.launch.main_memory import MainMemory, cgroups, limits, main_memory, tightest

from .cgroup_tree import GIB, MIB, Tree

SLICE = "system.slice/slurmstepd.scope/job_7"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def found(tree: Tree) -> MainMemory:
    return main_memory(tree.root)


def test_main_memory_without_limits_is_the_machines(tree: Tree) -> None:
    assert found(tree) == MainMemory(64 * GIB, 32 * GIB)
    tree.version_2("/user.slice")
    tree.put("user.slice", memory_max="max", memory_high="max", memory_current=GIB)
    assert found(tree) == MainMemory(64 * GIB, 32 * GIB)


def test_main_memory_is_the_smallest_limit_above_an_unlimited_cgroup(tree: Tree) -> None:
    tree.version_2(f"/{SLICE}/step_0/user/task_0")
    tree.put("system.slice", memory_max=48 * GIB)
    tree.put(SLICE, memory_max=16 * GIB, memory_current=4 * GIB, memory_stat=f"anon 1\ninactive_file {GIB}\nfile 2")
    tree.put(f"{SLICE}/step_0", memory_max=20 * GIB)
    tree.put(f"{SLICE}/step_0/user", memory_max="max")
    tree.put(f"{SLICE}/step_0/user/task_0", memory_max="max")
    memory = found(tree)
    assert (memory.total, memory.available) == (16 * GIB, 13 * GIB), "page cache can be had"
    assert str(memory.limit) == f"memory.max of cgroup /{SLICE}"


def test_available_memory_is_what_the_fullest_cgroup_leaves(tree: Tree) -> None:
    tree.version_2("/a/b")
    tree.put("a", memory_max=20 * GIB, memory_current=19 * GIB)  # others fill it
    tree.put("a/b", memory_max=10 * GIB, memory_current=GIB)
    assert (found(tree).total, found(tree).available) == (10 * GIB, GIB)


def test_memory_high_limits_planning_and_does_not_kill(tree: Tree) -> None:
    tree.version_2("/a")
    tree.put("a", memory_max=10 * GIB, memory_high=8 * GIB)
    assert found(tree).total == 8 * GIB
    limit = tightest(limits(tree.root))
    assert limit is not None and (limit.bytes, limit.file) == (10 * GIB, "memory.max")


def test_cgroups_in_a_container_with_its_own_namespace(tree: Tree) -> None:
    tree.version_2("/")
    tree.put(".", memory_max=3 * GIB)
    assert found(tree).total == 3 * GIB


def test_cgroups_in_a_container_whose_mount_begins_at_its_cgroup(tree: Tree) -> None:
    tree.version_2("/docker/0a1b/worker", shown="/docker/0a1b")
    tree.put(".", memory_max=5 * GIB)
    tree.put("worker", memory_max="max")
    assert [cgroup.name for cgroup in cgroups(tree.root)] == ["/docker/0a1b/worker", "/docker/0a1b"]
    assert found(tree).total == 5 * GIB


def test_cgroups_outside_the_mount_fall_back_to_its_root(tree: Tree) -> None:
    tree.version_2("/../sibling", shown="/")
    tree.put(".", memory_max=6 * GIB)
    assert found(tree).total == 6 * GIB


def test_cgroups_of_version_1_beside_version_2(tree: Tree) -> None:
    tree.version_1("/slurm/uid_0/job_7/step_0")
    unlimited = 9223372036854771712
    tree.put("memory/slurm/uid_0/job_7", memory_limit_in_bytes=12 * GIB, memory_usage_in_bytes=13 * GIB)
    tree.put("memory/slurm/uid_0/job_7/step_0", memory_limit_in_bytes=unlimited)
    tree.put("memory", memory_limit_in_bytes=unlimited, memory_stat=f"hierarchical_memory_limit {unlimited}")
    memory = found(tree)
    assert (memory.total, memory.available) == (12 * GIB, 0)
    assert str(memory.limit) == "memory.limit_in_bytes of cgroup /slurm/uid_0/job_7"


def test_cgroups_of_version_1_count_limits_above_a_container(tree: Tree) -> None:
    tree.version_1("/docker/0a1b", shown="/docker/0a1b")
    tree.put("memory", memory_limit_in_bytes=8 * GIB, memory_stat=f"cache 1\nhierarchical_memory_limit {2 * GIB}")
    assert found(tree).total == 2 * GIB


def test_a_limit_beyond_the_machine_is_ignored(tree: Tree) -> None:
    tree.version_2("/a")
    tree.put("a", memory_max=128 * GIB)
    assert found(tree) == MainMemory(64 * GIB, 32 * GIB)


def test_main_memory_of_this_machine(tmp_path: Path) -> None:
    memory = main_memory()
    assert memory.total > 64 * MIB and 0 <= memory.available <= memory.total
