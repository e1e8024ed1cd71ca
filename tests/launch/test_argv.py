"""The command and what this machine must have for it."""

import itertools
import os
import subprocess
from pathlib import Path

import msgspec
import pytest
import yaml

from stackllama_engine.contract.child_environment import inherited_environment, source_path
from stackllama_engine.contract.errors import RecipeError, RefusedError
from stackllama_engine.contract.recipe import AnyRecipe, SFTRecipe
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import gpus, machine_check
from stackllama_engine.launch.argv import (
    ACCELERATE_FILE,
    CPU_MEMORY,
    Command,
    build_command,
)
from stackllama_engine.launch.machine_check import resolve_machine

RUN = Path("/home/me/my runs; $(id)/runs/r1")


def sft(**values: object) -> SFTRecipe:
    recipe = build_recipe(Stage.SFT, {"model_name_or_path": "gpt2", **values})
    assert isinstance(recipe, SFTRecipe)
    return recipe


def command(visible: list[str], **values: object) -> Command:
    return build_command(resolve_machine(sft(**values), visible), RUN, visible)


def option(command: Command, name: str) -> str:
    return command.argv[command.argv.index(name) + 1]


def config(command: Command) -> dict[str, object]:
    return yaml.safe_load(command.files[ACCELERATE_FILE])


