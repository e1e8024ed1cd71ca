"""Recipes from TRL and similar trainers: read, noted or refused, all at once and never silently."""

from pathlib import Path
from typing import Any

import pytest

from stackllama_engine.contract.errors import RecipeError
from stackllama_engine.contract.foreign_keys import AXOLOTL, IGNORED_KEYS, LLAMA_FACTORY, REFUSED
from stackllama_engine.contract.old_keys import OLD_KEYS
from stackllama_engine.contract.recipe import PPORecipe, RewardRecipe, SFTRecipe
from stackllama_engine.contract.recipe_common import steps_of
from stackllama_engine.contract.recipe_io import Reading, key_types, load_recipe, read_recipe
from stackllama_engine.contract.stages import TRAINING_STAGES, Stage
from stackllama_engine.contract.translate import target_modules
from stackllama_engine.launch import machine_check

BASE = ("model_name_or_path=gpt2", "load_in_8bit=false")
PPO = (*BASE, "reward_model_path=r")
HANDBOOK = """\
model_name_or_path: gpt2
torch_dtype: null
bf16: true
dataset_name: org/data
do_eval: true
eval_strategy: epoch
max_seq_length: 2048
gradient_checkpointing_kwargs: {use_reentrant: false}
hub_model_id: org/model
learning_rate: 2.0e-05
log_level: info
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr_rate: 0.1}
max_steps: -1
num_train_epochs: 4
output_dir: data/model
overwrite_output_dir: true
report_to: none
save_strategy: "no"
save_total_limit: null
warmup_ratio: 0.1
push_to_hub: false
deepspeed: null
"""


def sft(*overrides: str) -> SFTRecipe:
    recipe = load_recipe(Stage.SFT, None, [*BASE, *overrides])
    assert isinstance(recipe, SFTRecipe)
    return recipe


def ppo(*overrides: str) -> PPORecipe:
    recipe = load_recipe(Stage.PPO, None, [*PPO, *overrides])
    assert isinstance(recipe, PPORecipe)
    return recipe


def notes(*overrides: str) -> str:
    return "\n".join(read_recipe(Stage.SFT, None, [*BASE, *overrides]).notes)


def refusal(*overrides: str, stage: Stage = Stage.SFT) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(stage, None, [*(BASE if stage is Stage.SFT else PPO), *overrides])
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


# all at once


