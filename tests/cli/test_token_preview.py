"""``data preview`` as tokens: the request that is made of a command, and how the answer is printed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stackllama_console.cli import token_preview
from stackllama_console.cli.child import document_of
from stackllama_engine.contract.errors import StackllamaError
from stackllama_engine.train import token_preview as engine

ANSWER = engine.TokenPreview(
    stage=engine.Stage.SFT,
    source="rows.jsonl",
    split="all",
    model="m",
    prompt_format="chat (1f)",
    looked_at=3,
    examples=[[engine.Sequence("text", [1, 2, 3], ["Hi\n", " \x1b[2Jyou", "</s>"], [False, True, True])]],
    lengths={"text": engine.Lengths({"median": 3}, 2, [0, 3], 2)},
    changed={"dropped: both texts are the same": 1},
    duplicates={"prompt": 1, "whole row": 0},
    overlaps=[engine.Overlap(engine.Stage.REWARD, 2, 5)],
)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Answer every request, and keep it."""
    kept: list[dict[str, Any]] = []

    def answer(module: str, words: list[str], source: str, request: bytes, timeout: float) -> dict[str, Any]:
        kept.append(msgspec.json.decode(request))
        assert msgspec.json.decode(request, type=engine.Request)
        return msgspec.to_builtins(ANSWER)

    monkeypatch.setattr(token_preview, "document_of", answer)
    return kept


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "Why?", "answer": "So."}\n')
    return file


def test_tokens_are_printed_with_those_that_bear_loss(
    run_main: Callable[..., Any], requests: list[dict[str, Any]], rows: Path
) -> None:
    out = run_main("data", "preview", str(rows), "--model", "demo").out
    assert "example 1, text: 3 tokens, 2 with loss\n        Hi\\n\n  loss   " in out and "·</s>\n" in out
    assert "\x1b" not in out
    assert "dropped: both texts are the same: 1" in out
    assert "        4 – 5             3 ####" in out
    assert "2 of 5 prompts of ppo occur in the data of reward" in out
    assert run_main("data", "preview", str(rows), "--model", "demo", "--json").json() == msgspec.to_builtins(ANSWER)


def test_the_request_of_one_stage(run_main: Callable[..., Any], requests: list[dict[str, Any]], rows: Path) -> None:
    words = ("--model", "demo", "--stage", "ppo", "-n", "5", "dataset_columns.prompt=title", "max_prompt_length=9")
    assert run_main("data", "preview", str(rows), "--split", "all", *words).code == 0
    (request,) = requests
    recipe = request["recipe"]
    assert (request["stage"], request["count"], recipe["dataset_name"]) == ("ppo", 5, str(rows))
    assert recipe["model_name_or_path"].endswith("demo_base") and recipe["max_prompt_length"] == 9
    assert [(part["stage"], part["split"]) for part in request["parts"]] == [
        ("sft", "finetune"),
        ("reward", "reward"),
        ("ppo", "all"),
    ]
    assert all(part["columns"] == {"prompt": "title"} for part in request["parts"])


@pytest.mark.parametrize(
    ("head", "keys", "read"),
    [
        ("def judge(completions, answer):", (), ["answer"]),
        ("def judge(completions, answer, **kwargs):", (), None),
        ("def judge(completions, answer, **kwargs):", ("reward_columns=[level]",), ["answer", "level"]),
        ("@made\ndef judge(completions, answer):", (), None),
    ],
)
def test_columns_that_functions_read_are_found_in_their_source(
    run_main: Callable[..., Any],
    requests: list[dict[str, Any]],
    rows: Path,
    tmp_path: Path,
    head: str,
    keys: tuple[str, ...],
    read: list[str] | None,
) -> None:
    (tmp_path / "judges.py").write_text(f"{head} ...\nraise SystemExit('it was run')\n")
    words = ("reward_funcs=judges:judge", f"reward_func_paths=[{tmp_path}]", *keys)
    assert run_main("data", "preview", str(rows), "--model", "demo", "--stage", "ppo", *words).code == 0
    assert requests[0]["columns_read"] == read


def test_the_request_of_a_pipelines_recipe(
    run_main: Callable[..., Any], requests: list[dict[str, Any]], rows: Path, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    recipe = {"model_name_or_path": "demo", "dataset_train_split": "all", "reward": {"dataset_name": "owner/pairs"}}
    file.write_text(json.dumps(recipe | {"ppo": {"max_prompt_length": 7}}))
    assert run_main("data", "preview", str(rows), "--recipe", str(file), "--stage", "ppo").code == 0
    (request,) = requests
    assert request["recipe"]["max_prompt_length"] == 7 and request["recipe"]["model_name_or_path"].endswith("demo_base")
    assert [part["name"] for part in request["parts"]] == [str(rows), "owner/pairs", str(rows)]
    file.write_text("# stage: reward\nmodel_name_or_path: demo\n")
    assert run_main("data", "preview", str(rows), "--recipe", str(file)).code == 0
    assert requests[1]["stage"] == "reward"


@pytest.mark.parametrize(
    ("keys", "stage"),
    [
        ({}, "sft"),
        ({"packing": False}, "sft"),
        ({"center_rewards_coefficient": 0.01}, "reward"),
        ({"reward_funcs": ["stackllama_engine.rewards:valid_json"], "kl_coef": 0.1}, "ppo"),
        ({"reward_fn": "stackllama_engine.rewards:valid_json"}, "ppo"),
    ],
)
def test_keys_that_one_stage_alone_has_tell_the_stage(
    run_main: Callable[..., Any],
    requests: list[dict[str, Any]],
    rows: Path,
    tmp_path: Path,
    keys: dict[str, Any],
    stage: str,
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({"model_name_or_path": "demo", **keys}))
    assert run_main("data", "preview", str(rows), "--recipe", str(file)).code == 0
    assert [request["stage"] for request in requests] == [stage]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("seed=1",), "`seed=1` needs `--model NAME` or `--recipe FILE`"),
        (("--stage", "sft"), "`--stage` needs `--model NAME` or `--recipe FILE`"),
        (("--model", "/no/model"), "`model_name_or_path: /no/model` is not found here"),
        (("--recipe", "none.yaml"), "no such recipe file"),
        (("--model", "demo", "lora_r=x"), "`lora_r=x`: expected a whole number"),
        (("dataset_columns.question=x",), "`question` is none of prompt, chosen"),
    ],
)
def test_what_is_wrong_is_one_line(
    run_main: Callable[..., Any], requests: list[dict[str, Any]], rows: Path, words: tuple[str, ...], message: str
) -> None:
    result = run_main("data", "preview", str(rows), *words)
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1


def test_a_source_that_does_not_answer_has_a_way_out() -> None:
    with pytest.raises(StackllamaError, match=r"owner/data: no answer within 0 s\. Try again, or preview a file"):
        document_of("stackllama_engine.data", ["preview", "--", "owner/data"], "owner/data", timeout=0)


def test_a_plain_preview_takes_named_columns(run_main: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"title": "Why?", "text": "So."}\n')
    words = ("dataset_columns.prompt=title", "dataset_columns.completion=text", "--json")
    found = run_main("data", "preview", str(tmp_path / "rows.jsonl"), *words).json()
    assert found["texts"] == ["Why?So."] and found["style"] == "none"


@pytest.mark.long
def test_the_engines_process_answers(run_main: Callable[..., Any], rows: Path) -> None:
    found = run_main("data", "preview", str(rows), "--split", "all", "--model", "demo", "--json").json()
    assert (found["looked_at"], found["stage"], found["examples"][0][0]["name"]) == (1, "sft", "text")
