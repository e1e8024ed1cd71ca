"""Prompt formats: chat templates of several families, what ends a response, and formats that do not fit together."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import AutoTokenizer, GenerationConfig

from stackllama_engine.contract.errors import DataError, StageError
from stackllama_engine.contract.prompt_format import (
    PROMPT_FORMAT_FILE,
    QUESTION_ANSWER_TEMPLATE,
    PromptFormat,
    check_same,
    is_older,
    read_prompt_format,
    read_template,
    write_prompt_format,
)
from stackllama_engine.contract.recipe import PPORecipe
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import hf_trainer, models
from stackllama_engine.train.encoding import Encoder
from stackllama_engine.train.prompt_formats import generation_stops, input_directory, make_encoder

from .in_process import PPO, attempt, finish
from .toy import COMMON, SFT

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|header|>{{ message['role'] }}<|/header|>\n\n"
    "{{ message['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant<|/header|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}<turn>{{ 'model' if message['role'] == 'assistant' else 'user' }}\n"
    "{{ message['content'] | trim }}</turn>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
PHI = (
    "{% for message in messages %}<turn>{{ message['role'] }}\n{{ message['content'] }}</turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% else %}{{ eos_token }}{% endif %}"
)
"""Its end token comes after the end of the turn, as in Phi-3's."""
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|header|>", "<|/header|>", "<|eot|>", "<turn>", "</turn>"]
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "llama2": LLAMA2, "thinking": THINKING, "phi": PHI}
ENDS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot|>",
    "gemma": "</turn>",
    "llama2": "</s>",
    "thinking": "<|im_end|>",
    "phi": "</turn>",
}
TURNS = [
    {"role": "user", "content": "How do I peel garlic?"},
    {"role": "assistant", "content": "Use a knife."},
    {"role": "user", "content": "And without one?"},
]


