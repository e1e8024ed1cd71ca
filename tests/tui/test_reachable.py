"""At 80 by 24 the keys bring the last line of every screen into view, and nothing is cut off where no key leads."""

from collections.abc import Iterator
from typing import Any

import msgspec
from tests.tui.app_kit import Shown, run_app
from tests.tui.conftest import curve, write_log
from tests.tui.screens_kit import add_samples, make_run, write_metrics
from textual.errors import NoWidget
from textual.screen import Screen
from textual.widget import Widget

from stackllama_console.tui.app import ConsoleApp
from stackllama_console.tui.screens.chat import ChatScreen
from stackllama_console.tui.screens.choose import ChooseScreen
from stackllama_console.tui.screens.confirm import AskScreen, ConfirmScreen
from stackllama_console.tui.screens.launch_confirm import CommandScreen
from stackllama_console.tui.screens.launch_controller import Summary
from stackllama_console.tui.screens.scopes import all_scopes
from stackllama_console.tui.widgets.turn_list import Turn, TurnList
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage

_LONG = " ".join(f"word{index}" for index in range(400)) + " the very end"
_OWN_TEST = {"GpusScreen"}
"""Screens that need a machine of their own; their tests scroll them."""


class Walk:
    """Walks over screens and remembers which they were."""

    def __init__(self, shown: Shown) -> None:
        self.shown = shown
        self.screens: set[str] = set()

    async def ends(self, *keys: str, last: str) -> None:
        """Press keys; afterwards the last text has been in view, and so has the end of all that scrolls.

        Args:
            keys: each with how often it is pressed, as in ``40*j``.
            last: the last text of the screen.
        """
        shown = self.shown
        self.screens.add(shown.name)
        await shown.until(lambda: "reading" not in shown.text)
        seen, ended = last in shown.text, {widget for widget in self._scrolling() if _at_end(widget)}
        for key in keys:
            count, _, name = key.rpartition("*")
            await shown.press(*[name] * int(count or 1))
            seen |= last in shown.text
            ended |= {widget for widget in self._scrolling() if _at_end(widget)}
        assert seen, f"{shown.name}: {keys} do not lead to {last!r}:\n{shown.text}"
        left = [widget for widget in self._scrolling() if widget not in ended]
        assert not left, f"{shown.name}: {keys} do not reach the end of {left}:\n{shown.text}"
        assert not (cut := self._cut_off()), f"{shown.name}: {cut} are cut off:\n{shown.text}"

    async def back(self, key: str = "escape") -> None:
        """Leave the screen."""
        before = self.shown.front
        await self.shown.press(key)
        await self.shown.until(lambda: self.shown.front is not before)

    def _scrolling(self) -> Iterator[Widget]:
        front: Screen[Any] = self.shown.front
        for widget in (front, *front.query("*")):
            if widget.is_scrollable and widget.max_scroll_y > 0 and widget.is_on_screen:
                yield widget

    def _cut_off(self) -> list[Widget]:
        """Return widgets that reach beyond what can be seen, with nothing around them that scrolls."""
        front: Screen[Any] = self.shown.front
        cut: list[Widget] = []
        for widget in front.query("*"):
            try:
                place = front.find_widget(widget)
            except NoWidget:  # not displayed
                continue
            around = [one for one in widget.ancestors if isinstance(one, Widget) and one.max_scroll_y > 0]
            if place.region.area and place.visible_region != place.region and not around:
                cut.append(widget)
        return cut


def _at_end(widget: Widget) -> bool:
    return widget.scroll_offset.y >= widget.max_scroll_y


def _names() -> set[str]:
    """Return the names of all screens that can be shown: not of those that others build on."""
    all_scopes(ConsoleApp.BINDINGS)  # imports them
    found: set[str] = set()
    kinds = [Screen]
    while kinds:
        kind = kinds.pop()
        below = [one for one in kind.__subclasses__() if one.__module__.startswith("stackllama_console")]
        kinds += below
        if not below and kind.__module__.startswith("stackllama_console"):
            found.add(kind.__name__)
    return found


def _stock(home: Home) -> None:
    """Add what is too long for 24 rows: many runs, a failure, a finished pipeline, many metrics, long samples."""
    for number in range(30):
        run = make_run(home, Stage.SFT, f"many-{number:02}")
        run.write_state(msgspec.structs.replace(run.read_state(), created=1_600_000_000.0 + number))
    failed = make_run(home, Stage.SFT, "failed", "per_device_train_batch_size=4", phase="failed")
    write_log(failed, *(f"ERROR line {number}" for number in range(1, 61)))
    cause = f"`per_device_train_batch_size=1` would have fitted. {_LONG}"
    failed.write_state(msgspec.structs.replace(failed.read_state(), exit_code=1, cause=cause))
    wide = make_run(home, Stage.PPO, "wide", "learning_rate=0.5", "seed=9")
    write_metrics(wide, {f"metric_{index:02}": curve(0.0, 1.0) for index in range(40)})
    row = {"response": _LONG, "reward": 1.0, "kl": 0.5}
    add_samples(wide, *(row | {"step": step, "question": f"why {step}?"} for step in range(60)))
    write_metrics(make_run(home, Stage.PPO, "wide-too"), {f"metric_{index:02}": curve(1.0, 2.0) for index in range(40)})
    make_run(home, Stage.PIPELINE, "whole")
    ppo = make_run(home, Stage.PPO, "whole-ppo", parents=["whole"])
    answers = [{"question": f"why {index}?", "before": "once " * 40, "after": f"then {index}"} for index in range(8)]
    ppo.write_json("result.json", {"stage": "ppo", "after": {"mean_reward": 1.0}, "samples": answers})


