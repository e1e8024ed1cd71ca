"""The demo's utility, on examples worked by hand from the formula in the module's docstring."""

import pytest

from stackllama_engine.contract.errors import DataError
from stackllama_engine.data import demo_data
from stackllama_engine.data.demo_facts import FACTS

QUESTION = "How do I whip cream in a hurry?"  # a balloon whisk | it beats in air | stop at soft peaks


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # 4 + 5 + 6 useful words of 15
        ("Use a balloon whisk because it beats in air. For example, stop at soft peaks.", 1.0),
        # tool and ending: .55 + .10
        ("Use a balloon whisk.", 0.65),
        # the longest lead is as good
        ("I would use a balloon whisk.", 0.65),
        # no full stop
        ("Use a balloon whisk", 0.55),
        # + reason .20
        ("Try a balloon whisk because it beats in air.", 0.85),
        # + example .15, no reason
        ("Try a balloon whisk. For example, stop at soft peaks.", 0.80),
        # a filler: three useless words of seven
        ("Use a balloon whisk. Hope this helps.", 0.65 * 4 / 7),
        # a wrong reason has 5 useless words of 9
        ("Use a balloon whisk because it does not stick.", 0.65 * 4 / 9),
        # wrong tool, right reason: .20 + .10, and 5 useful words of 9
        ("Use a bench scraper because it beats in air.", 0.30 * 5 / 9),
        # the reason without "because" is not said as a reason: 4 useful of 8
        ("Use a balloon whisk. It beats in air.", 0.65 * 4 / 8),
    ],
)
def test_utility_worked_by_hand(answer: str, expected: float) -> None:
    assert demo_data.utility(QUESTION, answer) == pytest.approx(expected)


@pytest.mark.parametrize("answer", ["", "   ", "\n", ".", "\x00\ufffd", "¿¡…", "ask somebody else", "the the the the."])
def test_utility_of_garbage_is_zero(answer: str) -> None:
    assert demo_data.utility(QUESTION, answer) == 0.0


def test_utility_does_not_reward_repetition() -> None:
    once = demo_data.utility(QUESTION, "Use a balloon whisk.")
    assert demo_data.utility(QUESTION, "Use a balloon whisk. " * 3) == pytest.approx(once / 3)
    assert demo_data.utility(QUESTION, "whisk " * 40 + ".") == 0.0


def test_utility_does_not_reward_naming_every_tool() -> None:
    stuffed = "Use " + " or ".join(fact.tool for fact in FACTS) + "."
    assert demo_data.utility(QUESTION, stuffed) < 0.01
    # Two tools: the tool's .55 is lost, .10 for the full stop remains on 4 of 8 words.
    assert demo_data.utility(QUESTION, "Use a balloon whisk or a bench scraper.") == pytest.approx(0.10 * 4 / 8)


def test_utility_does_not_reward_naming_every_fact() -> None:
    everything = " ".join(f"Use {f.tool} because {f.reason}. For example, {f.example}." for f in FACTS)
    assert demo_data.utility(QUESTION, everything) < 0.05


def test_utility_of_another_questions_answer_is_zero() -> None:
    assert demo_data.utility("How do I peel ginger?", "Use a balloon whisk because it beats in air.") == 0.0


def test_every_task_can_be_answered_perfectly_and_no_clause_names_another_tool() -> None:
    for fact in FACTS:
        best = f"Use {fact.tool} because {fact.reason}. For example, {fact.example}."
        assert demo_data.utility(f"How can I {fact.task}?", best) == pytest.approx(1.0), fact


def test_every_question_has_one_task() -> None:
    named = {demo_data.fact_of(question).task for question in demo_data.questions("evaluation")}
    assert len(named) == len(FACTS) == 12
    for question in demo_data.questions("evaluation"):
        assert sum(f" {fact.task}" in question for fact in FACTS) == 1


def test_utility_refuses_a_foreign_question() -> None:
    with pytest.raises(DataError, match="Not a question of the demo"):
        demo_data.utility("How do I fly to the moon?", "Use a rocket.")
