"""A packed answer is predicted as if it stood alone, by the collator and the model that train."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
)

from stackllama_engine.contract.errors import StageError
from stackllama_engine.contract.recipe import SFTRecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train.sft_packing import Collator, check_apart, keeps_apart, leak

from .in_process import attempt
from .toy import SFT

FIRST, SECOND, THIRD = [5, 6, 7, 8, 9, 10], [11, 12, 13, 14], [20, 21, 22]
ROWS = [
    {"input_ids": FIRST + SECOND, "labels": FIRST + SECOND, "seq_lengths": [6, 4]},
    {"input_ids": THIRD, "labels": THIRD, "seq_lengths": [3]},
]


def model_of(base: Path, kernel: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, attn_implementation=kernel, dtype=torch.float32).eval()


def logits(model: Any, batch: dict[str, Any]) -> Tensor:
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "num_tokens")}
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("flat", [False, True])
def test_logits_of_a_packed_document_are_those_alone(base: Path, kernel: str, flat: bool) -> None:
    """``flat`` is what flash attention gets; other kernels keep documents apart there as well."""
    model = model_of(base, kernel)
    packed = logits(model, Collator(0, flat=flat)(ROWS)).flatten(0, 1)
    third = 10  # in a flat batch right behind, else at the beginning of the second row: rows are 10 long
    for document, start in ((FIRST, 0), (SECOND, 6), (THIRD, third)):
        alone = logits(model, {"input_ids": torch.tensor([document])})[0]
        torch.testing.assert_close(packed[start : start + len(document)], alone, atol=1e-5, rtol=1e-5)


def test_a_packed_batch_counts_its_tokens_and_predicts_no_first_one() -> None:
    batch = Collator(0, flat=False)(ROWS)
    assert batch["num_tokens"].tolist() == [10, 3] and "attention_mask" not in batch
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 3], [0, 1, 2, *range(7)]]
    assert batch["labels"].tolist() == [[-100, *FIRST[1:], -100, *SECOND[1:]], [-100, *THIRD[1:], *[-100] * 7]]
    padded = Collator(0, flat=False)([{"input_ids": FIRST}, {"input_ids": THIRD}])
    assert padded["attention_mask"].sum(dim=1).tolist() == [6, 3] and "position_ids" not in padded


def recipe_of(*keys: str) -> SFTRecipe:
    recipe = load_recipe(Stage.SFT, None, ["model_name_or_path=toy", *keys])
    assert isinstance(recipe, SFTRecipe)
    return recipe


def test_answers_are_kept_apart_unless_asked_otherwise() -> None:
    assert recipe_of().packing_strategy == "bfd"
    assert keeps_apart(recipe_of()) and keeps_apart(recipe_of("packing_strategy=bfd_split"))
    assert not keeps_apart(recipe_of("packing_strategy=wrapped")) and not keeps_apart(recipe_of("packing=false"))


def test_a_model_that_mixes_documents_is_refused(base: Path) -> None:
    torch.manual_seed(0)
    collator = Collator(0, flat=False)
    small: dict[str, Any] = {"vocab_size": 64, "n_layer": 1, "n_head": 2}
    check_apart(recipe_of(), model_of(base, "sdpa"), collator, nullcontext())
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_positions=32, **small))  # positions are embeddings
    assert gpt2.training and leak(gpt2, collator) < 1e-3 and gpt2.training
    bloom = BloomForCausalLM(BloomConfig(hidden_size=16, **small))  # no positions in its forward pass
    with pytest.raises(StageError, match=r"`packing_strategy=bfd`: toy does not keep packed answers apart.*wrapped"):
        check_apart(recipe_of(), bloom, collator, nullcontext())


def test_a_model_that_makes_its_masks_without_positions_gets_them_ready_made(base: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "head_dim": 8, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2, "num_experts_per_tok": 1}
    model = GptOssForCausalLM(GptOssConfig(vocab_size=64, sliding_window=8, initializer_range=0.3, **sizes))
    collator = Collator(0, flat=False)
    assert leak(model, collator) > 0.1
    check_apart(recipe_of(), model, collator, nullcontext())
    assert leak(model, collator) < 1e-3


@pytest.mark.long
def test_sft_packs_without_mixing(base: Path, shared_home: Home) -> None:
    """Through the stage: padded rows count their own tokens alone, and the loss is that of answers alone."""
    keys = (
        *SFT,
        "max_steps=1",
        "save_steps=0",
        "max_train_samples=8",
        "per_device_train_batch_size=8",
        "max_length=96",
    )
    with attempt(shared_home, base, Stage.SFT, *keys, "lora_dropout=0", "dtype=float32") as one:
        packed = one.train()
    with attempt(shared_home, base, Stage.SFT, *keys, "lora_dropout=0", "dtype=float32", "packing=false") as one:
        alone = one.train()
    assert packed and alone
    assert packed["tokens"] == alone["tokens"]
    assert packed["loss_first"] == pytest.approx(alone["loss_first"], rel=1e-4)
