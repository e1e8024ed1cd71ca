"""Benchmark of real steps: what it compares, and no failure on a machine without a GPU."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu_memory  # pyright: ignore[reportMissingImports]

from stackllama_engine.budget.architecture import Architecture
from stackllama_engine.budget.estimate import estimate
from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.recipe import PPORecipe, SFTRecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.expected import Expected

module: Any = gpu_memory


def run_of(tmp_path: Path, stage: Stage, phases: dict[str, dict[str, float]]) -> RunDir:
    run = Home(tmp_path).create(stage, "")
    run.attempt_dir(1).mkdir()
    writer = EventWriter(run.attempt_dir(1) / "events.jsonl")
    for phase, peaks in phases.items():
        writer.write("memory", phase=phase, metrics=peaks, data={"phase": peaks})
    writer.close()
    return run


def known(recipe: Any, arch: Architecture, *, on_gpu: bool) -> Expected:
    assert isinstance(recipe, SFTRecipe | PPORecipe)
    found = estimate(recipe, arch, on_gpu=on_gpu)
    return Expected(recipe=recipe, architecture=arch, reward=None, gpus=1, on_gpu=on_gpu, estimate=found)


def test_benchmark_without_a_gpu_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "first_card", lambda: None)
    assert module.main(["--out", str(tmp_path)]) == 0
    assert "No GPU here" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_ppo_is_compared_phase_by_phase(llama_7b: Architecture, tmp_path: Path) -> None:
    recipe = load_recipe(Stage.PPO, None, ["model_name_or_path=x", "reward_model_path=y"])
    expected = known(recipe, llama_7b, on_gpu=True)
    by_name = {one.name: one.bytes for one in expected.estimate.phases}
    phases = {
        name: {"allocated": count * 1.25, "reserved": expected.estimate.reserved[0]} for name, count in by_name.items()
    }
    rows = module.compare(run_of(tmp_path, Stage.PPO, phases), expected)
    assert [(row["phase"], row["predicted"], row["error"]) for row in rows[:3]] == [
        (name, by_name[name], -0.2) for name in ("rollout", "score", "update")
    ]
    assert rows[3]["metric"] == "reserved" and rows[3]["inside"]


def test_on_a_cpu_the_resident_set(llama_7b: Architecture, tmp_path: Path) -> None:
    recipe = load_recipe(Stage.SFT, None, ["model_name_or_path=x", "load_in_8bit=false"])
    expected = known(recipe, llama_7b, on_gpu=False)
    (row,) = module.compare(run_of(tmp_path, Stage.SFT, {"train": {"rss": 1e9}}), expected)
    assert row["metric"] == "rss" and row["predicted"] == list(expected.estimate.device) and not row["inside"]


def test_texts_are_as_long_as_asked(tmp_path: Path) -> None:
    def count(question: str, answer: str) -> int:
        return 5 + len(question.split()) + (len(answer.split()) + 1 if answer else 0)

    path = module._write_rows(tmp_path / "rows.jsonl", count, prompt=40, whole=100)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {count(row["question"], "") for row in rows} == {40}
    assert {count(row["question"], row[name]) for row in rows for name in ("response_j", "response_k")} == {100}
    assert len({row["question"] for row in rows}) == len(rows), "PPO asks each question once"


def test_table_lists_predicted_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"stage": "sft", "precision": "int8", "failure": "Out | of\nmemory"},
        {
            "stage": "ppo",
            "precision": "nf4",
            "phase": "update",
            "metric": "allocated",
            "predicted": 3 << 20,
            "measured": 2 << 20,
            "error": 0.5,
        },
    ]
    module._write(tmp_path / "new", "NVIDIA A100", rows)
    text = (tmp_path / "new" / "memory-nvidia-a100.md").read_text()
    assert "| ppo | nf4 | update | allocated | 3 | 2 | +50.0% |  |" in text
    assert "| sft | int8 | Out / of memory |" in text
