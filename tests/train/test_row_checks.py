"""Rows that a limit changes, pairs without a signal, evaluation on training rows: counted and said."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from stackllama_engine.contract.errors import DataError
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.data.splits import question_hash
from stackllama_engine.train.lengths import PROMPT, LengthLimit
from stackllama_engine.train.overlap import COLUMN, Overlap
from stackllama_engine.train.pair_filter import PairFilter, pair_notices
from stackllama_engine.train.ppo.prompts import Prompt, report_prompts

from .in_process import attempt
from .toy import PPO, REWARD, SFT


def rows_of(*lengths: tuple[int, int]) -> Dataset:
    return Dataset.from_list([{PROMPT: prompt, "input_ids": [7] * total} for prompt, total in lengths])


def streamed(rows: Dataset) -> IterableDataset:
    return rows.to_iterable_dataset()


def test_cut_rows_are_counted_and_those_without_an_answer_dropped() -> None:
    limit = LengthLimit(8, "training", cuts=True)
    kept = limit(rows_of((3, 8), (3, 9), (3, 20), (7, 12), (8, 12), (9, 12)))
    assert [len(row["input_ids"]) for row in kept] == [8, 9, 20, 12]  # type: ignore[index,call-overload]
    assert kept.column_names == ["input_ids"]
    assert (limit.cut, limit.only_end, limit.dropped) == (3, 1, 2)
    assert limit.notice() == (
        "3 training rows are cut to `max_length=8` tokens and lose the end of the answer (1 lose only the end token); "
        "2 training rows dropped: their prompt alone fills 8 tokens"
    )
    with pytest.raises(
        DataError, match="`max_length=8`: none of 1 training rows has a prompt that leaves room for an answer"
    ):
        LengthLimit(8, "training", cuts=True)(rows_of((8, 9)))


def test_what_is_split_or_fits_is_not_counted() -> None:
    for limit, rows in (
        (LengthLimit(8, "training", cuts=False), rows_of((8, 20))),
        (LengthLimit(8, "training", cuts=True), rows_of((3, 8))),
    ):
        assert len(limit(rows)) == 1  # type: ignore[arg-type]
        assert limit.notice() is None


def test_rows_of_a_stream_are_counted_as_they_come() -> None:
    limit = LengthLimit(8, "training", cuts=True)
    kept: Any = limit(streamed(rows_of((9, 9), (3, 9))))
    assert [row["input_ids"] for row in kept] == [[7] * 9]
    assert (limit.cut, limit.dropped) == (1, 1)


def pairs_of(*pairs: tuple[str, str]) -> Dataset:
    return Dataset.from_list([{"chosen_ids": [*map(ord, a)], "rejected_ids": [*map(ord, b)]} for a, b in pairs])


def test_identical_pairs_are_dropped_and_contradicting_ones_counted() -> None:
    training, held_out = PairFilter(4, "training"), PairFilter(4, "evaluation")
    rows = pairs_of(("ab", "ab"), ("ab", "ac"), ("ac", "ab"), ("ab", "ac"), ("abcde", "a"), ("ab", "ad"))
    assert len(training(rows)) == 4  # type: ignore[arg-type]
    assert (training.identical, training.too_long, training.contradicting) == (1, 1, 2)
    assert len([*held_out(streamed(rows))]) == 4
    assert held_out.identical == 1
    assert pair_notices(training, held_out) == [
        "1 training and 1 evaluation pairs dropped: one of their texts is longer than 4 tokens",
        "1 training and 1 evaluation pairs dropped: both of their texts are the same",
        "2 training and 0 evaluation pairs contradict another one of the same question (A over B, and B over A)",
    ]
    with pytest.raises(
        DataError, match=r"None of 1 training pairs can be used: 0 have a text .*, 1 have the same text twice"
    ):
        PairFilter(4, "training")(pairs_of(("a", "a")))


def test_evaluation_rows_that_are_trained_on_are_found() -> None:
    def rows(*questions: str) -> Dataset:
        return Dataset.from_list([{COLUMN: question_hash(question), "n": 1} for question in questions])

    recipe: Any = load_recipe(Stage.SFT, None, ["model_name_or_path=demo", "dataset_test_split=test"])
    held_out = rows("a", "b", "b", "c")
    for training in (rows("b", "x", "c", "b"), streamed(rows("b", "x", "c", "b"))):
        overlap = Overlap(held_out)
        assert len([*overlap.watch(training)]) == 4
        assert "not held out: 3 of 4 evaluation rows have a question that is also" in (overlap.notice(recipe) or "")
        assert "`dataset_test_split=test`" in (overlap.notice(recipe) or "")
    overlap = Overlap(held_out)
    overlap.watch(rows(" A\n"))  # a copy that came through another exporter
    assert overlap.rows == 1
    overlap = Overlap(held_out)
    overlap.watch(rows("x"))
    assert overlap.notice(recipe) is None


def test_held_out_prompts_of_ppo_that_are_trained_on_are_said(base: Path, shared_home: Home) -> None:
    with attempt(shared_home, base, Stage.PPO, *PPO, "reward_model_path=unused") as one:
        prompts = [Prompt(question, None) for question in "abc"]  # type: ignore[arg-type]
        report_prompts(one.recipe, prompts[:2], prompts[1:], one.session.reporter)
        report_prompts(one.recipe, prompts[:2], prompts[2:], one.session.reporter)
        assert one.health.count("not held out: 1 of 2 evaluation prompts") == 1
        assert one.health.count("not held out") == 1


@pytest.mark.slow
def test_stages_say_what_became_of_their_rows(base: Path, shared_home: Home, tmp_path: Path) -> None:
    """Through the stages: a column read into the prompt, rows cut, equal pairs, and evaluation on training rows."""
    lines = [
        f'{{"instruction": "How {n}?", "input": "x", "chosen": "{"take a hammer " * 3}", "rejected": "{worse}"}}\n'
        for n, worse in enumerate(["none", "take a hammer " * 3, "a saw", "a broom"])
    ]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    data = (f"dataset_name={tmp_path / 'rows.jsonl'}", "dataset_train_split=all", "dataset_test_split=all")
    short = ("max_steps=1", "save_steps=0", "per_device_train_batch_size=2")
    with attempt(shared_home, base, Stage.SFT, *SFT, *data, *short, "packing=false", "max_length=32") as one:
        facts = one.train()
        assert facts and facts["cut_too_long"] == 8
        assert "the prompt is instruction and input" in one.health
        assert "4 training rows are cut to `max_length=32` tokens" in one.health
        assert "4 of 4 evaluation rows have a question that is also trained on" in one.health
    with attempt(shared_home, base, Stage.REWARD, *REWARD, *data, *short) as one:
        facts = one.train()
        assert facts and (facts["dropped_identical"], facts["pairs"]) == (2, 3)
        assert "1 training and 1 evaluation pairs dropped: both of their texts are the same" in one.health
        assert "3 of 3 evaluation rows" in one.health
