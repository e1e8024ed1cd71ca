"""The reward model that scores a chat's answers, found by lineage."""

from pathlib import Path

from tests.tui.screens_kit import make_run

from stackllama_engine.contract.chat_reward import RewardModel, find_reward_model, has_reward_functions
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage


def test_a_ppo_run_and_its_merge_have_the_recipes_reward_model(tmp_path: Path) -> None:
    home = Home(tmp_path)
    ppo = make_run(home, Stage.PPO, "ppo", "reward_model_path=some/model", "reward_model_label=1")
    expected = RewardModel(path="some/model", label=1)
    assert find_reward_model(ppo) == expected
    assert find_reward_model(make_run(home, Stage.MERGE, "merged", f"adapter_path={ppo.adapter}")) == expected
    assert find_reward_model(make_run(home, Stage.MERGE, "other", "adapter_path=/elsewhere/adapter")) is None


def test_a_ppo_run_and_its_merge_say_whether_functions_score(tmp_path: Path) -> None:
    home = Home(tmp_path)
    scored = make_run(home, Stage.PPO, "scored", "reward_funcs=[stackllama_engine.rewards:exact_number]")
    plain = make_run(home, Stage.PPO, "plain", "reward_model_path=some/model")
    assert has_reward_functions(scored) and not has_reward_functions(plain)
    assert has_reward_functions(make_run(home, Stage.MERGE, "merged", f"adapter_path={scored.adapter}"))
    assert not has_reward_functions(make_run(home, Stage.MERGE, "other", "adapter_path=/elsewhere/adapter"))
    assert not has_reward_functions(make_run(home, Stage.SFT, "alone"))


def test_sft_of_a_pipeline_has_the_reward_model_beside_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    sft = make_run(home, Stage.SFT, "whole-sft", parents=["whole"])
    assert find_reward_model(sft) is None
    reward = make_run(home, Stage.REWARD, "whole-reward", parents=["whole"])
    assert find_reward_model(sft) is None  # it is not finished
    reward.adapter.mkdir()
    assert find_reward_model(sft) == RewardModel(path=str(reward.adapter))
    assert find_reward_model(make_run(home, Stage.SFT, "alone")) is None
    make_run(home, Stage.REWARD, "by-chance-reward").adapter.mkdir()
    assert find_reward_model(make_run(home, Stage.SFT, "by-chance-sft")) is None
