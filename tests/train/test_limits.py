"""Texts and token ids that a model has no table row for are refused at load, by the tables themselves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from stackllama_engine.contract.errors import StageError
from stackllama_engine.contract.prompt_format import PromptFormat
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import limits, models
from stackllama_engine.train.limits import Positions, positions
from stackllama_engine.train.ppo.response_text import ResponseText
from stackllama_engine.train.ppo.scorers import SeparateScorer

from .in_process import PPO, attempt
from .toy import REWARD, SFT, ppo_recipe

CPU = torch.device("cpu")
TINY: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 400}
GPT2 = GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=32, vocab_size=400, bos_token_id=1, eos_token_id=2)


def tiny(**more: Any) -> dict[str, Any]:
    return TINY | more


class NoticeReporter:
    """A reporter that keeps the notices."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def health(self, message: str) -> None:
        self.notices.append(message)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (GPT2LMHeadModel(GPT2), Positions(32, hard=True)),
        (
            GPTJForCausalLM(
                GPTJConfig(
                    n_embd=8,
                    n_layer=1,
                    n_head=2,
                    n_positions=32,
                    rotary_dim=4,
                    vocab_size=400,
                    bos_token_id=1,
                    eos_token_id=2,
                )
            ),
            Positions(32, hard=True),
        ),
        (
            OPTForCausalLM(OPTConfig(**TINY, ffn_dim=8, word_embed_proj_dim=8, max_position_embeddings=32)),
            Positions(32, hard=True),
        ),
        (
            RobertaForSequenceClassification(
                RobertaConfig(**TINY, intermediate_size=8, max_position_embeddings=34, pad_token_id=1)
            ),
            Positions(32, hard=True),
        ),
        (
            LlamaForCausalLM(LlamaConfig(**TINY, intermediate_size=8, max_position_embeddings=32)),
            Positions(32, hard=False),
        ),
    ],
    ids=lambda one: type(one).__name__,
)
def test_the_longest_text_is_read_off_the_tables(model: Any, expected: Positions) -> None:
    assert positions(model) == expected
    model(input_ids=torch.full((1, 32), 5))
    if expected.hard:
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, 33), 5))


def saved(base: Path, path: Path, model: Any) -> Path:
    model.save_pretrained(path)
    models.load_tokenizer(str(base)).save_pretrained(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "keys", "message"),
    [
        (Stage.SFT, (*SFT, "lora_target_modules=[c_attn]"), "`max_length=64`: texts of 64 tokens"),
        (Stage.REWARD, (*REWARD, "lora_target_modules=[c_attn]"), "`max_length=512`: texts of 512"),
        (
            Stage.PPO,
            (*PPO, "lora_target_modules=[c_attn]", "random_length_limits=[4, 60]"),
            "and `random_length_limits=[4, 60]`: texts",
        ),
    ],
)
def test_every_stage_refuses_texts_beyond_the_models_positions(
    base: Path, tmp_path: Path, stage: Stage, keys: tuple[str, ...], message: str
) -> None:
    small = saved(base, base.parent / "short", GPT2LMHeadModel(GPT2))
    with (
        attempt(Home(tmp_path / "home"), small, stage, *keys) as one,
        pytest.raises(StageError, match=r"are longer than the 32 positions of the model .*; shorten them") as refused,
    ):
        one.train()
    assert message in str(refused.value)


def test_rotary_positions_beyond_training_give_a_notice(base: Path) -> None:
    reporter: Any = NoticeReporter()
    model = LlamaForCausalLM(LlamaConfig(**TINY, intermediate_size=8, max_position_embeddings=32))
    limits.check_length(model, "m", 32, "`max_length=32`", reporter)
    limits.check_length(model, "m", 64, "`max_length=64`", reporter)
    (notice,) = reporter.notices
    assert notice.startswith("`max_length=64`: texts have up to 64 tokens, but the model m was trained on at most 32")


def test_a_token_without_an_embedding_is_refused_unless_no_text_becomes_it(base: Path) -> None:
    tokenizer = models.load_tokenizer(str(base))
    model = LlamaForCausalLM(LlamaConfig(**tiny(vocab_size=len(tokenizer)), intermediate_size=8))
    limits.check_tokens(model, tokenizer, "m")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})  # as Gemma 3's
    limits.check_tokens(model, tokenizer, "m")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    with pytest.raises(StageError, match=r"m: the tokenizer's token '\[PAD\]' has id \d+, but the model's embedding"):
        limits.check_tokens(model, tokenizer, "m")


def bert(base: Path, path: Path, labels: int, most: int = 64) -> Path:
    """Save a classifier whose tokenizer has no end token and wraps every text itself."""
    tokenizer: Any = models.load_tokenizer(str(base))
    config = BertConfig(**tiny(num_labels=labels), intermediate_size=8, max_position_embeddings=most, pad_token_id=0)
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(path)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>", cls_token="<s>", sep_token="</s>"
    ).save_pretrained(path)
    return path


def test_a_reward_model_needs_no_end_token(base: Path, tmp_path: Path) -> None:
    recipe = ppo_recipe(base, f"reward_model_path={bert(base, tmp_path / 'bert', 1)}")
    scorer = SeparateScorer(recipe, CPU, PromptFormat())
    texts = [ResponseText("Why?", "Because it is so", True), ResponseText("How?", "So.", False)]
    scores = scorer(texts, 2)
    assert scores.isfinite().all() and scores.tolist() == pytest.approx([float(scorer([one], 2)) for one in texts])
    with pytest.raises(StageError, match="has no end-of-sequence token"):
        models.load_tokenizer(str(tmp_path / "bert"))


def test_a_text_too_long_for_the_reward_model_keeps_its_end(base: Path, tmp_path: Path) -> None:
    reporter: Any = NoticeReporter()
    recipe = ppo_recipe(base, f"reward_model_path={bert(base, tmp_path / 'bert', 1)}")
    scorer = SeparateScorer(recipe, CPU, PromptFormat(), reporter.health)
    scorer.check_length(64, "`a=1`", reporter)
    scorer.check_length(65, "`a=1`", reporter)
    (notice,) = reporter.notices
    assert "`a=1`: texts have up to 65 tokens" in notice and "reads 64; of longer ones it reads the end" in notice
    assert scorer([ResponseText("Why? " * 40, "So.", True)], 2).isfinite().all()
    assert "reads 64 tokens: 1 of 1 texts so far were longer" in reporter.notices[1]


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_reward_model_of_two_labels_is_not_merged(base: Path, tmp_path: Path, kind: str) -> None:
    if kind == "bert":
        path = bert(base, tmp_path / "two", 2)
    else:
        config = LlamaConfig(**tiny(num_labels=2, id2label={0: "BAD", 1: "GOOD"}), intermediate_size=8, pad_token_id=0)
        path = saved(base, tmp_path / "two", LlamaForSequenceClassification(config))
    named = "BAD, GOOD" if kind == "llama" else "LABEL_0, LABEL_1"
    with pytest.raises(StageError, match=rf"returns 2 scores per text \({named}\), but a reward is one number; name a"):
        models.load_plain(str(path), None, "float32", CPU, reward=True)


def test_a_language_model_with_two_labels_in_its_defaults_is_still_named_as_one(base: Path) -> None:
    with pytest.raises(StageError, match="is not a reward model: it has no trained"):
        models.load_plain(str(base), None, "float32", CPU, reward=True)
