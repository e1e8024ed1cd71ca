"""A home whose runs have every file that a run directory can hold, for the trials to damage."""

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
from tests.cli.conftest import OVERRIDES

from stackllama_engine.contract.checkpoints import FileSeal, Manifest
from stackllama_engine.contract.children import CHILDREN, child_id
from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.recipe_io import dump_recipe, load_recipe
from stackllama_engine.contract.run_dir import Home, Launch, Phase, ProcessId, RunDir, State
from stackllama_engine.contract.stages import Stage

NAMES = ("sft", "ppo", "p", "p-sft", "alive", "adrift")
"""Runs that are damaged: one that failed, one that finished, a pipeline and its child, one that runs, and one without a
lock holder although it has not ended."""
T0 = 1_700_000_000.0


def stock(home: Home) -> None:
    """Make the runs of `NAMES`, the pipeline's other children, and one that stays undamaged."""
    _run(home, Stage.SFT, "whole", "finished")
    _run(home, Stage.SFT, "sft", "failed", attempts=2)
    _run(home, Stage.PPO, "ppo", "finished")
    _run(home, Stage.PIPELINE, "p", "failed")
    for child in CHILDREN[:3]:
        _run(home, child.stage, child_id("p", child.suffix), "stopped", parents=["p"])
    _run(home, Stage.REWARD, "alive", "running")
    _run(home, Stage.MERGE, "adrift", "running")


def _run(
    home: Home, stage: Stage, name: str, phase: Phase, *, attempts: int = 1, parents: list[str] | None = None
) -> None:
    text = dump_recipe(load_recipe(stage, None, OVERRIDES[stage]))
    run = home.create(stage, text, name)
    for attempt in range(1, attempts + 1):
        _attempt(run, attempt, phase, text)
    _checkpoint(run, 1, text)
    _checkpoint(run, 2, text)
    (run.path / "lock").touch(0o600)
    run.samples_file.write_text("".join(json.dumps(row) + "\n" for row in _samples()))
    run.write_json("result.json", _result(stage))
    run.write_json("lineage.json", {"base": {"name": "demo", "sha256": "0" * 64}, "parents": parents or []})
    run.write_json("slurm.json", {"id": "4242", "submitted": T0})
    (run.path / "accelerate.yaml").write_text("compute_environment: LOCAL_MACHINE\n")
    for folder in (run.adapter, run.merged):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
        (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "base_model_name_or_path": "demo"}))
    if phase == "running":
        run.request("save")
        (run.control / "set-learning_rate").write_text("0.001")
    run.write_launch(
        Launch(
            argv=["python", "-m", "stackllama_engine.train", str(stage), str(run.path)],
            cwd="/",
            host="h",
            created=T0,
            versions={"torch": "2"},
            git_commit="0" * 40,
            parents=parents or [],
            environment={"ACCELERATE_USE_CPU": "true"},
            recipe_sha256=hashlib.sha256(text.encode()).hexdigest(),
        )
    )
    gone = ProcessId(boot_id="another-boot", pid=4_000_000, start_time=1)
    code = 0 if phase == "finished" else 1
    ends: dict[str, Any] = {} if phase == "running" else {"ended": T0 + 70, "exit_code": code}
    run.write_state(
        State(
            stage=stage,
            phase=phase,
            attempt=attempts,
            created=T0,
            started=T0 + 10,
            supervisor=gone,
            worker=gone,
            cause=None if phase == "finished" else "out of memory in train",
            last_lines=["one", "two"],
            **ends,
        )
    )


def _attempt(run: RunDir, attempt: int, phase: str, recipe: str) -> None:
    folder = run.attempt_dir(attempt)
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe)
    events = EventWriter(folder / "events.jsonl")
    events.write("phase", phase="train")
    for step in range(1, 5):
        metrics = {"loss": 1 / step, "objective/scores": step / 2, "eval/mean_reward": 0.5, "time/update": 2.0}
        events.write("progress", step=step, total_steps=10)
        events.write("metrics", step=step, metrics=metrics)
        events.write("memory", phase="update", metrics={"rss": 1e9}, data={"phase": {"rss": 1e9, "allocated": 5e8}})
    events.write("checkpoint", step=2, data={"path": "checkpoints/step-000002"})
    events.write("health", data={"message": "3 pairs dropped"})
    if phase != "running":
        events.write("end", data={"exit_code": 0 if phase == "finished" else 1, "cause": "out of memory in train"})
    events.close()
    health = EventWriter(folder / "health.jsonl")
    health.write("health", data={"message": "Disk space is low"})
    health.close()
    gpus = EventWriter(folder / "gpus.jsonl")
    for step in range(1, 5):
        metrics = {f"gpu/{index}/power": 300.0 + index for index in range(8)}
        gpus.write("metrics", step=step, metrics=metrics, data={"position": step + 0.5})
    gpus.close()
    (folder / "log.txt").write_text("loading\n 10%\r 20%\ntraining\nlast words\n")
    (folder / "stacks.txt").write_text("pid 1\n  main\n")
    (folder / "restart.json").write_text(json.dumps({"per_device_train_batch_size": 1}))


