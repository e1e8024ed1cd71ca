"""samples.jsonl indexed: orders, one prompt followed, before and after, searching, rewritten and hostile files."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackllama_console.readers.samples import SamplesFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "samples.jsonl"


def row(step: int, question: str = "q", response: str = "r", **fields: Any) -> bytes:
    return msgspec.json.encode({"step": step, "question": question, "response": response, **fields}) + b"\n"


def append(path: Path, *rows: bytes) -> None:
    with path.open("ab") as file:
        file.write(b"".join(rows))


def polled(path: Path) -> SamplesFile:
    samples = SamplesFile(path)
    samples.poll()
    return samples


def test_missing_file_is_no_samples(path: Path) -> None:
    samples = SamplesFile(path)
    assert not samples.poll()
    assert (len(samples), samples.order("reward"), samples.read([]), samples.pairs()) == (
        0,
        samples.order("kl"),
        [],
        [],
    )
    append(path, row(1))
    assert samples.poll()
    assert len(samples) == 1
    assert not samples.poll()


def test_read_returns_whole_rows(path: Path) -> None:
    append(path, row(3, "Why?", "Because.\n\tIt is.", reward=0.5, kl=-0.25, length=7, ended=False, utility=0.75))
    (sample,) = polled(path).read([0])
    assert (sample.row, sample.step, sample.question, sample.response) == (0, 3, "Why?", "Because.\n\tIt is.")
    assert (sample.reward, sample.kl, sample.length, sample.ended, sample.utility) == (0.5, -0.25, 7, False, 0.75)
    assert (sample.split, sample.when) == (None, None)


def test_parts_of_a_reward_come_along_and_their_names_are_sanitised(path: Path) -> None:
    append(path, row(1, reward=0.5, rewards={"model": 1.5, "leng\x1b[1mth": -1.0, "function": None}))
    (sample,) = polled(path).read([0])
    assert list(sample.rewards.values()) == [1.5, -1.0, None]
    assert next(iter(sample.rewards)) == "model" and all(name.isprintable() for name in sample.rewards)


def test_columns_are_read_as_text(path: Path) -> None:
    append(path, row(1, columns={"answer": "#### 4\x1b[1m", "level": 2, "steps": ["a"], "hint": None}), row(2))
    first, second = polled(path).read([0, 1])
    assert first.columns == {"answer": "#### 4", "level": "2", "steps": "['a']"} and second.columns == {}


def test_orders_both_ways_with_missing_values_last(path: Path) -> None:
    append(
        path,
        row(1, reward=2.0, kl=0.3, length=9),
        row(1, reward=None, kl=0.1, length=5),
        row(2, reward=3.0, length=5),
        row(2, reward=2.0, kl=0.2, length=1),
    )
    samples = polled(path)
    assert list(samples.order("reward")) == [0, 3, 2, 1]
    assert list(samples.order("reward", descending=True)) == [2, 0, 3, 1], "equal ones stay in the file's order"
    assert list(samples.order("kl")) == [1, 3, 0, 2]
    assert list(samples.order("length")) == [3, 1, 2, 0]
    assert list(samples.order("step", descending=True)) == [2, 3, 0, 1]


def test_an_order_takes_in_what_came_since(path: Path) -> None:
    append(path, row(1, reward=2.0), row(1), row(1, reward=2.0))
    samples = polled(path)
    assert list(samples.order("reward", descending=True)) == [0, 2, 1]
    append(path, row(2, reward=5.0), row(2), row(2, reward=2.0))
    samples.poll()
    assert list(samples.order("reward", descending=True)) == [3, 0, 2, 5, 1, 4]
    assert list(samples.order("reward")) == [0, 2, 5, 3, 1, 4]


def test_one_prompt_is_followed_by_step(path: Path) -> None:
    append(path, row(5, "a"), row(1, "b"), row(2, "a"), row(3, "A"), row(4, "a "), row(2, "a", "second"))
    samples = polled(path)
    assert samples.of_prompt(0) == samples.of_prompt(2) == [2, 5, 0]
    assert samples.of_prompt(1) == [1]


def test_equal_hashes_are_not_equal_questions(path: Path) -> None:
    append(path, row(1, "a"), row(2, "b"), row(3, "a"))
    samples = polled(path)
    samples._index.questions[1] = samples._index.questions[0]  # pyright: ignore[reportPrivateUsage]
    assert (samples.of_prompt(0), samples.of_prompt(1)) == ([0, 2], [1])


def test_search_resumes_where_it_stopped(path: Path) -> None:
    append(path, *(row(n, f"question {n}", "Compost" if n % 3 == 0 else "mulch") for n in range(10)))
    samples = polled(path)
    found = samples.search("COMPOST", limit=2)
    assert (found.rows, found.resume_at) == ([0, 3], 4)
    found = samples.search("compost", start=4, budget=5)
    assert (found.rows, found.resume_at) == ([6], 9)
    found = samples.search("compost", start=9)
    assert (found.rows, found.resume_at) == ([9], None)
    assert samples.search("question 7").rows == [7], "questions are searched too"
    assert samples.search("absent").rows == []


def test_searching_finds_what_json_escapes(path: Path) -> None:
    append(path, b'{"step":1,"question":"\\u00e9t\\u00e9","response":"a \\"quoted\\" word\\nnext"}\n')
    samples = polled(path)
    assert [samples.search(text).rows for text in ("été", '"quoted"', "word\nnext", "ÉTÉ")] == [[0]] * 4


# before and after


def test_pairs_are_held_out_prompts_before_and_after(path: Path) -> None:
    held = {"split": "evaluation"}
    append(
        path,
        row(0, "only before", "x", when="before", **held),
        row(0, "a", "old", when="before", reward=1.0, **held),
        row(3, "a", "in training"),
        row(9, "a", "new", when="after", reward=2.0, **held),
        row(9, "only after", "y", when="after", **held),
    )
    (path.with_name("result.json")).write_text('{"samples": [{"question": "from the result"}]}')
    pairs = polled(path).pairs()
    assert [pair.question for pair in pairs] == ["a", "only before", "only after"], "whole pairs first"
    whole, first, last = pairs
    assert whole.before is not None
    assert whole.after is not None
    assert (whole.before.response, whole.before.reward) == ("old", 1.0)
    assert (whole.after.response, whole.after.reward, whole.after.row) == ("new", 2.0, 3)
    assert (first.after, last.before) == (None, None)


def test_a_question_asked_twice_is_paired_in_order(path: Path) -> None:
    append(path, *(row(0, "a", f"{when} {n}", when=when) for when in ("before", "after") for n in (1, 2)))
    pairs = polled(path).pairs()
    assert [(p.before and p.before.response, p.after and p.after.response) for p in pairs] == [
        ("before 1", "after 1"),
        ("before 2", "after 2"),
    ]


def test_pairs_fall_back_to_the_result(path: Path, assert_clean: Callable[[Any], None]) -> None:
    append(path, row(1))
    samples = polled(path)
    assert samples.pairs() == []
    side = {"question": "q\x1b[2J", "before": "b\x07", "after": "a", "reward_after": 1.5, "utility_before": 0.25}
    path.with_name("result.json").write_bytes(msgspec.json.encode({"stage": "ppo", "samples": [side]}))
    (pair,) = samples.pairs()
    assert pair.before is not None
    assert pair.after is not None
    assert (pair.question, pair.before.response, pair.before.utility, pair.after.reward) == ("q", "b", 0.25, 1.5)
    assert_clean((pair.question, pair.before.question, pair.before.response))


def test_damaged_result_is_reported(path: Path) -> None:
    path.with_name("result.json").write_bytes(b'{"samples": 3}')
    samples = polled(path)
    assert samples.pairs() == []
    assert samples.error is not None
    assert "result.json cannot be read" in samples.error
    assert not samples.poll(), "which is no news of the file"


# files as they are


@pytest.mark.parametrize(
    "bad",
    [
        b"junk",
        b"{}",
        b"\x00\x00\x00",
        b'{"step":1,"question":"\xff","response":"r"}',
        b'{"step":"1","question":"q"}',
        b'{"step":1,"question":"q","response":"' + b"y" * 5_000_000 + b'"}',
        b'{"step":1,"question":"q","x":' + b"[" * 200_000,
        b'{"step":1,"question":"q","length":' + b"9" * 30 + b"}",
    ],
    ids=lambda bad: repr(bad[:30]),
)
def test_a_bad_line_costs_only_itself(path: Path, bad: bytes) -> None:
    append(path, row(1, "first"), bad + b"\n", b"\n", row(2, "second"), b'{"step":3,"question":"truncated')
    samples = polled(path)
    assert (len(samples), samples.bad_lines) == (2, 1)
    assert [sample.question for sample in samples.read([1, 0])] == ["second", "first"]
    append(path, b' off","response":""}\n')
    samples.poll()
    assert samples.read([2])[0].question == "truncated off"


def test_a_rewritten_file_is_indexed_anew(path: Path, tmp_path: Path) -> None:
    append(path, *(row(step, f"question {step}") for step in range(5)))
    samples = polled(path)
    samples.order("step")
    other = tmp_path / "other"
    append(other, row(7, "new"), row(8, "newer"))
    other.replace(path)
    assert samples.read([0, 1]) == [], "not the text of another row"
    assert samples.poll()
    assert (len(samples), samples.generation, [s.question for s in samples.read([0, 1])]) == (2, 1, ["new", "newer"])
    assert list(samples.order("step", descending=True)) == [1, 0]


def test_a_row_is_never_read_out_of_another_file(path: Path, tmp_path: Path) -> None:
    append(path, row(1, "old"), row(2, "old"))
    samples = polled(path)
    append(tmp_path / "other", row(1, "new"), row(2, "new"))
    (tmp_path / "other").replace(path)
    assert samples.read([0, 1]) == [], "the steps are the same, the file is not"
    samples.poll()
    path.write_bytes(row(3, "odd") + row(2, "new"))
    assert [sample.row for sample in samples.read([0, 1])] == [1], "the file is the same, the step is not"


def test_truncated_or_deleted_file_starts_a_generation(path: Path) -> None:
    append(path, row(1), row(2), b"bad\n")
    samples = polled(path)
    path.write_bytes(row(9, "short"))
    assert samples.poll()
    assert ([sample.step for sample in samples.read([0])], len(samples)) == ([9], 1)
    assert (samples.bad_lines, samples.generation) == (0, 1)
    path.unlink()
    assert samples.poll()
    assert (len(samples), samples.generation) == (0, 2)
    assert not samples.poll()


def test_unreadable_file_is_reported(path: Path) -> None:
    path.mkdir()
    samples = SamplesFile(path)
    assert samples.poll()
    assert samples.error == f"{path} cannot be read: a directory, not a regular file."


def test_texts_come_out_sanitised(path: Path, assert_clean: Callable[[Any], None]) -> None:
    hostile = "\x1b]52;c;aGk=\x07two\nlines\x9b2J\u202e [/INST]"
    append(path, row(1, hostile, hostile, split=hostile, when=hostile))
    (sample,) = polled(path).read([0])
    assert sample.response == "two\nlines [/INST]"
    for text in (sample.question, sample.response, sample.split, sample.when):
        assert_clean(text)


_LINES = st.one_of(
    st.builds(
        lambda step, question, reward: row(step, question, reward=reward),
        st.integers(0, 4),
        st.sampled_from(["a", "b", "é\n"]),
        st.none() | st.integers(-2, 2).map(float),
    ),
    st.sampled_from([b"\n", b"bad\n", b"\x00\xff\n", b'{"step":1,\n', b"z" * 20_000 + b"\n"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_LINES, max_size=25), st.lists(st.integers(1, 200), max_size=20))
def test_in_portions_it_is_the_same_as_in_one_piece(lines: list[bytes], sizes: list[int]) -> None:
    data = b"".join(lines)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.jsonl"
        samples, rest = SamplesFile(path), data
        for size in [*sizes, len(data)]:
            append(path, rest[:size])
            rest = rest[size:]
            samples.poll()
            samples.order("reward", descending=True)
        whole = polled(path)
        rows = range(len(whole))
        assert samples.read(rows) == whole.read(rows)
        assert [sample.row for sample in whole.read(rows)] == list(rows)
        assert list(samples.order("reward", descending=True)) == list(whole.order("reward", descending=True))
        assert (len(samples), samples.bad_lines, samples.generation) == (len(whole), whole.bad_lines, 0)
