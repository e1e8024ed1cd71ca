"""Recipes of other trainers become ones of this engine that load, and say what was left out."""

from pathlib import Path

import pytest

from stackllama_engine.contract.errors import RecipeError
from stackllama_engine.contract.recipe import PPORecipe, PreferenceRecipe, RewardRecipe, SFTRecipe, TrainedRecipe
from stackllama_engine.contract.recipe_convert import Converted, convert_recipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.stages import Stage

LLAMA_FACTORY = """\
model_name_or_path: org/base
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
quantization_bit: 4
double_quantization: false
dataset: mine,theirs
template: llama3
cutoff_len: 512
max_samples: 100
preprocessing_num_workers: 16
output_dir: saves/x
per_device_train_batch_size: 1
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
report_to: none
resume_from_checkpoint: null
use_galore: true
"""
AXOLOTL = """\
base_model: org/base
load_in_8bit: false
load_in_4bit: true
adapter: qlora
datasets:
  - path: org/data
    type: alpaca
  - path: org/more
    type: alpaca
val_set_size: 0.1
sequence_len: 2048
sample_packing: true
lora_r: 32
lora_dropout:
lora_target_linear: true
micro_batch_size: 2
num_epochs: 2
evals_per_epoch: 4
saves_per_epoch: 1
optimizer: adamw_torch_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
tf32: true
wandb_project: mine
special_tokens: {pad_token: "\\u2028 \\e[2J"}
unheard_of: 1
"""


Recipe = TrainedRecipe


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "theirs.yaml"


def converted(file: Path, text: str, stage: Stage | None = None) -> tuple[Converted, Recipe]:
    """Convert a file, and read the result back as a recipe file."""
    file.write_text(text)
    made = convert_recipe(file, stage)
    out = file.with_name("ours.yaml")
    out.write_text(made.text)
    recipe = load_recipe(made.stage, out)
    assert isinstance(recipe, Recipe)
    return made, recipe


def test_llama_factory_recipe_is_converted(file: Path) -> None:
    made, recipe = converted(file, LLAMA_FACTORY)
    assert (made.source, made.stage) == ("LLaMA-Factory", Stage.SFT) and isinstance(recipe, SFTRecipe)
    assert (recipe.model_name_or_path, recipe.max_length, recipe.max_train_samples) == ("org/base", 512, 100)
    assert (recipe.lora_r, recipe.lora_alpha, recipe.lora_target_modules) == (8, 16, "all-linear")
    assert (recipe.load_in_4bit, recipe.load_in_8bit, recipe.use_peft) == (True, False, True)
    assert (recipe.num_train_epochs, recipe.max_steps, recipe.warmup_steps) == (3.0, -1, 0.1)
    assert (recipe.lora_dropout, recipe.packing, recipe.seed) == (0.0, False, 42)  # its defaults, not ours
    said = "\n".join(made.left_out)
    assert all(f"`{key}" in said for key in ("template", "use_galore", "trust_remote_code", "output_dir", "dataset"))
    assert "dataset_info.json" in said and recipe.dataset_name == "mine"  # never the default data instead
    assert all(line in made.text for line in ("# stage: sft\n", "#   `template=llama3`: ", "defaults of LLaMA-Factory"))


def test_axolotl_recipe_is_converted(file: Path) -> None:
    made, recipe = converted(file, AXOLOTL)
    assert (made.source, made.stage) == ("axolotl", Stage.SFT) and isinstance(recipe, SFTRecipe)
    assert (recipe.model_name_or_path, recipe.dataset_name, recipe.packing) == ("org/base", "org/data", True)
    assert (recipe.per_device_train_batch_size, recipe.optim, recipe.bf16) == (2, "adamw_8bit", True)
    assert (recipe.lora_r, recipe.lora_target_modules, recipe.report_to) == (32, "all-linear", ["wandb"])
    assert (recipe.eval_steps, recipe.save_steps, recipe.num_train_epochs) == (0.125, 0.5, 2.0)
    said = "\n".join(made.left_out)
    assert all(part in said for part in ("org/more", "`val_set_size", "`special_tokens", "`unheard_of=1`"))
    assert made.text.isprintable() is False and "\x1b" not in made.text and "\u2028" not in made.text


def test_trl_trains_every_weight_and_for_three_epochs_unless_it_says_otherwise(file: Path) -> None:
    made, recipe = converted(
        file,
        "model_name_or_path: m\noutput_dir: x\nlr_scheduler_type: constant\nwarmup_ratio: 0.1\nload_in_8bit: true\n",
    )
    assert made.source == "TRL" and isinstance(recipe, SFTRecipe)
    assert (recipe.use_peft, recipe.load_in_8bit, recipe.num_train_epochs, recipe.max_steps) == (False, False, 3.0, -1)
    assert (recipe.warmup_steps, recipe.packing, recipe.learning_rate) == (0, False, 2e-5)
    assert "constant_with_warmup" in "\n".join(made.left_out)


