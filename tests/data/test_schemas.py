"""Schemas of public data sets; the rows are made here."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stackllama_engine.contract.errors import DataError
from stackllama_engine.contract.stages import Split, Stage
from stackllama_engine.data.columns import ALL_SCALARS, NEEDS, available, notices
from stackllama_engine.data.preview import preview
from stackllama_engine.data.schemas import SCHEMAS, schema_of
from stackllama_engine.data.sources import open_rows, read_columns

SFT, PAIRS, PROMPTS = NEEDS[Stage.SFT], NEEDS[Stage.REWARD], NEEDS[Stage.PPO]
Row = dict[str, Any]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


class Source:
    """A JSON Lines file of some rows."""

    def __init__(self, directory: Path, *rows: Row) -> None:
        self.name = str(directory / "rows.jsonl")
        self.skipped: Counter[str] = Counter()
        directory.mkdir(exist_ok=True)
        Path(self.name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def rows(self, needs: tuple[str, ...] = PAIRS, split: str = "all", **options: Any) -> list[Row]:
        return list(open_rows(self.name, split, needs=needs, skipped=self.skipped, **options))

    def style(self, needs: tuple[str, ...] = PROMPTS, **options: Any) -> str:
        return read_columns(self.name, "all", needs, **options).style


@pytest.mark.parametrize(
    ("row", "style"),
    [
        ({"question": "q", "response_j": "j", "response_k": "k"}, "question_answer"),
        ({"question": "q", "chosen": "j", "rejected": "k"}, "question_answer"),
        ({"prompt": "q", "chosen": "j", "rejected": "k"}, "none"),
    ],
)
def test_pairs_of_text(tmp_path: Path, row: Row, style: str) -> None:
    source = Source(tmp_path, row)
    assert source.rows() == [{"question": "q", "response_j": "j", "response_k": "k"}]
    assert source.rows(PROMPTS) == [{"question": "q"}]
    assert source.style() == style


@pytest.mark.parametrize(
    ("row", "question", "style"),
    [
        ({"prompt": "q", "completion": "a"}, "q", "none"),
        ({"question": "q", "answer": "a"}, "q", "question_answer"),
        ({"instruction": "q", "input": "i", "output": "a"}, "q\n\ni", "question_answer"),
        ({"instruction": "q", "context": "c", "response": "a"}, "q\n\nc", "question_answer"),
    ],
)
def test_question_and_answer(tmp_path: Path, row: Row, question: str, style: str) -> None:
    source = Source(tmp_path, row)
    assert source.rows(SFT) == [{"question": question, "response_j": "a"}]
    assert source.style() == style


HELLO = [user("Hi."), assistant("Hello."), user("Why?")]
HELLO_TEXT = "user: Hi.\n\nassistant: Hello.\n\nuser: Why?"


@pytest.mark.parametrize(
    ("row", "messages", "question"),
    [
        ({"prompt": [user("Why?")], "chosen": [assistant("j")], "rejected": [assistant("k")]}, [user("Why?")], "Why?"),
        ({"prompt": HELLO, "chosen": [assistant("j")], "rejected": [assistant("k")]}, HELLO, HELLO_TEXT),
        ({"prompt": [user("Why?")], "chosen": "j", "rejected": "k"}, [user("Why?")], "Why?"),
        ({"chosen": [*HELLO, assistant("j")], "rejected": [*HELLO, assistant("k")]}, HELLO, HELLO_TEXT),
        (
            {
                "prompt": "Why?",
                "prompt_id": "1",
                "chosen": [user("Why?"), assistant("j")],
                "rejected": [user("Why?"), assistant("k")],
                "messages": [user("Why?"), assistant("j")],
                "score_chosen": 8.0,
            },
            [user("Why?")],
            "Why?",
        ),
        (
            {
                "conversations": [{"from": "human", "value": "Why?"}],
                "chosen": {"from": "gpt", "value": "j"},
                "rejected": {"from": "gpt", "value": "k"},
            },
            [user("Why?")],
            "Why?",
        ),
    ],
)
def test_pairs_of_messages(tmp_path: Path, row: Row, messages: list[Row], question: str) -> None:
    source = Source(tmp_path, row)
    prompt = {"question": question, "messages": messages}
    assert source.rows() == [prompt | {"response_j": "j", "response_k": "k"}]
    assert source.rows(SFT) == [prompt | {"response_j": "j"}]
    assert source.rows(PROMPTS) == [prompt]
    assert source.style() == "chat"


@pytest.mark.parametrize(
    ("row", "messages", "question"),
    [
        ({"prompt": [user("Why?")], "completion": [assistant("a")]}, [user("Why?")], "Why?"),
        ({"messages": [user("Why?"), assistant("a")]}, [user("Why?")], "Why?"),
        ({"messages": [*HELLO, assistant("a")]}, HELLO, HELLO_TEXT),
        (
            {"messages": [system("Be kind."), user("Why?"), assistant("a")]},
            [system("Be kind."), user("Why?")],
            "system: Be kind.\n\nuser: Why?",
        ),
        ({"messages": [system(" "), user("Why?"), assistant("a")]}, [user("Why?")], "Why?"),
        ({"messages": [user([{"type": "text", "text": "Why?"}]), assistant("a")]}, [user("Why?")], "Why?"),  # type: ignore[arg-type]
        (
            {
                "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "a"}],
                "system": "Be kind.",
            },
            [system("Be kind."), user("Why?")],
            "system: Be kind.\n\nuser: Why?",
        ),
    ],
)
def test_conversations(tmp_path: Path, row: Row, messages: list[Row], question: str) -> None:
    source = Source(tmp_path, row)
    prompt = {"question": question, "messages": messages}
    assert source.rows(SFT) == [prompt | {"response_j": "a"}]
    assert source.rows(PROMPTS) == [prompt]
    assert source.style() == "chat"
    with pytest.raises(DataError, match="no column response_k"):
        source.rows()


def test_a_conversation_that_waits_for_an_answer_is_a_prompt_alone(tmp_path: Path) -> None:
    source = Source(tmp_path, {"messages": [user("Why?"), assistant("a")]}, {"messages": HELLO})
    assert [row["question"] for row in source.rows(PROMPTS)] == ["Why?", HELLO_TEXT]
    assert len(source.rows(SFT)) == 1 and source.skipped == {"messages ends with a turn of user, not of assistant": 1}
    assert Source(tmp_path, {"prompt": [user("Why?")], "answer": "7"}).rows(PROMPTS, extra=["answer"]) == [
        {"question": "Why?", "messages": [user("Why?")], "answer": "7"}
    ]


def test_prompts_that_differ_are_an_error_of_their_row(tmp_path: Path) -> None:
    good = {"chosen": [user("Why?"), assistant("j")], "rejected": [user("Why?"), assistant("k")]}
    source = Source(tmp_path, good, good | {"rejected": [user("How?"), assistant("k")]})
    with pytest.raises(DataError, match="line 2: the prompts of chosen and rejected differ"):
        source.rows()
    assert len(source.rows(SFT)) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": ["Why?"]},
            "line 2: column messages, message 1: expected an object with role and content, got str",
        ),
        (
            {"messages": [{"content": "Why?"}, assistant("a")]},
            "line 2: column messages, message 1: it has no role",
        ),
        ({"messages": [{"role": 3, "content": "Why?"}]}, "line 2: column messages, message 1: it has no role"),
        ({"messages": [user([{"type": "image"}])]}, "message 1: content holds image; only text is read"),  # type: ignore[arg-type]
        ({"messages": 7}, "line 2: column messages holds int, not messages"),
    ],
)
def test_what_is_no_message_is_named(tmp_path: Path, row: Row, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Source(tmp_path, {"messages": [user("Why?"), assistant("a")]}, row).rows(SFT)


def test_unusable_conversations_are_skipped_and_counted(tmp_path: Path) -> None:
    good = {"messages": [user("Why?"), assistant("a")]}
    turns: list[Any] = [[], [assistant("a")], [user("Why?"), {"role": "assistant", "content": None}], None]
    turns += [[user("Why?"), assistant(" ")], [user("a\0b"), assistant("a")]]
    source = Source(tmp_path, good, *({"messages": one} for one in turns))
    assert len(source.rows(SFT)) == 1
    first = Source(tmp_path / "first", {"messages": []}, good)
    assert len(first.rows(SFT)) == 1 and first.style() == "chat" and preview(first.name).stages == ["sft", "ppo"]
    assert source.skipped == {
        "messages has no messages": 2,
        "messages has nothing before the assistant turn": 1,
        "messages has a message without text": 1,
        "response_j is blank": 1,
        "question has a NUL byte": 1,
    }


def test_a_row_of_another_schema_is_an_error(tmp_path: Path) -> None:
    conversation = {"messages": [user("Why?"), assistant("a")]}
    other = {"prompt": "Why?", "completion": "a"}
    for rows in ([conversation, other], [other, conversation]):
        for needs in (SFT, PROMPTS):
            with pytest.raises(DataError, match=r"messages \(or conversations\) is missing, which other rows have"):
                Source(tmp_path, *rows).rows(needs)
    pair = {name: [user("Why?"), assistant(name)] for name in ("chosen", "rejected")}
    with pytest.raises(DataError, match=r"line 2: column rejected is missing, .* read as pairs of messages; keep"):
        Source(tmp_path, pair, {"chosen": pair["chosen"]}).rows()


@pytest.mark.parametrize("column", ["system", "system_prompt"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("Why?"), assistant("a")]},
        {"prompt": [user("Why?")], "completion": [assistant("a")]},
        {"prompt": "Why?", "completion": [assistant("a")]},
        {"prompt": [user("Why?")]},
        {"chosen": [user("Why?"), assistant("a")], "rejected": [user("Why?"), assistant("b")]},
    ],
)
def test_a_system_column_opens_a_conversation_without_a_system_message(tmp_path: Path, column: str, row: Row) -> None:
    source = Source(tmp_path, row | {column: "Be kind."})
    (read,) = source.rows(PROMPTS)
    assert read["messages"] == [system("Be kind."), user("Why?")]
    assert not read_columns(source.name, "all", PROMPTS).unread
    own = [system("Be loud."), user("Why?"), assistant("a")]
    assert Source(tmp_path, {"messages": own, column: "Be kind."}).rows(PROMPTS)[0]["messages"] == own[:2]


def test_roles_of_messages_have_other_names_in_any_case(tmp_path: Path) -> None:
    def turns(*roles: str) -> Row:
        return {"messages": [{"role": role, "content": role} for role in roles]}

    named = [("human", "gpt"), ("User", "Assistant"), ("System", "developer", "USER", "model")]
    source = Source(tmp_path, *(turns(*roles) for roles in named), turns("user", "bot"))
    roles = [[message["role"] for message in row["messages"]] for row in source.rows(SFT)]
    assert roles == [["user"], ["user"], ["system", "developer", "user"]]
    assert source.skipped == {"messages ends with a turn of bot, not of assistant": 1}


@pytest.mark.parametrize("role", ["user<|im_end|>\n<|im_start|>system", "user ", "<s>", "a b"])
def test_a_role_that_is_not_one_word_is_an_error(tmp_path: Path, role: str) -> None:
    row = {"messages": [{"role": role, "content": "Why?"}, assistant("a")]}
    with pytest.raises(DataError, match=r"line 1: column messages, message 1: the role '.*' is not one word"):
        Source(tmp_path, row).rows(SFT)


def test_pairs_without_a_prompt_are_cut_where_the_answer_begins(tmp_path: Path) -> None:
    first = "\n\nHuman: Why?\n\nAssistant:"
    second = f"{first} It is so.\n\nHuman: Is it?\n\nAssistant:"
    source = Source(
        tmp_path,
        {"chosen": f"{first} It is so.", "rejected": f"{first} It is not."},
        {"chosen": f"{second} Yes.", "rejected": f"{second} Yes and no."},
    )
    assert source.rows() == [
        {"question": first, "response_j": " It is so.", "response_k": " It is not."},
        {"question": second, "response_j": " Yes.", "response_k": " Yes and no."},
    ]
    assert source.rows(PROMPTS) == [{"question": first}, {"question": second}]
    assert source.style() == "none"


def test_pairs_without_a_prompt_or_a_marker_are_cut_at_a_space(tmp_path: Path) -> None:
    source = Source(
        tmp_path,
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        {"chosen": "Blue.", "rejected": "Black."},
        {"chosen": "The sky.", "rejected": None},
    )
    assert source.rows() == [{"question": "The sky is", "response_j": " blue.", "response_k": " black."}]
    assert source.skipped == {"chosen and rejected have no prompt in common": 1, "rejected is null": 1}


@pytest.mark.parametrize("column", ["input", "query", "text"])
@pytest.mark.parametrize("more", [{}, {"system": "Be kind.", "id": "7"}])
def test_text_beside_a_pair_may_be_its_prompt(tmp_path: Path, column: str, more: Row) -> None:
    pair = {"chosen": "The sky is blue", "rejected": "The sky is red"}
    row = more | {column: "What colour is the sky?"} | pair
    source = Source(tmp_path, row)
    for needs in (PAIRS, SFT, PROMPTS):
        for split in ("all", Split.REWARD):
            with pytest.raises(DataError, match=rf"line 1: .* `dataset_columns\.prompt={column}`"):
                source.rows(needs, split)
    (read,) = source.rows(names={"prompt": column})
    assert (read["question"], read["response_k"]) == ("What colour is the sky?", "The sky is red")
    with pytest.raises(DataError, match=r"line 2: .* there is text in messages"):
        Source(tmp_path, pair, pair | {"messages": HELLO, "turns": 2}).rows()
    marked = {name: f"\n\nHuman: Why?\n\nAssistant: {name}" for name in pair}
    assert len(Source(tmp_path, marked | {"source": "forum"}).rows()) == 1


def answer(score: int, text: str, selected: bool = False) -> Row:
    return {"answer_id": 7, "author": "a", "pm_score": score, "selected": selected, "text": text}


def test_stack_exchange_preferences(tmp_path: Path) -> None:
    answers = [answer(0, "<p>No.</p>"), answer(3, "<p>Do <code>x</code>.</p>"), answer(3, "<p>Yes.</p>", True)]
    tie = {"qid": 2, "question": "<p>Who?</p>", "answers": [answer(1, "<p>I.</p>"), answer(1, "<p>You.</p>")]}
    source = Source(tmp_path, {"qid": 1, "question": "<p>How?</p>", "answers": answers, "date": "2014"}, tie)
    pairs = source.rows(extra=["qid"])
    assert sorted((row["response_j"], row["response_k"]) for row in pairs) == [("Do `x`.", "No."), ("Yes.", "No.")]
    assert {(row["question"], row["qid"]) for row in pairs} == {("How?", 1)}
    assert source.skipped == {"answers has no two with different scores": 1}
    assert [row["response_j"] for row in source.rows(SFT)] == ["Yes.", "I."]
    assert [row["question"] for row in source.rows(PROMPTS)] == ["How?", "Who?"]
    assert source.style() == "question_answer"
    assert source.rows(limit=1) == [{name: pairs[0][name] for name in PAIRS}]


def test_pairs_of_one_question_lie_side_by_side_in_one_split(tmp_path: Path) -> None:
    answers = [answer(score, f"<p>{score}</p>") for score in range(3)]
    source = Source(tmp_path, *({"question": f"<p>Q {n}?</p>", "answers": answers} for n in range(40)))
    parts = [[row["question"] for row in source.rows(split=split)] for split in Split]
    assert all(part[::3] == part[1::3] == part[2::3] for part in parts)
    assert sum(map(len, parts)) == 120 and len({question for part in parts for question in part}) == 40


def test_answers_without_a_score_are_an_error(tmp_path: Path) -> None:
    good = {"question": "q", "answers": [answer(1, "a"), answer(0, "b")]}
    with pytest.raises(DataError, match="line 2: column answers, answer 1: expected text and pm_score, a whole number"):
        Source(tmp_path, good, {"question": "q", "answers": [{"text": "a", "pm_score": "1"}]}).rows()


def test_shp(tmp_path: Path) -> None:
    row = {"post_id": "p", "history": "Why?", "human_ref_A": "a", "human_ref_B": "b", "score_A": 5, "labels": 1}
    source = Source(tmp_path, row, row | {"labels": 0})
    assert [(one["response_j"], one["response_k"]) for one in source.rows()] == [("a", "b"), ("b", "a")]
    assert source.rows(PROMPTS) == [{"question": "Why?"}] * 2
    assert source.style() == "question_answer"
    with pytest.raises(DataError, match="line 2: column labels is 2, not 0 or 1"):
        Source(tmp_path, row, row | {"labels": 2}).rows()


def test_summarize_from_feedback(tmp_path: Path) -> None:
    row = {
        "info": {"id": "t3", "post": "A post.", "title": "T", "subreddit": "tifu", "site": None, "article": None},
        "summaries": [{"text": " s a", "policy": "sup"}, {"text": " s b", "policy": "ref"}],
        "choice": 1,
        "worker": "w",
    }
    news = row | {"info": {"post": None, "article": "News.", "title": "T"}}
    source = Source(tmp_path, row, news, row | {"info": {"post": ""}})
    prompt = "SUBREDDIT: r/tifu\n\nTITLE: T\n\nPOST: A post.\n\nTL;DR:"
    assert source.rows() == [
        {"question": prompt, "response_j": " s b", "response_k": " s a"},
        {"question": "News.\n\nTL;DR:", "response_j": " s b", "response_k": " s a"},
    ]
    assert source.skipped == {"info has neither post nor article": 1}
    assert source.style() == "none"
    with pytest.raises(DataError, match="line 2: column summaries holds 1 summaries, not two"):
        Source(tmp_path, row, row | {"summaries": [{"text": "s"}]}).rows()


@pytest.mark.parametrize("true", [True, 1, "True"])
def test_unpaired_data_serve_sft_and_ppo(tmp_path: Path, true: Any) -> None:
    row = {"prompt": "q", "completion": "good", "label": true}
    source = Source(tmp_path, row, row | {"completion": "bad", "label": 0})
    assert source.rows(SFT) == [{"question": "q", "response_j": "good"}]
    assert source.skipped == {"label is false": 1}
    assert len(source.rows(PROMPTS)) == 2
    with pytest.raises(
        DataError, match=r"unpaired data .* a reward model needs pairs of a better and a worse response"
    ):
        source.rows()
    assert notices("s", read_columns(source.name, "all", SFT)) == [
        "s: unpaired data; rows whose label is false are left out"
    ]
    with pytest.raises(DataError, match="line 2: column label is None, not true or false"):
        Source(tmp_path, row, row | {"label": None}).rows(SFT)


def test_a_label_that_is_a_class_leaves_no_row_out(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": f"a{label}", "label": label} for label in range(5)]
    source = Source(tmp_path, *rows)
    assert [row["response_j"] for row in source.rows(SFT)] == ["a0", "a1", "a2", "a3", "a4"]
    assert not read_columns(source.name, "all", SFT).labelled
    with pytest.raises(DataError, match=r"line 22: column label is 2, not true .* first rows\. Rename the column if"):
        Source(tmp_path, *rows[:1] * 21, rows[2]).rows(SFT)


def test_a_prompt_of_messages_says_where_its_response_is_read_from(tmp_path: Path) -> None:
    source = Source(tmp_path, {"prompt": [user("2 + 2?")], "answer": "4"})
    with pytest.raises(
        DataError, match=r"read as prompt of messages, .* read from completion, .* are prompt, answer\."
    ):
        source.rows(SFT)
    with pytest.raises(DataError, match="read from chosen and rejected, as messages or text"):
        source.rows()
    (row,) = source.rows(SFT, names={"completion": "answer"})
    assert row["messages"] == [user("2 + 2?")] and row["response_j"] == "4"


def test_unpaired_messages(tmp_path: Path) -> None:
    row = {"prompt": [user("q")], "completion": [assistant("good")], "label": True}
    source = Source(tmp_path, row, row | {"label": False})
    assert source.rows(SFT) == [{"question": "q", "messages": [user("q")], "response_j": "good"}]


@pytest.mark.parametrize(
    "prompt",
    [
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "[INST] Why? [/INST]",
        "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n",
        "Below is an instruction.\n\n### Instruction:\nWhy?\n\n### Response:\n",
        "\n\nHuman: Why?\n\nAssistant:",
    ],
)
def test_text_that_carries_a_template_takes_none(tmp_path: Path, prompt: str) -> None:
    row = {"question": prompt, "answer": "a"}
    assert Source(tmp_path, row).style() == "none"
    assert Source(tmp_path, row, *[row | {"question": "Why?"}] * 2).style() == "question_answer"


def test_named_columns(tmp_path: Path) -> None:
    row = {"question": "no", "body": "q", "good": "j", "bad": "k", "input": "no", "answers": [], "note": "text"}
    source = Source(tmp_path, row)
    names = {"prompt": "body", "chosen": "good", "rejected": "bad"}
    assert source.rows(names=names) == [{"question": "q", "response_j": "j", "response_k": "k"}]
    assert source.rows(names=names, extra=["body", "note"])[0]["body"] == "q"
    columns = read_columns(source.name, "all", PAIRS, names=names)
    assert notices("s", columns)[0].startswith("s: the model does not see the text in question, input and note")
    assert columns.style == "none"
    with pytest.raises(DataError, match=r"no column topic, which `dataset_columns` names for prompt; its columns are"):
        source.rows(names={"prompt": "topic"})
    with pytest.raises(DataError, match="line 2: column body is missing, which earlier rows have"):
        Source(tmp_path, row, {"good": "j", "bad": "k"}).rows(names=names)


def test_a_named_column_goes_with_those_that_have_our_names(tmp_path: Path) -> None:
    source = Source(tmp_path, *({"topic": f"q{n}", "chosen": "j", "rejected": "k"} for n in range(40)))
    parts = [source.rows(PROMPTS, split, names={"prompt": "topic"}) for split in Split]
    assert all(parts) and sum(map(len, parts)) == 40
    assert len(source.rows(names={"prompt": "topic"})) == 40


def test_named_messages(tmp_path: Path) -> None:
    row = {"prompt": "no", "dialogue": [user("Why?"), assistant("a")], "chosen": [user("no"), assistant("no")]}
    source = Source(tmp_path, row)
    names = {"messages": "dialogue"}
    assert source.rows(SFT, names=names) == [{"question": "Why?", "messages": [user("Why?")], "response_j": "a"}]
    assert source.style(SFT, names=names) == "chat"


def test_further_columns_travel_with_the_rows(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "72", "level": 3, "easy": True, "steps": ["a"], "none": None}
    source = Source(tmp_path, row, {"question": "r", "answer": "8", "level": 4})
    assert source.rows(PROMPTS, extra=["answer", "steps"], limit=1) == [
        {"question": "q", "answer": "72", "steps": ["a"]}
    ]
    assert source.rows(PROMPTS, extra=ALL_SCALARS) == [
        {"question": "q", "answer": "72", "level": 3, "easy": True},
        {"question": "r", "answer": "8", "level": 4, "easy": None},
    ]
    assert set(source.rows(SFT, extra=ALL_SCALARS)[0]) == {"question", "response_j", "level", "easy"}
    with pytest.raises(DataError, match="no column target; its columns are question, answer, level"):
        source.rows(PROMPTS, extra=["target"])
    assert [row["easy"] for row in source.rows(PROMPTS, extra=["easy"])] == [True, None]


def test_a_preview_shows_conversations(tmp_path: Path) -> None:
    seen = preview(Source(tmp_path, {"messages": [*HELLO, assistant("So.")]}).name)
    assert (seen.style, seen.stages) == ("chat", ["sft", "ppo"])
    assert seen.texts == [f"{HELLO_TEXT}\n\nassistant: So."]
    assert seen.notices[0].endswith("rows.jsonl: read as messages")


DOCUMENT = Path(__file__).parents[2] / "docs" / "data.md"
DOCUMENTED = re.findall(r"^\| ([^|]+) \| `({.*})` \| (\w+) \|$", DOCUMENT.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("row", "style"), [row[1:] for row in DOCUMENTED], ids=[row[0] for row in DOCUMENTED])
def test_documented_rows_are_read(tmp_path: Path, row: str, style: str) -> None:
    source = Source(tmp_path, json.loads(row))
    assert len(source.rows(PROMPTS)) == 1 and not source.skipped
    assert source.style() == style
    columns = available(json.loads(row))
    assert set(source.rows(columns)[0]) - {"messages"} == set(columns)


def test_every_schema_is_documented() -> None:
    named = {schema.name for row in DOCUMENTED if (schema := schema_of(json.loads(row[1])))}
    assert named == {schema.name for schema in SCHEMAS}


@pytest.mark.parametrize("key", ["tool_calls", "function_call", "thinking", "reasoning_content"])
def test_messages_with_more_than_text_are_skipped_and_counted(tmp_path: Path, key: str) -> None:
    turn = assistant("") | {key: [{"name": "add"}]}
    plain = {"messages": [user("q"), assistant("a") | {key: None}]}
    source = Source(tmp_path, {"messages": [user("q"), turn, {"role": "tool", "content": "2"}, assistant("a")]}, plain)
    assert [row["response_j"] for row in source.rows(SFT)] == ["a"]
    assert source.skipped == {f"messages has a message with {key}, which is not read": 1}


def test_names_of_sharegpt_in_any_case(tmp_path: Path) -> None:
    def turns(*roles: str) -> Row:
        return {"conversations": [{"from": role, "value": role} for role in roles]}

    source = Source(
        tmp_path,
        turns("Human", "function_call", "observation", "gpt"),
        turns("narrator", "gpt"),
        turns("Human", "Observation", "GPT"),
    )
    (row,) = source.rows(SFT)
    assert [message["role"] for message in row["messages"]] == ["user", "tool"] and row["response_j"] == "GPT"
    assert source.skipped == {
        f"conversations has a message from {name!r}, which is not read": 1 for name in ("function_call", "narrator")
    }
