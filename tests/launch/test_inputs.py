"""Inputs of a recipe: what they may be, and refusals that name a way out."""

import re
from pathlib import Path

import msgspec
import pytest
from tests.weights import write_weights

from stackllama_engine.contract.errors import RefusedError, UsageError
from stackllama_engine.contract.recipe import AnyRecipe
from stackllama_engine.contract.recipe_io import build_recipe, load_recipe
from stackllama_engine.contract.run_dir import Home, Launch, Phase, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import inputs
from stackllama_engine.launch.inputs import check_input, resolve_inputs


def made(home: Home, stage: Stage, name: str, *outputs: str, phase: Phase = "finished", parent: str = "") -> RunDir:
    run = home.create(stage, "", name)
    run.write_state(msgspec.structs.replace(run.read_state(), phase=phase))
    run.write_launch(Launch(argv=[], cwd="/", host="h", created=0.0, parents=[parent] if parent else []))
    for output in outputs:
        (run.path / output).mkdir()
    return run


def value(recipe: AnyRecipe, key: str) -> str:
    return getattr(recipe, key)


def sft(model: str, **values: object) -> AnyRecipe:
    return build_recipe(Stage.SFT, {"model_name_or_path": model, "load_in_8bit": False, **values})


def ppo(reward_model: str) -> AnyRecipe:
    return build_recipe(Stage.PPO, {"model_name_or_path": "gpt2", "reward_model_path": reward_model})


def merge(adapter: str) -> AnyRecipe:
    return build_recipe(Stage.MERGE, {"adapter_path": adapter})


@pytest.mark.parametrize("hub_id", ["gpt2", "huggyllama/llama-7b", "meta-llama/Llama-3.1-8B", "a/b_c"])
def test_hub_ids_stay_as_they_are(home: Home, hub_id: str) -> None:
    assert resolve_inputs(home, sft(hub_id)) == (sft(hub_id), [])


def test_demo_is_the_embedded_base(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "DEMO_BASE", tmp_path / "base")
    with pytest.raises(UsageError, match="missing"):
        resolve_inputs(home, sft("demo"))
    (tmp_path / "base").mkdir()
    recipe, _ = resolve_inputs(home, sft("demo", dataset_name="demo"))
    assert value(recipe, "model_name_or_path") == str(tmp_path / "base")
    assert value(recipe, "dataset_name") == "demo"


def test_local_paths_become_absolute(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").touch()
    write_weights(tmp_path / "base")
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "response_j": "a"}\n')
    monkeypatch.chdir(tmp_path)
    recipe, parents = resolve_inputs(home, sft("base", dataset_name="rows.jsonl"))
    assert value(recipe, "model_name_or_path") == str(tmp_path / "base")
    assert value(recipe, "dataset_name") == str(tmp_path / "rows.jsonl")
    assert parents == []


def test_run_ids_become_their_outputs(home: Home) -> None:
    made(home, Stage.SFT, "s1", "adapter")
    merged = made(home, Stage.MERGE, "m1", "merged", parent="s1")
    reward = made(home, Stage.REWARD, "r1", "adapter")
    recipe, parents = resolve_inputs(home, sft("m1"))
    assert (value(recipe, "model_name_or_path"), parents) == (str(merged.merged), ["m1"])
    recipe, parents = resolve_inputs(home, ppo("r1"))
    assert (value(recipe, "reward_model_path"), parents) == (str(reward.adapter), ["r1"])
    recipe, parents = resolve_inputs(home, merge("s1"))
    assert (value(recipe, "adapter_path"), parents) == (str(home.run("s1").adapter), ["s1"])


def test_merged_reward_model_is_a_reward_model_and_a_merged_policy_is_not(home: Home) -> None:
    made(home, Stage.SFT, "s1", "adapter")
    made(home, Stage.REWARD, "r1", "adapter")
    made(home, Stage.MERGE, "ms", "merged", parent="s1")
    merged = made(home, Stage.MERGE, "mr", "merged", parent="r1")
    assert value(resolve_inputs(home, ppo("mr"))[0], "reward_model_path") == str(merged.merged)
    with pytest.raises(RefusedError, match="made no reward model"):
        resolve_inputs(home, ppo("ms"))


def test_runs_of_the_wrong_stage(home: Home) -> None:
    made(home, Stage.SFT, "s1", "adapter")
    made(home, Stage.MERGE, "m1", "merged", parent="s1")
    with pytest.raises(RefusedError, match="stackllama-console merge s1"):
        resolve_inputs(home, sft("s1"))
    with pytest.raises(RefusedError, match="trained no adapter"):
        resolve_inputs(home, merge("m1"))
    with pytest.raises(RefusedError, match="made no reward model"):
        resolve_inputs(home, ppo("s1"))


@pytest.mark.parametrize("phase", ["queued", "running", "failed", "stopped", "lost"])
def test_unfinished_runs(home: Home, phase: Phase) -> None:
    made(home, Stage.SFT, "s1", "adapter", phase=phase)
    with pytest.raises(RefusedError, match=f"`adapter_path: s1`: that run is {phase}, not finished"):
        resolve_inputs(home, merge("s1"))


