"""A recipe filled in field by field gives the recipe that the command line gives, and its errors."""

import shlex
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stackllama_console.cli.parser import parse as parse_command
from stackllama_console.cli.recipe_args import split_words
from stackllama_console.readers.form import Form
from stackllama_console.readers.form_fields import OTHER, fields_of
from stackllama_console.readers.form_text import converted, write_text
from stackllama_engine.contract.base import DEMO_RECIPE
from stackllama_engine.contract.errors import RecipeError
from stackllama_engine.contract.recipe import RECIPES, WIRED, PipelineRecipe, PPORecipe, SFTRecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.stages import PIPELINE_STAGES, Stage

REQUIRED = {
    Stage.SFT: {"model_name_or_path": "demo"},
    Stage.REWARD: {"model_name_or_path": "demo"},
    Stage.PREFERENCE: {"model_name_or_path": "demo"},
    Stage.PPO: {"model_name_or_path": "demo", "reward_model_path": "judge"},
    Stage.MERGE: {"adapter_path": "sft-1"},
    Stage.PIPELINE: {"model_name_or_path": "demo"},
}
STAGES = list(Stage)


def filled(stage: Stage, **texts: str) -> Form:
    form = Form(stage)
    for key, text in {**REQUIRED[stage], **{key.replace("__", "."): text for key, text in texts.items()}}.items():
        form.set(key, text)
    return form


def from_command_line(form: Form) -> object:
    """Parse the form's command as `stackllama-console` does."""
    words = shlex.split(form.command())
    arguments = parse_command(words[1:])
    file, overrides = split_words(arguments.words)
    assert file is None
    return load_recipe(Stage(arguments.stage), None, overrides)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage is not Stage.PIPELINE])
def test_every_key_of_the_recipe_has_a_field_in_a_section(stage: Stage) -> None:
    fields = fields_of(stage)
    assert set(fields) == set(RECIPES[stage].__struct_fields__)
    assert [key for key, field in fields.items() if field.section == OTHER] == []
    assert [key for key, field in fields.items() if not field.help or not field.bounds_text] == []


def test_a_pipelines_form_has_shared_keys_and_each_stages_own_without_the_wired_ones() -> None:
    fields = fields_of(Stage.PIPELINE)
    shared = [key for key, field in fields.items() if field.stage is None]
    assert "learning_rate" in shared and "cliprange" not in shared and "adapter_path" not in shared
    for stage in (*PIPELINE_STAGES, Stage.MERGE):
        own = {field.name for field in fields.values() if field.stage is stage}
        assert own == set(RECIPES[stage].__struct_fields__) - {*WIRED[stage], "model_name_or_path"}
    assert fields["model_name_or_path"].required and fields["model_name_or_path"].wired
    assert fields["ppo.cliprange"].heading == "PPO" and fields["lora_r"].heading == "Every stage · Adapter"
    assert OTHER not in {field.section for field in fields.values()}


def test_sections_stand_together_and_the_model_comes_first() -> None:
    for stage in STAGES:
        headings = [field.heading for field in fields_of(stage).values()]
        assert len(set(headings)) == sum(a != b for a, b in zip(["", *headings], headings, strict=False))
    assert [next(iter(fields_of(stage))) for stage in STAGES] == [
        "model_name_or_path",
        "model_name_or_path",
        "model_name_or_path",
        "model_name_or_path",
        "adapter_path",
        "model_name_or_path",
    ]


