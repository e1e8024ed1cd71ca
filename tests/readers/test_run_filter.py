"""The filter of a list of runs, its columns and its orders, on rows made by hand."""

from pathlib import Path
from typing import Any

import pytest

from stackllama_console.readers.run_columns import COLUMNS, arranged, last_text, last_text_within, metric_value
from stackllama_console.readers.run_filter import parse_filter
from stackllama_console.readers.run_row import Row
from stackllama_console.readers.run_trend import sparkline
from stackllama_engine.contract.stages import Stage

NOW = 1_000_000.0


def _row(name: str, stage: Stage = Stage.PPO, phase: str = "finished", **fields: Any) -> Row:
    known: dict[str, Any] = {"created": NOW - 3600, "started": NOW - 3600, "ended": NOW - 1800}
    return Row(id=name, path=Path(name), stage=stage, phase=phase, **(known | fields))


ROWS = [
    _row("good", metric=("reward", 2.5), values={"objective/kl": 8.0}, tags=("paper", "old"), model="org/llama-7b"),
    _row("poor", phase="failed", metric=("reward", 0.5), values={"objective/kl": 20.0}, note="too high a rate"),
    _row("live", phase="running", created=NOW - 90000, values={"objective/scores": 1.5}, seconds_left=120.0, step=7),
    _row("tuned", Stage.SFT, metric=("loss", 1.25), values={"learning_rate": 1e-5}, title="My base", model="org/gemma"),
]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ["good", "poor", "live", "tuned"]),
        ("state:failed", ["poor"]),
        ("state:failed,running stage:PPO", ["poor", "live"]),
        ("-state:finished", ["poor", "live"]),
        ("stage:pp", []),  # whole words
        ("reward>1", ["good", "live"]),
        ("reward>=0.5 reward<2", ["poor", "live"]),
        ("kl<10", ["good"]),
        ("objective/kl>10", ["poor"]),
        ("lr=1e-5", ["tuned"]),
        ("-reward>1", ["poor", "tuned"]),  # also where there is none
        ("tag:old", ["good"]),
        ("stage:ppo reward>1 -tag:old", ["live"]),
        ("age>1d", ["live"]),
        ("duration<=30m", ["good", "poor", "tuned"]),
        ("ETA<3m", ["live"]),
        ("step>5", ["live"]),
        ("model:llama", ["good"]),
        ("my base", ["tuned"]),
        ('"too high"', ["poor"]),
        ('note:"high a"', ["poor"]),
        ("GEMMA", ["tuned"]),
        ("-gemma -llama", ["poor", "live"]),
        ("state: reward>", ["good", "poor", "live", "tuned"]),  # being typed
    ],
)
def test_words_of_a_filter(text: str, names: list[str]) -> None:
    found = parse_filter(text)
    assert ([row.id for row in ROWS if found.passes(row, NOW)], found.error) == (names, "")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("colour:red", "no field `colour`; fields are state, stage, tag, model, run, pipeline, note"),
        ("reward>high", "`high` is not a number; write e.g. `reward>1`"),
        ("reward>1h", "`reward` has no unit; only age, duration and ETA have one"),
    ],
)
def test_a_word_without_sense_is_named_and_left_out(text: str, error: str) -> None:
    found = parse_filter(f"{text} state:failed")
    assert found.error == error and [row.id for row in ROWS if found.passes(row, NOW)] == ["poor"]


def test_rows_are_sorted_by_any_column_and_what_has_no_value_comes_last() -> None:
    def order(sort: str, group: str = "") -> list[str]:
        return [row.id for row in arranged(ROWS, sort, group, NOW)]

    assert order("") == ["good", "poor", "live", "tuned"]
    assert order("reward") == ["poor", "live", "good", "tuned"]
    assert order("-reward") == ["good", "live", "poor", "tuned"]
    assert order("-age")[0] == "live" and order("run") == ["good", "live", "tuned", "poor"]  # by title
    assert order("-ETA")[0] == "live" and order("unknown") == ["good", "poor", "tuned", "live"]
    assert order("-reward", "stage") == ["good", "live", "poor", "tuned"]
    assert order("", "model") == ["poor", "live", "tuned", "good"]


def test_each_column_has_a_text_and_a_value_for_every_row() -> None:
    bare = Row(id="damaged", path=Path("damaged"), phase="damaged", error="gone")
    for column in COLUMNS.values():
        for row in (*ROWS, bare):
            assert isinstance(column.text(row, NOW), str)
            assert column.value(row, NOW) is None or isinstance(column.value(row, NOW), float | str)
    texts = {name: column.text(ROWS[0], NOW) for name, column in COLUMNS.items()}
    assert texts["duration"] == "30m" and texts["tags"] == "paper old" and texts["KL"] == "8"
    assert COLUMNS["ETA"].text(ROWS[2], NOW) == "2m" and COLUMNS["last"].text(bare, NOW) == "gone"


def test_the_result_comes_before_the_newest_value() -> None:
    row = _row("ended", metric=("reward", 3.0), values={"objective/scores": 1.0})
    assert metric_value(row, "reward") == 3.0 and metric_value(row, "objective/scores") == 1.0


def test_sparkline_spans_its_values() -> None:
    assert sparkline([0, 7]) == "▁█" and sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, 3]) == "▁▁" and sparkline([]) == ""


@pytest.mark.parametrize(
    ("size", "text"),
    [(13, "loss 1.159e-6"), (12, "1.159e-6"), (7, "1.16e-6"), (6, "1.2e-6"), (5, "1e-6"), (4, "1e-6"), (3, "")],
)
def test_a_number_without_room_loses_its_name_then_digits_but_is_never_cut(size: int, text: str) -> None:
    assert last_text_within(_row("small", metric=("loss", 1.159e-6)), size) == text


def test_what_a_run_does_before_its_first_step_is_said_as_it_is() -> None:
    assert last_text(_row("loads", at="load", loading="reading weights 34%, 25 s")) == "reading weights 34%, 25 s"
    assert last_text(_row("evaluates", at="evaluate")) == "at evaluate"


def test_words_without_room_are_cut_and_a_number_after_them_is_left_out() -> None:
    assert last_text_within(_row("wrong", error="events.jsonl is damaged"), 8) == "events.…"
    assert last_text_within(_row("there", metric=("loss", 1.159e-6), elsewhere="on gpu7"), 20) == "on gpu7  1.159e-6"
    assert last_text_within(_row("there", metric=("loss", 1.159e-6), elsewhere="on gpu7"), 12) == "on gpu7"
