"""Exact-answer match of numbers, as GSM8K is scored (https://github.com/openai/grade-school-math).

Strict: the number behind the last ``####``, the form of GSM8K's own solutions. Flexible: the last number of the
response, wherever it stands. A policy that was not trained on that form is told apart by the two: one has learned the
arithmetic, the other also the form.
"""

import re
from collections.abc import Sequence
from decimal import Decimal

from .values import per_response

Answer = str | int | float | None

_PLAIN = r"[-−]?\$?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(rf"(?<![\w.]){_PLAIN}")  # no minus in `5-3`, and no number in `H2O`
_WHOLE = re.compile(_PLAIN)
_MARKED = re.compile(rf"####\s*({_PLAIN})")


def exact_number(responses: Sequence[str], answer: Sequence[Answer] | Answer) -> list[float | None]:
    """Score 1 where the last number of a response is the answer, else 0.

    Args:
        responses: texts.
        answer: a number, or a text that is one or ends in ``#### 42``; None, or a text of another kind: abstain.
    """
    return _scores(responses, answer, _NUMBER)


def exact_number_strict(responses: Sequence[str], answer: Sequence[Answer] | Answer) -> list[float | None]:
    """Score 1 where the number behind the last ``####`` is the answer, else 0; arguments as :func:`exact_number`."""
    return _scores(responses, answer, _MARKED)


def _scores(
    responses: Sequence[str], answer: Sequence[Answer] | Answer, pattern: re.Pattern[str]
) -> list[float | None]:
    scores: list[float | None] = []
    for response, own in zip(responses, per_response(answer, responses), strict=True):
        wanted = _answer(own)
        numbers = pattern.findall(response)
        scores.append(None if wanted is None else float(bool(numbers) and _value(numbers[-1]) == wanted))
    return scores


def _answer(answer: Answer) -> Decimal | None:
    """Return the number that an answer states; None where it states none."""
    if answer is None or isinstance(answer, bool):
        return None
    text = str(answer).rpartition("####")[2].strip()
    if _WHOLE.fullmatch(text):
        return _value(text)
    return Decimal(text) if isinstance(answer, float) and answer - answer == 0 else None  # 1e+16, but not infinity


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", "").replace("$", "").replace("−", "-"))