def test_kinds_choices_and_bounds_are_read_off_the_struct() -> None:
    fields = fields_of(Stage.PPO)
    assert fields["lam"].kind == "number" and fields["lam"].bounds_text == "number, at least 0, at most 1"
    assert fields["lora_dropout"].bounds_text == "number, at least 0, below 1"
    assert fields["max_train_samples"].bounds_text == "whole number, at least 1, or empty"
    assert fields["bf16"].kind == "flag" and fields["bf16"].bounds_text == "true or false"
    assert fields["dtype"].choices == ("auto", "float32", "bfloat16", "float16")  # in the recipe's order
    assert fields["attn_implementation"].optional and fields["attn_implementation"].kind == "text"
    assert fields["report_to"].kind == "list" and fields["report_to"].choices == ("tensorboard", "wandb", "trackio")
    assert fields["lora_target_modules"].kind == "list" and fields["lora_target_modules"].optional
    assert fields["dataset_columns"].kind == "mapping" and fields["dataset_columns"].default == {}
    assert fields["model_name_or_path"].required and fields["seed"].default == 0
    assert fields["reward_model_path"].optional and not fields["reward_model_path"].required
    assert fields_of(Stage.MERGE)["num_processes"].bounds_text == "always 1"


@pytest.mark.parametrize("stage", STAGES)
def test_an_empty_form_says_what_is_needed_and_a_filled_one_is_the_default_recipe(stage: Stage) -> None:
    form = Form(stage)
    assert set(form.errors()) == set(REQUIRED[stage])
    assert form.recipe() is None
    form = filled(stage)
    assert form.errors() == {}
    assert form.recipe() == load_recipe(stage, None, [f"{key}={text}" for key, text in REQUIRED[stage].items()])
    assert form.differences() == REQUIRED[stage]
    assert form.recipe() == from_command_line(form)


@pytest.mark.parametrize(
    ("key", "text", "word", "value"),
    [
        ("learning_rate", "3e-5", "learning_rate=3e-5", 3e-5),
        ("max_eval_samples", "", "max_eval_samples=null", None),
        ("max_eval_samples", "none", "max_eval_samples=null", None),
        ("use_peft", "no", "use_peft=no", False),
        ("gradient_checkpointing", "yes", "gradient_checkpointing=yes", True),
        ("gradient_checkpointing", "off", "gradient_checkpointing=off", False),
        ("lora_target_modules", "q_proj, v_proj", "lora_target_modules=[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("lora_target_modules", "[q_proj]", "lora_target_modules=[q_proj]", ["q_proj"]),
        ("lora_target_modules", "", "lora_target_modules=null", None),
        ("lora_target_modules", "a:, on", 'lora_target_modules=["a:", "on"]', ["a:", "on"]),
        ("report_to", "wandb", "report_to=[wandb]", ["wandb"]),
        ("report_to", "wandb, trackio", "report_to=[wandb, trackio]", ["wandb", "trackio"]),
        ("attn_implementation", "sdpa", "attn_implementation=sdpa", "sdpa"),
        ("model_revision", "on", 'model_revision="on"', "on"),
        ("model_revision", "123", 'model_revision="123"', "123"),
        ("model_revision", "1e-5", "model_revision=1e-5", "1e-5"),
        ("dataset_name", "a: b # c", 'dataset_name="a: b # c"', "a: b # c"),
        ("dataset_name", "données", "dataset_name=données", "données"),
    ],
)
def test_a_typed_text_becomes_the_word_and_the_value(key: str, text: str, word: str, value: object) -> None:
    form = filled(Stage.SFT, **{key: text})
    assert form.errors() == {}
    assert word in form.overrides()
    assert getattr(form.recipe(), key) == value
    assert from_command_line(form) == form.recipe()


@settings(deadline=None)  # no clock decides
@given(st.text(max_size=40))
@example("\x1b]52;c;aGVsbG8=\x07")
@example("~nobody/here")
@example("x" * 5000)
@example("[" * 400)
@example("'quoted")
@example("\u2028 \x85 \U0001f600")
@example("a\x00b")
def test_any_text_goes_through_the_command_line_unchanged(text: str) -> None:
    form = filled(Stage.SFT, dataset_name=text)
    if not text.strip() or text.strip() == '""':
        return
    recipe = form.recipe()
    assert isinstance(recipe, SFTRecipe)
    words = shlex.split(form.command())[3:]
    assert load_recipe(Stage.SFT, None, words) == recipe
    assert load_recipe_text(form) == recipe


def load_recipe_text(form: Form) -> object:
    """Load the recipe from the form's YAML."""
    from stackllama_engine.contract.recipe_io import build_recipe

    return build_recipe(form.stage, yaml.safe_load(form.to_yaml()) or {})


def test_what_says_the_default_is_not_kept() -> None:
    form = filled(Stage.SFT)
    before = form.differences()
    for key, text in [
        ("learning_rate", "0.0002"),
        ("learning_rate", "2e-4"),
        ("lora_r", " 16 "),
        ("use_peft", "yes"),
        ("gradient_checkpointing", "auto"),
        ("report_to", "[]"),
        ("lora_target_modules", "all-linear"),
        ("dtype", "auto"),
    ]:
        form.set(key, text)
        assert form.differences() == before, (key, text)
    form.set("lora_r", "8")
    assert form.differs("lora_r") and form.text("lora_r") == "8"
    form.set("lora_r", "16")
    assert not form.differs("lora_r")
    form.set("model_name_or_path", "")
    assert form.errors() == {"model_name_or_path": "needed; `demo` tries the embedded model"}


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("learning_rate", "fast", "expected a number"),
        ("learning_rate", "2", "expected a number of at most 1"),
        ("learning_rate", ".inf", "expected a number of at most 1"),
        ("adam_epsilon", ".inf", "expected a finite number"),
        ("lora_r", "1.5", "expected a whole number"),
        ("lora_r", "0", "expected a whole number of at least 1"),
        ("lora_r", "9" * 5000, "integer value out of range"),
        ("lora_r", "2026-01-01", "expected a whole number"),
        ("bf16", "perhaps", "expected true or false"),
        ("dtype", "bfloat61", "did you mean `bfloat16`?"),
        ("dtype", "on", "expected one of `auto`"),
        ("report_to", "wandbb", "did you mean `wandb`?"),
        ("lora_r", "", "a value is needed"),
        ("dataset_name", "", "a value is needed"),
        ("lora_r", "{a: [1", "expected a whole number"),
    ],
)
def test_a_wrong_value_is_said_beside_its_field_and_holds_the_recipe_back(key: str, text: str, says: str) -> None:
    form = filled(Stage.SFT, **{key: text})
    assert set(form.errors()) == {key}
    assert says in (form.error(key) or "")
    assert form.recipe() is None
    form.reset(key)
    assert form.errors() == {} and form.recipe() is not None