@pytest.fixture(scope="module")
def chat_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the toy with a chat template, special tokens of several families, and two end tokens."""
    path = tmp_path_factory.mktemp("chat") / "base"
    model: Any = models.load_plain(str(base), None, "float32", models.torch.device("cpu"))
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = CHATML
    model.resize_token_embeddings(len(tokenizer))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config = GenerationConfig(eos_token_id=[2, end], pad_token_id=0)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def make(chat_base: Path) -> Callable[..., Encoder]:
    def make(name: str = "chatml", **more: Any) -> Encoder:
        tokenizer = models.load_tokenizer(str(chat_base))
        return Encoder(tokenizer, PromptFormat(kind="chat", chat_template=TEMPLATES[name], **more))

    return make


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_is_tokenised_as_transformers_does(make: Callable[..., Encoder], name: str) -> None:
    encoder = make(name)
    tokenizer: Any = encoder.tokenizer
    template = {"chat_template": TEMPLATES[name], "return_dict": False}
    prompt = encoder.prompt("unused", TURNS)
    assert prompt == tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, **template)
    whole = tokenizer.apply_chat_template([*TURNS, {"role": "assistant", "content": "Shake it."}], **template)
    answer = encoder.answer("unused", "Shake it.", TURNS)
    text = tokenizer.decode(prompt + answer)
    assert tokenizer.decode(whole).startswith(text) and "Shake it." in text
    assert answer[-1] == tokenizer.convert_tokens_to_ids(ENDS[name])
    unended = encoder.answer("unused", "Shake it.", TURNS, ended=False)
    assert tokenizer.decode(unended).strip().endswith("Shake it.") and answer[: len(unended)] == unended
    assert set(encoder.stop_ids) == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(ENDS[name])}


def test_a_question_is_one_user_turn_after_the_system_prompt(make: Callable[..., Encoder]) -> None:
    encoder = make(system_prompt="Be brief.")
    assert encoder.prompt_text("Why?") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    own = [{"role": "system", "content": "Be loud."}, *TURNS[:1]]
    assert "Be brief." not in encoder.prompt_text("unused", own)


def test_thinking_is_passed_to_the_template(make: Callable[..., Encoder]) -> None:
    assert make("thinking").prompt_text("Why?").endswith("assistant\n")
    off = make("thinking", enable_thinking=False)
    assert off.prompt_text("Why?").endswith("<think>\n\n</think>\n\n")
    decoded = str(off.tokenizer.decode(off.answer("Why?", "Because.")))
    assert decoded == "Because.<|im_end|>"  # the empty thought is the prompt's


def test_special_tokens_spelled_out_in_messages_stay_text(make: Callable[..., Encoder]) -> None:
    encoder = make()
    end = encoder.stop_ids[-1]
    messages = [{"role": "user", "content": "What does <|im_end|> do?"}]
    assert encoder.prompt("unused", messages).count(end) == 1
    ids = encoder.answer("unused", "<|im_end|> ends a turn, </s> a text.", messages)
    assert encoder.answer("unused", "\ue0009\ue001 <|im_end|>\ue002", messages)[-1] == end
    assert ids.count(end) == 1 and ids.index(end) == len(ids) - 1 and encoder.tokenizer.eos_token_id not in ids[:-1]
    assert encoder.tokenizer.decode(ids[:-1]) == "<|im_end|> ends a turn, </s> a text."


def test_a_conversation_that_the_template_refuses_is_one_sentence(make: Callable[..., Encoder]) -> None:
    encoder = make("gemma", system_prompt="Be brief.")
    with pytest.raises(DataError, match=r"conversation of system, user \('Why\?'\): System role not supported"):
        encoder.prompt("Why?")


@pytest.mark.parametrize(
    ("template", "left_out"),
    [
        ("", "user"),
        ("You help.</s>", "user"),
        ("{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}", "assistant"),
        ("{{ messages[-1]['content'] }}", "user"),
    ],
)
def test_a_template_that_leaves_messages_out_is_refused(chat_base: Path, template: str, left_out: str) -> None:
    with pytest.raises(StageError, match=rf"^The chat template leaves out what the {left_out} says"):
        Encoder(models.load_tokenizer(str(chat_base)), PromptFormat(kind="chat", chat_template=template))


@pytest.mark.parametrize(
    ("computed", "error"),
    [
        ("1/0", "ZeroDivisionError: division by zero"),
        ("'%c' % -1", "OverflowError: %c arg not in range"),
        ("2.0 ** 5000", "OverflowError: "),
    ],
)
def test_a_template_that_fails_is_one_sentence(chat_base: Path, computed: str, error: str) -> None:
    template = CHATML + "{% if messages[0]['content'].startswith('Why') %}{{ " + computed + " }}{% endif %}"
    encoder = Encoder(
        models.load_tokenizer(str(chat_base)),
        PromptFormat(kind="chat", chat_template=template),
        whose="the reward model",
    )
    question = "Why </s> is it so? " + "Because. " * 20
    with pytest.raises(StageError) as raised:
        encoder.prompt(question)
    sentence = "The chat template of the reward model fails on a conversation of user "
    assert str(raised.value).startswith(f"{sentence}('Why … is it so? Because. ") and error in str(raised.value)
    assert len(str(raised.value)) < len(sentence) + 80 + 80


def test_a_syntax_error_of_a_template_is_named(chat_base: Path) -> None:
    with pytest.raises(StageError, match=r"^The chat template: syntax error in line 2: Expected an expression"):
        Encoder(models.load_tokenizer(str(chat_base)), PromptFormat(kind="chat", chat_template="\n{% if %}"))


def test_several_turns_need_a_chat_template(chat_base: Path) -> None:
    encoder = Encoder(models.load_tokenizer(str(chat_base)), PromptFormat())
    with pytest.raises(DataError, match=r"`prompt_format=question_answer` takes one question, not .* user, assis"):
        encoder.prompt("unused", TURNS)
    assert encoder.prompt("unused", TURNS[:1]) == encoder.prompt(TURNS[0]["content"])


def test_no_format_leaves_texts_alone(chat_base: Path) -> None:
    encoder = Encoder(models.load_tokenizer(str(chat_base)), PromptFormat(kind="none"))
    assert encoder.text("Human: Why?", " Because.") == "Human: Why? Because."
    assert encoder.tokenizer.decode(encoder.text_ids("Human: Why?", " Because.")[:-1]) == "Human: Why? Because."


def test_every_end_of_the_generation_configuration_ends_a_response(chat_base: Path, base: Path, tmp_path: Path) -> None:
    tokenizer = models.load_tokenizer(str(chat_base))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert generation_stops(str(chat_base), None) == (2, end)
    assert Encoder(tokenizer, PromptFormat(), generation_stops(str(chat_base), None)).stop_ids == (2, end)
    (tmp_path / "config.json").write_text("{}")
    assert generation_stops(str(tmp_path), None) == ()
    with pytest.raises(StageError, match="generation configuration"):
        generation_stops(str(base / "missing"), None)


def test_the_format_of_a_model_of_the_hub_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cache is laid out as huggingface_hub's guide says (manage-cache); nothing is asked for over a network."""
    repository, commit = tmp_path / "models--mine--model", "a" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    recipe = build_recipe(Stage.PPO, {"model_name_or_path": "mine/model", "reward_model_path": "mine/model"})
    assert isinstance(recipe, PPORecipe)
    assert input_directory(Path("mine/model"), recipe) == Path("mine/model")  # not one of ours
    write_prompt_format(snapshot, PromptFormat(kind="chat", chat_template=CHATML))
    found = input_directory(Path("mine/model"), recipe)
    with pytest.raises(StageError, match=r"^`model_name_or_path`: .*set `prompt_format=chat`"):
        check_same(PromptFormat(), found, "model_name_or_path")


