"""PipelineReader: children in order, the active one, and the one that was chosen."""

from collections.abc import Callable
from typing import Any

from stackllama_console.readers.pipeline_reader import PipelineReader
from stackllama_console.readers.protocol import Reader
from stackllama_engine.contract.run_dir import RunDir
from stackllama_engine.contract.stages import Stage

Make = Callable[..., RunDir]
Add = Callable[..., None]


def begin(make_run: Make, add: Add) -> tuple[PipelineReader, RunDir]:
    pipeline = make_run(Stage.PIPELINE, "p")
    add(pipeline, ("progress", {"step": 1, "total_steps": 6}), ("phase", {"phase": "p-sft-merged"}))
    return PipelineReader(pipeline, lambda: 0.0), pipeline


def metric(value: float) -> tuple[str, dict[str, Any]]:
    return "metrics", {"step": 1, "metrics": {"loss": value}}


def test_pipeline_without_children_has_no_series(make_run: Make, add: Add) -> None:
    made, _ = begin(make_run, add)
    reader: Reader = made
    assert reader.poll()
    assert (reader.title, reader.stage, reader.phase, reader.series, reader.memory) == (
        "p",
        Stage.PIPELINE,
        "running",
        {},
        {},
    )
    assert (reader.history.step, reader.history.total_steps, reader.history.phase) == (1, 6, "p-sft-merged")
    assert reader.eta(0.0) is None
    assert not reader.poll()


def test_active_child_is_shown_and_another_can_be_chosen(make_run: Make, add: Add) -> None:
    _, pipeline = begin(make_run, add)
    add(make_run(Stage.MERGE, "p-sft-merged", parents=["p-sft", "p"]), metric(2.0))
    add(make_run(Stage.SFT, "p-sft", "finished", parents=["p"]), metric(1.0))
    make_run(Stage.PPO, "p-ppo", parents=["another"])
    clock = [0.0]
    reader = PipelineReader(pipeline, lambda: clock[0])
    assert reader.poll()
    assert [(child.name, child.state.phase) for child in reader.children] == [
        ("sft", "finished"),
        ("sft-merged", "running"),
    ]
    assert reader.at_work is reader.children[1]
    assert list(reader.series["loss"].values) == [2.0]
    reader.chosen = "sft"
    assert reader.poll()
    assert list(reader.series["loss"].values) == [1.0]
    clock[0] = 5.0
    assert not reader.poll(), "the same children again are no change"
    reader.chosen = None
    assert reader.poll()
    assert list(reader.series["loss"].values) == [2.0]


def test_child_is_found_when_it_starts(make_run: Make, add: Add) -> None:
    _, pipeline = begin(make_run, add)
    clock = [0.0]
    reader = PipelineReader(pipeline, lambda: clock[0])
    reader.poll()
    make_run(Stage.SFT, "p-sft", parents=["p"])
    clock[0] = 0.5
    assert not reader.poll(), "children are looked for once a second"
    clock[0] = 1.0
    assert reader.poll()
    assert [child.name for child in reader.children] == ["sft"]


def test_failed_child_is_shown(make_run: Make) -> None:
    pipeline = make_run(Stage.PIPELINE, "p", "failed")
    make_run(Stage.SFT, "p-sft", "failed", parents=["p"])
    make_run(Stage.REWARD, "p-reward", "finished", parents=["p"])
    reader = PipelineReader(pipeline)
    reader.poll()
    assert reader.at_work is not None
    assert reader.at_work.name == "sft"