def test_the_words_for_a_wrong_value_are_wrong_on_the_command_line_too() -> None:
    form = filled(Stage.SFT, dtype="bfloat61", lora_r="0")
    assert "dtype=bfloat61" in form.overrides()
    with pytest.raises(RecipeError):
        from_command_line(form)


def test_keys_that_exclude_each_other_are_said_under_each_that_is_named() -> None:
    form = filled(Stage.SFT, bf16="true", fp16="true")
    assert form.errors() == dict.fromkeys(["bf16", "fp16"], "`bf16` and `fp16` are both true; choose one of them.")
    form.set("fp16", "false")
    assert form.errors() == {} and form.recipe() is not None
    form = filled(Stage.PPO, random_length_limits="128, 16")
    assert set(form.errors()) == {"random_length_limits"}
    form.set("random_length_limits", "16, 128")
    assert form.errors() == {} and "random_length_limits=[16, 128]" in form.overrides()
    form.set("missing_eos_penalty", "2")
    form.set("missing_eos_penalty", "auto")
    assert form.errors() == {} and not form.differs("missing_eos_penalty")
    form = filled(Stage.PPO, lora_dropout="0.1")
    assert set(form.errors()) == {"lora_dropout"}


def test_keys_are_checked_together_before_the_needed_ones_are_there() -> None:
    form = Form(Stage.SFT)
    form.set("trust_remote_code", "true")
    assert set(form.errors()) == {"model_name_or_path", "trust_remote_code"}