def test_every_mistake_of_a_recipe_is_in_one_message(file: Path) -> None:
    file.write_text("model_name_or_path: gpt2\nlorar: 4\nlora_r: many\nrpo_alpha: 0.1\nzzz: {a: 1}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(Stage.SFT, file)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{file}: 4 mistakes:"
    assert [line.split(":")[0].strip() for line in lines] == [
        "`rpo_alpha=0.1`",
        "`lorar=4`",
        "`lora_r=many`",
        "`zzz={a",
    ]
    assert "kl_coef" not in lines[0] and "adam_beta2" not in lines[0] and "preference stage" in lines[0]


def test_mistakes_of_file_and_command_line_name_their_source(file: Path) -> None:
    file.write_text("lora_r: 0\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(Stage.SFT, file, ["lora_alpha=none"])
    first, *lines = str(caught.value).splitlines()
    assert first == "3 mistakes in the recipe:"
    assert lines[0].startswith(f"  {file}: `lora_r=0`") and lines[1].startswith("  command line: `lora_alpha=none`")
    assert "`model_name_or_path` is required" in lines[2]


def test_a_value_of_many_lines_stays_on_one(file: Path) -> None:
    file.write_text("model_name_or_path: gpt2\nnokey: |\n  {% for %}\n  more\nlora_r: 0\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(Stage.SFT, file)
    assert len(str(caught.value).splitlines()) == 3


def test_a_pipeline_reports_the_mistakes_of_all_sections() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(Stage.PIPELINE, None, [*BASE, "sft.lora_r=0", "ppo.lorar=1", "nokey=1", "seed=x"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 5 and sum("`seed=x`" in line for line in lines) == 1


# hints


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("cutoff_len=512", "Here it is `max_length`."),
        ("lora_rank=8", "Here it is `lora_r`."),
        ("max_samples=10", "Here it is `max_train_samples`."),
        ("base_model=x", "Here it is `model_name_or_path`."),
        ("micro_batch_size=2", "`per_device_train_batch_size`"),
        ("lora_target=all", "`all` is `all-linear`"),
        ("kl_coef=0.1", "It is a key of the ppo recipe."),
        ("beta=0", "It is a key of the preference recipe."),
        ("loss_type=sigmoid", "It is a key of the preference and ppo recipes."),
        ("wandb_project=p", "Leave it out: use `report_to: [wandb]`"),
        ("learningRate=1e-4", "Did you mean `learning_rate`?"),
        ("learning_rte=1e-4", "Did you mean `learning_rate`?"),
        ("warmup_step=3", "Did you mean `warmup_steps`?"),
    ],
)
def test_unknown_key_hint_is_by_meaning(override: str, hint: str) -> None:
    assert hint in refusal(override)


@pytest.mark.parametrize(
    "override", ["adam_beta3=0.5", "bf8=true", "learning_rte=abc", "min_samples=3", "hub_nothing=1", "adapter_r=2"]
)
def test_a_key_that_is_no_slip_of_another_gets_no_spelling_hint(override: str) -> None:
    assert "Did you mean" not in refusal(override)


@pytest.mark.parametrize("stage", TRAINING_STAGES)
def test_no_key_is_in_two_tables_of_answers(stage: Stage) -> None:
    known = set(key_types(stage))
    assert not known & set(REFUSED) and not set(IGNORED_KEYS) & set(REFUSED)
    named = {entry.ours for entry in (*LLAMA_FACTORY.values(), *AXOLOTL.values()) if entry.ours}
    assert named <= {key for one in TRAINING_STAGES for key in key_types(one)}


def test_keys_of_one_stage_have_no_sections() -> None:
    message = refusal("training={learning_rate: 1e-4, num_epochs: 2}")
    assert "It has no sections; put `learning_rate`, `num_epochs` at the top." in message


def test_empty_key_error_suggests_to_leave_it_out() -> None:
    assert "leave it out for the default" in refusal("lora_r=")


# values as TRL and transformers take them


def test_a_handbook_recipe_is_accepted_with_notes(file: Path) -> None:
    file.write_text(HANDBOOK)
    reading: Reading = read_recipe(Stage.SFT, file)
    recipe = reading.recipe
    assert isinstance(recipe, SFTRecipe)
    assert (recipe.dtype, recipe.max_length, recipe.report_to, recipe.save_total_limit) == ("auto", 2048, [], None)
    assert (recipe.lr_scheduler_type, recipe.min_lr_rate) == ("cosine_with_min_lr", 0.1)
    assert (recipe.warmup_steps, recipe.eval_steps, recipe.save_steps) == (0.1, 0.25, 0)
    said = "\n".join(reading.notes)
    assert "ignored `output_dir`, `overwrite_output_dir`: a run has its own directory" in said
    assert all(f"`{key}" in said for key in ("do_eval", "hub_model_id", "log_level", "eval_strategy", "save_strategy"))
    assert "LoRA is trained here, where TRL would train every weight" in said
    assert "push_to_hub" not in said and "deepspeed" not in said  # they ask for nothing


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("report_to=none", "report_to", []),
        ("report_to=null", "report_to", []),
        ("report_to=wandb", "report_to", ["wandb"]),
        ("report_to=tensorboard,wandb", "report_to", ["tensorboard", "wandb"]),
        ("warmup_ratio=0.1", "warmup_steps", 0.1),
        ("warmup_steps=0.05", "warmup_steps", 0.05),
        ("warmup_ratio=1e-1", "warmup_steps", 0.1),
        ("warmup_steps=20.0", "warmup_steps", 20),
        ("save_steps=0.5", "save_steps", 0.5),
        ("eval_steps=0.25", "eval_steps", 0.25),
        ("logging_steps=0.1", "logging_steps", 0.1),
        ("save_total_limit=null", "save_total_limit", None),
        ("save_total_limit=-1", "save_total_limit", None),
        ("torch_dtype=bfloat16", "dtype", "bfloat16"),
        ("torch_dtype=torch.float16", "dtype", "float16"),
        ("bf16=auto", "bf16", True),
        ("max_seq_length=64", "max_length", 64),
        ("completion_only_loss=true", "assistant_only_loss", True),
        ("eval_strategy=no", "eval_steps", 0),
        ("evaluation_strategy=no", "eval_steps", 0),
        ("save_strategy=steps", "save_steps", 500),
        ("packing_strategy=ffd", "packing_strategy", "bfd"),
        ("no_cuda=true", "use_cpu", True),
        ("lr_scheduler_type=inverse_sqrt", "lr_scheduler_type", "inverse_sqrt"),
        ("lr_scheduler_kwargs='{}'", "min_lr_rate", None),
    ],
)
def test_values_are_read_as_in_transformers(override: str, key: str, value: Any) -> None:
    assert getattr(sft(override), key) == value


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("push_to_hub=true", "uploading is not supported"),
        ("rpo_alpha=1", "the preference stage has the keys"),
        ("deepspeed=zero3.json", "every GPU holds the whole model"),
        ("template=llama3", "choose `prompt_format: chat`"),
        ("dataset_mixture={datasets: []}", "one data set"),
        ("sft_model_path=x", "`model_name_or_path`"),
        ("resume_from_checkpoint=true", "runs resume RUN"),
        ("average_tokens_across_devices=false", "always averaged"),
        ("pad_token=x", "the tokenizer's own"),
        ("report_to=all", "name the trackers"),
        ("warmup_ratio=1", "a share of all steps"),
        ("warmup_steps=1.5", "a whole number of at least 0, or a share of all steps between 0 and 1"),
        ("lr_scheduler_type=cosine_with_min_lr", "belong together"),
        ("min_lr_rate=0.1", "belong together"),
        ("lr_scheduler_kwargs={num_cycles: 2}", "`min_lr_rate`"),
        ("eval_strategy=often", "expected one of"),
    ],
)
def test_keys_that_change_the_result_are_refused_with_a_reason(override: str, why: str) -> None:
    message = refusal(override)
    assert why in message and "has no key" not in message


