"""Reward models from elsewhere: their own chat template, several labels, a length of their own."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from stackllama_engine.contract.errors import StageError
from stackllama_engine.contract.prompt_format import PromptFormat, write_prompt_format
from stackllama_engine.train import models
from stackllama_engine.train.ppo.response_text import ResponseText
from stackllama_engine.train.ppo.scorers import SeparateScorer, load_scorer

from .toy import ppo_recipe

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 400,
    "pad_token_id": 0,
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
CHAT = PromptFormat(kind="chat", chat_template="{{ messages }}", system_prompt="You help.")
TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Why?"},
]
TEXTS = [
    ResponseText("Why?", "Because it is so", True),
    ResponseText("How?", "So.", False),
    ResponseText("user: Hi …", "Just because </s>", True, TURNS),
]


def tokenizer_of(base: Path, template: str | None = TEMPLATE, **more: Any) -> Any:
    tokenizer: Any = models.load_tokenizer(str(base))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        **{"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"} | more,
    )
    fast.chat_template = template
    return fast


def saved(path: Path, model: Any, tokenizer: Any) -> Path:
    torch.manual_seed(0)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def llama(base: Path, path: Path, labels: int = 1, template: str | None = TEMPLATE, **more: Any) -> Path:
    names = {index: f"L{index}" for index in range(labels)}
    torch.manual_seed(0)
    config = LlamaConfig(**TINY, **{"num_labels": labels, "id2label": names}, max_position_embeddings=64)
    return saved(path, LlamaForSequenceClassification(config), tokenizer_of(base, template, **more))


def scorer_of(base: Path, path: Path, *keys: str, prompt_format: PromptFormat = CHAT, **more: Any) -> SeparateScorer:
    recipe = ppo_recipe(base, f"reward_model_path={path}", "dtype=float32", *keys)
    return SeparateScorer(recipe, CPU, prompt_format, **more)


@torch.no_grad()
def logits_of(path: Path, model: Any, ids: list[int]) -> torch.Tensor:
    return model.from_pretrained(path).eval()(torch.tensor([ids])).logits[0]


def rendered(tokenizer: Any, response: ResponseText) -> list[int]:
    messages = response.messages or [{"role": "user", "content": response.question}]
    turns = [*messages, {"role": "assistant", "content": response.text.replace("</s>", "@")}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    before, at, after = text.partition("@")
    plain = tokenizer("</s>", add_special_tokens=False, split_special_tokens=True)["input_ids"] if at else []
    parts = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after)]
    return [*parts[0], *plain, *parts[1]]


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
@pytest.mark.parametrize("run_format", [CHAT, PromptFormat()])
def test_its_own_template_renders_the_whole_conversation(
    base: Path, tmp_path: Path, run_format: PromptFormat, pad: str
) -> None:
    """As ``apply_chat_template`` does for one text, whatever the run's format, and whatever texts are padded with."""
    path = llama(base, tmp_path / "rm", pad_token=pad)
    tokenizer = tokenizer_of(base)
    alone = [logits_of(path, LlamaForSequenceClassification, rendered(tokenizer, text))[0] for text in TEXTS]
    scores = scorer_of(base, path, prompt_format=run_format)(TEXTS, 3)
    torch.testing.assert_close(scores, torch.stack(alone), atol=1e-5, rtol=1e-4)


