"""The committed demo base: loads like any model, is tiny, and its tokenizer is lossless."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from stackllama_engine.contract.prompt_format import PromptFormat
from stackllama_engine.contract.recipe import PipelineRecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.data import demo_data
from stackllama_engine.train import demo_base

BASE = Path(demo_base.__file__).parents[1] / "demo_base"
TOKENIZER = AutoTokenizer.from_pretrained(BASE)


@given(st.text())
def test_tokenizer_round_trips_any_text(string: str) -> None:
    clean = string.encode("utf-8", "surrogatepass").decode("utf-8", "ignore")
    ids = TOKENIZER(clean, add_special_tokens=False)["input_ids"]
    if not any(token in clean for token in (demo_base.PAD, demo_base.BOS, demo_base.EOS)):
        assert TOKENIZER.decode(ids) == clean


@pytest.mark.parametrize(
    "string", ["", "naïve café", "日本語 🎉", "\tdef f():\n\n  return 1", "a\r\nb", "  x  ", "C'est l'été"]
)
def test_tokenizer_round_trips_hard_texts(string: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(string)["input_ids"]) == string


def test_the_prompt_is_a_prefix_of_the_text_in_tokens() -> None:
    for row in list(demo_data.generate("evaluation"))[:200]:
        begin = TOKENIZER(PromptFormat().render(row["question"]))["input_ids"]
        whole = TOKENIZER(PromptFormat().render(row["question"], row["response_j"]))["input_ids"]
        assert whole[: len(begin)] == begin


def test_special_tokens_are_three_and_different() -> None:
    ids = (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id)
    assert ids == (0, 1, 2)
    assert not set(TOKENIZER("Question: how?\n\nAnswer: so.")["input_ids"]) & set(ids)


def test_demo_responses_have_at_most_64_tokens() -> None:
    longest = max(len(TOKENIZER(row["response_j"])["input_ids"]) for row in demo_data.generate("finetune"))
    assert longest <= 64


def test_the_committed_base_is_tiny_and_knows_the_language() -> None:
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    assert model.config.model_type == "llama"
    assert 250_000 <= model.num_parameters() <= 1_000_000
    assert model.config.max_position_embeddings >= 2048
    assert model.config.vocab_size == len(TOKENIZER)
    assert sum(file.stat().st_size for file in BASE.iterdir()) <= 2_000_000
    ids = next(demo_base.batches(TOKENIZER, seed=99))[:4]
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    assert loss < 1.0  # 6.9 untrained


def test_demo_recipe_is_valid_and_runs_on_the_cpu() -> None:
    recipe = load_recipe(Stage.PIPELINE, BASE / "demo.yaml")
    assert isinstance(recipe, PipelineRecipe)
    for section in (recipe.sft, recipe.reward, recipe.ppo):
        assert section["use_cpu"]
        assert section["base_precision"] == "dtype"
        assert section["dataset_name"] == "demo"


def test_the_script_makes_a_base_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo_base.main(["--out", str(tmp_path), "--steps", "2", "--hidden-size", "32", "--layers", "1"])
    facts = json.loads(capsys.readouterr().out)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.num_parameters() == facts["parameters"]
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == TOKENIZER.get_vocab()
