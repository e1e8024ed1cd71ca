"""A pipeline as a feed: its children in order, the one at work, and the one that was chosen."""

from collections.abc import Callable
from typing import Any

from stackllama_console.feeds.pipeline_feed import PipelineFeed
from stackllama_console.feeds.protocol import Feed
from stackllama_engine.contract.run_dir import RunDir
from stackllama_engine.contract.stages import Stage

Make = Callable[..., RunDir]
Add = Callable[..., None]


def begin(make_run: Make, add: Add) -> tuple[PipelineFeed, RunDir]:
    pipeline = make_run(Stage.PIPELINE, "p")
    add(pipeline, ("progress", {"step": 1, "total_steps": 6}), ("phase", {"phase": "p-sft-merged"}))
    return PipelineFeed(pipeline, lambda: 0.0), pipeline


def metric(value: float) -> tuple[str, dict[str, Any]]:
    return "metrics", {"step": 1, "metrics": {"loss": value}}


def test_before_its_first_child_it_has_no_series(make_run: Make, add: Add) -> None:
    made, _ = begin(make_run, add)
    feed: Feed = made
    assert feed.poll()
    assert (feed.title, feed.stage, feed.phase, feed.series, feed.memory) == ("p", Stage.PIPELINE, "running", {}, {})
    assert (feed.history.step, feed.history.total_steps, feed.history.phase) == (1, 6, "p-sft-merged")
    assert feed.eta(0.0) is None
    assert not feed.poll()


def test_the_child_at_work_is_shown_and_another_can_be_chosen(make_run: Make, add: Add) -> None:
    _, pipeline = begin(make_run, add)
    add(make_run(Stage.MERGE, "p-sft-merged", parents=["p-sft", "p"]), metric(2.0))
    add(make_run(Stage.SFT, "p-sft", "finished", parents=["p"]), metric(1.0))
    make_run(Stage.PPO, "p-ppo", parents=["another"])
    clock = [0.0]
    feed = PipelineFeed(pipeline, lambda: clock[0])
    assert feed.poll()
    assert [(child.name, child.state.phase) for child in feed.children] == [
        ("sft", "finished"), ("sft-merged", "running"),
    ]  # fmt: skip
    assert feed.at_work is feed.children[1]
    assert list(feed.series["loss"].values) == [2.0]
    feed.chosen = "sft"
    assert feed.poll()
    assert list(feed.series["loss"].values) == [1.0]
    clock[0] = 5.0
    assert not feed.poll(), "the same children again are no news"
    feed.chosen = None
    assert feed.poll()
    assert list(feed.series["loss"].values) == [2.0]


def test_a_child_is_found_when_it_begins(make_run: Make, add: Add) -> None:
    _, pipeline = begin(make_run, add)
    clock = [0.0]
    feed = PipelineFeed(pipeline, lambda: clock[0])
    feed.poll()
    make_run(Stage.SFT, "p-sft", parents=["p"])
    clock[0] = 0.5
    assert not feed.poll(), "children are looked for once a second"
    clock[0] = 1.0
    assert feed.poll()
    assert [child.name for child in feed.children] == ["sft"]


def test_where_one_failed_that_one_is_shown(make_run: Make) -> None:
    pipeline = make_run(Stage.PIPELINE, "p", "failed")
    make_run(Stage.SFT, "p-sft", "failed", parents=["p"])
    make_run(Stage.REWARD, "p-reward", "finished", parents=["p"])
    feed = PipelineFeed(pipeline)
    feed.poll()
    assert feed.at_work is not None
    assert feed.at_work.name == "sft"
