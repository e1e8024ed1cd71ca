"""CPU threads of every process, where affinity, cgroups and the environment are inputs."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from stackllama_console.cli import child
from stackllama_engine.budget import tracing
from stackllama_engine.budget.trace.request import Request
from stackllama_engine.contract import threads
from stackllama_engine.contract.base import DEMO_BASE
from stackllama_engine.contract.errors import StackllamaError
from stackllama_engine.contract.recipe import AnyRecipe
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.contract.threads import thread_environment, threads_per_process, usable_cores
from stackllama_engine.data import preview
from stackllama_engine.launch.argv import build_command

from .cgroup_tree import Tree

RUN = Path("/runs/r1")
STAGES = (Stage.SFT, Stage.REWARD, Stage.PPO, Stage.MERGE)


@pytest.fixture(autouse=True)
def nobodys_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)


@pytest.fixture
def affinity(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the cores of this process's CPU affinity: 64, to be changed in place."""
    cores = [64]
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(cores[0])))
    monkeypatch.setattr(threads, "cgroups", lambda *_, **__: [])
    return cores


def recipe_of(stage: Stage, base: str | Path, tmp_path: Path, **values: object) -> AnyRecipe:
    """Make a recipe whose base is a path or a hub id."""
    if stage is Stage.MERGE:
        adapter = tmp_path / "adapter"
        adapter.mkdir(exist_ok=True)
        (adapter / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{base}"}}')
        return build_recipe(stage, {"adapter_path": str(adapter)} | values)
    more = {"reward_model_path": "reward"} if stage is Stage.PPO else {}
    return build_recipe(stage, {"model_name_or_path": str(base)} | more | values)


def given_to(recipe: AnyRecipe, gpus: list[str]) -> int:
    """Return the threads of each process of a stage's command, as accelerate and the tokenizers get them."""
    command = build_command(recipe, RUN, gpus)
    openmp = command.argv[command.argv.index("--num_cpu_threads_per_process") + 1]
    assert command.environment["RAYON_NUM_THREADS"] == openmp
    return int(openmp)


def test_cores_are_those_of_the_affinity(affinity: list[int], tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 64
    affinity[0] = 3
    assert usable_cores(tmp_path) == 3


@pytest.mark.parametrize(
    ("outer", "inner", "cores"),
    [
        ("max 100000", "max 100000", 64),
        ("max 100000", "200000 100000", 2),
        ("150000 100000", "max 100000", 1),  # a core and a half
        ("50000 100000", "800000 100000", 1),  # half a core: a process has a thread all the same
        ("1600000 100000", "400000 50000", 8),
        ("6400000 50000", "max 100000", 64),  # more than there are
        ("nonsense", "400000 0", 64),
    ],
)
def test_cores_are_no_more_than_a_quota_of_version_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outer: str, inner: str, cores: int
) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(64)))
    tree = Tree(tmp_path)
    tree.version_2("/outer/inner")
    tree.put("outer", cpu_max=outer)
    tree.put("outer/inner", cpu_max=inner)
    assert usable_cores(tmp_path) == cores