def test_finished_run_without_the_output(home: Home) -> None:
    made(home, Stage.SFT, "s1")  # full fine-tuning leaves no adapter
    with pytest.raises(RefusedError, match="finished without"):
        resolve_inputs(home, merge("s1"))


@pytest.mark.parametrize("name", ["/no/such/model", "./model", "a/b/c", "model.gguf", "../up", "a/..", "a b", "org/"])
def test_names_that_are_nothing(home: Home, name: str) -> None:
    with pytest.raises(UsageError, match="is not found here: give the id of a finished merge run, a hub id"):
        resolve_inputs(home, sft(name))
    with pytest.raises(UsageError, match="or an adapter directory"):
        resolve_inputs(home, merge(name))


def test_missing_data_file(home: Home) -> None:
    with pytest.raises(UsageError, match=r"`dataset_name: rows\.jsonl` is not found here"):
        resolve_inputs(home, sft("gpt2", dataset_name="rows.jsonl"))


@pytest.mark.parametrize("name", ["-rf", "--config", "a\nb", "a\x1b[2Jb", "a\x00b", "a\u202eb"])
def test_hostile_names(home: Home, name: str) -> None:
    for recipe in (sft(name), sft("gpt2", dataset_name=name), ppo(name), merge(name)):
        with pytest.raises(UsageError, match="is refused") as caught:
            resolve_inputs(home, recipe)
        assert str(caught.value).isprintable()


def test_pipeline_resolves_its_sections(home: Home, tmp_path: Path) -> None:
    made(home, Stage.MERGE, "m1", "merged")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"question": "q", "chosen": "a", "rejected": "b"}\n')
    recipe = build_recipe(Stage.PIPELINE, {"sft": {"model_name_or_path": "m1"}, "dataset_name": str(pairs)})
    resolved, parents = resolve_inputs(home, recipe)
    assert value(resolved, "sft")["model_name_or_path"] == str(home.run("m1").merged)  # type: ignore[index]
    assert "model_name_or_path" not in value(resolved, "ppo")
    assert parents == ["m1"]
    with pytest.raises(UsageError, match="not found here"):
        resolve_inputs(
            home, build_recipe(Stage.PIPELINE, {"model_name_or_path": "gpt2", "ppo": {"dataset_name": "/no"}})
        )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("model_name_or_path={empty}",), "not a model"),
        (("model_name_or_path=demo", "dataset_name={empty}"), "manifest.json"),
        (("model_name_or_path=demo", "dataset_name=demo", "dataset_train_split=fintune"), "Did you mean `finetune`"),
        (("model_name_or_path=demo", "dataset_name=demo", "dataset_test_split=all"), "splits"),
    ],
)
def test_what_is_wrong_with_a_local_input_is_said_before_launch(
    tmp_path: Path, values: tuple[str, ...], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    filled = [value.format(empty=tmp_path / "empty") for value in values]
    with pytest.raises(UsageError, match=said):
        resolve_inputs(Home(tmp_path / "home"), load_recipe(Stage.SFT, None, filled))


@pytest.mark.parametrize(
    ("config", "wanted"), [("config.json", "*.safetensors"), ("adapter_config.json", "adapter_model")]
)
def test_a_configuration_alone_is_not_ready(tmp_path: Path, config: str, wanted: str) -> None:
    (tmp_path / "model").mkdir()
    for name in ("config.json", config):
        (tmp_path / "model" / name).write_text("{}")
    (tmp_path / "model" / "pytorch_model.bin").touch()
    key = "model_name_or_path" if config == "config.json" else "reward_model_path"
    with pytest.raises(UsageError, match=f"`{key}: .*has no weights: .* no {re.escape(wanted)}"):
        check_input(Home(tmp_path / "home"), key, str(tmp_path / "model"))
    write_weights(tmp_path / "model", "model.safetensors" if config == "config.json" else "adapter_model.safetensors")
    check_input(Home(tmp_path / "home"), key, str(tmp_path / "model"))


@pytest.mark.parametrize("value", ["{empty}", "demo"])
def test_a_judge_must_look_like_one(tmp_path: Path, value: str) -> None:
    (tmp_path / "empty").mkdir()
    keys = (
        "model_name_or_path=demo",
        "dataset_name=demo",
        f"reward_model_path={value.format(empty=tmp_path / 'empty')}",
    )
    with pytest.raises(UsageError, match=r"reward model|neither an adapter"):
        resolve_inputs(Home(tmp_path / "home"), load_recipe(Stage.PPO, None, keys))


def test_an_empty_directory_cannot_be_merged(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    recipe = load_recipe(Stage.MERGE, None, (f"adapter_path={tmp_path / 'empty'}",))
    with pytest.raises(UsageError, match=r"adapter_config\.json"):
        resolve_inputs(Home(tmp_path / "home"), recipe)


@pytest.mark.parametrize("name", ["~nobody-by-this-name/model", "a/" * 3000, "x" * 300 + "/y"])
def test_a_path_that_cannot_be_looked_at_is_said_not_found(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not found here"):
        resolve_inputs(Home(tmp_path), sft(name))