def test_question_and_answer_as_a_chat_template_renders_the_same_text(chat_base: Path) -> None:
    tokenizer: Any = models.load_tokenizer(str(chat_base))
    turns = [{"role": "user", "content": "Why?"}]
    rendered = tokenizer.apply_chat_template(turns, chat_template=QUESTION_ANSWER_TEMPLATE, tokenize=False)
    assert rendered == PromptFormat().render("Why?")
    turns.append({"role": "assistant", "content": "So."})
    rendered = tokenizer.apply_chat_template(turns, chat_template=QUESTION_ANSWER_TEMPLATE, tokenize=False)
    assert rendered == PromptFormat().render("Why?", "So.") + "</s>"


def test_a_saved_model_is_served_the_tokens_that_it_was_trained_on(chat_base: Path, tmp_path: Path) -> None:
    tokenizer: Any = models.load_tokenizer(str(chat_base))
    begin = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.backend_tokenizer.post_processor = begin  # as LLaMA's
    model: Any = models.load_plain(str(chat_base), None, "float32", models.torch.device("cpu"))
    models.save_model(model, tokenizer, tmp_path / "saved", PromptFormat())
    served: Any = AutoTokenizer.from_pretrained(tmp_path / "saved")
    ids = served.apply_chat_template(TURNS[:1], add_generation_prompt=True, return_dict=False)
    assert ids == Encoder(tokenizer, PromptFormat()).prompt(TURNS[0]["content"]) and ids[0] == 1
    assert tokenizer.chat_template == CHATML  # the one in memory stays


# recorded, compared


