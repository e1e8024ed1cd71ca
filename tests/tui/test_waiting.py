"""The monitor of a run that has not begun to train: what it does, and what it was asked for."""

import os

from tests.tui.app_kit import Shown, run_app
from tests.tui.screens_kit import make_run

from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage


def test_the_monitor_says_what_is_done_before_the_first_step_and_what_was_asked(stocked: Home) -> None:
    run = make_run(stocked, Stage.PPO, "begun", phase="running")
    lock = run.acquire_lock()
    writer = EventWriter(run.attempt_dir(1) / "events.jsonl")
    writer.write("phase", phase="load")
    writer.write("activity", data={"doing": "reading weights", "share": 0.34})

    async def script(shown: Shown) -> None:
        await shown.shows("reading weights 34%")
        await shown.press("w")
        await shown.shows("requested, after the current step: save a checkpoint")
        writer.write("activity", data={"doing": "tokenizing"})
        await shown.shows("tokenizing, ")
        run.served("save")
        writer.write("phase", phase="rollout")
        writer.close()
        await shown.shows("rollout")
        await shown.until(lambda: "requested" not in shown.text and "tokenizing" not in shown.text)

    run_app(stocked, script, target="begun")
    os.close(lock)