def test_ignored_keys_are_one_note_per_reason() -> None:
    said = notes("output_dir=x", "run_name=y", "dataset_num_proc=4", "remove_unused_columns=false").splitlines()
    assert len([line for line in said if "ignored" in line]) == 2


def test_other_names_of_one_key_must_agree_unless_the_command_line_decides(file: Path) -> None:
    assert "keep one of them" in refusal("torch_dtype=float16", "dtype=float32")
    assert sft("torch_dtype=float32", "dtype=float32").dtype == "float32"
    file.write_text("model_name_or_path: gpt2\ntorch_dtype: float16\nwarmup_ratio: 0.2\n")
    recipe = load_recipe(Stage.SFT, file, ["dtype=float32", "warmup_steps=7"])
    assert isinstance(recipe, SFTRecipe)
    assert (recipe.dtype, recipe.warmup_steps) == ("float32", 7)


def test_warmup_steps_override_a_ratio_as_in_transformers() -> None:
    assert sft("warmup_ratio=0.1", "warmup_steps=5").warmup_steps == 5
    assert sft("warmup_steps=0", "warmup_ratio=0.1").warmup_steps == 0.1


def test_epoch_strategies_apply_unless_steps_are_given() -> None:
    """As in transformers, and without a default number of steps that would win silently."""
    assert (sft("num_train_epochs=2").max_steps, ppo("num_train_epochs=2").max_steps) == (-1, -1)
    assert sft("num_train_epochs=2", "max_steps=10").max_steps == 10
    assert sft().max_steps == -1


def test_arguments_of_the_schedule_may_be_json_in_quotes() -> None:
    given = ("lr_scheduler_type=cosine_with_min_lr", "learning_rate=1e-3")
    for text in ("{min_lr_rate: 0.1}", "'{\"min_lr_rate\": 0.1}'", "{min_lr: 1e-4}"):
        assert sft(*given, f"lr_scheduler_kwargs={text}").min_lr_rate == pytest.approx(0.1)


def test_a_share_of_steps_is_rounded_up() -> None:
    assert [steps_of(*pair) for pair in ((0.1, 101), (0.5, 4), (7, 4), (0, 9), (0.001, 10))] == [11, 2, 7, 0, 1]


def test_milestones_need_checkpoints_at_whole_steps() -> None:
    assert "`save_steps: 0.5` is a share of all steps" in refusal("keep_every_steps=10", "save_steps=0.5")


def test_total_episodes_become_steps_where_the_processes_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_check, "_check_packages", lambda recipe: None)
    recipe = machine_check.resolve_machine(
        ppo(
            "total_episodes=100",
            "use_cpu=true",
            "num_processes=2",
            "num_mini_batches=1",
            "gradient_accumulation_steps=2",
        ),
        [],
    )
    assert isinstance(recipe, PPORecipe)
    assert (recipe.max_steps, recipe.total_episodes) == (7, None)  # 100 / (8 × 2), rounded up


# LoRA's modules


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("q_proj,v_proj", ["q_proj", "v_proj"]),
        ("q_proj, v_proj", ["q_proj", "v_proj"]),
        ("q_proj v_proj", ["q_proj", "v_proj"]),
        ("q_proj", ["q_proj"]),
        ("all-linear", "all-linear"),
        (r".*\.(q|v)_proj", r".*\.(q|v)_proj"),
        (r".*q_proj{1,2}", r".*q_proj{1,2}"),
        (None, None),
        (["a,b"], ["a,b"]),
    ],
)
def test_target_modules_splits_names_but_not_patterns(text: Any, value: Any) -> None:
    assert target_modules(text) == value


@pytest.mark.parametrize("text", ["all-linear,q_proj", r".*q_proj,.*v_proj"])
def test_modules_that_peft_would_not_find_are_refused(text: str) -> None:
    assert "`lora_target_modules=" in refusal(f"lora_target_modules={text}")