def _checkpoint(run: RunDir, step: int, recipe: str) -> None:
    path = run.checkpoints / f"step-{step:06d}"
    path.mkdir()
    files = {
        "weights.bin": b"weights",
        "recipe.yaml": recipe.encode(),
        "base.json": b'{"name": "demo"}',
        "adapter_config.json": json.dumps({"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}).encode(),
    }
    for name, content in files.items():
        (path / name).write_bytes(content)
    seals = {name: FileSeal(size=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in files.items()}
    (path / "manifest.json").write_bytes(msgspec.json.encode(Manifest(step=step, files=seals, metrics={"loss": 1.0})))


def _samples() -> list[dict[str, Any]]:
    rows = [
        {
            "step": step,
            "question": "Why?",
            "response": f"Because {step}.",
            "reward": 0.5,
            "kl": 0.1,
            "length": 3,
            "rewards": {"model": 0.5},
        }
        for step in range(1, 4)
    ]
    held_out = [
        {"step": 0, "question": "How?", "response": "So.", "split": "evaluation", "when": when, "utility": 1.0}
        for when in ("before", "after")
    ]
    return [*rows, *held_out]


def _result(stage: Stage) -> dict[str, Any]:
    sample = {"question": "How?", "before": "so", "after": "thus", "reward_before": 0.1, "reward_after": 0.9}
    part = {"mean_reward": 0.1, "true_utility": 0.5, "kl": 0.01, "questions": 128, "mean_reward_ci": [0.0, 0.2]}
    row = {
        "name": "base",
        "questions": 128,
        "score": 0.5,
        "score_se": 0.1,
        "kl": 0.2,
        "kl_is_bound": True,
        "win_rate": 0.5,
    }
    by_stage: dict[Stage, dict[str, Any]] = {
        Stage.PPO: {"before": part, "after": part, "samples": [sample], "temperature": 1.0, "comparison": [row, row]},
        Stage.PIPELINE: {"children": {"sft": {"run": "p-sft", "seconds": 5.0, "result": {"loss_last": 0.1}}}},
        Stage.MERGE: {"difference": 0.1, "difference_from_base": 0.2},
    }
    return {
        "stage": str(stage),
        "steps": 4,
        "seconds": 60.5,
        "loss_first": 2.0,
        "loss_last": 1.0,
        "eval_loss": 1.5,
        "accuracy": 0.75,
        "pairs": 10,
        "ties": 1,
    } | by_stage.get(stage, {})


class Stock:
    """The same home many times, from memory: each of ten thousand trials has its own.

    Args:
        path: of the home that was stocked.
    """

    def __init__(self, path: Path) -> None:
        self._folders: list[str] = []
        self._files: list[tuple[str, bytes]] = []
        for each in sorted(path.rglob("*")):
            name = str(each.relative_to(path))
            if each.is_dir():
                self._folders.append(name)
            else:
                self._files.append((name, each.read_bytes()))

    def lay_out(self, path: Path, name: str | None = None) -> Home:
        """Write a home with all of the runs, or with one of them, its children, and those that it is compared with."""
        path.mkdir()
        for folder in self._folders:
            if name is None or folder == "runs" or _run_of(folder, name) in ("whole", "ppo", name):
                (path / folder).mkdir()
        for file, content in self._files:
            if name is None or _run_of(file, name) in ("whole", "ppo", name):
                (path / file).write_bytes(content)
        return Home(path)


def _run_of(path: str, name: str) -> str:
    """Return the run that a path is in; for a pipeline's child the pipeline, if ``name`` is the pipeline."""
    run = path.split("/")[1] if "/" in path else ""
    return "p" if name == "p" and run.startswith("p-") else run
