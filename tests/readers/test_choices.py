"""Lines to choose from, and what the budget needs to know of the models named."""

import json
from pathlib import Path

import pytest

from stackllama_console.readers.budget_inputs import NamedModels, base_of, read_devices, read_shapes
from stackllama_console.readers.choices import RUN_KEYS, Choice, matching, model_folders, run_choices, typed_models
from stackllama_engine.contract.recipe_io import dump_recipe, load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "torch_dtype": "float16",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return Home(tmp_path / "home")


def _model(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return folder


def _run(home: Home, stage: Stage, name: str, phase: str = "finished", created: float = 1.0) -> RunDir:
    needed = {
        Stage.MERGE: ["adapter_path=demo"],
        Stage.PPO: ["model_name_or_path=demo", "reward_model_path=r"],
    }.get(stage, ["model_name_or_path=demo"])
    run = home.create(stage, dump_recipe(load_recipe(stage, None, needed)), name)
    run.write_state(State(stage=stage, phase=phase, created=created))  # type: ignore[arg-type]
    return run


def test_only_finished_runs_of_the_stages_asked_for_the_newest_first(home: Home) -> None:
    _run(home, Stage.REWARD, "old", created=1.0)
    new = _run(home, Stage.REWARD, "new", created=2.0)
    new.write_json("result.json", {"eval_accuracy": 0.85})
    _run(home, Stage.REWARD, "failed", "failed")
    _run(home, Stage.SFT, "sft")
    truncated = _run(home, Stage.REWARD, "truncated", created=3.0)
    (truncated.path / "result.json").write_text("{")
    (_run(home, Stage.REWARD, "damaged", created=4.0).path / "state.json").write_text("{")
    found = run_choices(home, (Stage.REWARD,))
    assert [choice.value for choice in found] == ["truncated", "new", "old"], (
        "a result that cannot be read hides no model"
    )
    assert "accuracy 0.85" in found[1].facts and found[1].facts.startswith("reward")


def test_ppo_may_start_from_a_preference_run(home: Home) -> None:
    _run(home, Stage.PREFERENCE, "preferred")
    assert [choice.value for choice in run_choices(home, RUN_KEYS["policy_adapter_path"])] == ["preferred"]


def test_a_typed_folder_names_its_models_and_anything_else_itself(home: Home, tmp_path: Path) -> None:
    models = tmp_path / "models"
    _model(models / "a")
    _model(models / "b")
    assert [choice.value for choice in typed_models(home, str(models))] == [str(models / "a"), str(models / "b")]
    (one,) = typed_models(home, str(models / "a"))
    assert one.value == str(models / "a") and one.facts.startswith("llama · ") and one.facts.endswith("as typed")
    (hub,) = typed_models(home, "org/name-7b")
    assert hub.value == "org/name-7b" and "downloaded" in hub.warning
    (odd,) = typed_models(home, "a\x00b")
    assert odd.value == "a\x00b" and "\x00" not in odd.title


def test_every_word_has_to_be_there_and_names_come_before_facts() -> None:
    choices = [Choice(value="1", title="demo", facts="llama · 1 M"), Choice(value="2", title="llama-7b", facts="cache")]
    assert [one.value for one in matching(choices, "LLAMA")] == ["2", "1"]
    assert [one.value for one in matching(choices, "llama cache")] == ["2"]
    assert matching(choices, "nothing") == []


def test_folders_are_those_where_recent_models_lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_folders(["/data/a", "/data/b", "org/name"])[-1] == Path("/data")
    assert tmp_path in model_folders([])


def test_an_adapter_s_base_is_what_its_run_or_its_configuration_names(home: Home, tmp_path: Path) -> None:
    _run(home, Stage.SFT, "sft")
    assert base_of(home, "sft") == "demo"
    (tmp_path / "adapter").mkdir()
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text('{"base_model_name_or_path": "org/base"}')
    assert base_of(home, str(tmp_path / "adapter")) == "org/base"
    for damaged in ("{", "[]", '{"base_model_name_or_path": 7}', "[" * 100_000):
        file.write_text(damaged)
        assert base_of(home, str(tmp_path / "adapter")) == ""
    assert base_of(home, "no\x00path") == ""


def test_shapes_follow_what_the_form_names(home: Home, tmp_path: Path) -> None:
    assert read_shapes(home, NamedModels(Stage.SFT)).entry is None
    shapes = read_shapes(home, NamedModels(Stage.SFT, "demo"))
    assert shapes.architecture is not None and shapes.architecture.parameters == 391_104
    _run(home, Stage.SFT, "sft")
    merge = read_shapes(home, NamedModels(Stage.MERGE, "sft"))
    assert merge.entry is not None and merge.entry.name == "demo"
    assert "base is not known" in read_shapes(home, NamedModels(Stage.MERGE, "nowhere")).error
    assert "downloaded" in read_shapes(home, NamedModels(Stage.SFT, "org/away")).error


def test_a_reward_model_of_its_own_has_a_shape_and_an_adapter_has_none(home: Home, tmp_path: Path) -> None:
    whole = _model(tmp_path / "judge", architectures=["LlamaForSequenceClassification"])
    assert read_shapes(home, NamedModels(Stage.PPO, "demo", str(whole))).reward is not None
    run = _run(home, Stage.REWARD, "reward")
    run.adapter.mkdir()
    assert read_shapes(home, NamedModels(Stage.PPO, "demo", "reward")).reward is None
    (whole / "adapter_config.json").write_text("{}")
    assert read_shapes(home, NamedModels(Stage.PPO, "demo", str(whole))).reward is None


def test_a_machine_has_main_memory_whatever_else_it_has() -> None:
    ram = read_devices().ram
    assert ram is not None and 0 < ram.free <= ram.total
