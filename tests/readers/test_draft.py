"""The launch draft: forms that follow the stage, refusals beside their keys, recipes from elsewhere."""

import shlex
from pathlib import Path

import pytest

from stackllama_console.readers.draft import (
    ADAPTER,
    MODEL,
    Draft,
    LaunchForm,
    Source,
    read_demo,
    read_file,
    read_run,
    write_file,
)
from stackllama_engine.contract.base import DEMO_BASE
from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.recipe import PipelineRecipe, PPORecipe
from stackllama_engine.contract.recipe_io import dump_recipe, load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("STACKLLAMA_HOME", str(tmp_path / "home"))
    return Home()


def _run(home: Home, stage: Stage, name: str, *overrides: str, phase: str = "finished") -> RunDir:
    run = home.create(stage, dump_recipe(load_recipe(stage, None, overrides)), name)
    run.write_state(State(stage=stage, phase=phase))  # type: ignore[arg-type]
    return run


def test_a_refusal_stands_at_its_key_until_a_value_changes_and_bars_no_second_try() -> None:
    form = LaunchForm(Stage.SFT)
    form.set(MODEL, "no/such")
    assert form.refuse("`model_name_or_path: no/such` is not found here: give another.") == MODEL
    assert form.errors()[MODEL].startswith("`model_name_or_path: no/such` is not found")
    assert form.recipe() is not None
    form.set("lora_r", "8")
    assert form.errors() == {}
    assert form.refuse("A run `x` exists already.") == "" and form.errors() == {}


def test_what_is_missing_has_a_stand_in_for_the_estimate_and_what_is_wrong_has_not() -> None:
    form = LaunchForm(Stage.PPO)
    form.set(MODEL, "demo")
    recipe = form.estimable()
    assert isinstance(recipe, PPORecipe) and recipe.model_name_or_path == "demo" and form.recipe() is None
    form.set("lora_r", "x")
    assert form.estimable() is None


def test_stages_keep_their_values_and_take_over_model_and_data(home: Home) -> None:
    draft = Draft(home, Stage.SFT, "mine")
    draft.form.set("dataset_name", "rows.jsonl")
    draft.form.set("lora_r", "4")
    draft.switch(Stage.MERGE)
    assert draft.model_key == ADAPTER and draft.model == ""
    draft.switch(Stage.REWARD)
    assert draft.form.differences() == {MODEL: "mine", "dataset_name": "rows.jsonl"}
    draft.form.set(MODEL, "gpt2")
    draft.switch(Stage.SFT)
    assert draft.form.differences() == {MODEL: "mine", "dataset_name": "rows.jsonl", "lora_r": "4"}


def test_the_demo_brings_its_data_and_settings_and_takes_them_along(home: Home) -> None:
    draft = Draft(home, Stage.SFT)
    draft.form.set("learning_rate", "1e-4")
    draft.form.set(MODEL, "demo")
    assert draft.follow_model() and not draft.follow_model()
    assert draft.form.text("dataset_name") == "demo" and draft.form.text("max_steps") == "70"
    assert draft.form.text("learning_rate") == "1e-4"  # what was typed stays
    assert draft.form.recipe() is not None
    draft.form.set("lora_r", "4")
    draft.switch(Stage.REWARD)
    assert draft.form.text("dataset_name") == "demo" and draft.form.text("max_steps") == "600"
    draft.switch(Stage.PIPELINE)
    assert draft.form.text("ppo.max_steps") == "60" and draft.form.recipe() is not None
    draft.switch(Stage.SFT)
    draft.form.set(MODEL, "gpt2")
    assert draft.follow_model()
    assert draft.form.differences() == {MODEL: "gpt2", "learning_rate": "1e-4", "lora_r": "4"}


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.REWARD, Stage.PPO, Stage.PIPELINE])
def test_what_the_demo_brings_is_no_loss(home: Home, stage: Stage) -> None:
    draft = Draft(home, stage, "demo")
    draft.touch()
    assert not draft.touched and draft.form.text("dataset_name") == "demo"


def test_the_demos_own_recipe_is_a_pipeline_of_its_model_and_data(home: Home) -> None:
    draft = Draft(home, Stage.SFT, "gpt2")
    draft.take(read_demo())
    assert draft.stage is Stage.PIPELINE and draft.origin == "the demo's recipe"
    assert draft.form.text("dataset_name") == "demo" and draft.form.recipe() == read_demo().recipe
    draft.switch(Stage.SFT)
    assert draft.model == "gpt2"
    other = Draft(home, Stage.REWARD)
    other.take(read_demo())
    other.switch(Stage.SFT)
    assert other.model == "demo" and other.form.text("max_steps") == "70"


