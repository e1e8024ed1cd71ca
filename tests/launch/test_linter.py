"""Findings about what a result would mean, each on a model or data that really is so; no stage runs."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from stackllama_engine.contract.base import DEMO_BASE, base_identity
from stackllama_engine.contract.errors import FindingsError, RecipeError, UsageError
from stackllama_engine.contract.recipe import AnyRecipe
from stackllama_engine.contract.recipe_io import build_recipe, dump_recipe
from stackllama_engine.contract.run_dir import Home, Launch, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.data.splits import split_of
from stackllama_engine.launch import launcher, prompt_overlap
from stackllama_engine.launch.eval_size import half_width, rows_needed
from stackllama_engine.launch.inputs import resolve_inputs
from stackllama_engine.launch.preflight import CHECKS, check_names, find_problems, preflight

PLAIN = {"load_in_8bit": False, "use_cpu": True}
ROWS = 40
Pairs = Callable[..., str]


def recipe(stage: Stage, **keys: Any) -> AnyRecipe:
    demo = {"model_name_or_path": str(DEMO_BASE), "dataset_name": "demo"}
    return build_recipe(stage, demo | PLAIN | keys)


def said(one: AnyRecipe) -> dict[str, str]:
    return {problem.check.name: problem.text for problem in find_problems(one)}


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    """Write a file of pairs, a question each."""

    def write(name: str, questions: Sequence[str]) -> str:
        rows = ({"question": one, "response_j": f"yes, {one}", "response_k": "no"} for one in questions)
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return str(tmp_path / name)

    return write


def questions(topic: str, count: int = ROWS) -> list[str]:
    return [f"What of {topic} number {index}?" for index in range(count)]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO_BASE, tmp_path / "base"))


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    change(content)
    file.write_text(json.dumps(content))


def adapter_of(base: Path, path: Path) -> Path:
    """Make what the reward stage leaves of an adapter, but for its weights."""
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (path / "base.json").write_text(json.dumps(base_identity(str(base), None)))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, path / name)
    return path


def finished(home: Home, name: str, one: AnyRecipe, parents: Sequence[str] = ()) -> RunDir:
    run = home.create(one.stage, dump_recipe(one), name)
    run.write_launch(Launch(argv=[], cwd="/", host="here", created=time.time(), parents=[*parents]))
    return run


# tokenizers and special tokens


def test_a_shared_adapter_of_another_tokenizer_is_an_error(base: Path, tmp_path: Path) -> None:
    reward = adapter_of(base, tmp_path / "reward")
    ppo = recipe(Stage.PPO, model_name_or_path=str(base), reward_model_path=str(reward))
    assert said(ppo) == {}

    def swap(content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        one, other = list(vocab)[100:102]
        vocab[one], vocab[other] = vocab[other], vocab[one]

    edit(reward / "tokenizer.json", swap)
    text = said(ppo)["tokenizer"]
    assert f"`reward_model_path={reward}`" in text and "2 tokens have other ids or are missing" in text
    with pytest.raises(FindingsError, match=r"add `--allow tokenizer`"):
        preflight(ppo)
    assert preflight(ppo, ["tokenizer"]) == [f"{text} (allowed: tokenizer)"]


def test_merges_count_and_how_they_are_written_does_not(base: Path, tmp_path: Path) -> None:
    reward = adapter_of(base, tmp_path / "reward")
    ppo = recipe(Stage.PPO, model_name_or_path=str(base), reward_model_path=str(reward))
    merges = json.loads((base / "tokenizer.json").read_text())["model"]["merges"]
    older = [one if isinstance(one, str) else " ".join(one) for one in merges]
    edit(reward / "tokenizer.json", lambda content: content["model"].update(merges=older))
    assert said(ppo) == {}
    edit(reward / "tokenizer.json", lambda content: content["model"].update(merges=older[::-1]))
    assert "their merges differ" in said(ppo)["tokenizer"]


def test_a_reward_model_that_reads_text_may_have_any_tokenizer(base: Path, tmp_path: Path) -> None:
    merged = Path(shutil.copytree(base, tmp_path / "merged"))
    edit(merged / "tokenizer.json", lambda content: content["model"]["vocab"].popitem())
    assert said(recipe(Stage.PPO, model_name_or_path=str(base), reward_model_path=str(merged))) == {}


def test_a_tokenizer_without_an_end_token_is_refused(base: Path) -> None:
    sft = recipe(Stage.SFT, model_name_or_path=str(base))
    edit(base / "tokenizer_config.json", lambda content: content.pop("eos_token"))
    assert "no end-of-sequence token" in said(sft)["no-end-token"]
    edit(base / "tokenizer_config.json", lambda content: content.update(tokenizer_class="GPT2Tokenizer"))
    assert said(sft) == {}, "this class has one of its own"
    edit(base / "tokenizer_config.json", lambda content: content.update(eos_token=None))
    assert list(said(sft)) == ["no-end-token"]


def test_an_end_token_of_ordinary_text_warns(base: Path) -> None:
    sft = recipe(Stage.SFT, model_name_or_path=str(base))
    edit(base / "generation_config.json", lambda content: content.update(eos_token_id=[2, 100]))
    text = said(sft)["stop-token"]
    assert "responses end at the token 100, which is " in text and preflight(sft) == [text]
    edit(base / "generation_config.json", lambda content: content.update(eos_token_id=[2, 0]))
    assert said(sft) == {}, "stages end at both"
    edit(base / "generation_config.json", lambda content: content.update(eos_token_id=100))
    assert said(recipe(Stage.REWARD, model_name_or_path=str(base))) == {}, "it writes nothing"


# bases


@pytest.fixture
def other(base: Path, tmp_path: Path) -> Path:
    """Copy the base and change its weights."""
    path = Path(shutil.copytree(base, tmp_path / "other"))
    content = bytearray((path / "model.safetensors").read_bytes())
    content[8 + int.from_bytes(content[:8], "little")] ^= 1  # of the first tensor
    (path / "model.safetensors").write_bytes(content)
    return path


def test_a_reward_model_of_another_base_warns(home: Home, base: Path, other: Path, tmp_path: Path) -> None:
    reward = adapter_of(other, tmp_path / "reward")
    ppo = recipe(Stage.PPO, model_name_or_path=str(base), reward_model_path=str(reward))
    assert preflight(ppo) == [
        f"`reward_model_path={reward}`: it was trained on {other}, and the policy starts from {base}: it reads "
        "responses as text, and both models are held in memory."
    ]
    trained = finished(home, "judge", recipe(Stage.REWARD, model_name_or_path=str(other)))
    adapter_of(other, trained.adapter)
    merge = finished(home, "judge-merged", build_recipe(Stage.MERGE, {"adapter_path": str(trained.adapter)}), ["judge"])
    shutil.copytree(other, merge.merged)
    for policy, names in ((base, ["reward-base"]), (other, [])):
        ppo = recipe(Stage.PPO, model_name_or_path=str(policy), reward_model_path=str(merge.merged))
        assert list(said(ppo)) == names


def test_an_adapter_whose_base_is_another_or_gone_is_refused(base: Path, other: Path, tmp_path: Path) -> None:
    adapter = adapter_of(other, tmp_path / "adapter")
    judged = {"model_name_or_path": str(base), "reward_model_path": str(base)}
    text = said(recipe(Stage.PPO, policy_adapter_path=str(adapter), **judged))["adapter-base"]
    assert f"it was trained on {other}, not on {base}" in text
    unnamed = adapter_of(other, tmp_path / "unnamed")
    (unnamed / "base.json").unlink()
    (unnamed / "adapter_config.json").write_text("{}")
    text = said(recipe(Stage.PPO, policy_adapter_path=str(unnamed), **judged))["adapter-base"]
    assert text.startswith(f"`policy_adapter_path={unnamed}`: ") and "names no base" in text
    shutil.rmtree(other)
    text = said(recipe(Stage.PPO, model_name_or_path=str(base), reward_model_path=str(adapter)))["adapter-base"]
    assert "does not exist" in text


# prompts


def test_held_out_prompts_that_are_trained_on_are_an_error(pairs: Pairs) -> None:
    data = pairs("pairs.jsonl", questions("tea", 400))
    sft = recipe(Stage.SFT, dataset_name=data, dataset_train_split="all", max_eval_samples=20)
    text = said(sft)["eval-prompts"]
    assert text.startswith("`dataset_test_split=evaluation`: 20 of 20 prompts (100 %) to evaluate on are also trained")
    with pytest.raises(FindingsError, match=r"`--allow eval-prompts`") as refusal:
        preflight(sft)
    assert refusal.value.exit_code == 3
    assert said(recipe(Stage.SFT, dataset_name=data)) == {}, "splits of one source share no question"
    few = recipe(Stage.SFT, dataset_name=data, dataset_train_split="all", max_train_samples=1)
    assert said(few) == {}, "what is not read is not trained on"


def test_prompts_are_the_same_whatever_their_case_and_space(pairs: Pairs, home: Home) -> None:
    trained = finished(home, "sft", recipe(Stage.SFT, dataset_name=pairs("sft.jsonl", questions("tea", 400))))
    shutil.copytree(DEMO_BASE, trained.merged)
    seen = [one for one in questions("tea", 400) if split_of(one) == "finetune"][:10]
    ours = questions("fish", 390) + [f" {one.upper()}  " for one in seen]
    ppo = recipe(
        Stage.PPO,
        model_name_or_path=str(trained.merged),
        reward_model_path=str(DEMO_BASE),
        dataset_name=pairs("ppo.jsonl", ours),
        dataset_train_split="all",
        dataset_test_split="all",
    )
    assert "10 of 400 prompts (2 %) of PPO were also trained on (sft); " in said(ppo)["rl-prompts"]


def test_prompts_of_ppo_that_the_reward_model_saw_warn(home: Home, pairs: Pairs) -> None:
    """By lineage: a merge of a reward run on the merge of an SFT run; only the last has what PPO gets."""
    ours, apart = questions("tea"), questions("coffee")
    whole = {"dataset_train_split": "all"}
    sft = finished(home, "sft", recipe(Stage.SFT, dataset_name=pairs("sft.jsonl", apart), **whole))
    merge = finished(home, "sft-m", build_recipe(Stage.MERGE, {"adapter_path": str(sft.adapter)}), ["sft"])
    reward = finished(
        home, "judge", recipe(Stage.REWARD, dataset_name=pairs("pairs.jsonl", [*apart, *ours[:30]]), **whole), ["sft-m"]
    )
    shutil.copytree(DEMO_BASE, merge.merged)
    adapter_of(merge.merged, reward.adapter)
    values = {"model_name_or_path": str(merge.merged), "reward_model_path": str(reward.adapter), **whole}
    ppo = recipe(Stage.PPO, dataset_name=pairs("ppo.jsonl", ours), dataset_test_split="finetune", **values)
    texts = said(ppo)
    assert texts["rl-prompts"].startswith("`dataset_train_split=all`: 30 of 40 prompts (75 %) of PPO were also trained")
    assert "(judge)" in texts["rl-prompts"] and "(this run, judge)" in texts["eval-prompts"]
    new = recipe(
        Stage.PPO, dataset_name=pairs("new.jsonl", questions("milk", 400)), **values | {"dataset_train_split": "rl"}
    )
    assert said(new) == {}


def test_a_pipelines_stages_are_compared_with_each_other(home: Home, pairs: Pairs) -> None:
    data = pairs("pairs.jsonl", questions("tea", 4000))
    values = {"model_name_or_path": str(DEMO_BASE), "dataset_name": data, **PLAIN}
    assert preflight(build_recipe(Stage.PIPELINE, values)) == []
    wrong = values | {"ppo": {"dataset_train_split": "reward"}}
    (warning,) = preflight(resolve_inputs(home, build_recipe(Stage.PIPELINE, wrong))[0])
    assert warning.startswith("ppo: `dataset_train_split=reward`: ") and "(the pipeline's reward stage)" in warning


def test_of_a_hub_data_set_splits_are_compared_by_name() -> None:
    keys = {"dataset_name": "owner/set", "dataset_test_split": "train", "dataset_train_split": "train"}
    assert "prompts to evaluate on are also trained on (this run)" in said(recipe(Stage.SFT, **keys))["eval-prompts"]
    assert said(recipe(Stage.SFT, **keys | {"dataset_test_split": "test"})) == {}


def test_few_repeated_prompts_are_none(pairs: Pairs, home: Home) -> None:
    run = finished(
        home, "sft", recipe(Stage.SFT, dataset_name=pairs("a.jsonl", questions("tea", 1)), dataset_train_split="all")
    )
    shutil.copytree(DEMO_BASE, run.merged)
    data = pairs("b.jsonl", questions("tea", 1) + questions("milk", 399))
    keys = {"dataset_name": data, "model_name_or_path": str(run.merged), "reward_model_path": str(DEMO_BASE)}
    ppo = recipe(Stage.PPO, dataset_train_split="all", dataset_test_split="all", **keys)
    assert "rl-prompts" not in said(ppo), "1 of 400"


def test_only_the_first_rows_are_read(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_overlap, "MOST_ROWS", 10)
    data = pairs("pairs.jsonl", questions("tea"))
    sft = recipe(Stage.SFT, dataset_name=data, dataset_train_split="all", dataset_test_split="all")
    assert "10 of 10 prompts (100 %, of the first 10 rows)" in said(sft)["eval-prompts"]
    assert "eval-size" not in said(recipe(Stage.REWARD, dataset_name=data)), "not known"


# size


def test_rows_needed_are_those_of_the_normal_interval() -> None:
    """1.96 · √(0.65 · 0.35 / n): 9.35 points of 100 pairs; 5 points need (1.96 / 0.05)² · 0.2275 = 349.6 pairs."""
    deviation = (0.65 * 0.35) ** 0.5
    assert half_width(deviation, 100) == pytest.approx(0.0935, abs=5e-5)
    assert rows_needed(deviation, 0.05) == 350
    assert half_width(deviation, 350) <= 0.05 < half_width(deviation, 349)
    assert rows_needed(1.0, 0.5) == 16  # (1.96 / 0.5)² = 15.4


def test_a_split_that_is_too_small_for_the_effect_warns(pairs: Pairs) -> None:
    assert preflight(recipe(Stage.REWARD, max_eval_samples=100)) == [
        "`max_eval_samples=100`: an accuracy of 65 % on 100 held-out pairs is known to ± 9.3 points (95 %); an effect "
        "of 5 points needs 350 pairs or more."
    ]
    assert preflight(recipe(Stage.REWARD, max_eval_samples=350)) == []
    assert "`max_eval_samples=349`" in said(recipe(Stage.PREFERENCE, max_eval_samples=349))["eval-size"]
    data = pairs("pairs.jsonl", questions("tea"))
    count = sum(split_of(one) == "evaluation" for one in questions("tea"))
    assert (
        f"`dataset_test_split=evaluation`: an accuracy of 65 % on {count} held-out"
        in said(recipe(Stage.REWARD, dataset_name=data))["eval-size"]
    )
    ppo = recipe(Stage.PPO, reward_model_path=str(DEMO_BASE), max_eval_samples=4)
    assert "the mean reward of 4 held-out prompts is known to ± 1.0 standard deviations" in said(ppo)["eval-size"]
    assert said(recipe(Stage.SFT, max_eval_samples=4)) == {}
    assert "eval-size" in said(recipe(Stage.REWARD, dataset_name="owner/set", max_eval_samples=100))
    assert said(recipe(Stage.REWARD, dataset_name="owner/set")) == {}


# allowing


def test_only_errors_that_can_be_allowed_are(pairs: Pairs) -> None:
    names = [check.name for check in CHECKS]
    assert len({*names}) == len(names) and all(name == name.lower().replace(" ", "-") for name in names)
    check_names(["eval-prompts", "tokenizer"])
    with pytest.raises(UsageError, match=r"`--allow weights`: the findings that can be allowed are tokenizer, eval-p"):
        check_names(["weights"])
    data = pairs("pairs.jsonl", questions("tea"))
    both = recipe(Stage.SFT, dataset_name=data, dataset_train_split="all", lora_target_modules=["nonsense"])
    with pytest.raises(RecipeError, match=r"no such module.*evaluation measures memory"):
        preflight(both, ["tokenizer"])


def test_a_launch_records_what_was_allowed(home: Home, pairs: Pairs, fake_stages: None) -> None:
    data = pairs("pairs.jsonl", questions("tea"))
    sft = recipe(Stage.SFT, model_name_or_path="demo", dataset_name=data, dataset_train_split="all")
    with pytest.raises(FindingsError):
        launcher.plan(home, sft)
    planned = launcher.plan(home, sft, "one", allow=["eval-prompts"])
    assert [notice for notice in planned.notices if notice.endswith("(allowed: eval-prompts)")]
    assert launcher.launch(planned).read_launch().allow == ["eval-prompts"]
