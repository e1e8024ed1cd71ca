"""Columns of the prompt, unread columns, and previews of any schema."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from stackllama_engine.contract.errors import DataError
from stackllama_engine.contract.stages import Split, Stage
from stackllama_engine.data.columns import NEEDS, notices
from stackllama_engine.data.preview import preview
from stackllama_engine.data.sources import open_rows, read_columns, unique_questions

TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prompts(name: str, split: str = "all") -> list[str]:
    return [row["question"] for row in open_rows(name, split, needs=("question",))]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Sum up.", "input": "A text.", "output": "T."}, "Sum up.\n\nA text."),
        ({"instruction": "Answer.", "context": "A passage.", "response": "r"}, "Answer.\n\nA passage."),
        ({"system": "Be brief.", "question": "Why?", "answer": "a"}, "Be brief.\n\nWhy?"),
        (
            {"context": "c", "input": "i", "prompt": "p", "system_prompt": "s", "completion": "a"},
            "s\n\np\n\ni\n\nc",
        ),
        ({"instruction": "Write a poem.", "input": "", "context": None, "output": "P."}, "Write a poem."),
        ({"prompt": "Sum.\n\nA text.\n\nSummary:", "input": "A text.", "output": "T."}, "Sum.\n\nA text.\n\nSummary:"),
        ({"instruction": "Which letter is odd?", "input": "a", "output": "P."}, "Which letter is odd?\n\na"),
        ({"question": "Who?", "context": {"title": ["t"]}, "answer": "a"}, "Who?"),
    ],
)
def test_the_prompt_is_made_of_all_its_columns(tmp_path: Path, row: dict[str, Any], prompt: str) -> None:
    name = write(tmp_path / "rows.jsonl", row)
    assert prompts(name) == [prompt]
    assert next(open_rows(name, "all", needs=("question", "response_j")))["question"] == prompt
    assert prompt in preview(name).texts[0]


def test_equal_questions_and_splits_go_by_the_whole_prompt(tmp_path: Path) -> None:
    rows = [{"instruction": "Sum up.", "input": f"text {n}", "output": "x"} for n in range(40)]
    name = write(tmp_path / "rows.jsonl", *rows, *rows)
    found = list(unique_questions(open_rows(name, "all", needs=("question",))))
    assert [row["question"] for row in found] == [f"Sum up.\n\ntext {n}" for n in range(40)]
    parts = [prompts(name, split) for split in Split]
    assert all(parts) and sum(map(len, parts)) == 80
    assert len({prompt for part in parts for prompt in set(part)}) == sum(len(set(part)) for part in parts)


def test_bad_companions_are_named_or_counted(tmp_path: Path) -> None:
    good = {"instruction": "q", "input": "i", "output": "a"}
    name = write(tmp_path / "rows.jsonl", good, good | {"input": 3})
    with pytest.raises(DataError, match="line 2: column input holds int, not text"):
        prompts(name)
    assert prompts(write(tmp_path / "nul.jsonl", good, good | {"input": "a\0b"})) == ["q\n\ni"]


def test_a_companion_that_only_later_rows_have_is_part_of_their_prompt(tmp_path: Path) -> None:
    first: dict[str, Any] = {"instruction": "Write.", "output": "a"}
    name = write(tmp_path / "rows.jsonl", *[first] * 30, first | {"input": "A text."}, first | {"system": "Be brief."})
    assert prompts(name)[30:] == ["Write.\n\nA text.", "Be brief.\n\nWrite."]
    early = write(tmp_path / "early.jsonl", first, first | {"input": "A text."})
    assert said(early, "question", "response_j") == (
        "rows: the prompt is instruction and input, joined by a blank line"
    )


def said(name: str, *needs: str) -> str:
    return "\n".join(notices("rows", read_columns(name, "all", needs)))


def test_notices_name_unread_text(tmp_path: Path) -> None:
    row: dict[str, Any] = {"instruction": "q", "input": "", "output": "a", "id": 7, "note": "", "tags": []}
    late = row | {"history": [["earlier", "turn"]], "category": "qa", "tags": ["x"]}
    name = write(tmp_path / "rows.jsonl", row, late)
    joined, unread = said(name, "question", "response_j").splitlines()
    assert joined == "rows: the prompt is instruction and input, joined by a blank line"
    assert unread.startswith("rows: the model does not see the text in tags, history and category")
    assert preview(name).notices[1].endswith(unread.removeprefix("rows"))


def test_columns_of_other_stages_have_no_notice(tmp_path: Path) -> None:
    name = write(tmp_path / "rows.jsonl", {"prompt": "q", "chosen": "a", "rejected": "b", "score": 1.5})
    assert said(name, "question") == said(name, "question", "response_j") == ""


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"chosen": "a"}],
            r"no column question \(or prompt, instruction\); its columns are chosen\. "
            r"sft needs question .* and response_j .*; reward needs .* and response_k .*; ppo needs question.*"
            r"Name other columns by `dataset_columns`",
        ),
        ([{"text": "film", "label": 0}], "its columns are text, label. sft needs"),
        ([{"Question": "Q", "Chosen": "a"}], "its columns are Question, Chosen. sft needs"),
        ([{}], "its columns are none. sft needs"),
        ([{"question": TURNS, "answer": "a"}], "column question holds list, not text. Messages are read from"),
    ],
)
def test_a_preview_of_any_schema_is_one_sentence(tmp_path: Path, rows: Iterable[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        preview(write(tmp_path / "rows.jsonl", *rows))


def test_a_preview_names_the_stages_that_can_use_the_source(tmp_path: Path) -> None:
    seen = preview(write(tmp_path / "rows.jsonl", {"question": "q", "rejected": "b"}))
    assert (seen.stages, seen.texts) == (["ppo"], ["Question: q\n\nAnswer: "])
    assert preview("demo").stages == [stage.value for stage in NEEDS] and preview("demo").notices == []
    assert set(NEEDS) == {Stage.SFT, Stage.REWARD, Stage.PREFERENCE, Stage.PPO}
