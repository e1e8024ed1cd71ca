"""The recipes of `examples/` are read, planned and launched (dry) as they are, without a network."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from model_configs import config_of  # noqa: E402 # pyright: ignore[reportMissingImports]

from stackllama_console.__main__ import main  # noqa: E402

GIB = 1 << 30
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
STAGES = {"qwen2.5-0.5b-gsm8k-ppo.yaml": "ppo"}
"""Of one stage; all others are pipelines."""
CARDS = {
    "llama-3.1-8b-24gb.yaml": ("--gpu", "24GiB"),
    "llama-3.1-8b-8gpu.yaml": ("--gpu", "80GB", "--gpus", "8"),
    "qwen2.5-0.5b-gsm8k-ppo.yaml": ("--gpu", "16GiB"),
    "smollm2-135m.yaml": ("--gpu", "8GiB"),
    "stackllama-7b.yaml": ("--gpu", "80GB"),
}
"""The card that each recipe names."""


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Call a command in a home of its own, with every model's ``config.json`` in the hub cache; return its stdout."""
    cache = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for file in EXAMPLES:
        model = yaml.safe_load(file.read_text())["model_name_or_path"]
        repository = cache / f"models--{model.replace('/', '--')}"
        snapshot = repository / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True, exist_ok=True)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text("a" * 40)
        (snapshot / "config.json").write_text(json.dumps(config_of(model.removesuffix("-Instruct"))))

    def called(*words: str) -> str:
        capsys.readouterr()
        code = main(["--home", str(tmp_path / "home"), *words])
        done = capsys.readouterr()
        assert code == 0, done.err
        return done.out

    return called


def test_every_example_names_its_card() -> None:
    assert [file.name for file in EXAMPLES] == sorted(CARDS)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_example_fits_the_card_that_it_names(file: Path, call: Callable[..., str]) -> None:
    stage = STAGES.get(file.name, "pipeline")
    found = json.loads(call("plan", stage, str(file), *CARDS[file.name], "--json"))
    stages = found["stages"] if stage == "pipeline" else {stage: found}
    on_gpu = {name: one for name, one in stages.items() if one["place"]["on_gpu"]}
    assert {name: one["fits"] for name, one in on_gpu.items()} == dict.fromkeys(on_gpu, "yes")
    if file.name == "llama-3.1-8b-24gb.yaml":
        assert {name: one["device"][1] <= 22 * GIB for name, one in on_gpu.items()} == dict.fromkeys(
            ("sft", "reward", "ppo"), True
        )


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_example_passes_a_dry_run(file: Path, call: Callable[..., str]) -> None:
    stage = STAGES.get(file.name, "pipeline")
    words = ("pipeline",) if stage == "pipeline" else ("launch", stage)
    printed = call(*words, str(file), "use_cpu=true", "num_processes=1", "bf16=false", "--dry-run")
    assert "accelerate" in printed or "sft" in printed
