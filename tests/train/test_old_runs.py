"""Stopped runs written by commit 2a714a5 are resumed, or refused in one sentence."""

import json
from pathlib import Path

import pytest
import yaml
from tests.old_runs import lay_out

from stackllama_engine.contract.errors import StackllamaError
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage

from .in_process import attempt

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("old")).parent


def recipe_of(run: RunDir) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in yaml.safe_load(run.recipe_file.read_text()).items()]


@pytest.mark.parametrize(("name", "step"), [("sft-stopped", 2), ("ppo-stopped", 1)])
def test_a_stopped_run_resumes_or_is_refused_in_one_sentence(old: Path, name: str, step: int) -> None:
    home = Home(old / "home")
    run = home.run(name)
    keys = [*recipe_of(run), f"max_steps={step + 1}"]  # one more step shows as much as all of them
    try:
        with attempt(home, old / "base", run.read_state().stage, *keys, of=run) as one:
            facts = one.train()
    except StackllamaError as refused:
        assert "\n" not in str(refused) and len(str(refused)) > 20
        return
    assert facts is not None and facts["steps"] == step + 1
    assert f"resuming from step-{step:06d}" in one.health
    assert run.adapter.is_dir()


def test_an_old_adapter_merges_with_its_base_wherever_it_lies(old: Path) -> None:
    home = Home(old / "home")
    keys = (f"adapter_path={home.run('reward').adapter}", "dtype=float32")
    base = (old / "base").rename(old / "moved")
    with attempt(home, base, Stage.MERGE, *keys) as lost, pytest.raises(StackllamaError, match="does not exist"):
        lost.train()
    with attempt(home, base, Stage.MERGE, *keys, f"base_model_name_or_path={base}") as one:
        facts = one.train()
    base.rename(old / "base")
    assert facts is not None and facts["verified"]
    assert f"is now {base}" in one.health
