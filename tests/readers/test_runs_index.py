"""All runs of a home as rows: trees, what changed, damaged and deleted runs, the cost of a poll."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.readers.conftest import line

from stackllama_console.readers.recipe_model import recipe_model
from stackllama_console.readers.run_row import Row
from stackllama_console.readers.runs_index import RunsIndex
from stackllama_engine.contract.labels import change_tags, set_title
from stackllama_engine.contract.recipe import MergeRecipe
from stackllama_engine.contract.recipe_io import build_recipe, dump_recipe
from stackllama_engine.contract.run_dir import ForkedFrom, Home, Launch, RunDir, State
from stackllama_engine.contract.stages import Stage

T0 = 1_700_000_000.0
Make = Callable[..., RunDir]
Add = Callable[..., None]


def polled(home: Home) -> RunsIndex:
    index = RunsIndex(home)
    index.poll()
    return index


def only(home: Home) -> Row:
    (row,) = polled(home).rows
    return row


def test_missing_home_has_no_rows(home: Home, make_run: Make) -> None:
    index = RunsIndex(home)
    assert not index.poll()
    assert (index.rows, index.error) == ([], None)
    make_run()
    assert index.poll()
    assert [row.id for row in index.rows] == ["run"]


def test_row_has_what_a_list_needs(home: Home, make_run: Make, add: Add) -> None:
    run = make_run(recipe="# stage: ppo\nmodel_name_or_path: huggyllama/llama-7b\nlora_r: 16\n")
    add(
        run,
        ("phase", {"phase": "update"}),
        ("progress", {"step": 3, "total_steps": 60}),
        ("metrics", {"step": 3, "metrics": {"objective/scores": 1.5}}),
    )
    row = only(home)
    assert (row.stage, row.phase, row.step, row.total_steps, row.at) == (Stage.PPO, "running", 3, 60, "update")
    assert (row.model, row.metric, row.attempt) == ("huggyllama/llama-7b", ("reward", 1.5), 1)
    assert (row.created, row.started, row.ended, row.exit_code, row.cause) == (T0, T0 + 10, None, None, None)
    assert (row.age(T0 + 90), row.age(T0 - 5)) == (90.0, 0.0)


def test_ended_run_has_the_metric_of_its_result(home: Home, make_run: Make, add: Add) -> None:
    run = make_run(Stage.REWARD, phase="failed", ended=T0 + 50, exit_code=137, cause="out of\nmemory", attempt=1)
    add(run, ("metrics", {"step": 3, "metrics": {"loss": 0.5, "accuracy": 0.6}}))
    run.write_json("result.json", {"accuracy": 0.75})
    row = only(home)
    assert (row.metric, row.exit_code, row.cause, row.ended) == (("accuracy", 0.75), 137, "out of memory", T0 + 50)


def test_metrics_far_from_the_end_are_found(home: Home, make_run: Make, add: Add) -> None:
    run = make_run(Stage.SFT)
    add(run, ("metrics", {"step": 1, "metrics": {"loss": 2.5}}))
    add(run, *(("phase", {"phase": f"phase {number:>6}"}) for number in range(1000)))
    assert (run.attempt_dir(1) / "events.jsonl").stat().st_size > 64_000
    assert only(home).metric == ("loss", 2.5)


def test_children_are_beneath_their_pipeline_in_order(home: Home, make_run: Make) -> None:
    make_run(name="older", phase="finished", created=T0 - 100)
    make_run(Stage.MERGE, "p-sft-merged", "finished", parents=["p-sft", "p"], created=T0 + 2)
    make_run(Stage.PPO, "p-ppo", parents=["p-sft-merged", "p-reward", "p"], created=T0 + 4)
    make_run(Stage.SFT, "p-sft", "finished", parents=["p"], created=T0 + 1)
    make_run(Stage.PIPELINE, "p", created=T0)
    make_run(Stage.SFT, "p-other", "finished", parents=["p"], created=T0 + 50)
    make_run(Stage.SFT, "q-sft", "finished", parents=["q"], created=T0 + 60)
    rows = polled(home).rows
    assert [(row.id, row.depth, row.pipeline) for row in rows] == [
        ("q-sft", 0, None),
        ("p-other", 0, None),
        ("p", 0, None),
        ("p-sft", 1, "p"),
        ("p-sft-merged", 1, "p"),
        ("p-ppo", 1, "p"),
        ("older", 0, None),
    ]


def test_forks_are_beneath_the_run_that_they_continued_from(home: Home, make_run: Make) -> None:
    for number, (name, source) in enumerate({"a": "", "b": "a", "c": "b", "d": "gone", "e": "f", "f": "e"}.items()):
        run = make_run(name=name, created=T0 + number)
        origin = ForkedFrom(run=source, step=4) if source else None
        launch = Launch(argv=[], cwd="/", host="here", created=T0, forked_from=origin)
        run.write_launch(launch)
    rows = [(row.id, row.depth, row.pipeline) for row in polled(home).rows]
    assert rows == [("d", 0, None), ("a", 0, None), ("b", 1, "a"), ("c", 1, "a"), ("f", 0, None), ("e", 1, "f")]


def test_pipeline_row_names_its_active_child(home: Home, make_run: Make, add: Add) -> None:
    run = make_run(Stage.PIPELINE, "p", recipe="sft:\n  model_name_or_path: demo\nreward:\n  lora_r: 3\n")
    add(run, ("progress", {"step": 2, "total_steps": 6}), ("phase", {"phase": "p-reward"}))
    row = only(home)
    assert (row.at, row.step, row.total_steps, row.metric, row.model) == ("reward", 2, 6, None, "demo")


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("/elsewhere/runs/p-sft-merged/merged", "p-sft-merged"),
        ("/home/me/runs/sft-7b/adapter", "sft-7b"),
        ("/x/runs/r/checkpoints/step-000100", "r"),
        ("/models/runs/llama", "/models/runs/llama"),
        ("org/name", "org/name"),
    ],
)
def test_model_made_by_a_run_has_that_runs_id(home: Home, make_run: Make, written: str, shown: str) -> None:
    make_run(Stage.MERGE, recipe=f"adapter_path: {written}\n")
    assert only(home).model == shown


# what changed


def test_poll_reports_only_changes(home: Home, make_run: Make, add: Add) -> None:
    run = make_run()
    index = polled(home)
    assert not index.poll()
    rows = index.rows
    add(run, ("progress", {"step": 1, "total_steps": 2}))
    assert index.poll()
    assert (rows[0].step, index.rows[0].step) == (0, 1)
    other = make_run(name="other", created=T0 + 1)
    assert index.poll()
    assert [row.id for row in index.rows] == ["other", "run"]
    shutil.rmtree(other.path)
    assert index.poll()
    assert [row.id for row in index.rows] == ["run"]


def test_new_attempt_is_followed(home: Home, make_run: Make, add: Add, clock: Any) -> None:
    run = make_run(Stage.SFT, phase="failed", exit_code=1, cause="x", ended=T0)
    add(run, ("progress", {"step": 4, "total_steps": 9}))
    index = RunsIndex(home, clock)
    index.poll()
    lock = run.acquire_lock()
    try:
        add(run, ("progress", {"step": 3, "total_steps": 9}), attempt=2)
        run.write_state(_resumed(run))
        clock.now += 2.0
        assert index.poll()
        (row,) = index.rows
        assert (row.phase, row.attempt, row.step, row.exit_code, row.cause) == ("running", 2, 3, None, None)
    finally:
        os.close(lock)


def _resumed(run: RunDir) -> State:
    return replace(run.read_state(), phase="running", attempt=2, exit_code=None, cause=None, ended=None)


def test_ended_runs_are_not_opened_again(home: Home, make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        run = make_run(name=name, phase="finished")
        os.utime(run.path / "state.json", (T0, T0))
    os.utime(home.runs_dir, (T0, T0))
    index = polled(home)
    index.poll()

    def no(*_: object, **__: object) -> None:
        raise AssertionError("looked inside")

    for name in ("open", "read_bytes", "iterdir", "is_file", "exists"):
        monkeypatch.setattr(Path, name, no)
    monkeypatch.setattr(os, "open", no)
    assert not index.poll()


def test_run_without_a_supervisor_becomes_lost(home: Home, make_run: Make) -> None:
    make_run(locked=False)
    assert only(home).phase == "lost"


# damage


def test_damaged_run_has_a_row_with_the_reason(home: Home, make_run: Make, assert_clean: Callable[[Any], None]) -> None:
    make_run(name="good", phase="finished")
    bad = make_run(name="bad", phase="finished", created=T0 + 1, recipe="# stage: ppo\nmodel_name_or_path: demo\n")
    (bad.path / "state.json").write_bytes(b'{"stage": "\x1b[2Jnone"}')
    rows = {row.id: row for row in polled(home).rows}
    assert rows["good"].error is None
    assert (rows["bad"].stage, rows["bad"].phase) == (Stage.PPO, "damaged")  # the recipe tells
    assert "state.json cannot be read" in (rows["bad"].error or "")
    assert_clean(rows["bad"].error)


@pytest.mark.parametrize("name", ["launch.json", "result.json"])
def test_other_damaged_files_leave_the_state_readable(home: Home, make_run: Make, name: str) -> None:
    run = make_run(phase="finished")
    (run.path / name).write_bytes(b"\x00junk")
    row = only(home)
    assert (row.stage, row.phase) == (Stage.PPO, "finished")
    assert f"{name} cannot be read" in (row.error or "")


def test_other_entries_have_no_row(home: Home, make_run: Make, tmp_path: Path) -> None:
    run = make_run(phase="finished")
    (home.runs_dir / "empty").mkdir()
    (home.runs_dir / "UPPER").mkdir()
    (home.runs_dir / "file").write_text("")
    (home.runs_dir / "link").symlink_to(run.path)
    assert only(home).id == "run"


def test_row_texts_are_sanitised(home: Home, make_run: Make, add: Add, assert_clean: Callable[[Any], None]) -> None:
    hostile = "a\x1b]52;c;aGk=\x07\x9b2J\u202eb"
    run = make_run(phase="stalled", cause=hostile, recipe=f"model_name_or_path: {hostile}\n")
    add(run, ("phase", {"phase": hostile}))
    row = only(home)
    assert (row.cause, row.model, row.at) == ("ab", "ab", "ab")
    assert_clean(row)


# the model of a recipe


@pytest.mark.parametrize(
    "name", ["demo", "org/model-7b", "with: colon", "it's", "long part " * 20, "été", "#odd", "123", " edges "]
)
def test_model_is_read_as_yaml(tmp_path: Path, name: str) -> None:
    file = tmp_path / "recipe.yaml"
    recipe = build_recipe(Stage.MERGE, {"adapter_path": f"/models/{name}"})
    assert isinstance(recipe, MergeRecipe)
    file.write_text(dump_recipe(recipe))
    assert recipe_model(file) == recipe.adapter_path


def test_recipe_without_a_model_has_an_empty_one(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    for text, model in (
        (b"lora_r: 3\n", ""),
        (b"model_name_or_path: null\n", ""),
        (b"\x00\xff\n", ""),
        (b"model_name_or_path: 'open\n", "'open"),
        (b"model_name_or_path: '1'\n", "1"),
    ):
        file.write_bytes(text)
        assert recipe_model(file) == model


def test_row_has_time_left_trend_and_newest_values(home: Home, make_run: Make, add: Add) -> None:
    run = make_run()
    for step in (1, 2, 3, 4):
        record = {"step": step, "total_steps": 10, "metrics": {"objective/scores": float(step), "objective/kl": 2.0}}
        add(run, line("metrics", T0 + 20 * step, **record))
    row = only(home)
    assert row.seconds_left == 120.0 and row.trend == (1.0, 2.0, 3.0, 4.0)  # 6 steps of 20 s
    assert row.values == {"objective/scores": 4.0, "objective/kl": 2.0}


def test_labels_are_followed_and_a_damaged_file_is_told(home: Home, make_run: Make) -> None:
    run = make_run(phase="finished")
    index = polled(home)
    change_tags(run, ["paper"], [])
    set_title(run, "My run")
    assert (
        index.poll()
        and (index.rows[0].tags, index.rows[0].title, index.rows[0].name) == (("paper",),) + ("My run",) * 2
    )
    (run.path / "labels.json").write_text("{")
    assert index.poll() and "labels.json" in (index.rows[0].error or "") and index.rows[0].tags == ()
    (run.path / "labels.json").unlink()
    assert index.poll() and index.rows[0].error is None and index.rows[0].name == "run"