def test_while_a_value_is_wrong_by_itself_nothing_is_said_about_pairs() -> None:
    form = filled(Stage.SFT, bf16="true", fp16="true", lora_r="0")
    assert set(form.errors()) == {"lora_r"}


def test_a_pipelines_stage_takes_the_shared_value_unless_it_has_its_own() -> None:
    form = filled(Stage.PIPELINE, lora_r="4", ppo__lora_r="2", max_train_samples="10")
    recipe = form.recipe()
    assert isinstance(recipe, PipelineRecipe)
    assert [recipe.sft["lora_r"], recipe.reward["lora_r"], recipe.ppo["lora_r"]] == [4, 4, 2]
    assert form.default_text("sft.lora_r") == "4" and form.text("ppo.lora_r") == "2"
    assert not form.differs("reward.lora_r")
    assert from_command_line(form) == recipe == load_recipe_text(form)
    form.set("ppo.lora_r", "4")  # what the shared key says anyway
    assert not form.differs("ppo.lora_r")


def test_keys_without_effect_follow_the_keys_that_decide() -> None:
    form = Form(Stage.PPO)
    assert form.unused()["num_generations"] == "advantage: gae" and "vf_coef" not in form.unused()
    form.set("advantage", "grpo")
    form.set("kl_in_loss", "true")
    assert form.unused()["vf_coef"] == "advantage: grpo" and form.unused()["kl_estimator"] == "kl_in_loss: true"
    assert "num_generations" not in form.unused()
    whole = Form(Stage.PIPELINE)
    whole.set("ppo.advantage", "rloo")
    assert whole.unused().keys() <= whole.fields.keys()
    assert whole.unused()["ppo.lam"] == "advantage: rloo"
    assert Form(Stage.SFT).unused() == {}


def test_a_shared_key_whose_default_depends_on_the_stage_keeps_what_is_typed() -> None:
    form = filled(Stage.PIPELINE)
    field = form.fields["learning_rate"]
    assert field.by_stage and form.text("learning_rate") == ""
    form.set("learning_rate", "1e-5")  # the default of SFT, of no other stage
    assert form.differs("learning_rate")
    form.set("learning_rate", "")
    assert not form.differs("learning_rate") and form.errors() == {}
    form.set("max_eval_samples", "null")
    assert form.overrides()[-1] == "max_eval_samples=null" and form.recipe() == from_command_line(form)


def test_a_pipelines_conflict_is_said_where_it_was_made() -> None:
    form = filled(Stage.PIPELINE, sft__bf16="true", sft__fp16="true")
    assert set(form.errors()) == {"sft.bf16", "sft.fp16"}
    assert (form.error("sft.fp16") or "").startswith("sft: `bf16` and")
    form = filled(Stage.PIPELINE, use_peft="false", base_precision="nf4")
    assert "use_peft" in form.errors() and "ppo: PPO needs" not in (form.error("use_peft") or "")
    assert form.recipe() is None