# keys of earlier versions


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        (["output_min_length=4", "output_max_length=8"], [4, 8]),
        (["output_min_length=64"], [64, 128]),
        (["output_max_length=64"], [32, 64]),
        (["random_length_limits=[4, 16]", "output_max_length=8"], [4, 8]),
    ],
)
def test_old_length_keys_are_read_with_a_note(given: list[str], limits: list[int]) -> None:
    reading = read_recipe(Stage.PPO, None, [*PPO, *given])
    assert isinstance(reading.recipe, PPORecipe) and reading.recipe.random_length_limits == limits
    assert f"read as `random_length_limits={limits}`" in "\n".join(reading.notes)


def test_old_keys_of_file_and_command_line_are_read_together(file: Path) -> None:
    file.write_text("model_name_or_path: gpt2\nreward_model_path: r\noutput_min_length: 4\noutput_max_length: 99\n")
    recipe = load_recipe(Stage.PPO, file, ["output_max_length=8"])
    assert isinstance(recipe, PPORecipe) and recipe.random_length_limits == [4, 8]


def test_old_keys_of_a_pipeline_are_read_in_and_above_their_section() -> None:
    given = [*BASE, "output_min_length=4", "ppo.output_max_length=9"]
    assert load_recipe(Stage.PIPELINE, None, given).ppo["random_length_limits"] == [4, 9]  # type: ignore[union-attr]


def functions_of(*given: str) -> tuple[Any, Any, Any]:
    reading = read_recipe(Stage.PPO, None, ["model_name_or_path=gpt2", *given])
    assert isinstance(reading.recipe, PPORecipe)
    return reading.recipe.reward_funcs, reading.recipe.reward_func_paths, reading.recipe.reward_weights


def test_the_one_reward_function_of_earlier_versions_is_a_list_of_one() -> None:
    old = ("reward_fn=a:b", "reward_fn_path=/code", "reward_fn_weight=0.5")
    assert functions_of(*old) == (["a:b"], ["/code"], [0.5])
    unused = ("reward_model_path=rm", "reward_fn=null", "reward_fn_path=null", "reward_fn_weight=1.0")
    assert functions_of(*unused) == ([], [], [])
    assert functions_of("reward_funcs=[a:b, c.d:e]", "reward_weights=[1, 2]") == (["a:b", "c.d:e"], [], [1.0, 2.0])
    assert functions_of("reward_funcs=a:b,c:d", "reward_weights=1,2") == (["a:b", "c:d"], [], [1.0, 2.0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["reward_funcs=[a:b, c:d]", "reward_weights=[1]"], "`reward_weights` has 1 entries for 2 `reward_funcs`"),
        (["reward_funcs=a:b", "reward_func_paths=[x, y]"], "`reward_func_paths` has 2 entries for 1 `reward_funcs`"),
        (["reward_funcs=[a:b, a:b]"], "names a function twice"),
        (["reward_funcs=politeness"], "`reward_funcs: politeness`: expected `package.module:function`"),
        (["reward_funcs=a:b", "reward_kwargs={completions: 1}"], "`reward_kwargs` has `completions`"),
        (["reward_funcs=a:b", "reward_timeout=0"], "expected a number greater than 0"),
    ],
)
def test_wrong_reward_functions_are_refused(given: list[str], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        functions_of(*given)
    assert said in str(caught.value)


def test_components_of_one_name_are_told_apart() -> None:
    recipe = load_recipe(Stage.PPO, None, ["model_name_or_path=gpt2", "reward_funcs=[a:f, b.c:f, b:g, b:model]"])
    assert isinstance(recipe, PPORecipe)
    assert [function.name for function in recipe.functions] == ["a.f", "b.c.f", "g", "b.model"]


def test_every_old_key_has_a_new_one_in_some_recipe_and_is_none_itself() -> None:
    known = {key for stage in TRAINING_STAGES for key in key_types(stage)}
    assert all(old.new in known and not set(old.defaults) & known for old in OLD_KEYS)


def test_dpo_keys_in_a_reward_recipe_are_refused_once_each(file: Path) -> None:
    file.write_text("model_name_or_path: gpt2\nbeta: 0.01\nloss_type: [sigmoid]\nmax_length: 512\noutput_dir: x\n")
    with pytest.raises(RecipeError, match="2 mistakes") as caught:
        load_recipe(Stage.REWARD, file)
    assert "It is a key of the preference recipe." in str(caught.value)
    assert "It is a key of the preference and ppo recipes." in str(caught.value)
    file.write_text("model_name_or_path: gpt2\nmax_length: 512\noutput_dir: x\n")
    assert isinstance(load_recipe(Stage.REWARD, file), RewardRecipe)
