"""The weights of a run that can be chatted with."""

from pathlib import Path

import pytest

from stackllama_engine.contract.chat_target import find_target, has_target
from stackllama_engine.contract.errors import RefusedError, UsageError
from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage


def made(tmp_path: Path, stage: Stage, *checkpoints: int, name: str = "r") -> RunDir:
    run = Home(tmp_path).create(stage, "", name)
    run.write_state(State(stage=stage, phase="running"))
    for step in checkpoints:
        path = run.checkpoints / f"step-{step:06d}"
        path.mkdir()
        (path / "manifest.json").write_text("{}")
    return run


def test_find_target_prefers_the_result_then_the_newest_checkpoint(tmp_path: Path) -> None:
    run = made(tmp_path, Stage.PPO, 2, 1_000_000, 30)
    for unsealed in (".tmp-000040", "step-2000000", "step-x"):
        (run.checkpoints / unsealed).mkdir()
    assert find_target(run).checkpoint == "step-1000000"
    run.adapter.mkdir()
    assert (find_target(run).path, find_target(run).checkpoint) == (run.adapter, None)
    assert has_target(run) and not has_target(made(tmp_path, Stage.PPO, name="new"))


@pytest.mark.parametrize("name", ["30", "step-000030", "000030"])
def test_find_target_of_a_named_checkpoint(tmp_path: Path, name: str) -> None:
    run = made(tmp_path, Stage.SFT, 2, 30)
    run.adapter.mkdir()
    assert find_target(run, name).path == run.checkpoints / "step-000030"


@pytest.mark.parametrize("name", ["31", "", "../../x", "-1", "²"])
def test_find_target_names_the_checkpoints_there_are(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"there are: step-000002, step-000030\."):
        find_target(made(tmp_path, Stage.SFT, 30, 2), name)


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.MERGE])
def test_find_target_of_a_merged_model(tmp_path: Path, stage: Stage) -> None:
    run = made(tmp_path, stage)
    run.merged.mkdir()
    (run.merged / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert find_target(run).path == run.merged


def test_find_target_refuses_runs_that_write_no_text(tmp_path: Path) -> None:
    pipeline = made(tmp_path, Stage.PIPELINE, name="p")
    with pytest.raises(RefusedError, match=r"is a pipeline; .* an sft, preference, ppo or merge run"):
        find_target(pipeline)
    made(tmp_path, Stage.SFT, name="p-sft")
    with pytest.raises(RefusedError, match=r"one of its stages: `p-sft`\."):
        find_target(pipeline)
    with pytest.raises(RefusedError, match=r"scores responses and writes none; chat with `p-sft`\."):
        find_target(made(tmp_path, Stage.REWARD, 3, name="p-reward"))
    merge = made(tmp_path, Stage.MERGE, name="p-reward-merged")
    merge.merged.mkdir()
    (merge.merged / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    with pytest.raises(RefusedError, match=r"is a reward model.* `p-sft`\."):
        find_target(merge)


def test_find_target_refuses_a_run_without_weights(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="`r` is running and has trained nothing that was saved yet"):
        find_target(made(tmp_path, Stage.SFT))
