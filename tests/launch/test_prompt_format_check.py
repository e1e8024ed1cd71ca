"""Prompt formats at launch: what a stage builds on, and the stages of a pipeline, have one."""

from pathlib import Path
from typing import Any

import pytest
from tests.weights import write_weights

from stackllama_engine.contract.errors import RefusedError, UsageError
from stackllama_engine.contract.prompt_format import PromptFormat, write_prompt_format
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.inputs import resolve_inputs

CHAT = PromptFormat(kind="chat", chat_template="{{ messages }}")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "tokenizer_config.json").write_text("{}")
    write_weights(path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"question": "q", "response_j": "a", "response_k": "b"}\n')
    return path


def resolve(home: Home, stage: Stage, model: Path, data: Path, **values: object) -> None:
    base = {"model_name_or_path": str(model), "load_in_8bit": False, "dataset_name": str(data)}
    resolve_inputs(home, build_recipe(stage, base | values))


def test_a_parent_of_another_format_is_refused_before_anything_starts(home: Home, model: Path, data: Path) -> None:
    write_prompt_format(model, CHAT)
    with pytest.raises(RefusedError, match=r"`model_name_or_path`: prompt format question_answer, .*_format=chat`"):
        resolve(home, Stage.REWARD, model, data)
    (model / "chat_template.jinja").write_text("{{ messages }}")
    resolve(home, Stage.REWARD, model, data, prompt_format="chat")
    with pytest.raises(RefusedError, match=r"`system_prompt` differ"):
        resolve(home, Stage.REWARD, model, data, prompt_format="chat", system_prompt="Be brief.")
    resolve(home, Stage.SFT, model, data)  # teaches a format


def test_a_reward_model_of_another_format_is_refused(home: Home, model: Path, data: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    write_weights(adapter, "adapter_model.safetensors")
    keys = {"reward_model_path": str(adapter)}
    resolve(home, Stage.PPO, model, data, **keys)  # nothing says what it was trained with
    write_prompt_format(adapter, CHAT)
    with pytest.raises(RefusedError, match=r"`reward_model_path`"):
        resolve(home, Stage.PPO, model, data, **keys)


def test_a_chat_needs_a_template(home: Home, model: Path, data: Path) -> None:
    with pytest.raises(UsageError, match=r"has no chat template; name one with `chat_template: FILE`"):
        resolve(home, Stage.SFT, model, data, prompt_format="chat")
    (model / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    resolve(home, Stage.SFT, model, data, prompt_format="chat")


def test_keys_of_chats_are_checked_before_anything_starts(home: Home, model: Path, data: Path) -> None:
    missing = str(model / "none.jinja")
    with pytest.raises(UsageError, match=r"`chat_template: .*none\.jinja` cannot be read"):
        resolve(home, Stage.SFT, model, data, prompt_format="chat", chat_template=missing)
    for key, value in (("system_prompt", "Be brief."), ("chat_template", missing), ("enable_thinking", False)):
        with pytest.raises(UsageError, match=rf"`{key}` needs `prompt_format: chat`, but .* is question_answer, as"):
            resolve(home, Stage.SFT, model, data, **{key: value})


def test_the_stages_of_a_pipeline_have_one_format(home: Home, model: Path, data: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ messages }}")
    base = {"model_name_or_path": str(model), "dataset_name": str(data), "load_in_8bit": False}
    mixed = base | {"sft": {"prompt_format": "chat"}}
    with pytest.raises(UsageError, match=r"here it is sft chat, reward question_answer, ppo question_answer"):
        resolve_inputs(home, build_recipe(Stage.PIPELINE, mixed))
    resolve_inputs(home, build_recipe(Stage.PIPELINE, base | {"prompt_format": "chat"}))


@pytest.fixture
def chat(model: Path, data: Path) -> dict[str, Any]:
    """Keys of a pipeline of chats."""
    (model / "chat_template.jinja").write_text("{{ messages }}")
    base: dict[str, Any] = {"model_name_or_path": str(model), "dataset_name": str(data), "load_in_8bit": False}
    return base | {"prompt_format": "chat"}


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        (
            "system_prompt",
            "Be brief.",
            "sft `system_prompt=null`, reward `system_prompt=Be brief.`, ppo `system_prompt=null`",
        ),
        (
            "enable_thinking",
            False,
            "sft `enable_thinking=null`, reward `enable_thinking=false`, ppo `enable_thinking=null`",
        ),
    ],
)
def test_the_stages_of_a_pipeline_have_one_chat(
    home: Home, chat: dict[str, object], key: str, value: object, shown: str
) -> None:
    with pytest.raises(UsageError, match=rf"^`{key}`: the stages of a pipeline .* here it is {shown}; set `{key}` for"):
        resolve_inputs(home, build_recipe(Stage.PIPELINE, chat | {"reward": {key: value}}))
    resolve_inputs(home, build_recipe(Stage.PIPELINE, chat | {key: value}))


def test_the_stages_of_a_pipeline_have_one_template(home: Home, chat: dict[str, object], tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.jinja" for number in range(3)]
    for file, text in zip(files, ("a {{ messages }}\n", "a {{ messages }}\r\n", "b {{ messages }}\n"), strict=True):
        file.write_bytes(text.encode())
    same, again, other = ({"chat_template": str(file)} for file in files)
    for stages in ({"sft": same}, {"sft": same, "ppo": again}, same):
        resolve_inputs(home, build_recipe(Stage.PIPELINE, chat | stages))
    with pytest.raises(UsageError, match=r"^`ppo.chat_template: .*2.jinja`: .* sft uses `.*0.jinja`"):
        resolve_inputs(home, build_recipe(Stage.PIPELINE, chat | {"sft": same, "ppo": other}))
    with pytest.raises(UsageError, match=r"^`reward.chat_template: .*0.jinja`: .* sft uses the tokenizer's template"):
        resolve_inputs(home, build_recipe(Stage.PIPELINE, chat | {"reward": same}))


def test_a_syntax_error_of_a_template_is_found_at_launch(home: Home, model: Path, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    keys = {"prompt_format": "chat", "chat_template": str(file)}
    file.write_text("\n{% if %}")
    with pytest.raises(UsageError, match=r"`chat_template: .*jinja`: syntax error in line 2: Expected an expression"):
        resolve(home, Stage.SFT, model, data, **keys)
    file.write_text(
        "{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}"
        "{% generation %}{{ m | tojson(ensure_ascii=False) }}{% endgeneration %}{% endfor %}"
    )
    resolve(home, Stage.SFT, model, data, **keys)