def test_a_source_is_of_its_stage_alone(home: Home) -> None:
    draft = Draft(home, Stage.SFT)
    recipe = load_recipe(Stage.REWARD, None, [f"{MODEL}=demo"])
    draft.take(Source(recipe=recipe, origin="cloned from r", sbatch={"time": "1"}))
    draft.switch(Stage.PPO)
    assert draft.origin == "" and draft.sbatch is None
    draft.switch(Stage.REWARD)
    assert draft.origin == "cloned from r" and draft.sbatch == {"time": "1"}
    assert draft.form.text("dataset_name") != "demo"  # a clone is taken as it is


def test_clearing_keeps_the_model_and_touched_means_more_than_a_model(home: Home) -> None:
    draft = Draft(home, Stage.SFT, "gpt2")
    draft.touch()
    assert not draft.touched
    draft.form.set("lora_r", "4")
    assert draft.touched
    draft.clear()
    assert draft.form.differences() == {MODEL: "gpt2"} and not draft.touched


def test_the_command_names_the_run_and_another_home(home: Home, tmp_path: Path) -> None:
    draft = Draft(home, Stage.SFT, "gpt2")
    draft.name = "first"
    assert shlex.split(draft.command())[1:] == ["launch", "sft", "model_name_or_path=gpt2", "--name", "first"]
    other = Draft(Home(tmp_path / "two words"), Stage.SFT, "gpt2")
    assert shlex.split(other.command())[-2:] == ["--home", str(tmp_path / "two words")]


def test_a_clone_names_runs_again_so_that_lineage_is_kept(home: Home) -> None:
    for stage, name in ((Stage.MERGE, "p-sft-merged"), (Stage.REWARD, "p-reward")):
        key = "adapter_path" if stage is Stage.MERGE else MODEL
        _run(home, stage, name, f"{key}=demo")
    _run(home, Stage.SFT, "unfinished", f"{MODEL}=demo", phase="failed")
    _run(
        home,
        Stage.PPO,
        "p-ppo",
        f"{MODEL}={home.runs_dir}/p-sft-merged/merged",
        "temperature=0.7",
        f"reward_model_path={home.runs_dir}/p-reward/adapter",
        f"policy_adapter_path={home.runs_dir}/unfinished/adapter",
    )
    source = read_run(home, "p-ppo")
    assert isinstance(source.recipe, PPORecipe) and source.origin == "cloned from p-ppo"
    assert source.recipe.model_name_or_path == "p-sft-merged" and source.recipe.reward_model_path == "p-reward"
    assert source.recipe.policy_adapter_path == f"{home.runs_dir}/unfinished/adapter"
    draft = Draft(home, Stage.SFT)
    draft.take(source)
    assert draft.stage is Stage.PPO and draft.form.text("temperature") == "0.7" and draft.form.recipe() is not None


def test_the_embedded_model_is_demo_again_in_a_pipeline_too(home: Home) -> None:
    _run(home, Stage.PIPELINE, "p", f"{MODEL}={DEMO_BASE}", "ppo.max_steps=3")
    recipe = read_run(home, "p").recipe
    assert isinstance(recipe, PipelineRecipe) and recipe.sft[MODEL] == "demo"
    draft = Draft(home, Stage.SFT)
    draft.take(read_run(home, "p"))
    assert draft.model == "demo" and draft.form.text("ppo.max_steps") == "3"


def test_a_run_that_is_none_or_damaged_is_said(home: Home) -> None:
    with pytest.raises(UsageError, match="No run `nowhere`"):
        read_run(home, "nowhere")
    run = _run(home, Stage.SFT, "truncated", f"{MODEL}=demo")
    run.recipe_file.write_text("lora_r: [")
    with pytest.raises(UsageError, match="not valid YAML"):
        read_run(home, "truncated")


def test_a_recipe_file_is_of_the_stage_in_its_first_line(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("# stage: reward\nmodel_name_or_path: demo\nlora_r: 4\n")
    assert read_file(file, Stage.SFT).recipe.stage is Stage.REWARD
    file.write_text("model_name_or_path: demo\n")
    assert read_file(file, Stage.SFT).recipe.stage is Stage.SFT
    file.write_text("# stage: cooking\nmodel_name_or_path: demo\nlora_q: 4\n")
    with pytest.raises(UsageError, match="Did you mean `lora_r`"):
        read_file(file, Stage.SFT)


@pytest.mark.parametrize("name", ["missing.yaml", "folder", "/dev/zero", "huge", "nul\x00byte"])
def test_what_is_no_recipe_file_is_refused_without_reading_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(1 << 30)
    with pytest.raises(UsageError):
        read_file(tmp_path / name, Stage.SFT)


def test_a_recipe_file_is_never_written_over(tmp_path: Path) -> None:
    assert write_file(tmp_path / "r.yaml", "lora_r: 4\n") == tmp_path / "r.yaml"
    with pytest.raises(UsageError, match="exists already"):
        write_file(tmp_path / "r.yaml", "other\n")
    assert (tmp_path / "r.yaml").read_text() == "lora_r: 4\n"
    with pytest.raises(UsageError, match="cannot be written"):
        write_file(tmp_path / "no" / "r.yaml", "x")
