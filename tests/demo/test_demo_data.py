"""The demo's rows: deterministic, split by question, with votes that follow the utility."""

import os
import subprocess
import sys
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackllama_engine.contract.errors import DataError
from stackllama_engine.contract.stages import Split
from stackllama_engine.data import demo_data

COLUMNS = {"question_id", "question", "response_j", "response_k", "score_j", "score_k"}


def test_generate_depends_on_the_seed_only() -> None:
    first = list(demo_data.generate("evaluation", 3))
    assert first == list(demo_data.generate("evaluation", 3))
    assert first != list(demo_data.generate("evaluation", 4))
    assert all(set(row) == COLUMNS for row in first)


def test_generate_gives_the_same_rows_in_another_process() -> None:
    code = (
        "import hashlib, json; from stackllama_engine.data import demo_data;"
        "rows = json.dumps(list(demo_data.generate('evaluation', 1)));"
        "print(hashlib.sha256(rows.encode()).hexdigest())"
    )
    digests: set[str] = set()
    for hash_seed in ("1", "2"):
        environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1


def test_splits_are_disjoint_by_question_whatever_the_seed() -> None:
    asked = {split: set(demo_data.questions(split, seed)) for seed, split in enumerate(Split)}
    for one, other in combinations(Split, 2):
        assert not asked[one] & asked[other]
    assert sum(map(len, asked.values())) == 12 * 12 * 28
    assert min(map(len, asked.values())) > 600
    assert asked[Split.RL] == set(demo_data.questions("rl", 7))


def test_generate_refuses_an_unknown_split() -> None:
    with pytest.raises(DataError, match="no split `test`; it has finetune, reward, rl, evaluation"):
        list(demo_data.generate("test"))


def test_pairs_follow_the_published_rule() -> None:
    counts: dict[int, int] = {}
    for row in demo_data.generate("reward"):
        assert row["score_j"] > row["score_k"] >= -1
        counts[row["question_id"]] = counts.get(row["question_id"], 0) + 1
    assert max(counts.values()) == 10


def test_answers_are_two_to_six_and_different() -> None:
    sizes: set[int] = set()
    for question in demo_data.questions("evaluation"):
        texts = [answer.text for answer in demo_data.answers(question)]
        assert len(set(texts)) == len(texts)
        sizes.add(len(texts))
    assert sizes == {2, 3, 4, 5, 6}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_votes_agree_with_utility(seed: int) -> None:
    rows = list(demo_data.generate("evaluation", seed))
    better = [demo_data.utility(row["question"], row["response_j"]) for row in rows]
    worse = [demo_data.utility(row["question"], row["response_k"]) for row in rows]
    agreed = sum(j > k for j, k in zip(better, worse, strict=True)) / len(rows)
    assert 0.94 < agreed < 1.0  # noisy, and far above the 0.8 that is required of a reward model
    assert 0.4 < sum(better) / len(rows) < 0.6  # the better answer of a pair leaves room above it


def test_the_most_frequent_answer_is_not_the_best_one() -> None:
    """So sharpening the policy's distribution alone does not improve it."""
    rows = list(demo_data.generate("finetune"))
    assert sum(demo_data.utility(row["question"], row["response_j"]) for row in rows) / len(rows) < 0.12
    named: dict[str, Counter[str]] = {}
    for row in rows:
        fact = demo_data.fact_of(row["question"])
        first = row["response_j"].lower()
        named.setdefault(fact.task, Counter()).update(
            kind for kind, tool in (("right", fact.tool), ("popular", fact.popular)) if f" {tool}" in first
        )
    assert all(counts["popular"] > 1.5 * counts["right"] for counts in named.values()), named


def test_fine_tuning_imitates_every_answer_once_and_votes_order_the_other_splits() -> None:
    rows = list(demo_data.generate("finetune"))
    assert len({(row["question"], row["response_j"]) for row in rows}) == len(rows)
    assert any(row["score_j"] < row["score_k"] for row in rows)
    assert all(row["score_j"] > row["score_k"] for row in demo_data.generate("evaluation"))


@pytest.mark.parametrize(("appeal", "votes"), [(-1.0, -2), (0.0, -1), (0.5, 6), (1.0, 62)])
def test_votes_for_worked_by_hand(appeal: float, votes: int) -> None:
    assert demo_data.votes_for(appeal) == votes


@given(st.integers(0, 2**31), st.sampled_from(list(Split)))
def test_any_seed_gives_utilities_in_range(seed: int, split: Split) -> None:
    question = demo_data.questions(split, seed)[0]
    for answer in demo_data.answers(question, seed):
        assert 0.0 <= demo_data.utility(question, answer.text) <= 1.0


def test_length_alone_does_not_explain_the_votes() -> None:
    rows = list(demo_data.generate("evaluation"))
    longer = sum(len(row["response_j"]) > len(row["response_k"]) for row in rows) / len(rows)
    assert 0.3 < longer < 0.7
