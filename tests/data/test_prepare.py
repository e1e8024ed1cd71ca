"""Conversion of a dump to a prepared directory."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackllama_engine.contract.errors import DataError, RefusedError
from stackllama_engine.contract.stages import Split
from stackllama_engine.data import prepare as prepare_module
from stackllama_engine.data import spool
from stackllama_engine.data.manifest import read_manifest
from stackllama_engine.data.markdown import to_markdown
from stackllama_engine.data.prepare import prepare
from stackllama_engine.data.splits import split_of

DUMP = os.environ.get("STACKLLAMA_TEST_POSTS")


def rows_of(out: Path) -> dict[str, list[dict[str, Any]]]:
    return {split.value: [json.loads(line) for line in (out / f"{split}.jsonl").open()] for split in Split}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_prepare_of_one_question_worked_by_hand(dump: Any, tmp_path: Path) -> None:
    """Scores: 7 votes accepted 4, 2 votes 2, 1 vote 1, −3 votes −1, 2 votes 2: ten twos, one of them a tie."""
    path = dump.write(
        [
            dump.answer(11, 1, 7, "<p>best</p>"),
            dump.question(1, "<p>Why is <code>x_1</code> so?</p>", accepted=11),
            *(dump.answer(n, 1, votes) for n, votes in ((12, 2), (13, 1), (14, -3), (15, 2))),
            dump.question(2),
            dump.answer(21, 2, 5),
            dump.answer(31, 3, 5),
        ]
    )
    report = prepare(path, tmp_path / "out")
    rows = [row for part in rows_of(tmp_path / "out").values() for row in part]
    assert (report.questions, report.answers, report.questions_with_two_answers) == (2, 7, 1)
    assert (report.pairs, report.ties, report.over_limit) == (9, 1, 0)
    assert report.skipped == {"answer without its question": 1}
    scores = sorted((row["score_j"], row["score_k"]) for row in rows)
    assert scores == sorted([(4, 2), (4, 2), (4, 1), (4, -1), (2, 1), (2, 1), (2, -1), (2, -1), (1, -1)])
    best = next(row for row in rows if row["score_j"] == 4 and row["score_k"] == -1)
    assert best == {
        "question_id": 1,
        "question": "Why is `x_1` so?",
        "response_j": "best",
        "response_k": "Answer 14",
        "score_j": 4,
        "score_k": -1,
    }


def test_manifest_and_whole_directory(dump: Any, tmp_path: Path) -> None:
    path = dump.write(dump.forum())
    report = prepare(path, tmp_path / "deep" / "out")
    assert names(tmp_path / "deep") == ["out"]
    expected = ["evaluation.jsonl", "finetune.jsonl", "manifest.json", "reward.jsonl", "rl.jsonl"]
    assert names(tmp_path / "deep" / "out") == expected
    assert read_manifest(tmp_path / "deep" / "out") == report
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "CC BY-SA" in report.licence
    assert report.pairs == 120 == sum(count.pairs for count in report.splits.values())
    for split, rows in rows_of(tmp_path / "deep" / "out").items():
        assert report.splits[split].pairs == len(rows)
        assert report.splits[split].questions == len({row["question_id"] for row in rows})


def test_no_question_is_in_two_splits_and_new_posts_move_none(dump: Any, tmp_path: Path) -> None:
    prepare(dump.write(dump.forum(40)), tmp_path / "a")
    prepare(dump.write(dump.forum(60)), tmp_path / "b", seed=5)

    def where(out: Path) -> dict[int, set[str]]:
        found: dict[int, set[str]] = {}
        for split, rows in rows_of(out).items():
            for row in rows:
                found.setdefault(row["question_id"], set()).add(split)
        return found

    before, after = where(tmp_path / "a"), where(tmp_path / "b")
    assert (len(before), len(after)) == (40, 60)
    assert all(len(splits) == 1 for splits in after.values())
    assert all(after[number] == splits for number, splits in before.items())


def test_the_order_of_the_dump_does_not_matter_and_rows_are_shuffled(dump: Any, tmp_path: Path) -> None:
    rows = dump.forum()
    prepare(dump.write(rows), tmp_path / "a")
    prepare(dump.write(rows[::-1]), tmp_path / "b")
    prepare(dump.write(rows), tmp_path / "c", seed=1)
    a, b, c = (rows_of(tmp_path / name) for name in "abc")
    assert a == b
    assert a != c
    neighbours = [row["question_id"] for row in a["rl"]]
    assert neighbours != sorted(neighbours)


def test_many_files_on_the_way_give_the_same_pairs(dump: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dump.write(dump.forum())
    whole = prepare(path, tmp_path / "a")
    monkeypatch.setattr(spool, "_BUCKET_BYTES", path.stat().st_size // 9)
    parts = prepare(path, tmp_path / "b")
    key = json.dumps
    for split in Split:
        one, other = rows_of(tmp_path / "a")[split], rows_of(tmp_path / "b")[split]
        assert sorted(map(key, one)) == sorted(map(key, other))
    assert parts.splits == whole.splits


def test_posts_without_text_or_with_repeated_ids_are_skipped(dump: Any, tmp_path: Path) -> None:
    rows = dump.forum(20)
    rows += [dump.answer(1, 2, 9), dump.answer(501, 1, 40, " <p> </p>"), dump.answer(502, 1, 40, "<b>" * 5000)]
    report = prepare(dump.write(rows), tmp_path / "out")
    assert report.pairs == 60
    assert report.skipped["no text in its body"] == 1
    assert report.skipped["elements nested too deeply"] == 1


def test_a_repeated_row_counts_once(dump: Any, tmp_path: Path) -> None:
    rows = dump.forum(20)
    report = prepare(dump.write([*rows, *rows[:4]]), tmp_path / "out")
    assert (report.pairs, report.skipped) == (60, {"Id seen before": 4})


def test_taken_directories_are_refused(dump: Any, tmp_path: Path) -> None:
    path = dump.write(dump.forum(5))
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").touch()
    for out in (full, path):
        with pytest.raises(RefusedError, match="choose another --out"):
            prepare(path, out)
    assert names(full) == ["precious"]
    (tmp_path / "empty").mkdir()
    assert prepare(path, tmp_path / "empty").pairs == 15


@pytest.mark.parametrize("content", ["<posts></posts>", "<posts><row", '<posts><row Id="1" PostTypeId="5" /></posts>'])
def test_nothing_is_left_behind_by_a_failure(tmp_path: Path, content: str) -> None:
    path = tmp_path / "Posts.xml"
    path.write_text(content)
    with pytest.raises(DataError):
        prepare(path, tmp_path / "out")
    assert names(tmp_path) == ["Posts.xml"]


def test_nothing_is_left_behind_by_an_interrupt(dump: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(html: str) -> str:
        raise KeyboardInterrupt

    path = dump.write(dump.forum(5))
    monkeypatch.setattr(prepare_module, "to_markdown", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(path, tmp_path / "out")
    assert names(tmp_path) == ["Posts.xml"]


def test_only_ties_is_an_error(dump: Any, tmp_path: Path) -> None:
    path = dump.write([dump.question(1), dump.answer(2, 1, 3), dump.answer(3, 1, 3)])
    with pytest.raises(DataError, match="no question has two answers with different scores"):
        prepare(path, tmp_path / "out")


def test_progress_is_reported(dump: Any, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    path = dump.write(dump.forum(5))
    prepare(path, tmp_path / "out", on_progress=lambda *what: told.append(what))
    size = path.stat().st_size
    assert told == [("read", size, size), *(("pair", n, 5) for n in range(1, 6))]


@pytest.mark.parametrize(
    ("html", "markdown"),
    [
        ("<p>one</p>\n\n<p>two <em>it</em></p>", "one\n\ntwo *it*"),
        ('<pre class="x"><code>if a &lt; b:\n    c_1 = 2\n</code></pre>', "```\nif a < b:\n    c_1 = 2\n```"),
        ("<p>$x_1 * y_1 \\; \\{2\\}$</p>", "$x_1 * y_1 \\; \\{2\\}$"),
        ('<a href="http://x.org/a_b">the <b>page</b></a>', "[the **page**](http://x.org/a_b)"),
        ("<ul><li>a</li><li>b</li></ul>", "* a\n* b"),
        ("http://x.org", "http://x.org"),
        ("<script>x</script><!-- c -->", ""),
        ("x<sup>2</sup>, 10<sup>-5</sup>, <i>x</i><sub>i</sub><sup>n</sup>", "x^2, 10^{-5}, *x*_i^n"),
        ("H<sub>2</sub>O and <code>2<sup>n</sup></code>", "H_2O and `2^n`"),
        ("text <sup>small print</sup>", "text small print"),
        ("<p><sup>1</sup> a note</p>", "1 a note"),
        ("<del>a</del> <s>b</s> <strike>c</strike>", "~~a~~ ~~b~~ ~~c~~"),
        ("", ""),
    ],
)
def test_html_is_converted_to_markdown(html: str, markdown: str) -> None:
    assert to_markdown(html) == markdown


@given(st.lists(st.one_of(st.integers(0, 10**9), st.text()), unique=True, max_size=200))
def test_every_question_has_one_split(keys: list[int | str]) -> None:
    first = {key: split_of(key) for key in keys}
    assert {key: split_of(key) for key in reversed(keys)} == first
    assert set(first.values()) <= set(Split)


def test_shares_are_those_of_the_published_set() -> None:
    """5, 5, 5 and 3 of 18; four standard deviations of 18,000 draws are 240 for 5/18 and 200 for 3/18."""
    found = [split_of(number) for number in range(18_000)]
    for split, expected in (("finetune", 5000), ("reward", 5000), ("rl", 5000), ("evaluation", 3000)):
        assert abs(found.count(Split(split)) - expected) < 240


def test_splits_never_change() -> None:
    """Written down once: a change here would leak evaluation questions into what is trained already."""
    assert "".join(split_of(number)[:2] for number in range(1, 13)) == "fireevrlfievfirerlfifire"
    assert split_of("How do I sort a list?") is Split.FINETUNE


@pytest.mark.skipif(DUMP is None, reason="STACKLLAMA_TEST_POSTS names no Posts.xml")
def test_published_counts(tmp_path: Path) -> None:
    """The Mathematics Educators dump of 2014: 397 questions, 1,507 answers, 311 with two or more, 1,471 pairs."""
    report = prepare(Path(str(DUMP)), tmp_path / "out")
    counts = (report.questions, report.answers, report.questions_with_two_answers, report.pairs)
    assert counts == (397, 1507, 311, 1471)
    seen: set[int] = set()
    for rows in rows_of(tmp_path / "out").values():
        here = {row["question_id"] for row in rows}
        assert here
        assert not here & seen
        seen |= here
