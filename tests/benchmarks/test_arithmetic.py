"""The arithmetic benchmark: its problems, its reward, and the document that its recording is written into."""

import itertools
import json
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import arithmetic  # noqa: E402 # pyright: ignore[reportMissingImports]
import arithmetic_problems as problems  # noqa: E402 # pyright: ignore[reportMissingImports]


def numbers(question: str) -> frozenset[int]:
    return frozenset(map(int, re.findall(r"\d+", question)))


def test_held_out_problems_share_no_pair_of_numbers_with_training() -> None:
    training, held_out = problems.rows("training", 1500), problems.rows("held-out", 300)
    seen = {numbers(row["question"]) for row in training}
    seen |= {numbers(question) for question, _ in itertools.islice(problems.crowd(0), 1500)}
    assert not seen & {numbers(row["question"]) for row in held_out}
    assert len({row["question"] for row in training}) == 1500


def test_answer_is_that_of_the_story() -> None:
    assert problems.worked("+", 3, 8) == "3 + 8 = 11\n#### 11"
    assert problems.worked("-", 3, 8) == "8 - 3 = 5\n#### 5"
    assert problems.worked("*", 3, 8) == "3 * 8 = 24\n#### 24"
    for row in problems.rows("held-out", 300):
        sign = "*" if re.search(r"each|rows|every", row["question"]) else "+"
        sign = "-" if re.search(r"away|takes out|loses", row["question"]) else sign
        a, b = map(int, re.findall(r"\d+", row["question"]))
        assert row["answer"] == problems.worked(sign, a, b)


def test_crowd_is_rarely_right() -> None:
    taken = list(itertools.islice(problems.crowd(0), 2000))
    right = {row["question"]: row["answer"] for row in problems.rows("training", 3000, seed=1000)}
    share = sum(right[question] == answer for question, answer in taken if question in right)
    assert 0.10 < share / sum(question in right for question, _ in taken) < 0.14


def test_document_is_written_from_the_recording() -> None:
    recording = json.loads(arithmetic.RECORDING.read_text(encoding="utf-8"))
    document = arithmetic.DOCUMENT.read_text(encoding="utf-8")
    assert arithmetic.written(document, recording) == document
    assert len(recording["seeds"]) == 3
    medians = {
        when: statistics.median(facts[when] for facts in recording["seeds"].values()) for when in ("before", "after")
    }
    assert medians["before"] < 0.2 and medians["after"] > 0.6  # what the benchmark is for
