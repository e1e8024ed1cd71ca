"""The embedded demo: questions with answers of *known* quality, and votes that follow it with noise.

Nothing here is learned or downloaded: 12 tasks (:mod:`.demo_facts`) × 12 openings × 28 circumstances make 4,032
questions; each is in one split, whatever the seed (:mod:`.splits`). Because quality is computed from the text, it can
also be computed for a policy's responses: the demo reports the *true* utility beside the reward model's score.

**Utility** of an answer, between 0 and 1 (:func:`utility`)::

    utility = clarity · (0.55·tool + 0.20·reason + 0.15·example + 0.10·ending)

    tool     1 if the answer names the right tool and no other tool of the table, else 0
    reason   1 if it says "because" and this task's reason, else 0
    example  1 if it says "for example" and this task's example, else 0
    ending   1 if its last character is a full stop, else 0
    clarity  words of those three clauses, each counted once, divided by all words

So repetition, padding, hedging between tools, wrong reasons and garbage cost clarity or the tool.

**The crowd** is wrong on purpose: a quarter or less of the answers name the right tool (:data:`KNOWN`), most of the
others the popular wrong one (:class:`.demo_facts.Fact`). So the most frequent answer is not the best one, and a policy
that is only more certain does not improve. Fine-tuning imitates *all* answers; votes order the pairs of the other
splits.

**Votes**: appeal = utility + normal noise (mean 0, deviation :data:`NOISE`); votes = round(2^(6·appeal)) − 2, so a
useless answer is voted down and a perfect one gets about 62 (:func:`votes_for`). For half of the questions the answer
of highest appeal is accepted if its votes are positive. Scores and pairs then follow the published rule
(:mod:`.pairs`). Ordering pairs by true utility agrees with the votes on 95 to 98 % of them, which is the upper bound.
"""

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from ..contract.errors import DataError
from ..contract.stages import Split
from .demo_facts import FACTS, Fact
from .pairs import Answer, make_pairs, score
from .splits import split_of

NOISE = 0.04
"""Standard deviation of the noise on utility, before it becomes votes."""

WEIGHTS = {"tool": 0.55, "reason": 0.20, "example": 0.15, "ending": 0.10}

OPENINGS = (
    "How do I",
    "How can I",
    "How should I",
    "How would you",
    "What should I use to",
    "What is a good way to",
    "What do people use to",
    "What helps to",
    "Is there a simple way to",
    "Which tool is right to",
    "Can you tell me how to",
    "What would you take to",
)
CIRCUMSTANCES = (
    "",
    " today",
    " tonight",
    " at home",
    " at work",
    " in a hurry",
    " for a friend",
    " as a beginner",
    " without much effort",
    " for the first time",
    " with little money",
    " on my own",
    " every week",
    " in an old house",
    " on a rainy day",
    " before dinner",
    " with a child",
    " in winter",
    " in summer",
    " after a long day",
    " without help",
    " in ten minutes",
    " for my parents",
    " at school",
    " on a train",
    " once a month",
    " properly",
    " quickly",
)
KNOWN = {"git": 0.25, "kitchen": 0.12, "garden": 0.08}
"""Share of answers by authors who know the right tool, by domain."""
POPULAR = 0.7
"""Share of the other answers that name the popular wrong tool; the rest guess in the same domain."""
REASONS, EXAMPLES = {True: 0.5, False: 0.3}, {True: 0.4, False: 0.15}
"""Shares of answers with a reason, and with an example, by whether their author knows the right tool."""
EXCUSES = ("it is at hand", "everybody does it", "it always worked")
LEADS = ("Use", "Try", "Take", "I would use")
FILLERS = (
    "Good question.",
    "Well, it depends.",
    "I had the same problem once.",
    "Hope this helps!",
    "Many people ask about this.",
    "There is a lot to say here.",
)


def questions(split: str, seed: int = 0) -> list[str]:
    """List the questions of one split; the seed changes their order only.

    Raises:
        DataError: no such split.
    """
    if split not in _split_questions():
        raise DataError(f"The demo has no split `{split}`; it has {', '.join(Split)}.")
    chosen = list(_split_questions()[split])
    random.Random(f"order {seed} {split}").shuffle(chosen)  # noqa: S311
    return chosen


def utility(question: str, answer: str) -> float:
    """Compute the true quality of an answer to one of the demo's questions, in [0, 1]; see the module.

    Raises:
        DataError: the question is not one of the demo's, so its right answer is unknown.
    """
    fact = fact_of(question)
    text = _words(answer)
    if not text:
        return 0.0
    tool, reason, example = _clauses(fact)
    has = {
        "tool": {name for name in _tool_names() if name in text} == {_tool_name(fact.tool)},
        "reason": reason in text,
        "example": example in text,
        "ending": answer.rstrip().endswith("."),
    }
    useful = max((clause.count(" ") - 1 for clause in tool if clause in text), default=0)
    useful += (reason.count(" ") - 1) * has["reason"] + (example.count(" ") - 1) * has["example"]
    return useful / (text.count(" ") - 1) * sum(WEIGHTS[part] for part, present in has.items() if present)


def fact_of(question: str) -> Fact:
    """Return the task that a question asks about.

    Raises:
        DataError: it is not a question of the demo.
    """
    text = _words(question)
    for task, fact in _tasks().items():
        if task in text:
            return fact
    raise DataError(f"Not a question of the demo, so its utility is unknown: {question[:80]!r}.")


