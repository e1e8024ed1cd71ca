"""Preview of a stage's data as tokens."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stackllama_engine.contract.errors import DataError
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train.token_preview import Part, Request, Sequence, TokenPreview, lengths_of, preview

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}assistant: {% endif %}"


@pytest.fixture
def look(base: Path, tmp_path: Path) -> Any:
    def preview_of(
        stage: Stage,
        rows: list[dict[str, Any]],
        parts: list[Part] | None = None,
        columns_read: list[str] | None = None,
        **keys: Any,
    ) -> TokenPreview:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        values = {"model_name_or_path": str(base), "dataset_name": str(file), "dataset_train_split": "all"} | keys
        recipe = msgspec.to_builtins(build_recipe(stage, values))
        return preview(Request(stage=stage, recipe=recipe, parts=parts or [], count=1, columns_read=columns_read))

    return preview_of


def with_loss(sequence: Sequence) -> str:
    return "".join(token for token, loss in zip(sequence.tokens, sequence.loss, strict=True) if loss)


QA = {"question": "Why?", "answer": "So."}


def test_tokens_of_sft(look: Any) -> None:
    rows = [QA, QA, QA | {"answer": "No."}, QA | {"answer": " "}]
    seen = look(Stage.SFT, rows)
    ((text,),) = seen.examples
    assert text.name == "text" and all(text.loss) and len(text.ids) == len(text.tokens)
    assert (seen.looked_at, seen.prompt_format) == (3, "question_answer")
    assert seen.changed == {"skipped: answer is blank": 1}
    assert seen.duplicates == {"prompt": 2, "whole row": 1}
    assert set(seen.lengths) == {"prompt", "response", "text"}
    alone = look(Stage.SFT, rows, assistant_only_loss=True).examples[0][0]
    prompt = seen.lengths["prompt"].percentiles["median"]
    assert alone.ids == text.ids and alone.loss == [False] * prompt + [True] * (len(text.ids) - prompt)


def test_white_space_of_an_answer_is_kept_where_the_stage_keeps_it(look: Any) -> None:
    plain = look(Stage.SFT, [{"prompt": "POST: Hi.\n\nTL;DR:", "completion": " Hi."}])
    assert plain.prompt_format == "none" and "TL;DR: Hi." in "".join(plain.examples[0][0].tokens)
    asked = look(Stage.SFT, [{"question": "Why?", "answer": " So. "}])
    assert "Answer: So." in "".join(asked.examples[0][0].tokens)


def test_long_rows_are_cut_or_dropped(look: Any) -> None:
    rows = [QA, QA | {"answer": "So. " * 50}, {"question": "Why? " * 50, "answer": "So."}]
    seen = look(Stage.SFT, rows, max_length=32, packing=False)
    assert list(seen.changed.values()) == [1, 1]
    assert [reason.partition(":")[0] for reason in seen.changed] == ["cut at `max_length=32` tokens", "dropped"]
    assert look(Stage.SFT, rows, max_length=32, packing_strategy="wrapped").changed == {}


def test_conversations_bear_loss_on_the_answer_and_its_end(look: Any, tmp_path: Path) -> None:
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    seen = look(Stage.SFT, [{"messages": turns}], chat_template=str(tmp_path / "template.jinja"))
    text = seen.examples[0][0]
    assert seen.prompt_format.startswith("chat")
    assert "So" in with_loss(text) and "Why" not in with_loss(text) and text.loss[-1]


def test_pairs_show_where_the_score_is_read(look: Any) -> None:
    pair = {"question": "Why?", "chosen": "So.", "rejected": "No idea at all."}
    seen = look(Stage.REWARD, [pair, pair | {"rejected": "So."}, pair | {"chosen": "So. " * 50}], max_length=32)
    chosen, rejected = seen.examples[0]
    assert (chosen.name, rejected.name) == ("chosen", "rejected")
    assert sum(chosen.loss) == sum(rejected.loss) == 1 and chosen.loss[-1] and rejected.loss[-1]
    assert seen.changed == {
        "dropped: both texts are the same": 1,
        "dropped: a text is longer than `max_length=32` tokens": 1,
    }


def test_prompts_that_other_stages_train_on_are_counted(look: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"question": f"Q {n}?", "answer": "a"}) + "\n" for n in (1, 2, 2, 7)))
    rows = [{"question": f"Q {n}?"} for n in (0, 1, 2, 2)]
    name = str(tmp_path / "rows.jsonl")
    parts = [Part(Stage.SFT, str(other), "all"), Part(Stage.REWARD, str(tmp_path / "none.jsonl"), "all")]
    seen = look(Stage.PPO, rows, [*parts, Part(Stage.PPO, name, "all")], reward_model_path="x", max_prompt_length=5)
    assert [(one.stage, one.shared, one.prompts) for one in seen.overlaps] == [(Stage.SFT, 2, 3)]
    assert "none.jsonl: no such file" in seen.not_compared[0]
    assert seen.duplicates["prompt"] == 1
    assert list(seen.changed.values()) == [1, 3] and not any(seen.examples[0][0].loss)


def test_prompts_that_repeat_are_counted_as_the_stage_does(look: Any) -> None:
    rows = [{"prompt": "Solve it.", "answer": number} for number in (1, 2, 2)]
    seen = look(Stage.PPO, rows, reward_funcs=["a:b"])
    assert seen.changed == {"dropped: prompt and columns of an earlier row": 1}
    assert seen.duplicates == {"prompt": 2, "whole row": 1}
    assert look(Stage.PPO, rows, columns_read=["answer"], reward_funcs=["a:b"]).changed == seen.changed
    unread = {"dropped: prompt of an earlier row": 2}
    assert look(Stage.PPO, rows, columns_read=[], reward_funcs=["a:b"]).changed == unread
    assert look(Stage.PPO, rows, reward_model_path="x").changed == {"dropped: prompt of an earlier row": 2}


def test_lengths_by_hand() -> None:
    lengths = lengths_of([1, 2, 3, 4, 20])
    assert lengths.percentiles == {"shortest": 1, "median": 3, "p90": 20, "p99": 20, "longest": 20}
    assert (lengths.bin_width, lengths.histogram, lengths.start) == (2, [2, 2, 0, 0, 0, 0, 0, 0, 0, 1], 1)
    even = lengths_of([500, 505, 519, 510])
    assert (even.bin_width, even.histogram, even.start) == (2, [1, 0, 1, 0, 0, 1, 0, 0, 0, 1], 500)
    assert lengths_of([7, 7]).histogram == [2]


def test_named_columns_and_errors(look: Any) -> None:
    rows = [{"title": "Why?", "text": "So."}]
    columns = {"prompt": "title", "completion": "text"}
    assert look(Stage.SFT, rows, dataset_columns=columns).looked_at == 1
    with pytest.raises(DataError, match="no column question"):
        look(Stage.SFT, rows)
