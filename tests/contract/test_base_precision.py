"""`base_precision`, and the keys that said it before."""

from pathlib import Path

import pytest

from stackllama_engine.contract.errors import RecipeError
from stackllama_engine.contract.recipe import PipelineRecipe, TrainRecipe
from stackllama_engine.contract.recipe_io import build_recipe, dump_recipe, load_recipe, read_recipe
from stackllama_engine.contract.stages import Stage

BASE = "model_name_or_path=gpt2"


def precision(text: str, tmp_path: Path, *overrides: str) -> str:
    """Return what a file and a command line say together."""
    file = tmp_path / "recipe.yaml"
    file.write_text(f"model_name_or_path: gpt2\n{text}\n")
    recipe = load_recipe(Stage.SFT, file, overrides)
    assert isinstance(recipe, TrainRecipe)
    return recipe.base_precision


def refusal(text: str, tmp_path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        precision(text, tmp_path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "auto"),
        ("load_in_8bit: true", "int8"),
        ("load_in_4bit: true", "nf4"),
        ("load_in_4bit: true\nbnb_4bit_quant_type: fp4", "fp4"),
        ("load_in_8bit: false", "dtype"),
        ("load_in_4bit: false", "dtype"),
        ("load_in_8bit: false\nload_in_4bit: false\nbnb_4bit_quant_type: nf4", "dtype"),
        ("load_in_8bit: true\nload_in_4bit: false\nbnb_4bit_quant_type: nf4", "int8"),
        ("bnb_4bit_quant_type: fp4", "auto"),
        ("load_in_8bit: 'true'", "int8"),
        ("load_in_8bit: false\nbase_precision: nf4", "nf4"),
        ("load_in_8bit: true\nbase_precision: int8", "int8"),
    ],
)
def test_former_keys_are_read_as_base_precision(text: str, expected: str, tmp_path: Path) -> None:
    assert precision(text, tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("load_in_8bit: true", ["base_precision=bf16"], "bf16"),
        ("base_precision: bf16", ["load_in_4bit=true"], "nf4"),
        ("load_in_8bit: true", ["load_in_8bit=false", "load_in_4bit=true"], "nf4"),
        ("load_in_4bit: true", ["load_in_8bit=false"], "nf4"),
        ("load_in_4bit: true", ["load_in_4bit=false"], "dtype"),
        ("load_in_4bit: true", ["bnb_4bit_quant_type=fp4"], "fp4"),
        ("bnb_4bit_quant_type: fp4", ["load_in_4bit=true"], "fp4"),
        ("base_precision: int8", ["load_in_8bit=false"], "dtype"),
        ("base_precision: bf16", ["load_in_8bit=false"], "bf16"),
        ("load_in_8bit: false", ["base_precision=auto"], "auto"),
    ],
)
def test_the_command_line_has_the_last_word(text: str, overrides: list[str], expected: str, tmp_path: Path) -> None:
    assert precision(text, tmp_path, *overrides) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("load_in_8bit: true\nload_in_4bit: true", "`load_in_8bit` and `load_in_4bit` are both true"),
        ("load_in_8bit: true\nbase_precision: nf4", "`load_in_8bit=true` contradicts `base_precision=nf4`"),
        ("load_in_4bit: false\nbase_precision: nf4", "`load_in_4bit=false` contradicts `base_precision=nf4`"),
        ("load_in_8bit: true\nbase_precision: auto", "`load_in_8bit=true` contradicts `base_precision=auto`"),
        ("bnb_4bit_quant_type: fp4\nbase_precision: nf4", "`bnb_4bit_quant_type=fp4` contradicts"),
        ("load_in_8bit: maybe", "`load_in_8bit=maybe`: expected true or false"),
        ("bnb_4bit_quant_type: nf3", "`bnb_4bit_quant_type=nf3`: expected one of `nf4`, `fp4`"),
        ("base_precision: int4", "`base_precision=int4`: expected one of `auto`, `dtype`"),
        ("base_precision: bf16\ndtype: float32", "`base_precision: bf16` contradicts `dtype: float32`"),
    ],
)
def test_contradictions_are_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    said = refusal(text, tmp_path)
    assert message in said
    assert "\n" not in said


def test_a_synonym_is_noted() -> None:
    (note,) = read_recipe(Stage.SFT, None, [BASE, "load_in_8bit=true"]).notes
    assert note == "command line: `load_in_8bit=true`: read as `base_precision=int8`."


def test_a_section_of_a_pipeline_is_over_its_top() -> None:
    words = [BASE, "load_in_4bit=true", "reward.load_in_8bit=false", "ppo.load_in_8bit=true"]
    recipe = load_recipe(Stage.PIPELINE, None, words)
    assert isinstance(recipe, PipelineRecipe)
    assert [one["base_precision"] for one in (recipe.sft, recipe.reward, recipe.ppo)] == ["nf4", "nf4", "int8"]


def test_a_merge_has_no_precision_key() -> None:
    with pytest.raises(RecipeError, match="the merge recipe has no key `load_in_8bit`"):
        load_recipe(Stage.MERGE, None, ["adapter_path=x", "load_in_8bit=true"])


def test_bf16_is_one_dtype_on_disk(tmp_path: Path) -> None:
    recipe = load_recipe(Stage.SFT, None, [BASE, "base_precision=bf16"])
    assert isinstance(recipe, TrainRecipe)
    assert (recipe.dtype, recipe.quantised) == ("bfloat16", False)
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    assert load_recipe(Stage.SFT, file) == recipe


def test_a_recipe_of_an_earlier_version_keeps_its_values() -> None:
    before = {"load_in_8bit": True, "load_in_4bit": False, "bnb_4bit_quant_type": "nf4", "gradient_checkpointing": True}
    recipe = build_recipe(Stage.SFT, {"model_name_or_path": "gpt2", **before})
    assert isinstance(recipe, TrainRecipe)
    assert (recipe.base_precision, recipe.gradient_checkpointing, recipe.checkpointing) == ("int8", True, True)