def test_cores_are_no_more_than_a_quota_of_version_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(64)))
    tree = Tree(tmp_path)
    tree.version_1("/job", cpu="/docker/0a1b")
    tree.put("cpu", cpu_cfs_quota_us=-1, cpu_cfs_period_us=100000)
    tree.put("cpu/docker", cpu_cfs_quota_us=-1, cpu_cfs_period_us=100000)
    assert usable_cores(tmp_path) == 64
    tree.put("cpu/docker/0a1b", cpu_cfs_quota_us=250000, cpu_cfs_period_us=50000)
    assert usable_cores(tmp_path) == 5


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("cores", "on_cpu", "on_gpu"), [(64, 8, 4), (16, 8, 4), (6, 6, 4), (2, 2, 2), (1, 1, 1)])
def test_threads_of_a_stage(
    affinity: list[int], tmp_path: Path, stage: Stage, cores: int, on_cpu: int, on_gpu: int
) -> None:
    affinity[0] = cores
    assert given_to(recipe_of(stage, "huggyllama/llama-7b", tmp_path, use_cpu=False), []) == on_cpu
    assert given_to(recipe_of(stage, "huggyllama/llama-7b", tmp_path, use_cpu=True), ["0"]) == on_cpu
    assert given_to(recipe_of(stage, "huggyllama/llama-7b", tmp_path, use_cpu=False), ["0"]) == on_gpu


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("cores", [1, 2, 64])
def test_the_demos_base_has_one_thread_on_any_number_of_cores(
    affinity: list[int], tmp_path: Path, stage: Stage, cores: int
) -> None:
    affinity[0] = cores
    copy = tmp_path / "merged"  # as every stage after the first has it
    copy.mkdir()
    (copy / "model.safetensors").write_bytes((DEMO_BASE / "model.safetensors").read_bytes())
    for base in (DEMO_BASE, copy):
        assert given_to(recipe_of(stage, base, tmp_path), []) == given_to(recipe_of(stage, base, tmp_path), ["0"]) == 1


def test_processes_share_the_cores(affinity: list[int], tmp_path: Path) -> None:
    recipe = recipe_of(Stage.SFT, "gpt2", tmp_path, use_cpu=True, num_processes=4)
    assert given_to(recipe, []) == 8
    affinity[0] = 6
    assert given_to(recipe, []) == 1
    affinity[0] = 2
    assert given_to(recipe, []) == 1


def test_a_persons_choice_wins_everywhere(affinity: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "12")
    monkeypatch.setenv("RAYON_NUM_THREADS", "3")
    for base in ("gpt2", DEMO_BASE):
        command = build_command(recipe_of(Stage.SFT, base, tmp_path), RUN, [])
        assert command.argv[command.argv.index("--num_cpu_threads_per_process") + 1] == "12"
        assert not command.environment.keys() & {"OMP_NUM_THREADS", "RAYON_NUM_THREADS"}
    assert threads_per_process(DEMO_BASE) == 12 and thread_environment(1) == {}


@pytest.mark.parametrize(("choice", "count"), [("5,2", 5), ("0", 8), ("-1", 8), ("many", 8), ("", 8)])
def test_a_persons_choice_is_a_positive_number(
    affinity: list[int], monkeypatch: pytest.MonkeyPatch, choice: str, count: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", choice)
    assert threads_per_process() == count


def test_the_coordinator_of_a_pipeline_leaves_the_choice_to_its_stages(affinity: list[int]) -> None:
    recipe = build_recipe(Stage.PIPELINE, {"model_name_or_path": "gpt2"})
    assert not build_command(recipe, RUN, []).environment.keys() & {"OMP_NUM_THREADS", "RAYON_NUM_THREADS"}


@pytest.mark.parametrize(("cores", "count"), [(64, "8"), (3, "3")])
def test_threads_of_data_and_token_preview(
    affinity: list[int], monkeypatch: pytest.MonkeyPatch, cores: int, count: str
) -> None:
    affinity[0] = cores
    environments: list[dict[str, str]] = []

    def run(*_: object, env: dict[str, str], **__: object) -> SimpleNamespace:
        environments.append(env)
        return SimpleNamespace(returncode=1, stderr=b"no", stdout=b"")

    monkeypatch.setattr("subprocess.run", run)
    with pytest.raises(StackllamaError):
        child.document_of("stackllama_engine.train.token_preview", [], "rows.jsonl")
    with pytest.raises(StackllamaError):
        preview.preview("org/data")
    with pytest.raises(StackllamaError):
        tracing.ask(Request(stage=Stage.SFT, recipe={}, config={}))
    assert [env["OMP_NUM_THREADS"] for env in environments] == [count, count, "1"]
    assert [env["RAYON_NUM_THREADS"] for env in environments] == [count, count, "1"]


def test_threads_of_this_process_are_at_least_one() -> None:
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
