"""A canary in the environment: whatever a worker prints or writes of it, no file of the run holds it."""

from pathlib import Path

import pytest

from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher
from stackllama_engine.launch.reconcile import reconcile

from .conftest import Runs, wait_for

CANARY = "hf_canary-of-the-tests"


@pytest.fixture(autouse=True)
def _canary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)


def holders(home: Home) -> list[Path]:
    """Files that hold the canary."""
    return [path for path in home.path.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


def log(run: RunDir) -> str:
    return (run.attempt_dir(1) / "log.txt").read_text()


def test_secrets_that_a_worker_prints_are_masked(runs: Runs, home: Home) -> None:
    run, state = runs.end("leak")
    wait_for(lambda: not run.lock_is_held())
    assert holders(home) == []
    mask = "*" * len(CANARY)
    assert log(run) == f"fake worker: leak\nfrom C: {mask}\nRuntimeError: bad token {mask}"
    assert state.cause == f"exit code 7: RuntimeError: bad token {mask}"
    assert state.last_lines[-1].endswith(mask)
    assert "library says <HF_TOKEN>" in (run.attempt_dir(1) / "events.jsonl").read_text()
    assert run.read_json("result.json") == {"url": "https://me:<HF_TOKEN>@host"}


def test_reconcile_masks_secrets_after_a_killed_supervisor(runs: Runs, home: Home) -> None:
    run = runs.start("leak-and-lose")
    wait_for(lambda: not run.lock_is_held())
    assert CANARY in log(run)
    assert reconcile(run).phase == "lost"
    assert holders(home) == []
    assert "bad token *" in log(run)


@pytest.mark.parametrize("key", ["model_name_or_path", "lora_target_modules", "dataset_config"])
def test_a_recipe_with_a_secret_is_refused_without_repeating_it(home: Home, tmp_path: Path, key: str) -> None:
    recipe = load_recipe(Stage.SFT, None, ["model_name_or_path=gpt2", "use_cpu=true", f"{key}=x{CANARY}"])
    with pytest.raises(UsageError) as refused:
        launcher.launch(launcher.plan(home, recipe, "mine"))
    assert "HF_TOKEN" in str(refused.value) and CANARY not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