def test_another_family_and_an_encoder_are_scored(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    keys: dict[str, Any] = TINY | {"vocab_size": 408, "num_labels": 1}
    qwen = Qwen2ForSequenceClassification(Qwen2Config(**keys))
    torch.manual_seed(0)
    few: dict[str, Any] = {key: value for key, value in TINY.items() if key != "num_key_value_heads"}
    few |= {"num_labels": 2, "max_position_embeddings": 64}
    bert = BertForSequenceClassification(BertConfig(**few))
    own = {"bos_token": None, "eos_token": None, "cls_token": "<s>", "sep_token": "</s>"}
    template = "{{ cls_token }}{{ messages | map(attribute='content') | join(sep_token) }}{{ sep_token }}"
    for path in (
        saved(tmp_path / "qwen", qwen, tokenizer_of(base)),
        saved(tmp_path / "bert", bert, tokenizer_of(base, template, **own)),
    ):
        tokenizer = models.load_tokenizer(str(path), must_end=False)
        model = type(qwen) if path.name == "qwen" else type(bert)
        logits = [logits_of(path, model, rendered(tokenizer, text)) for text in TEXTS]
        wanted = [one[0] if len(one) == 1 else one[1] - one[0] for one in logits]
        torch.testing.assert_close(scorer_of(base, path)(TEXTS, 2), torch.stack(wanted), atol=1e-5, rtol=1e-4)


def test_a_model_trained_here_reads_the_runs_format_whatever_template_lies_beside_it(
    base: Path, tmp_path: Path
) -> None:
    path = llama(base, tmp_path / "rm")
    write_prompt_format(path, PromptFormat())
    tokenizer = tokenizer_of(base)
    (ids,) = (tokenizer("Question: Why?\n\nAnswer: ")["input_ids"] for _ in "a")
    ids = [*ids, *tokenizer("Because it is so", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    score = scorer_of(base, path, prompt_format=PromptFormat())(TEXTS[:1], 1)
    torch.testing.assert_close(score, logits_of(path, LlamaForSequenceClassification, ids), atol=1e-5, rtol=1e-4)


def test_without_a_template_nothing_says_how_it_reads_a_conversation(base: Path, tmp_path: Path) -> None:
    path = llama(base, tmp_path / "rm", template=None)
    with pytest.raises(StageError, match=r"`reward_model_path=.*: its tokenizer has no chat template, so nothing says"):
        scorer_of(base, path)
    assert scorer_of(base, path, prompt_format=PromptFormat())(TEXTS[:2], 2).isfinite().all()


def test_one_of_several_labels_is_the_score(base: Path, tmp_path: Path) -> None:
    path = llama(base, tmp_path / "rm", labels=3)
    logits = logits_of(path, LlamaForSequenceClassification, rendered(tokenizer_of(base), TEXTS[0]))
    torch.testing.assert_close(scorer_of(base, path, "reward_model_label=2")(TEXTS[:1], 1), logits[2:])
    with pytest.raises(
        StageError, match=r"returns 3 scores per text \(L0, L1, L2\), but a reward is one number; choose"
    ):
        scorer_of(base, path)
    with pytest.raises(StageError, match=r"`reward_model_label=3`: .* \(L0, L1, L2\); choose one from 0 to 2"):
        scorer_of(base, path, "reward_model_label=3")


def test_a_label_of_a_model_with_one_score_is_refused(base: Path, tmp_path: Path) -> None:
    path = llama(base, tmp_path / "rm")
    wrong = r"`reward_model_label=1`: `reward_model_path=.*` returns one score per text; leave the label out"
    with pytest.raises(StageError, match=wrong):
        scorer_of(base, path, "reward_model_label=1")
    recipe = ppo_recipe(base, f"reward_model_path={path}", "reward_model_label=1")
    shared: Any = SimpleNamespace(reward_adapter=path)
    nothing: Any = None
    with pytest.raises(StageError, match=wrong):
        load_scorer(recipe, shared, nothing, nothing)


@pytest.mark.parametrize("most", [64, 32])
def test_texts_that_are_too_long_keep_their_begin_token_and_their_end_and_are_counted(
    base: Path, tmp_path: Path, most: int
) -> None:
    limit: dict[str, Any] = {"model_max_length": most, "truncation_side": "right"} if most < 64 else {}
    path = llama(base, tmp_path / "rm", **limit)
    long = ResponseText("Why? " * 200, "Because it is so", True)
    ids = rendered(tokenizer_of(base), long)
    notices: list[str] = []
    scorer = scorer_of(base, path, notice=notices.append)
    kept = logits_of(path, LlamaForSequenceClassification, [ids[0], *ids[1 - most :]])
    torch.testing.assert_close(scorer([long], 1), kept, atol=1e-5, rtol=1e-4)
    assert notices == [
        f"the reward model {path} reads {most} tokens: 1 of 1 texts so far were longer, and lost the beginning of the "
        "prompt"
    ]
    for _ in range(4):
        scorer([long, TEXTS[1]], 2)
    counts = [notice.partition(": ")[2].partition(" texts")[0] for notice in notices[1:]]
    assert counts == ["2 of 3", "4 of 7"], "each time twice as many"
    assert torch.equal(scorer(TEXTS[1:2], 1), scorer_of(base, path)(TEXTS[1:2], 1))
