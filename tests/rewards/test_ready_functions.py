"""The ready reward functions."""

import re
import subprocess
import sys
from typing import Any

import pytest

from stackllama_engine.rewards import exact_number, exact_number_strict, matches, target_length, valid_json


@pytest.mark.parametrize(
    ("response", "answer", "flexible", "strict"),
    [
        ("6 times 7 is 42.\n#### 42", "6 * 7 = <<6*7=42>>42\n#### 42", 1, 1),
        ("So it is 42.", "42", 1, 0),
        ("42, or so. I am 99% sure", 42, 0, 0),
        ("#### 42 of them, in 3 boxes", 42, 0, 1),
        ("#### 41\n#### 42", 42, 1, 1),
        ("#### $1,234.50", "1234.5", 1, 1),
        ("It costs $1,234", 1234.0, 1, 0),
        ("4.20 apples", 4.2, 1, 0),
        ("about .5", "0.5", 1, 0),
        ("it falls to -3", "-3", 1, 0),
        ("it falls to −3", "-3", 1, 0),
        ("10-3", 3, 1, 0),
        ("10-3", -3, 0, 0),
        ("take 2 of H2O", 2, 1, 0),
        ("1,2", 12, 0, 0),
        ("1,234,567", "#### 1,234,567", 1, 0),
        ("#### ten", 10, 0, 0),
        ("", 0, 0, 0),
        ("10000000000000000", 1e16, 1, 0),
        ("12345678901234567891", 12345678901234567890, 0, 0),
    ],
)
def test_exact_numbers(response: str, answer: Any, flexible: float, strict: float) -> None:
    assert exact_number([response], [answer]) == [flexible]
    assert exact_number_strict([response], answer) == [strict]


@pytest.mark.parametrize("answer", [None, "", "ten", "#### ten", "42 apples", True, float("nan"), float("inf")])
def test_an_answer_that_is_no_number_is_not_scored(answer: Any) -> None:
    assert exact_number(["42"], [answer]) == exact_number_strict(["42"], [answer]) == [None]


def test_patterns_of_a_column_or_of_the_recipe() -> None:
    assert matches(["<b>x</b>", "x\ny"], r"^<b>.*</b>$") == [1.0, 0.0]
    assert matches(["a", "b", "c"], ["a", "[xy]", None]) == [1.0, 0.0, None]
    with pytest.raises(re.error):
        matches(["a"], "(")


@pytest.mark.parametrize("text", ['{"a": [1, null]}', " 3.5e2\n", '"x"', "[]", "9" * 5000])
def test_json(text: str) -> None:
    assert valid_json([text]) == [1.0]


@pytest.mark.parametrize(
    "text", ["", "{'a': 1}", "[1,]", "{} and more", "NaN", "[Infinity]", "```json\n{}\n```", "[" * 99999]
)
def test_no_json(text: str) -> None:
    assert valid_json([text]) == [0.0]


def test_target_length_falls_to_both_sides() -> None:
    texts = ["a " * count for count in (0, 2, 4, 5, 8, 20)]
    assert target_length(texts, 4) == [0.0, 0.5, 1.0, 0.75, 0.0, 0.0]
    assert target_length(["a b", "a"], [2, None]) == [1.0, None]
    for words, said in (
        (0, "0, and must be above 0"),
        ("-1", "must be above 0"),
        ("two", "'two', and must be a number"),
    ):
        with pytest.raises(ArithmeticError, match=said):
            target_length(["a"], words)


def test_columns_of_csv_files_are_texts_and_blank_where_there_is_no_value() -> None:
    responses = ["a b", "a 2", "a", ""]
    assert target_length(responses, ["2", " 4.0 ", "", " "]) == [1.0, 0.5, None, None]
    assert matches(responses[:2], ["a", ""]) == [1.0, None]
    assert exact_number(responses[:2], ["", " 2 "]) == [None, 1.0]


def test_they_import_nothing_that_trains() -> None:
    code = "import sys, stackllama_engine.rewards; assert not {'torch', 'numpy', 'msgspec'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