def test_a_wrong_value_in_a_pipelines_stage() -> None:
    form = filled(Stage.PIPELINE, ppo__cliprange="-1", merge__dtype="auto", lora_r="x")
    assert set(form.errors()) == {"ppo.cliprange", "merge.dtype", "lora_r"}


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        (Stage.SFT, ["model_name_or_path=demo", "lora_target_modules=[q_proj]", "max_eval_samples=null", "seed=3"]),
        (Stage.SFT, ["model_name_or_path=demo", 'lora_target_modules=".*(q|v){1,2}"', 'model_revision="on"']),
        (Stage.SFT, ['model_name_or_path="[q]"', 'lora_target_modules="[q]"', 'model_revision=" x "', "report_to=[]"]),
        (Stage.SFT, ["model_name_or_path=demo", 'model_revision=""', 'lora_target_modules="none"']),
        (Stage.SFT, ["model_name_or_path=demo", "lora_target_modules=[]"]),
        (Stage.SFT, ["model_name_or_path=demo", "dataset_columns={prompt: 'on', chosen: 'a, b: c'}"]),
        (Stage.PIPELINE, ["model_name_or_path=demo", "dataset_columns.prompt=q", "sft.dataset_columns.completion=a"]),
        (Stage.REWARD, ["model_name_or_path=a/b", "center_rewards_coefficient=0.01", "report_to=[wandb, trackio]"]),
        (Stage.PPO, ["model_name_or_path=demo", "reward_model_path=r", "learning_rate=1e-7", "bf16=true"]),
        (Stage.MERGE, ["adapter_path=x", "use_cpu=false", "dtype=float32"]),
        (Stage.PIPELINE, ["model_name_or_path=demo", "sft.lora_r=4", "merge.seed=7", "seed=7", "dtype=float32"]),
    ],
)
def test_a_clone_is_the_same_recipe_by_every_road(stage: Stage, overrides: list[str]) -> None:
    recipe = load_recipe(stage, None, overrides)
    form = filled(stage, seed="99")
    form.load(recipe)
    assert form.recipe() == recipe
    assert from_command_line(form) == recipe
    assert load_recipe_text(form) == recipe
    assert not form.differs("dataset_test_split") if stage is not Stage.MERGE else True


def test_the_demos_pipeline_is_cloned_with_what_its_stages_share_said_once() -> None:
    recipe = load_recipe(Stage.PIPELINE, DEMO_RECIPE)
    form = Form(Stage.PIPELINE)
    form.load(recipe)
    assert form.recipe() == recipe == from_command_line(form)
    differences = form.differences()
    assert differences["lora_r"] == "16" and not {"sft.lora_r", "reward.lora_r", "ppo.lora_r"} & set(differences)
    assert differences["sft.learning_rate"] == "0.004"


def test_a_mapping_is_typed_with_or_without_braces() -> None:
    for text in ("prompt: title, chosen: good", "{prompt: title, chosen: good}"):
        form = filled(Stage.SFT, dataset_columns=text)
        recipe = form.recipe()
        assert recipe is not None and recipe.dataset_columns == {"prompt": "title", "chosen": "good"}  # type: ignore[union-attr]
    assert "dataset_columns={prompt: title, chosen: good}" in form.overrides()
    assert not filled(Stage.SFT, dataset_columns="").differs("dataset_columns")
    wrong = filled(Stage.SFT, dataset_columns="prompt, chosen: good")
    assert wrong.error("dataset_columns") == "expected text"


def test_a_recipe_of_another_stage_does_not_fit() -> None:
    recipe = load_recipe(Stage.MERGE, None, ["adapter_path=x"])
    with pytest.raises(ValueError, match="merge recipe does not fit"):
        Form(Stage.SFT).load(recipe)


def test_every_default_is_read_back_from_how_it_is_written() -> None:
    for stage in STAGES:
        for field in fields_of(stage).values():
            if field.default is not msgspec.UNSET:
                assert converted(field, write_text(field, field.default)) == field.default, field.key


def test_the_yaml_holds_the_differences_alone(tmp_path: Path) -> None:
    form = filled(Stage.PPO, learning_rate="3e-5", lora_target_modules="q_proj, v_proj")
    file = tmp_path / "recipe.yaml"
    file.write_text(form.to_yaml(), encoding="utf-8")
    assert list(yaml.safe_load(file.read_text())) == list(form.differences())
    recipe = load_recipe(Stage.PPO, file)
    assert isinstance(recipe, PPORecipe) and recipe == form.recipe()
    assert Form(Stage.PPO).to_yaml() == "# stage: ppo\n"


def test_every_change_is_another_version_and_unknown_keys_are_refused() -> None:
    form = Form(Stage.SFT)
    before = form.version
    form.set("lora_r", "8")
    form.reset("lora_r")
    assert form.version == before + 2
    with pytest.raises(KeyError):
        form.set("lora_rank", "8")
    with pytest.raises(KeyError):
        form.reset("lora_rank")
