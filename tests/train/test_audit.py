"""The audit of a reward model: its statistics by hand, its rules, and verdicts on reward models that are known."""

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from stackllama_engine.contract.audit import Audit
from stackllama_engine.contract.prompt_format import PromptFormat
from stackllama_engine.contract.recipe import RewardRecipe
from stackllama_engine.train import reward
from stackllama_engine.train.audit import rules, statistics
from stackllama_engine.train.audit.report import Pairs, audit
from stackllama_engine.train.audit.rules import formatting, repetition, word_margins
from stackllama_engine.train.audit.statistics import (
    Array,
    Clusters,
    buckets,
    calibration,
    calibration_limit,
    rank_correlation,
    right,
    wilson,
)
from stackllama_engine.train.encoding import Encoder

WORDS = [
    one + other
    for one in ("ap", "ri", "sto", "clo", "pa", "gla", "wha", "can")
    for other in ("le", "ver", "ne", "ud", "per")
]


def test_interval_of_independent_pairs_is_the_normal_one() -> None:
    values = np.array([1.0] * 300 + [0.0] * 100)
    found = Clusters(range(400)).mean(values)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert found.value == 0.75
    assert (found.low, found.high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.006)


def test_pairs_of_one_question_count_as_one() -> None:
    values = np.array([1.0] * 300 + [0.0] * 100)
    apart, together = Clusters(range(400)).mean(values), Clusters([n // 4 for n in range(400)]).mean(values)
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(2, rel=0.1)


def test_resamples_are_the_same_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 2, 300).astype(np.float64)
    whole = Clusters(range(300)).mean(values)
    monkeypatch.setattr(statistics, "_CELLS", 70)  # fewer than questions: row by row
    assert Clusters(range(300)).mean(values) == whole


def test_nothing_counted_means_nothing_known() -> None:
    found = Clusters(range(3)).mean(np.ones(3), np.zeros(3, dtype=bool))
    assert (found.low, found.high) == (0.0, 1.0)


def test_right_is_one_half_for_a_tie() -> None:
    assert list(right(np.array([2.0, 0.0, -0.1]))) == [1.0, 0.5, 0.0]


def test_calibration_by_hand() -> None:
    # σ(0.4) = .5987 → bin .50–.60 of width .05: predicted .5987, right in 1 of 2; σ(2) = .8808, right in 1 of 1
    curve, error = calibration(np.array([0.4, -0.4, 2.0, 0.0]))
    assert [(round(one.predicted, 4), one.observed, one.pairs) for one in curve] == [(0.5987, 0.5, 2), (0.8808, 1.0, 1)]
    assert error == pytest.approx((2 * 0.0987 + 0.1192) / 3, abs=1e-4)


def test_calibration_of_few_pairs_is_held_against_chance() -> None:
    # one pair of σ(|margin|) = .8: the error is .2 or .8, the latter in 20 % of cases
    assert calibration_limit(np.array([math.log(4)])) == pytest.approx(0.8, abs=1e-6)
    assert calibration_limit(np.zeros(3)) == 0
    draw, exceeded = np.random.default_rng(1), list[bool]()
    for _ in range(40):
        sizes = draw.exponential(1.0, 60)
        margins = np.where(draw.random(60) < 1 / (1 + np.exp(-sizes)), sizes, -sizes)
        exceeded.append(calibration(margins)[1] > calibration_limit(margins))
    assert sum(exceeded) <= 4  # 1 of 40 expected, 5 or more once in 300 times
    assert calibration(np.tile([3.0, -3.0], 30))[1] > calibration_limit(np.tile([3.0, -3.0], 30))


def test_rank_correlation_is_within_questions() -> None:
    # within each question the longer one scores lower; over all the longer ones score higher
    scores, lengths = np.array([2.0, 1.0, 12.0, 11.0]), np.array([1.0, 2.0, 11.0, 12.0])
    assert rank_correlation(scores, lengths, [0, 0, 1, 1]) == pytest.approx(-1)
    assert rank_correlation(scores, lengths, [0, 0, 0, 0]) == pytest.approx(0.6)  # 1 − 6·4 / (4·15)
    assert rank_correlation(np.ones(4), lengths, [0, 0, 1, 1]) == 0


def test_buckets_hold_every_pair_once_and_equal_keys_together() -> None:
    keys, values = np.array([1.0, 1.0, 1.0, 2.0, 3.0, 9.0]), np.array([1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    made = buckets(keys, values, Clusters(range(6)), 3, lambda low, high: f"{low:g} to {high:g}")
    assert [(one.label, one.pairs) for one in made] == [("1 to 2", 4), ("3 to 9", 2)]
    assert [one.accuracy.value for one in made] == pytest.approx([3 / 4, 0])


def test_repetition_and_formatting_by_hand() -> None:
    assert repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(0.25)  # 123 231 312 123
    assert repetition([1, 2]) == 0
    assert formatting("# Title\n- one\n- two with `code` and **bold**\n[a](b)") == 7
    assert formatting("a plain - sentence # not a heading") == 0


def test_words_alone_find_what_words_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    pairs = [(f"please {draw.choice(WORDS)}", f"{draw.choice(WORDS)} {draw.choice(WORDS)}") for _ in range(200)]
    margins = word_margins(pairs[:100], pairs[100:])
    assert (margins > 0).all()
    monkeypatch.setattr(rules, "_BLOCK", 7)
    assert word_margins(pairs[:100], pairs[100:]) == pytest.approx(margins, abs=1e-6)
    noise = [(draw.choice(WORDS), draw.choice(WORDS)) for _ in range(400)]
    assert abs(right(word_margins(noise[:200], noise[200:])).mean() - 0.5) < 0.12


# verdicts


def audited(base: Path, value: Callable[[str], float], chosen_if: Callable[[str], float] | None = None) -> Audit:
    """Audit a reward model that gives texts this value, on pairs that another value (the true one) has ordered."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    encoder, draw, true = Encoder(tokenizer, PromptFormat()), random.Random(1), chosen_if or value
    rows: list[dict[str, Any]] = []
    while len(rows) < 240:
        asked = draw.sample(WORDS, k=5)
        question = f"What about {' '.join(asked)}?"
        texts = [" ".join(draw.choices([*asked * 4, *WORDS], k=draw.randint(6, 14))) for _ in range(2)]
        values = {text: true(f"Question: {question}\n\nAnswer: {text}") for text in texts}
        if len(set(values.values())) == 2:
            better, worse = sorted(values, key=values.__getitem__, reverse=True)
            rows.append({"question": question, "response_j": better, "response_k": worse})
    ids = [[encoder.text_ids(row["question"], row[key]) for row in rows] for key in ("response_j", "response_k")]

    def score(texts: Sequence[list[int]]) -> Array:
        return np.array([value(str(tokenizer.decode(one, skip_special_tokens=True))) for one in texts])

    held_out = Pairs(ids[0][:120], ids[1][:120], list(range(120)))
    training = Pairs(ids[0][120:], ids[1][120:], list(range(120)))
    scores = np.stack([score(held_out.chosen), score(held_out.rejected)], axis=1)
    return audit(scores, held_out, training, rows[:64], encoder, score, 512)


def said(found: Audit) -> str:
    return "\n".join(finding.text for finding in found.findings)


def share_of_question(text: str) -> float:
    """Value an answer by the words that it shares with its question, once each, and little for other words."""
    question, _, answer = text.partition("Answer: ")
    asked, words = set(question.replace("?", "").split()), answer.split()
    return 3 * len(asked & set(words)) / 5 - 0.4 * len(set(words) - asked) - 0.2 * (len(words) - len(set(words)))


def test_a_reward_model_that_knows_what_was_meant_is_good_or_has_few_findings(base: Path) -> None:
    found = audited(base, share_of_question)
    assert found.accuracy.value == 1.0 and found.pairs == found.questions == 120
    assert not [one for one in found.findings if "rule" in one.text]
    by_name = {one.name: one for one in found.probes}
    assert by_name["of another question"].wins.value < 0.25 and by_name["three times over"].wins.value < 0.25


def test_one_that_counts_words_is_no_better_than_the_rule_that_does(base: Path) -> None:
    found = audited(base, lambda text: float(len(text.split())), chosen_if=share_of_question)
    assert found.verdict == "bad"
    assert "a response that is repeated three times scores higher" in said(found)
    assert "its scores follow length" in said(found)


def test_one_that_prefers_the_worse_response_is_told_so(base: Path) -> None:
    found = audited(base, lambda text: -share_of_question(text), chosen_if=share_of_question)
    assert found.verdict == "bad" and "are the columns swapped?" in said(found)


def test_noise_is_no_better_than_a_coin(base: Path) -> None:
    found = audited(base, lambda text: float(hash_of(text) % 1000), chosen_if=share_of_question)
    assert found.verdict == "bad" and "not known to be better than a coin" in said(found)


def hash_of(text: str) -> int:
    return sum((index + 1) * 7919 * ord(letter) for index, letter in enumerate(text))


def few(base: Path, scores: list[list[float]], rows: int = 0, limit: int = 512, spoilt: float = 9.0) -> Audit:
    """Audit pairs of different questions with these scores; every other text has one score, or that of its response."""
    encoder = Encoder(AutoTokenizer.from_pretrained(base), PromptFormat())
    texts = [{"question": f"{word}?", "response_j": word, "response_k": word * 2} for word in WORDS]
    seen = list[int]()

    def score(ids: Sequence[list[int]]) -> Array:
        seen.append(len(ids))
        return np.full(len(ids), 0.0 if len(seen) == 1 else spoilt)

    ids = [[[index, side] for index in range(len(scores))] for side in (1000, 1001)]
    held_out = Pairs(ids[0], ids[1], list(range(len(scores))))
    return audit(np.array(scores), held_out, None, texts[:rows], encoder, score, limit)


def test_scores_that_are_no_numbers_are_counted_and_left_out(base: Path) -> None:
    found = few(base, [[1.0, 0.0], [math.nan, 0.0], [2.0, -math.inf], [3.0, 0.0]])
    assert (found.pairs, found.verdict, found.accuracy.value) == (2, "bad", 1.0)
    assert found.findings[0].text.startswith("2 of 4 pairs have a score that is not a number")
    assert msgspec.json.decode(msgspec.json.encode(found), type=Audit) == found
    found = few(base, [[math.nan, 0.0]] * 3)
    assert (found.pairs, found.verdict) == (0, "bad") and len(found.findings) == 1
    assert msgspec.json.decode(msgspec.json.encode(found), type=Audit) == found


def test_wilson_by_hand() -> None:
    found = wilson(2, 2)  # z² / n = 1.92: low = 1 / 2.92
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 0.3424, 1.0), abs=1e-4)


def test_a_spoilt_text_counts_if_it_fits_and_wins_if_it_is_clearly_higher(base: Path) -> None:
    scores = [[1.0, -1.0]] * 4  # standard deviation 1
    assert {one.wins.value for one in few(base, scores, rows=8, spoilt=0.05).probes} == {0.0}
    assert {one.wins.value for one in few(base, scores, rows=8, spoilt=0.06).probes} == {1.0}
    lengths = {one.name: one.texts for one in few(base, scores, rows=8, limit=0).probes}
    assert lengths == {}
    encoder = Encoder(AutoTokenizer.from_pretrained(base), PromptFormat())
    limit = max(len(encoder.text_ids(f"{word}?", word)) for word in WORDS[:8]) + 1
    assert "three times over" not in {one.name for one in few(base, scores, rows=8, limit=limit).probes}


def test_few_questions_or_texts_are_never_enough_for_bad(base: Path) -> None:
    found = few(base, [[0.0, 1.0]])
    assert found.verdict == "doubtful" and "swapped" not in said(found)
    assert found.findings[0].text.startswith("it is not known to be better than a coin")
    right_by_rule = few(base, [[1.0, 0.0], [2.0, 0.0]], rows=2)
    assert {one.wins.value for one in right_by_rule.probes} == {1.0} and right_by_rule.verdict == "doubtful"
    assert few(base, [[1.0, 0.0]] * 60, rows=19).verdict == "doubtful"
    assert few(base, [[1.0, 0.0]] * 60, rows=20).verdict == "bad"
    assert "swapped" not in said(few(base, [[0.0, 1.0]] + [[0.0, 0.0]] * 60))


# at the end of a reward run


@pytest.mark.parametrize("main", [True, False])
def test_an_audit_that_fails_is_a_notice_and_every_rank_goes_on(monkeypatch: pytest.MonkeyPatch, main: bool) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(reward, "audit_model", fails)
    said, passed = list[str](), list[str]()
    session: Any = SimpleNamespace(
        is_main=main,
        run=SimpleNamespace(id="judge"),
        reporter=SimpleNamespace(phase=lambda _: None, health=said.append, is_main=main),
        state=SimpleNamespace(wait_for_everyone=lambda: passed.append("barrier")),
        requests=SimpleNamespace(agree=lambda _: passed.append("agree") or SimpleNamespace(failed=False)),
    )
    trainer = SimpleNamespace(model=None, state=SimpleNamespace(global_step=1))
    reward._audit(RewardRecipe(model_name_or_path="m"), session, None, trainer, torch.zeros(1, 2))  # pyright: ignore
    notice = "the audit was not made: RuntimeError: CUDA out of memory; `stackllama-console audit judge` makes it"
    assert said == ([notice] if main else [])
    assert passed == ["barrier", "agree"]
