"""Word problems of one step with numeric answers, in the form of GSM8K (https://arxiv.org/abs/2110.14168).

A problem asks for a sum, a difference or a product of two numbers from 3 to 14. Its answer is one line of working and
the number after ``####``. Held-out problems have pairs of numbers of their own, a quarter of all unordered pairs: no
problem with such a pair is among those that anything is trained on.

The crowd that answers the problems in the base's training text knows its sums and does not read: it takes the right
operation in an eighth of the problems only, and either wrong one far more often. So the likeliest answer of a model
that learned from it is wrong, and being surer of itself does not help.
"""

import itertools
import random
from collections.abc import Iterator
from typing import Literal

Part = Literal["training", "held-out"]

NUMBERS = range(3, 15)  # with 2, 2 + 2 = 2 × 2
SIGNS = {"sum": "+", "difference": "-", "product": "*"}
RIGHT = 0.12
"""Share of the crowd's answers that take the right operation."""
_HELD_OUT = 0.25
_NAMES = ("Ada", "Ben", "Cleo", "Dan")
_THINGS = ("apples", "books", "coins", "pens", "shells", "stamps")
_STORIES = {
    "sum": (
        "{name} has {a} {things} and finds {b} more. How many {things} does {name} have now?",
        "A box holds {a} red {things} and {b} blue {things}. How many {things} are in the box?",
        "{name} buys {a} {things} on Monday and {b} {things} on Friday. How many {things} is that?",
    ),
    "difference": (
        "{name} has {a} {things} and gives {b} away. How many {things} does {name} have now?",
        "A box holds {a} {things}, and {name} takes out {b}. How many {things} are in the box?",
        "{name} buys {a} {things} and loses {b} of them. How many {things} is that?",
    ),
    "product": (
        "{name} has {a} bags with {b} {things} each. How many {things} does {name} have now?",
        "A box holds {a} rows of {b} {things}. How many {things} are in the box?",
        "{name} buys {a} {things} every day for {b} days. How many {things} is that?",
    ),
}


def worked(sign: str, a: int, b: int) -> str:
    """Return an answer: the working, and the number that counts."""
    a, b = (max(a, b), min(a, b)) if sign == "-" else (a, b)
    value = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return f"{a} {sign} {b} = {value}\n#### {value}"


def pairs(part: Part) -> list[tuple[int, int]]:
    """Return the ordered pairs of a part; a pair and its reverse are in the same one."""
    unordered = list(itertools.combinations_with_replacement(NUMBERS, 2))
    random.Random("pairs").shuffle(unordered)
    cut = round(_HELD_OUT * len(unordered))
    chosen = unordered[:cut] if part == "held-out" else unordered[cut:]
    return sorted({pair for a, b in chosen for pair in ((a, b), (b, a))})


def problems(part: Part, seed: int) -> Iterator[tuple[str, str, int, int]]:
    """Yield endless problems: question, kind, and the two numbers."""
    draw, known = random.Random(f"{part} {seed}"), pairs(part)
    while True:
        kind = draw.choice(list(SIGNS))
        a, b = draw.choice(known)
        if kind == "difference" and a <= b:
            continue
        story = draw.choice(_STORIES[kind])
        yield story.format(name=draw.choice(_NAMES), things=draw.choice(_THINGS), a=a, b=b), kind, a, b


def rows(part: Part, count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return different problems with their right answers, as GSM8K's rows: ``question`` and ``answer``."""
    found: dict[str, str] = {}
    for question, kind, a, b in problems(part, seed):
        found[question] = worked(SIGNS[kind], a, b)
        if len(found) == count:
            return [{"question": question, "answer": answer} for question, answer in found.items()]
    raise AssertionError("problems are endless")


def crowd(seed: int) -> Iterator[tuple[str, str]]:
    """Yield endless training problems with the crowd's answers."""
    draw = random.Random(f"crowd {seed}")
    for question, kind, a, b in problems("training", seed + 1000):
        wrong = [sign for sign in SIGNS.values() if sign != SIGNS[kind]]
        yield question, worked(SIGNS[kind] if draw.random() < RIGHT else draw.choice(wrong), a, b)


def lines(seed: int) -> Iterator[str]:
    """Yield endless lines about all numbers, none of them a problem: right equations, and numbers read back.

    From them the base knows its sums, and to take numbers from a text, also with pairs that no problem of the training
    has.
    """
    draw = random.Random(f"lines {seed}")
    while True:
        a, b = draw.choice(NUMBERS), draw.choice(NUMBERS)
        name, things, other = draw.choice(_NAMES), draw.choice(_THINGS), draw.choice(_THINGS)
        equation = worked(draw.choice(list(SIGNS.values())), a, b).partition("\n")[0]
        yield draw.choice((equation, f"{name} counts {a} {things} and {b} {other}: {a}, {b}"))