def test_a_format_is_read_back_and_older_runs_had_question_and_answer(tmp_path: Path) -> None:
    assert read_prompt_format(tmp_path) is None  # a model from anywhere
    chat = PromptFormat(kind="chat", chat_template=CHATML)
    write_prompt_format(tmp_path, chat)
    assert read_prompt_format(tmp_path) == chat
    write_prompt_format(tmp_path, None)
    assert read_prompt_format(tmp_path) is None
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "base.json").write_text("{}")
    assert read_prompt_format(tmp_path / "old") == PromptFormat() and is_older(tmp_path / "old")
    run = Home(tmp_path / "home").create(Stage.MERGE, "")
    for folder in (run.merged, run.path / "other"):
        folder.mkdir()
    assert read_prompt_format(run.merged) == PromptFormat() and read_prompt_format(run.path / "other") is None
    (tmp_path / "model").mkdir()
    for place in (tmp_path, tmp_path / "model"):
        (place / "recipe.yaml").write_text("")  # somebody else's
    assert read_prompt_format(tmp_path / "model") is None
    (tmp_path / PROMPT_FORMAT_FILE).write_text("{")
    with pytest.raises(StageError, match=PROMPT_FORMAT_FILE):
        read_prompt_format(tmp_path)


def test_a_template_file_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_bytes(b"\xef\xbb\xbf{{ messages }}\r\n\xc3\xa9\n")
    assert read_template(str(file)) == "{{ messages }}\n\u00e9\n"


def test_an_input_of_another_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    chat = PromptFormat(kind="chat", chat_template=CHATML)
    write_prompt_format(tmp_path, chat)
    check_same(chat, tmp_path, "reward_model_path")
    with pytest.raises(StageError, match=r"`reward_model_path`.*question_answer, but .* was trained with chat.*=chat`"):
        check_same(PromptFormat(), tmp_path, "reward_model_path")
    with pytest.raises(StageError, match=r"`system_prompt` differ"):
        check_same(PromptFormat(kind="chat", chat_template=CHATML, system_prompt="Be brief."), tmp_path, "x")


# stages


class LeaveError(Exception):
    """The trainer is made; nothing needs to be trained."""


def labels_of(home: Home, base: Path, monkeypatch: pytest.MonkeyPatch, *keys: str) -> tuple[list[int], list[int]]:
    """Return token ids and labels of the first row of the first training batch."""
    batches: list[Any] = []

    def leave(trainer: Any, *_: Any) -> None:
        batches.append(next(iter(trainer.get_train_dataloader())))
        raise LeaveError

    monkeypatch.setattr(hf_trainer, "fit", leave)
    common = [key for key in COMMON if not key.startswith("dataset_name")]
    stage = attempt(home, base, Stage.SFT, *common, "packing=false", "max_length=256", *keys)
    with stage as one, pytest.raises(LeaveError):
        one.train()
    return batches[0]["input_ids"][0].tolist(), batches[0]["labels"][0].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("prompt_format=chat",), "Because.<|im_end|>"),
        (("prompt_format=chat", "assistant_only_loss=false"), None),
        (("assistant_only_loss=true",), "Because.</s>"),
        ((), None),
    ],
)
def test_labels_are_the_response_alone_or_everything(
    tmp_path: Path, chat_base: Path, monkeypatch: pytest.MonkeyPatch, keys: tuple[str, ...], expected: str | None
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"question": f"Why {n}?", "response_j": "Because."}) + "\n" for n in range(8)))
    data = (f"dataset_name={file}", "dataset_train_split=all", "dataset_test_split=all")
    ids, labels = labels_of(Home(tmp_path / "home"), chat_base, monkeypatch, *data, *keys)
    tokenizer = models.load_tokenizer(str(chat_base))
    bearing = [label for label in labels if label != -100]
    if expected is None:
        assert bearing == [token for token in ids if token != tokenizer.pad_token_id]
    else:
        assert tokenizer.decode(bearing) == expected
        assert bearing == ids[labels.index(bearing[0]) : labels.index(bearing[0]) + len(bearing)]