def test_the_handbooks_mixture_is_its_first_data_set(file: Path) -> None:
    text = """\
model_name_or_path: m
dataset_mixture:
  datasets:
  - {id: org/a, config: c, split: train_sft, columns: [messages], weight: 1.0}
  - {id: org/b}
  test_split_size: 1000
"""
    made, recipe = converted(file, text)
    assert (recipe.dataset_name, recipe.dataset_config, recipe.dataset_train_split) == ("org/a", "c", "train_sft")
    said = "\n".join(made.left_out)
    assert "org/b" in said and "test_split_size" in said and "columns" in said


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("model_name_or_path: m\nbeta: 0.3\nloss_type: [sigmoid, sft]\n", 1e-6),
        (LLAMA_FACTORY.replace("stage: sft", "stage: dpo\npref_beta: 0.3\npref_loss: ipo"), 1e-4),
        ("base_model: m\nrl: dpo\nrl_beta: 0.3\nadapter: lora\nsequence_len: 512\nlearning_rate: 2e-5\n", 2e-5),
    ],
)
def test_dpo_is_converted_to_the_preference_stage(file: Path, text: str, rate: float) -> None:
    made, recipe = converted(file, text)
    assert made.stage is Stage.PREFERENCE and isinstance(recipe, PreferenceRecipe)
    assert (recipe.beta, recipe.learning_rate, recipe.use_peft, recipe.lora_dropout) == (0.3, rate, True, 0.0)
    _, recipe = converted(file, text, Stage.REWARD)
    assert isinstance(recipe, RewardRecipe)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("model_name_or_path: m\nbeta: 0.1\nnum_generations: 8\n", "GRPO"),
        ("model_name_or_path: m\nreward_funcs: [a]\n", "GRPO"),
        ("model_name_or_path: m\nbeta: 0.0\nloss_type: dr_grpo\n", "GRPO"),
        ("model_name_or_path: m\nbeta: 0.1\nloss_type: kto\n", "KTO"),
        ("model_name_or_path: m\nloss_type: [sigmoid, simpo]\n", "SimPO"),
        ("model_name_or_path: m\nloss_type: unheard\n", "the loss `unheard`"),
        (LLAMA_FACTORY.replace(": sft", ": kto"), "KTO"),
        (LLAMA_FACTORY.replace(": sft", ": dpo\npref_loss: orpo"), "ORPO"),
        (LLAMA_FACTORY.replace(": sft", ": dpo\npref_loss: simpo"), "SimPO"),
        ("base_model: m\nsequence_len: 8\nrl: orpo\n", "ORPO"),
    ],
)
def test_methods_that_have_no_stage_here_are_refused_by_name(file: Path, text: str, name: str) -> None:
    file.write_text(text)
    with pytest.raises(RecipeError, match=rf"{name}.*`--stage preference`.*`--stage reward`"):
        convert_recipe(file)
    assert converted(file, text, Stage.PREFERENCE)[0].stage is Stage.PREFERENCE


@pytest.mark.parametrize("loss", ["nll", "dft", "chunked_nll"])
def test_losses_of_sft_are_no_preference(file: Path, loss: str) -> None:
    made, _ = converted(file, f"model_name_or_path: m\nloss_type: {loss}\nbeta: null\nnum_generations: null\n")
    assert made.stage is Stage.SFT and f"`loss_type={loss}`" in "\n".join(made.left_out)


def test_what_dpo_would_refuse_is_left_out_with_a_line(file: Path) -> None:
    text = "model_name_or_path: m\nbeta: 0.2\nlabel_smoothing: 0.1\nuse_peft: true\nlora_dropout: 0.05\n"
    made, recipe = converted(file, text)
    assert isinstance(recipe, PreferenceRecipe) and (recipe.label_smoothing, recipe.lora_dropout) == (0.0, 0.0)
    said = "\n".join(made.left_out)
    assert "`label_smoothing=0.1`: of effect with" in said and "`lora_dropout=0.05`: preference compares" in said
    _, recipe = converted(file, text + "loss_type: robust\n")
    assert isinstance(recipe, PreferenceRecipe) and recipe.label_smoothing == 0.1


def test_axolotls_ipo_is_a_loss_of_the_preference_stage(file: Path) -> None:
    _, recipe = converted(file, "base_model: m\nrl: ipo\nadapter: lora\nsequence_len: 512\nlearning_rate: 2e-5\n")
    assert isinstance(recipe, PreferenceRecipe) and recipe.loss_type == "ipo"


def test_trl_ppo_recipe_is_converted(file: Path) -> None:
    text = "model_name_or_path: m\nreward_model_path: r\ntotal_episodes: 1000\nstop_token: eos\n"
    made, recipe = converted(file, text)
    assert made.stage is Stage.PPO and isinstance(recipe, PPORecipe)
    assert (recipe.total_episodes, recipe.response_length, recipe.kl_coef) == (1000, 53, 0.05)
    assert recipe.use_peft and any("`use_peft=false`" in text for text in made.left_out)


@pytest.mark.parametrize(
    "text",
    [
        "base_model: m\nsequence_len: long\nnum_epochs: x\nevals_per_epoch: often\n",
        "stage: sft\ncutoff_len: [1]\ntemplate: x\nmodel_name_or_path: m\nlora_rank: many\n",
    ],
)
def test_values_of_the_wrong_type_are_left_out_and_reported(file: Path, text: str) -> None:
    made, _ = converted(file, text)
    assert any("expected" in line for line in made.left_out)


def test_a_recipe_without_a_model_cannot_be_converted(file: Path) -> None:
    file.write_text("finetuning_type: lora\nstage: sft\n")
    with pytest.raises(RecipeError, match="`model_name_or_path` is required"):
        convert_recipe(file)


@pytest.mark.parametrize(("text", "name"), [(LLAMA_FACTORY, "LLaMA-Factory"), (AXOLOTL, "axolotl")])
def test_launch_refuses_another_trainers_recipe_in_one_sentence(file: Path, text: str, name: str) -> None:
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(Stage.SFT, file)
    message = str(caught.value)
    assert "\n" not in message and f"a recipe of {name}" in message
    assert f"`stackllama-console recipe convert {file}`" in message