def test_keys_lead_to_the_last_line_of_every_screen(stocked: Home) -> None:
    _stock(stocked)

    async def script(shown: Shown) -> None:
        walk = Walk(shown)
        app: Any = shown.app
        await shown.reaches("RunsScreen")
        await shown.shows("wide")
        await walk.ends("G", last="many-00")
        await shown.press("question_mark")
        await shown.reaches("HelpScreen")
        await walk.ends("G", last="keymap.yaml")
        await walk.back()
        await _monitor(walk)
        await _samples_and_comparison(walk, stocked.run("wide"))
        await _launch(walk)
        await _dialogs(walk)
        await _chat(walk, stocked.run("wide"))
        assert app.screen_stack and _names() - walk.screens - _OWN_TEST == set()

    run_app(stocked, script)


async def _monitor(walk: Walk) -> None:
    shown, app = walk.shown, walk.shown.app
    for run, keys, last in (
        ("failed", ("G", "tab", "g", "G"), "the very end"),
        ("whole", ("G",), "then 7"),
        ("wide", ("6", "G"), "metric_39"),
    ):
        app.open_run(run)
        await shown.reaches("MonitorScreen")
        await shown.until(lambda: shown.front._last_update is not None)
        await shown.pilot.pause()
        await walk.ends(*keys, last=last)
        if run == "failed":
            await shown.press("d")
            await shown.reaches("TextScreen")
            await walk.ends("G", last="the very end")
            await walk.back()
        await walk.back()


async def _samples_and_comparison(walk: Walk, run: RunDir) -> None:
    shown, app = walk.shown, walk.shown.app
    app.open_samples(run)
    await shown.reaches("SamplesScreen")
    await shown.shows("why 59?")
    await walk.ends("G", "10*d", last="the very end")
    await walk.back()
    app.open_comparison(["wide", "wide-too"])
    await shown.reaches("CompareScreen")
    await shown.shows("metric_00")
    await walk.ends("2", "G", last="seed")
    await walk.ends("3", "G", last="metric_39")
    await walk.back()


async def _launch(walk: Walk) -> None:
    shown, app = walk.shown, walk.shown.app
    app.open_launch("wide")
    await shown.reaches("LaunchScreen")
    await shown.shows("cloned from wide")
    await walk.ends("G", last=list(shown.front.controller.draft.form.fields)[-1])
    shown.front._tell(_LONG)  # a refusal
    await shown.pilot.pause()
    await walk.ends("tab", "tab", "G", last="the very end")
    await shown.press("m")
    await shown.reaches("PickScreen")
    await walk.ends("9*pagedown", last="esc cancels")
    await walk.back()
    await walk.back()


async def _dialogs(walk: Walk) -> None:
    shown, app = walk.shown, walk.shown.app
    app.push_screen(ConfirmScreen(_LONG, "delete run"))
    await walk.ends("G", last="the very end")
    assert "y  delete run" in shown.text
    await walk.back()
    app.push_screen(CommandScreen(Summary(title="launch", run="wide", rows=(), command=_LONG[:2000]), ask=True))
    await walk.ends("15*j", last=_LONG[:2000].split()[-2])
    await walk.back()
    app.push_screen(AskScreen("Name?", check=lambda text: _LONG[:900]))
    await shown.press("enter")
    await walk.ends(last="word")
    await walk.back()
    app.push_screen(ChooseScreen("which", [(f"step-{index:06}", "a checkpoint") for index in range(60)]))
    await walk.ends("G", last="step-000059")
    await walk.back()


async def _chat(walk: Walk, run: RunDir) -> None:
    def fail(*_: object) -> Any:
        raise OSError(12, _LONG[:400])

    shown = walk.shown
    shown.app.push_screen(ChatScreen(run, start=fail))
    await shown.shows("r: try again")
    turns = shown.front.query_one(TurnList)
    for index in range(30):
        turns.add(Turn(id=0, prompt=f"turn {index}", answers={}))
    await shown.press("escape", "g")
    await walk.ends("G", last="turn 29")
    assert _LONG[380:400] in " ".join(shown.text.split())