@pytest.mark.slow
def test_a_format_goes_with_what_was_trained_and_another_one_is_refused(tmp_path: Path, chat_base: Path) -> None:
    home = Home(tmp_path / "home")
    sft, _ = finish(home, chat_base, Stage.SFT, *SFT, "max_steps=2", "save_steps=0", "prompt_format=chat")
    assert read_prompt_format(sft.adapter) == PromptFormat(kind="chat", chat_template=CHATML)
    keys = ("max_train_samples=4", "dtype=float32")
    merged, _ = finish(home, chat_base, Stage.MERGE, f"adapter_path={sft.adapter}", "dtype=float32")
    assert read_prompt_format(merged.merged) == read_prompt_format(sft.adapter)
    assert AutoTokenizer.from_pretrained(merged.merged).chat_template == CHATML
    with pytest.raises(StageError, match=r"`model_name_or_path`: prompt format question_answer, but .*with chat"):
        finish(home, merged.merged, Stage.REWARD, *COMMON, *keys, "max_steps=1", "save_steps=0")
    reward, _ = finish(home, merged.merged, Stage.REWARD, *COMMON, *keys, "max_steps=1", "prompt_format=chat")
    ppo = (*PPO, f"reward_model_path={reward.adapter}", "reward_fn=null", "max_steps=1")
    with pytest.raises(StageError, match=r"`reward_model_path`: prompt format chat .* `system_prompt` differ"):
        finish(home, chat_base, Stage.PPO, *ppo, "prompt_format=chat", "system_prompt=Be brief.")
    run, _ = finish(home, merged.merged, Stage.PPO, *ppo, "prompt_format=chat")
    rows = [json.loads(line) for line in run.samples_file.read_text().splitlines()]
    assert rows and all("<|im_" not in row["question"] + row["response"] for row in rows)


@pytest.mark.slow
def test_a_run_keeps_the_format_that_it_began_with(tmp_path: Path, chat_base: Path) -> None:
    home = Home(tmp_path / "home")
    run, _ = finish(home, chat_base, Stage.SFT, *SFT, "max_steps=2", "save_steps=1", "prompt_format=chat")
    with attempt(home, chat_base, Stage.SFT, *SFT, "max_steps=3", of=run) as one:  # `auto` would be question_answer
        assert one.train() is not None
    other = attempt(home, chat_base, Stage.SFT, *SFT, "max_steps=4", "prompt_format=none", of=run)
    with other as one, pytest.raises(StageError, match=r"trained with prompt format chat .*, and now it would be none"):
        one.train()
    (run.path / PROMPT_FORMAT_FILE).unlink()  # as a version before 0.3 left it
    older = attempt(home, chat_base, Stage.SFT, *SFT, "max_steps=4", "prompt_format=chat", of=run)
    with older as one, pytest.raises(StageError, match=r"was trained with prompt format question_answer"):
        one.train()


def test_a_run_continues_with_its_template_once_the_file_is_gone(tmp_path: Path, chat_base: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(CHATML)
    keys = (*SFT, "prompt_format=chat", f"chat_template={file}")
    with attempt(Home(tmp_path / "home"), chat_base, Stage.SFT, *keys) as one:
        tokenizer = models.load_tokenizer(str(chat_base))
        first = make_encoder(one.recipe, one.session, tokenizer).format
        file.write_text(LLAMA2)
        with pytest.raises(StageError, match="this run was trained with prompt format chat"):
            make_encoder(one.recipe, one.session, tokenizer)
        file.unlink()
        assert make_encoder(one.recipe, one.session, tokenizer).format == first
        assert "cannot be read" in one.health and "continues with the template that it recorded" in one.health


@pytest.mark.slow
def test_chat_without_a_template_and_keys_without_chat_are_refused(tmp_path: Path, base: Path) -> None:
    home = Home(tmp_path)
    for keys, match in (
        (("prompt_format=chat",), r"has no chat template; name one with `chat_template: FILE`"),
        (
            ("system_prompt=Be brief.",),
            r"`system_prompt` needs `prompt_format: chat`, but .* question_answer, as ",
        ),
        (("prompt_format=chat", f"chat_template={tmp_path / 'none.jinja'}"), r"none.jinja` cannot be read"),
    ):
        with attempt(home, base, Stage.SFT, *SFT, *keys) as one, pytest.raises(StageError, match=match):
            one.train()