def test_a_persons_own_choice_of_unsafe_loading_is_not_inherited() -> None:
    """torch refuses to load anything where both variables are set."""
    assert inherited_environment({"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "A": "b"}) == {"A": "b"}


def test_worker_is_the_end_of_the_argv_and_one_argument_each() -> None:
    built = command([])
    assert built.argv[-4:] == ["-m", "stackllama_engine.train", "sft", str(RUN)]
    assert built.argv[1:4] == ["-m", "stackllama_engine.train.accelerate_cli", "launch"]
    assert option(built, "--config_file") == str(RUN / "accelerate.yaml")
    assert option(built, "--main_process_port") == "0"


def test_one_process_on_the_cpu() -> None:
    built = command([])
    assert option(built, "--num_processes") == "1" and "--multi_gpu" not in built.argv
    assert config(built) == {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "NO",
        "num_machines": 1,
        "num_processes": 1,
        "machine_rank": 0,
        "mixed_precision": "no",
        "use_cpu": True,
    }
    assert built.environment["ACCELERATE_USE_CPU"] == "true"
    assert built.environment["STACKLLAMA_WORLD_SIZE"] == "1"
    assert built.environment["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in built.environment


def test_memory_is_kept_on_the_cpu_unless_the_person_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command([]).environment.items() >= CPU_MEMORY.items()
    assert not command(["0"]).environment.keys() & CPU_MEMORY.keys()
    name = "MALLOC_TRIM_THRESHOLD_"
    monkeypatch.setenv(name, "1")
    assert command([]).environment.keys() & CPU_MEMORY.keys() == CPU_MEMORY.keys() - {name}


def test_two_processes_on_the_cpu_need_multi_gpu_and_never_cpu() -> None:
    built = command([], use_cpu=True, num_processes=2)
    assert built.environment["GLOO_SOCKET_IFNAME"] == "lo"
    assert "GLOO_SOCKET_IFNAME" not in command([]).environment
    assert "--multi_gpu" in built.argv and "--cpu" not in built.argv
    assert option(built, "--num_processes") == built.environment["STACKLLAMA_WORLD_SIZE"] == "2"
    assert built.environment["ACCELERATE_USE_CPU"] == "true"
    assert int(built.environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) > 30, "torchrun's own grace is shorter than a save"
    assert option(built, "--rdzv_backend") == "c10d" and "store_type=file" in option(built, "--rdzv_conf")
    assert "--rdzv_backend" not in command([]).argv
    assert built.environment["PET_SIGNALS_TO_HANDLE"] == "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


def test_all_visible_gpus_unless_fewer_are_asked_for() -> None:
    built = command(["3", "5"], bf16=True)
    assert "--multi_gpu" in built.argv and option(built, "--num_processes") == "2"
    assert option(built, "--mixed_precision") == config(built)["mixed_precision"] == "bf16"
    assert built.environment["CUDA_VISIBLE_DEVICES"] == "3,5"
    assert built.environment["ACCELERATE_USE_CPU"] == "false"
    assert config(built)["use_cpu"] is False
    one = command(["3", "5"], num_processes=1, fp16=True)
    assert "--multi_gpu" not in one.argv and one.environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert option(one, "--mixed_precision") == "fp16"


def test_cpu_run_on_a_machine_with_gpus_sees_none() -> None:
    built = command(["0", "1"], use_cpu=True)
    assert option(built, "--num_processes") == "1"
    assert built.environment["CUDA_VISIBLE_DEVICES"] == ""


def test_merge_is_one_process_without_precision() -> None:
    recipe = resolve_machine(build_recipe(Stage.MERGE, {"adapter_path": "a"}), ["0", "1"])
    built = build_command(recipe, RUN, ["0", "1"])
    assert option(built, "--mixed_precision") == "no" and "--multi_gpu" not in built.argv
    assert built.argv[-2:] == ["merge", str(RUN)]


def test_pipeline_is_the_coordinator() -> None:
    recipe = resolve_machine(build_recipe(Stage.PIPELINE, {"model_name_or_path": "gpt2"}), ["0", "1"])
    assert [getattr(recipe, name)["num_processes"] for name in ("sft", "reward", "ppo", "merge")] == [2, 2, 2, 1]
    built = build_command(recipe, RUN, ["0", "1"])
    assert built.argv[1:] == ["-m", "stackllama_engine.launch.pipeline", str(RUN)]
    assert "CUDA_VISIBLE_DEVICES" not in built.environment


def test_resolved_recipe_resolves_to_itself() -> None:
    recipe = resolve_machine(sft(), ["0"])
    assert recipe == msgspec.structs.replace(sft(), num_processes=1) == resolve_machine(recipe, ["0"])


def test_more_processes_than_gpus() -> None:
    with pytest.raises(RefusedError, match="exceeds the number of visible GPUs \\(1\\)"):
        resolve_machine(sft(num_processes=2), ["0"])
    with pytest.raises(RefusedError, match="use_cpu: true"):
        resolve_machine(sft(num_processes=2), [])


@pytest.mark.parametrize("optim", ["paged_adamw_8bit", "paged_adamw_32bit"])
def test_a_paged_optimizer_needs_a_gpu(optim: str) -> None:
    for visible, use_cpu in (([], False), (["0"], True)):
        with pytest.raises(RecipeError, match=f"`optim: {optim}`.*adamw_8bit"):
            resolve_machine(sft(optim=optim, use_cpu=use_cpu), visible)
    assert resolve_machine(sft(optim=optim), ["0"])


def test_fp16_needs_a_gpu() -> None:
    for visible, use_cpu in (([], False), (["0"], True)):
        with pytest.raises(RecipeError, match="fp16"):
            resolve_machine(sft(fp16=True, use_cpu=use_cpu), visible)


@pytest.mark.parametrize(
    ("missing", "values", "error"),
    [
        ("trl", {}, r"Training needs trl, .*pip install '\.\[train\]'"),
        ("bitsandbytes", {"load_in_8bit": True}, "Training needs bitsandbytes"),
        ("gguf", {"model_name_or_path": "m.gguf", "load_in_8bit": False}, "Training needs gguf"),
        ("wandb", {"report_to": ["wandb"]}, "`report_to: wandb` .*pip install wandb"),
        ("tensorboard", {"report_to": ["tensorboard"]}, "`report_to: tensorboard`"),
    ],
)
def test_missing_packages(missing: str, values: dict[str, object], error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_check, "_installed", lambda name: not name.startswith(missing))
    recipes: list[AnyRecipe] = [sft(**values)]
    if missing == "trl":
        recipes += [
            build_recipe(Stage.MERGE, {"adapter_path": "a"}),
            build_recipe(Stage.PIPELINE, {"model_name_or_path": "a"}),
        ]
    for recipe in recipes:
        with pytest.raises((RefusedError, RecipeError), match=error):
            resolve_machine(recipe, [])


def test_packages_that_a_recipe_does_not_use_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_check, "_installed", lambda name: name not in ("bitsandbytes", "gguf", "wandb"))
    assert resolve_machine(sft(load_in_8bit=False), [])


def test_marks_of_a_surrounding_program_are_not_inherited() -> None:
    foreign = [
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "PMI_SIZE",
        "OMPI_COMM_WORLD_SIZE",
        "TORCHELASTIC_RUN_ID",
        "ACCELERATE_MIXED_PRECISION",
        "STACKLLAMA_RUN",
        "STACKLLAMA_ATTEMPT",
        "STACKLLAMA_WORLD_SIZE",
        "PET_SIGNALS_TO_HANDLE",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT",
        "STACKLLAMA_MEETING",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE",
        "PET_RDZV_ENDPOINT",
    ]
    kept = ["HF_HUB_OFFLINE", "HF_HOME", "HF_TOKEN", "PATH", "STACKLLAMA_HOME", "STACKLLAMA_STOP_GRACE", "MY_RANK"]
    assert list(inherited_environment(dict.fromkeys([*foreign, *kept], "1"))) == kept


def test_python_path_is_absolute_and_begins_with_our_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    first, *rest = source_path("lib::/opt/x")["PYTHONPATH"].split(":")
    assert (Path(first) / "stackllama_engine" / "launch" / "argv.py").is_file()
    assert rest == [str(tmp_path / "lib"), "/opt/x"]


@pytest.mark.parametrize(
    ("devices", "variable", "visible"),
    [
        (0, None, []),
        (0, "0", []),
        (2, None, ["0", "1"]),
        (2, "", []),
        (2, "1", ["1"]),
        (4, "3, 1", ["3", "1"]),
        (2, "0,7,1", ["0"]),
        (2, "-1", []),
        (1, "GPU-8932f937", ["GPU-8932f937"]),
        (1, "MIG-1/2", ["MIG-1/2"]),
        (2, "NoDevFiles", []),
    ],
)
def test_visible_gpus(devices: int, variable: str | None, visible: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_device_count", lambda: devices)
    assert gpus.visible_gpus({} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}) == visible


def test_accelerate_understands_the_argv(tmp_path: Path) -> None:
    """accelerate's own parser and validation accept every shape of command; its configuration file too."""
    from accelerate.commands.launch import (  # pyright: ignore[reportMissingImports]
        _validate_launch_command,
        launch_command_parser,
    )

    visible_sets = ([], ["0"], ["0", "1", "2"])
    for visible, precision in itertools.product(visible_sets, ({}, {"bf16": True})):
        built = command(visible, **precision)
        (tmp_path / ACCELERATE_FILE).write_text(built.files[ACCELERATE_FILE])
        arguments = [str(tmp_path / ACCELERATE_FILE) if ACCELERATE_FILE in part else part for part in built.argv[4:]]
        parsed, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
        assert parsed.num_processes == max(1, len(visible)) and parsed.multi_gpu == (len(visible) > 1)
        assert parsed.use_cpu == (not visible) and parsed.mixed_precision == ("bf16" if precision else "no")
        assert (parsed.module, parsed.training_script) == (True, "stackllama_engine.train")
        assert parsed.training_script_args == ["sft", str(RUN)]


def test_commit_is_read_without_touching_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch may be killed while git looks: an index.lock that it left would block the person's next commit."""
    package = tmp_path / "stackllama_engine"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(machine_check.stackllama_engine, "__file__", str(package / "__init__.py"))
    assert machine_check.git_commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "m"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    os.utime(package / "__init__.py", (0, 0))  # `git status` would now refresh the index
    (tmp_path / ".git" / "index.lock").touch()  # another git at work is no reason to fail, nor is its lock ours
    before = (tmp_path / ".git" / "index").read_bytes()
    assert machine_check.git_commit() == head
    assert (tmp_path / ".git" / "index.lock").exists()
    (tmp_path / ".git" / "index.lock").unlink()
    assert machine_check.git_commit() == head
    assert (tmp_path / ".git" / "index").read_bytes() == before, "the index was rewritten: a lock was taken"
    (package / "__init__.py").write_text("changed = True\n")
    assert machine_check.git_commit() == f"{head}+"


def test_vllm_needs_its_package_and_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"reward_funcs": ["a:b"], "load_in_8bit": False, "dtype": "bfloat16", "use_vllm": True}
    recipe = build_recipe(Stage.PPO, {"model_name_or_path": "gpt2", **keys})
    there = machine_check._installed
    monkeypatch.setattr(machine_check, "_installed", lambda name: name != "vllm" and there(name))
    with pytest.raises(RefusedError, match=r"pip install '\.\[vllm\]'"):
        resolve_machine(recipe, ["0"])
    monkeypatch.setattr(machine_check, "_installed", lambda name: name == "vllm" or there(name))
    assert resolve_machine(recipe, ["0"]).num_processes == 1  # type: ignore[union-attr]
    with pytest.raises(RecipeError, match="`use_vllm: true` needs a GPU"):
        resolve_machine(recipe, [])
