"""What a resumed attempt takes back of what the one before it reported."""

import json
from pathlib import Path

from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train.reporting import Reporter

ROWS = [
    (0, {"when": "before"}),
    (1, {}),
    (2, {}),
    (2, {"when": "during"}),
    (3, {}),
    (4, {}),
    (4, {"when": "after"}),
]


def reported(tmp_path: Path) -> tuple[RunDir, Reporter]:
    run = Home(tmp_path).create(Stage.PPO, "")
    run.attempt_dir(1).mkdir()
    reporter = Reporter(run, 1, is_main=True)
    for step, row in ROWS:
        reporter.samples(step, [row])
    return run, reporter


def rows(run: RunDir) -> list[tuple[int, str | None]]:
    found = [json.loads(line) for line in run.samples_file.read_text().splitlines()]
    return [(row["step"], row.get("when")) for row in found]


def test_rows_up_to_the_checkpoint_stay(tmp_path: Path) -> None:
    run, reporter = reported(tmp_path)
    reporter.forget_samples_after(2)
    assert rows(run) == [(0, "before"), (1, None), (2, None), (2, "during")]


def test_answers_after_training_are_made_again_even_at_the_last_step(tmp_path: Path) -> None:
    run, reporter = reported(tmp_path)
    reporter.forget_samples_after(4)
    assert rows(run) == [(0, "before"), (1, None), (2, None), (2, "during"), (3, None), (4, None)]


def test_nothing_stays_of_an_attempt_that_saved_nothing(tmp_path: Path) -> None:
    run, reporter = reported(tmp_path)
    reporter.forget_samples_after(-1)
    assert rows(run) == []


def test_a_torn_line_and_a_line_that_is_no_row_are_dropped(tmp_path: Path) -> None:
    run, reporter = reported(tmp_path)
    with run.samples_file.open("a") as file:
        file.write('[1]\n{"step": 1, "que')
    reporter.forget_samples_after(1)
    assert rows(run) == [(0, "before"), (1, None)]