def generate(split: str, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the pairs of one split: question_id, question, response_j (better), response_k, score_j, score_k.

    The fine-tuning split has each answer once as ``response_j``, with the next one of its question as ``response_k``:
    it imitates what people write, not what they prefer.

    Raises:
        DataError: no such split.
    """
    for question in questions(split, seed):
        number = question_id(question)
        written = answers(question, seed)
        imitated = zip(written, written[1:] + written[:1], strict=True)
        voted = make_pairs(number, written, seed=seed).kept
        for better, worse in imitated if split == Split.FINETUNE else voted:
            yield {
                "question_id": number,
                "question": question,
                "response_j": better.text,
                "response_k": worse.text,
                "score_j": better.score,
                "score_k": worse.score,
            }


def answers(question: str, seed: int = 0) -> list[Answer]:
    """Generate two to six different answers, mostly poor ones, each with its score by the published rule."""
    draw = random.Random(f"answers {seed} {question}")  # noqa: S311
    wanted = draw.choices((2, 3, 4, 5, 6), (5, 5, 10, 20, 60))[0]
    texts: dict[str, None] = {}
    while len(texts) < wanted:
        texts[write_answer(fact_of(question), draw)] = None
    appeal = [utility(question, text) + draw.gauss(0, NOISE) for text in texts]
    votes = [votes_for(value) for value in appeal]
    best = appeal.index(max(appeal))
    accepted = best if votes[best] > 0 and draw.random() < 0.5 else None
    return [Answer(n, score(votes[n], accepted=n == accepted), text) for n, text in enumerate(texts)]


def votes_for(appeal: float) -> int:
    """Return up-votes minus down-votes: −1 for an appeal of 0, 62 for 1."""
    return round(2 ** (6 * appeal)) - 2


def write_answer(fact: Fact, draw: random.Random) -> str:
    """Write one answer of an author who knows the right tool, names the popular one, or guesses.

    An author who knows mostly gives the right reason and example as well; either may be missing, hedged, padded or
    truncated. One who names the popular tool gives an excuse as the reason.
    """
    others = [other for other in FACTS if other.domain == fact.domain and other != fact]
    knows = draw.random() < KNOWN[fact.domain]
    popular = not knows and draw.random() < POPULAR
    tool = fact.tool if knows else fact.popular if popular else draw.choice(others).tool
    sentence = f"{draw.choice(LEADS)} {tool}"
    if draw.random() < 0.08:
        sentence += f" or {draw.choice([other.tool for other in others if other.tool != tool])}"
    if draw.random() < REASONS[knows]:
        sentence += f" because {draw.choice(EXCUSES) if popular else _recalled(fact, others, knows, draw).reason}"
    sentences = [sentence + "."]
    if draw.random() < EXAMPLES[knows]:
        sentences.append(f"For example, {_recalled(fact, others, knows, draw).example}.")
    if draw.random() < 0.06:
        sentences.append(sentences[0])
    for _ in range(draw.choices((0, 1, 2), (45, 40, 15))[0]):
        sentences.insert(draw.choice((0, len(sentences))), draw.choice(FILLERS))
    text = " ".join(sentences)
    return text.rsplit(" ", 2)[0] if draw.random() < 0.06 else text


def _recalled(fact: Fact, others: Sequence[Fact], knows: bool, draw: random.Random) -> Fact:
    """Draw the fact whose reason or example the author gives: the right one (0.9 if known, else 0.2) or another."""
    return fact if draw.random() < (0.9 if knows else 0.2) else draw.choice(others)


def question_id(question: str) -> int:
    """Return the question's number, which does not depend on split or seed."""
    return _numbers()[question]


@cache
def _numbers() -> dict[str, int]:
    every = itertools.product(FACTS, OPENINGS, CIRCUMSTANCES)
    return {f"{opening} {fact.task}{when}?": number for number, (fact, opening, when) in enumerate(every)}


@cache
def _split_questions() -> dict[str, list[str]]:
    by_split: dict[str, list[str]] = {str(split): [] for split in Split}
    for question in _numbers():
        by_split[split_of(question)].append(question)
    return by_split


def _words(text: str) -> str:
    """Return the words in lower case, each between spaces, so that `in` matches whole words only."""
    words = re.findall(r"[\w'-]+", text.lower())
    return f" {' '.join(words)} " if words else ""


def _tool_name(tool: str) -> str:
    """Return the tool without its article, as words."""
    return _words(re.sub(r"^(a|an|the) ", "", tool))


@cache
def _tool_names() -> frozenset[str]:
    return frozenset(_tool_name(tool) for fact in FACTS for tool in (fact.tool, fact.popular))


@cache
def _tasks() -> dict[str, Fact]:
    return {_words(fact.task): fact for fact in FACTS}


@cache
def _clauses(fact: Fact) -> tuple[list[str], str, str]:
    """Return the clauses of the tool (with each lead, and bare), the reason and the example, as words."""
    tool = [_words(f"{lead} {fact.tool}") for lead in LEADS] + [_tool_name(fact.tool)]
    return tool, _words(f"because {fact.reason}"), _words(f"for example {fact.example}")
