"""The monitor under keys: charts, panels, log, metrics as text, actions, pipelines, sizes, other trainers."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.tui.app_kit import Script, Shown, run_app
from tests.tui.conftest import curve, write_log
from tests.tui.screens_kit import add_samples, isolate, make_run, write_metrics
from tests.tui.test_runs_screen import Asked
from textual.widgets import Input

from stackllama_console.tui import watched as watched_module
from stackllama_console.tui.keymap import as_bindings
from stackllama_console.tui.screens.help import keys_text
from stackllama_console.tui.screens.monitor import MonitorScreen
from stackllama_console.tui.widgets.chart import Chart
from stackllama_console.tui.widgets.key_line import KeyLine
from stackllama_console.tui.widgets.log_view import LogView
from stackllama_console.tui.widgets.recipe_form import RecipeForm
from stackllama_console.tui.widgets.text_lines import TextLines
from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.health import Finding, as_data
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage


def watch(home: Home, run_id: str, script: Script, size: tuple[int, int] = (80, 24)) -> None:
    """Open a run and let the script press keys when its files have been read."""

    async def begin(shown: Shown) -> None:
        await shown.reaches("MonitorScreen")
        await shown.until(lambda: shown.front._last_update is not None)
        await script(shown)

    run_app(home, begin, size=size, target=run_id)


def _titles(shown: Shown) -> list[str]:
    return [chart.title for chart in shown.front.query(Chart) if chart.display and chart.region]


def _state(shown: Shown) -> str:
    return shown.front.query_one("#state", TextLines).plain


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


# what it shows


def test_a_finished_run_at_80_by_24(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("rollout 40", "reward", "KL to the reference")
        assert "✓ finished" in _state(shown) and "took 1 m 00 s" in _state(shown)
        assert "reward 2" in _state(shown) and "KL 3" in _state(shown)
        assert "aligned  ppo" in shown.lines[0]
        assert _titles(shown) == ["reward", "KL to the reference"]
        assert shown.front.query_one("#side").region.width == 0

    watch(stocked, "aligned", script)


def test_held_out_metrics_say_how_they_were_sampled(stocked: Home) -> None:
    """Watch an ended run: its recipe says the temperature, its result the number of prompts."""
    run = stocked.run("aligned")
    write_metrics(run, {"eval/mean_reward": [0.5, 1.5], "tokens_per_second": [100.0], "val/ratio_first": [1.0]})
    run.write_json("result.json", {"stage": "ppo", "before": {"questions": 64}, "after": {"questions": 64}})

    async def script(shown: Shown) -> None:
        await shown.shows("rollout 40", "held-out reward")
        side = shown.front.query_one("#metrics", TextLines).plain
        assert "held-out: T = 1, 1 sample per prompt,\n64 prompts" in side
        assert "tokens/s" in side

    watch(stocked, "aligned", script, size=(160, 45))


def test_wide_terminal_shows_metrics_and_samples_beside_the_charts(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("rollout 40", "because 40")
        assert _titles(shown) == ["reward", "KL to the reference", "entropy", "clip fraction"]
        side = shown.front.query_one("#metrics", TextLines).plain
        assert "clip fraction" in side and "first" in side and "now" in side
        sample = shown.front.query_one("#sample", TextLines).plain
        assert sample.startswith("step 40  reward 4  KL 0.5\nwhy 40?\nbecause 40")

    watch(stocked, "aligned", script, size=(160, 45))


def test_running_run_shows_phase_progress_and_updates(stocked: Home) -> None:
    run = stocked.run("alive")
    (run.attempt_dir(1) / "events.jsonl").unlink()
    events = EventWriter(run.attempt_dir(1) / "events.jsonl")
    events.write("phase", phase="rollout")
    for step in (1, 2, 3):
        events.write("progress", step=step, total_steps=1200)
    events.write("metrics", step=3, metrics={"loss": 1.5, "grad_norm": float("nan")})
    events.write("memory", metrics={"rss": 3 * 1024.0**3})
    events.write("health", data={"message": "pairs were dropped"})

    async def script(shown: Shown) -> None:
        await shown.shows("● running", "rollout", "step 3/1,200", "loss 1.5", "RSS 3.0 GiB", "! pairs were dropped")
        events.write("phase", phase="update")
        events.write("progress", step=600, total_steps=1200)
        events.write("metrics", step=600, metrics={"loss": 0.75})
        await shown.shows("update", "step 600/1,200", "50%", "loss 0.75")
        write_log(run, "INFO begun", "ERROR it burns")
        await shown.shows("it burns")

    watch(stocked, "alive", script)
    events.close()


def test_stalled_run_says_so_and_where_its_stacks_are(stocked: Home) -> None:
    run = stocked.run("alive")
    EventWriter(run.attempt_dir(1) / "health.jsonl").write("health", data={"message": "Run stalled. See stacks."})
    running = run.read_state()
    run.write_state(msgspec.structs.replace(running, phase="stalled"))

    async def script(shown: Shown) -> None:
        await shown.shows("◍ stalled", "! Run stalled. See stacks.")
        run.write_state(running)
        await shown.shows("● running")

    watch(stocked, "alive", script)


def test_a_failed_run_says_why_how_it_ended_and_what_to_try(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows(
            "✗ failed",
            "cause  out of memory in train",
            "ended  exit code 1, failed",
            "│ OutOfMemoryError",
            "smaller batch",
        )

    watch(stocked, "broken", script)


OUT_OF_MEMORY = (
    "Out of GPU memory in phase train: `base weights` (12.6 GiB) take the largest share of the 19.8 GiB expected. "
    "`per_device_train_batch_size=1 gradient_accumulation_steps=8` would have fitted: 10.4 GiB of 11.8 GiB. "
    "(CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 11.76 GiB of which 18.06 MiB is "
    "free. Including non-PyTorch memory, this process has 11.66 GiB memory in use.)"
)


def _fail(run: RunDir, cause: str, code: int = 1) -> None:
    """Let a run end with a cause and twenty log lines, which its state quotes."""
    lines = [f"line {number} of the end" for number in range(1, 21)]
    write_log(run, *(f"INFO step {number}" for number in range(1, 31)), *lines)
    changed = msgspec.structs.replace(
        run.read_state(), phase="failed", cause=cause, exit_code=code, last_lines=lines, ended=1_700_000_070.0
    )
    run.write_state(changed)


@pytest.mark.parametrize("size", [(80, 24), pytest.param((100, 30), marks=pytest.mark.slow), (120, 40)])
def test_failure_shows_the_whole_cause_then_the_fix_then_the_log_once(stocked: Home, size: tuple[int, int]) -> None:
    run = make_run(stocked, Stage.SFT, "full", "per_device_train_batch_size=4", phase="failed")
    write_metrics(run, {"loss": curve(3.0, 2.0)})
    _fail(run, OUT_OF_MEMORY)

    async def script(shown: Shown) -> None:
        await shown.shows("line 20 of the end", "f: edit a copy with")
        text = " ".join(shown.text.split())
        order = [
            "✗ failed",
            OUT_OF_MEMORY,
            "fix f: edit a copy with per_device_train_batch_size=1",
            "or e: smaller batch",
        ]
        places = [text.find(part) for part in [*order, "log", "line 20 of the end"]]
        assert -1 not in places and places == sorted(places)
        assert shown.text.count("line 20 of the end") == 1
        line = shown.front.query_one(KeyLine)
        assert line.plain.startswith("f fix  r resume") and ("1 show only chart 1" in line.plain) == (size[1] < 36)
        await shown.press("d")
        await shown.reaches("TextScreen")
        assert OUT_OF_MEMORY in str(shown.front._text) and "f: edit a copy with" in str(shown.front._text)
        await shown.press("escape", "6")
        await shown.shows("first", "loss", "f: edit a copy with")
        assert OUT_OF_MEMORY in " ".join(shown.text.split())

    watch(stocked, "full", script, size)


def test_findings_are_shown_with_the_change_that_f_makes(stocked: Home) -> None:
    run = make_run(stocked, Stage.PPO, "steered", "kl_coef=0.4", phase="running")
    write_metrics(run, {"objective/kl": curve(1.0, 20.0)})
    writer = EventWriter(run.attempt_dir(1) / "events.jsonl")
    for rule, cleared in (("no_end", False), ("ratio_off", False), ("kl_high", False), ("ratio_off", True)):
        tries = [{"kl_coef": "0.8"}] if rule == "kl_high" else []
        finding = Finding(rule=rule, step=9, seen=f"{rule} seen", means="It is bad.", tries=tries, cleared=cleared)
        writer.write("health", data=as_data(finding))
    writer.close()
    lock = run.acquire_lock()

    async def script(shown: Shown) -> None:
        await shown.shows("! kl_high  step 9: kl_high seen. It is bad.", "f: edit a copy with kl_coef=0.8")
        await shown.shows("! no_end  step 9: no_end seen")
        assert "! ratio_off  step" not in shown.text
        await shown.press("f")
        await shown.reaches("LaunchScreen")
        form = shown.front.query_one(RecipeForm)
        await shown.until(lambda: form.cursor_key == "kl_coef")
        assert form.form.text("kl_coef") == "0.8"

    watch(stocked, "steered", script, (120, 40))
    run.release_lock(lock)


def test_f_opens_a_copy_with_the_change_and_the_cursor_on_it(stocked: Home) -> None:
    _fail(make_run(stocked, Stage.SFT, "full", "per_device_train_batch_size=4"), OUT_OF_MEMORY)

    async def script(shown: Shown) -> None:
        await shown.shows("f: edit a copy")
        await shown.press("f")
        await shown.reaches("LaunchScreen")
        await shown.shows("cloned from full")
        form = shown.front.query_one(RecipeForm)
        await shown.until(lambda: form.cursor_key == "per_device_train_batch_size")
        assert form.form.text("per_device_train_batch_size") == "1"
        assert form.form.text("gradient_accumulation_steps") == "8"

    watch(stocked, "full", script)


def test_fix_of_a_pipelines_first_stage_is_a_copy_of_the_pipeline(stocked: Home) -> None:
    parent = make_run(stocked, Stage.PIPELINE, "whole", phase="failed")
    _fail(parent, f"Run `whole-sft` failed: {OUT_OF_MEMORY}")
    child = make_run(
        stocked, Stage.SFT, "whole-sft", "per_device_train_batch_size=4", parents=["whole"], phase="failed"
    )
    _fail(child, OUT_OF_MEMORY)

    async def script(shown: Shown) -> None:
        await shown.shows("f: edit a copy with sft.per_device_train_batch_size=1")
        await shown.press("f")
        await shown.reaches("LaunchScreen")
        await shown.shows("cloned from whole", "[pipeline]")
        form = shown.front.query_one(RecipeForm)
        await shown.until(lambda: form.cursor_key == "sft.per_device_train_batch_size")

    watch(stocked, "whole", script)


def test_wrong_recipe_leads_with_editing_and_offers_no_resume(stocked: Home) -> None:
    run = make_run(stocked, Stage.SFT, "typo", phase="failed")
    _fail(run, "`max_length=8`: none of 512 training rows has a prompt that leaves room; raise `max_length`.", 2)

    async def script(shown: Shown) -> None:
        await shown.shows("exit code 2, invalid recipe or input", "e: fix the recipe in the form and relaunch")
        await shown.shows("f: open a copy at `max_length`")
        assert "r: " not in shown.text
        line = shown.front.query_one(KeyLine)
        assert line.plain == "f fix  e edit a copy  ? help  q quit"  # nothing was saved: nothing to chat with either
        await shown.press("f")
        await shown.reaches("LaunchScreen")
        await shown.shows("cloned from typo")
        form = shown.front.query_one(RecipeForm)
        await shown.until(lambda: form.cursor_key == "max_length")
        assert not form.form.changes()

    watch(stocked, "typo", script)


def test_pipeline_that_failed_before_its_first_stage_is_copied(stocked: Home) -> None:
    _fail(make_run(stocked, Stage.PIPELINE, "none", phase="failed"), "`dataset_name`: no such data set.", 2)

    async def script(shown: Shown) -> None:
        line = shown.front.query_one(KeyLine)
        await shown.until(lambda: "e edit a copy" in line.plain)
        await shown.press("e")
        await shown.reaches("LaunchScreen")
        await shown.shows("cloned from none")

    watch(stocked, "none", script)


def test_very_long_cause_is_scrolled_with_the_advice_in_sight(stocked: Home) -> None:
    _fail(stocked.run("broken"), " ".join(f"word{index}" for index in range(300)))

    async def script(shown: Shown) -> None:
        await shown.shows("word0 ", "try    ", "line 20 of the end")
        assert shown.app.focused is shown.front.query_one("#cause") and "space page down" in shown.lines[-1]
        await shown.press("G")
        await shown.shows("word299", "try    ")

    watch(stocked, "broken", script)


def test_a_long_cause_is_wrapped_and_not_cut(stocked: Home) -> None:
    run = stocked.run("broken")
    words = [f"word{index}" for index in range(24)]
    run.write_state(msgspec.structs.replace(run.read_state(), cause=" ".join(words), exit_code=137, last_lines=[]))

    async def script(shown: Shown) -> None:
        await shown.shows("word0 ", "signal SIGKILL (exit code 137)")
        assert [word for word in words if word not in shown.text] == []
        await shown.pilot.resize_terminal(120, 40)
        await shown.until(lambda: any("word0 " in line and "word10" in line for line in shown.lines))

    watch(stocked, "broken", script)


def test_missing_run_is_one_error_line(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("✗ No run `gone`")
        for key in ("x", "w", "a", "d", "right_square_bracket", "full_stop", "1", "5", "6", "slash"):
            await shown.press(key)
        await shown.press("escape", "escape")
        await shown.reaches("RunsScreen")

    watch(stocked, "gone", script)


def test_run_deleted_while_it_is_watched_is_reported(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("rollout 40")
        shutil.rmtree(stocked.run("aligned").path)
        await shown.until(lambda: "deleted" in _state(shown) or "cannot be read" in _state(shown))
        await shown.press("d", "escape", "a")
        await shown.until(lambda: any("aligned" in text for text in shown.said))

    watch(stocked, "aligned", script)


# keys of its own


def test_pages_of_charts_go_round(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("rollout 40")
        seen = [_titles(shown)]
        for number in (2, 3):
            await shown.press("right_square_bracket")
            seen.append(_titles(shown))
            assert f"charts {number} of 3" in shown.lines[0]
        assert seen == [["reward", "KL to the reference"], ["entropy", "clip fraction"], ["ratio", "gradient norm"]]
        await shown.press("right_square_bracket")
        assert _titles(shown) == seen[0]
        await shown.press("left_square_bracket")
        assert _titles(shown) == seen[2]

    watch(stocked, "aligned", script)


@pytest.mark.slow
def test_number_keys_show_one_panel_alone(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("rollout 40", "because 40")
        every = _titles(shown)
        for key, title in zip("1234", every, strict=True):
            await shown.press(key)
            assert _titles(shown) == [title] and shown.app.focused.title == title  # type: ignore[union-attr]
            await shown.press(key)
            assert _titles(shown) == every
        await shown.press("5")
        assert _titles(shown) == [] and shown.front.query_one(LogView).region.height > 30
        await shown.press("6")
        assert _titles(shown) == [] and shown.front.query_one("#metrics").region.width > 100
        assert shown.front.query_one(LogView).region.height == 0
        await shown.press("2")
        assert _titles(shown) == [every[1]]
        await shown.press("2")
        assert _titles(shown) == every

    watch(stocked, "aligned", script, size=(160, 45))


def test_a_charts_own_keys_work_at_once(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("rollout 40")
        chart: Any = shown.front.query_one("#chart-0", Chart)
        assert shown.app.focused is chart
        await shown.press("y", "s", "plus", "c")
        assert chart.log_axis and chart.weight > 0 and chart.view.cursor is not None and chart.view.width is not None
        await shown.press("tab")
        assert shown.app.focused is shown.front.query_one("#chart-1", Chart)

    watch(stocked, "aligned", script)


def test_the_log_is_searched(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("rollout 40")
        await shown.press("slash")
        await shown.fill("rollout 7")
        await shown.shows("match 1 of 1: rollout 7", ">INFO rollout 7")
        await shown.press("enter")
        view = shown.front.query_one(LogView)
        assert view.has_focus and view.match_position == 1
        await shown.press("G")
        await shown.shows("rollout 40")
        await shown.press("escape")
        assert shown.name == "MonitorScreen" and view.match_count == 0
        await shown.press("escape")
        await shown.reaches("RunsScreen")

    watch(stocked, "aligned", script)


def test_search_without_a_match_keeps_the_line(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("rollout 40")
        await shown.press("slash")
        await shown.fill("nowhere")
        await shown.press("enter", "e")
        await shown.shows("no match in the whole log: nowheree")
        assert shown.name == "MonitorScreen" and isinstance(shown.app.focused, Input)

    watch(stocked, "aligned", script)


@pytest.mark.parametrize("size", [(80, 24), (80, 16)])
def test_panel_keys_focus_what_they_show(stocked: Home, size: tuple[int, int]) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("aligned", "reward 2")
        view = shown.front.query_one(LogView)
        await shown.press("5", "g")
        assert view.has_focus and not view.following
        await shown.press("5", "2", "y")
        chart = shown.front.query_one("#chart-1", Chart)
        assert chart.has_focus and chart.log_axis
        await shown.press("6", "5", "G")
        assert view.has_focus and view.following
        await shown.press("6", "slash", "x")
        assert shown.front.query_one("#log-search", Input).value == "x" and view.region
        await shown.press("escape", "5")
        assert isinstance(shown.app.focused, Chart)

    watch(stocked, "aligned", script, size)


def test_metrics_alone_are_scrolled(stocked: Home) -> None:
    write_metrics(stocked.run("alive"), {f"metric_{index}": [1.0, 2.0] for index in range(40)}, attempt=1)

    async def script(shown: Shown) -> None:
        await shown.shows("alive", "metric")
        await shown.press("6")
        assert shown.app.focused is shown.front.query_one("#metrics")
        await shown.press("G")
        await shown.shows("metric_39")

    watch(stocked, "alive", script)


def test_metrics_alone_have_room_for_their_names_and_memory_counts_as_one(stocked: Home) -> None:
    names = [f"my_own_metric_of_the_reward_{end}" for end in ("first", "second")]
    write_metrics(stocked.run("alive"), {name: [1.0, 2.0] for name in names}, attempt=1)
    bare = make_run(stocked, Stage.MERGE, "bare", phase="failed")
    writer = EventWriter(bare.attempt_dir(1) / "events.jsonl")
    writer.write("memory", metrics={"rss": 2.0 * 1024**3})
    writer.close()

    async def names_script(shown: Shown) -> None:
        await shown.shows("alive", "step")
        side = shown.front.query_one("#metrics", TextLines)
        await shown.press("6")
        await shown.until(lambda: all(name in side.plain for name in names))

    async def memory_script(shown: Shown) -> None:
        await shown.shows("bare", "failed")
        await shown.press("6")
        side = shown.front.query_one("#metrics", TextLines)
        await shown.until(lambda: "peak RSS 2.0 GiB" in side.plain)
        assert "no metrics" not in side.plain

    watch(stocked, "alive", names_script)
    watch(stocked, "bare", memory_script)


def test_the_log_is_filtered_by_level(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("a shard is small")
        await shown.press("5", "v", "v")
        await shown.shows("warning and above")
        assert "a shard is small" in shown.text and "INFO saved" not in shown.text

    watch(stocked, "tuned", script)


def test_metrics_are_shown_as_text_and_copied(stocked: Home, tmp_path: Path) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("loss 1")
        await shown.press("d")
        await shown.reaches("TextScreen")
        await shown.shows("train: first 4, last 1", "learning rate")
        await shown.press("Y")
        await shown.notified("copied; also saved to")
        assert "train: first 4, last 1" in (tmp_path / "state" / "stackllama" / "copied.txt").read_text()
        for key in ("j", "k", "space", "pageup"):
            await shown.press(key)
        await shown.press("q")
        await shown.reaches("MonitorScreen")

    watch(stocked, "tuned", script)


def test_keys_stop_save_resume_and_delete_a_run(stocked: Home, asked: Asked) -> None:
    async def script(shown: Shown) -> None:
        await shown.press("x", "n", "x", "y")
        await shown.notified("alive: asked to save and stop")
        await shown.press("w")
        await shown.notified("alive will save")
        await shown.press("r")
        await shown.notified("alive resumed")
        assert asked.calls == ["stop alive", "resume alive"]

    watch(stocked, "alive", script)


def test_finding_a_metric_speaks_of_no_path(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("loss 1")
        await shown.press("m")
        await shown.shows("find metric", "enter selects, esc cancels")

    watch(stocked, "tuned", script)


def test_value_of_an_ended_run_is_refused_before_it_is_typed(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.press("V")
        await shown.notified("tuned has ended (finished): there is nothing to change.")
        assert "Set a value" not in shown.text

    watch(stocked, "tuned", script)


def test_result_of_a_merge_is_part_of_its_metrics_as_text(stocked: Home) -> None:
    merged = make_run(stocked, Stage.MERGE, "tuned-merged")
    merged.write_json("result.json", {"stage": "merge", "error": 1e-6, "difference": 2.0, "dtype": "float32"})

    async def script(shown: Shown) -> None:
        await shown.shows("dtype: float32")
        footer = shown.front.query_one(KeyLine)
        assert "next charts" not in footer.plain
        await shown.press("1")
        await shown.notified("no chart 1 here; 5: log, 6: metrics")
        await shown.press("d")
        await shown.reaches("TextScreen")
        await shown.shows("dtype: float32")

    watch(stocked, "tuned-merged", script)


def test_log_has_the_focus_while_it_is_shown_alone(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.press("5")
        assert isinstance(shown.app.focused, LogView)
        await shown.press("5")
        assert isinstance(shown.app.focused, Chart)

    watch(stocked, "tuned", script)


def test_after_deleting_one_is_back_at_the_list(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.press("D")
        await shown.shows("Delete broken permanently?")
        await shown.press("y")
        await shown.reaches("RunsScreen")
        await shown.until(lambda: "broken" not in shown.text)
        assert not (stocked.runs_dir / "broken").exists()

    watch(stocked, "broken", script)


@pytest.mark.parametrize(
    ("key", "screen", "text"),
    [("e", "LaunchScreen", "cloned from aligned"), ("a", "SamplesScreen", "because"), ("t", "ChatScreen", "nothing")],
)
def test_keys_lead_to_other_screens(stocked: Home, key: str, screen: str, text: str) -> None:
    async def script(shown: Shown) -> None:
        await shown.press(key)
        await shown.reaches(screen)
        await shown.shows(text)
        await shown.press(*["escape"] * (2 if key == "t" else 1))
        await shown.reaches("MonitorScreen")

    watch(stocked, "aligned", script)


@pytest.mark.parametrize(
    ("run_id", "keys"),
    [
        ("aligned", {"e edit a copy", "a samples", "t chat"}),
        ("tuned", {"e edit a copy", "t chat"}),
        ("broken", {"r resume", "e edit a copy"}),
        ("alive", {"x stop", "w save checkpoint", "e edit a copy"}),
    ],
)
def test_footer_offers_what_the_run_can_do(stocked: Home, run_id: str, keys: set[str]) -> None:
    async def script(shown: Shown) -> None:
        line = shown.front.query_one(KeyLine)
        await shown.until(lambda: "e edit" in line.plain)
        offered = set(line.plain.split("  "))
        every = {f"{binding.key} {binding.description}" for binding in as_bindings(MonitorScreen.BINDINGS)}
        assert offered & every == keys

    watch(stocked, run_id, script, (140, 40))


def test_predicted_memory_is_shown_beside_the_measured_peak(stocked: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_module, "predicted_peak", lambda run: 2.5 * 1024**3)
    run = stocked.run("tuned")
    with (run.attempt_dir(1) / "events.jsonl").open("ab") as file:
        for step in range(1, 5):
            file.write(
                msgspec.json.encode(
                    {"seq": step, "time": 0.0, "kind": "memory", "step": step, "metrics": {"rss": step * 1024.0**3 / 2}}
                )
                + b"\n"
            )

    async def script(shown: Shown) -> None:
        await shown.shows("peak RSS 2.0 GiB; predicted 2.5 GiB")
        memory = next(chart for chart in shown.front.query(Chart) if chart.title == "memory")
        assert memory._reference == ("predicted", 2.5 * 1024**3)

    watch(stocked, "tuned", script)


# pipelines


@pytest.fixture
def whole(stocked: Home) -> Iterator[Home]:
    parent = make_run(stocked, Stage.PIPELINE, "whole", phase="running")
    lock = parent.acquire_lock()
    for suffix, stage, metrics in (
        ("sft", Stage.SFT, {"loss": curve(3.0, 1.0)}),
        ("reward", Stage.REWARD, {"accuracy": curve(0.5, 0.9)}),
    ):
        child = make_run(stocked, stage, f"whole-{suffix}", parents=["whole"])
        write_metrics(child, metrics)
        write_log(child, f"INFO log of {suffix}")
    yield stocked
    os.close(lock)


def test_comma_and_full_stop_switch_a_pipelines_stage(whole: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("✓ sft → · sft merge → ✓ reward → ", "· ppo", "log of reward", "accuracy 0.9")
        await shown.press("full_stop")
        await shown.shows("log of sft", "loss 1")
        await shown.press("comma")
        await shown.shows("log of reward")
        ppo = make_run(whole, Stage.PPO, "whole-ppo", parents=["whole"])
        write_metrics(ppo, {"objective/scores": [0.0, 1.0]})
        await shown.shows("✓ ppo")

    watch(whole, "whole", script)


def test_footer_of_a_pipeline_offers_what_the_stage_shown_can_do(whole: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("log of reward")
        line = shown.front.query_one(KeyLine)
        assert "x stop" in line.plain and "chat" not in line.plain and "samples" not in line.plain
        await shown.press("full_stop")
        await shown.shows("log of sft")
        await shown.until(lambda: "t chat" in line.plain)
        assert "samples" not in line.plain

    watch(whole, "whole", script)


def test_action_in_a_pipeline_goes_to_the_right_run(whole: Home, asked: Asked) -> None:
    add_samples(whole.run("whole-reward"), {"step": 1, "question": "q", "response": "of its stage", "reward": 1.0})

    async def script(shown: Shown) -> None:
        await shown.shows("log of reward")
        await shown.press("x", "y")
        await shown.notified("whole: asked to save and stop")
        assert asked.calls == ["stop whole"]
        await shown.press("a")
        await shown.reaches("SamplesScreen")
        await shown.shows("of its stage")

    watch(whole, "whole", script)


def test_samples_of_a_finished_pipeline_are_those_of_its_ppo(stocked: Home) -> None:
    make_run(stocked, Stage.PIPELINE, "whole")
    for suffix, stage in (("sft", Stage.SFT), ("ppo", Stage.PPO), ("ppo-merged", Stage.MERGE)):
        make_run(stocked, stage, f"whole-{suffix}", parents=["whole"])
    add_samples(stocked.run("whole-ppo"), {"step": 1, "question": "q", "response": "of its PPO", "reward": 1.0})

    async def script(shown: Shown) -> None:
        line = shown.front.query_one(KeyLine)
        await shown.until(lambda: "a samples" in line.plain)
        await shown.press("a")
        await shown.reaches("SamplesScreen")
        await shown.shows("of its PPO")

    watch(stocked, "whole", script)


def test_only_a_pipeline_has_stages(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.press("full_stop")
        assert any("only a pipeline" in text for text in shown.said)

    watch(stocked, "tuned", script)


# other trainers


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    isolate(tmp_path, monkeypatch)
    path = tmp_path / "other-trainer"
    path.mkdir()
    rows = [{"step": step, "loss": 4 / step, "learning_rate": 1e-4} for step in range(1, 11)]
    (path / "trainer_state.json").write_text(json.dumps({"log_history": rows, "global_step": 10, "max_steps": 20}))
    (path / "train.log").write_text("INFO from another trainer\n")
    return path


def test_requests_to_a_running_run_are_written(stocked: Home) -> None:
    control = stocked.run("alive").control

    async def script(shown: Shown) -> None:
        await shown.shows("alive")
        await shown.press("A")
        await shown.notified("alive will sample held-out prompts")
        await shown.press("p")
        await shown.notified("alive will pause")
        await shown.press("V")
        await shown.shows("Set a value of alive while it runs: learning_rate", "enter  set     esc  cancel")
        assert "or kl_coef" not in shown.text and "for PPO" not in shown.text
        await shown.fill("kl_coef=0.1")
        await shown.press("enter")
        await shown.shows("cannot change while sft runs")
        await shown.fill("learning_rate=2e-5")
        await shown.press("enter")
        await shown.notified("learning_rate=2e-5 from the next step on")
        assert sorted(path.name for path in control.iterdir()) == ["pause", "sample", "set-learning_rate"]
        events = EventWriter(stocked.run("alive").attempt_dir(1) / "events.jsonl")
        events.write("phase", phase="paused")
        events.close()
        await shown.shows("paused", "p: continue", " p pause / continue ")
        await shown.press("p")
        await shown.notified("alive continues")
        assert not (control / "pause").exists()

    watch(stocked, "alive", script)


def test_another_trainers_directory_is_read_only(other: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in other.rglob("*")}

    async def script(shown: Shown) -> None:
        await shown.shows("step 10/20", "loss 0.4", "from another trainer", "read-only")
        assert shown.front.query_one(KeyLine).plain == "? help  q quit"
        for key in ("x", "w", "r", "e", "a", "t", "D"):
            await shown.press(key)
        assert shown.name == "MonitorScreen"
        assert {text for text in shown.said} == {"read-only: this run was started by another trainer"}
        await shown.press("question_mark")
        await shown.reaches("HelpScreen")
        offered = keys_text(shown.app.screen_stack[-2]).plain
        assert "monitor.panel_5" in offered
        for refusing in ("stop", "save", "pause", "change", "resume", "clone", "delete", "child"):
            assert f"monitor.{refusing}" not in offered

    run_app(Home(other.parent / "home"), script, target=other)
    assert {path: path.stat().st_mtime_ns for path in other.rglob("*")} == before


def test_a_silent_directory_says_for_how_long(other: Path) -> None:
    days_ago = time.time() - 3.5 * 86400
    for path in other.iterdir():
        os.utime(path, (days_ago, days_ago))

    async def script(shown: Shown) -> None:
        await shown.shows("○ no sign for 3 days", "step 10/20")
        assert "unknown" not in shown.text

    run_app(Home(other.parent / "home"), script, target=other)


def test_a_directory_of_several_runs_asks_which(other: Path) -> None:
    for name in ("first", "second"):
        folder = other.parent / "outputs" / name
        shutil.copytree(other, folder)
        (folder / "train.log").write_text(f"INFO of the {name}\n")

    async def script(shown: Shown) -> None:
        await shown.reaches("ChooseScreen")
        await shown.shows("2 runs in outputs: open which?", "first", "second", "ago")
        await shown.press("escape")
        await shown.reaches("RunsScreen")
        await shown.press("o")
        await shown.fill(str(other.parent / "outputs"))
        await shown.press("enter")
        await shown.reaches("ChooseScreen")
        await shown.press(*(["j"] if "first" in shown.text.partition("which?")[2].splitlines()[1] else []), "enter")
        await shown.reaches("MonitorScreen")
        await shown.shows("INFO of the second", "loss 0.4")

    run_app(Home(other.parent / "home"), script, target=other.parent / "outputs")


def test_restarted_curve_is_drawn(other: Path) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("loss 0.4", "step 10/20")
        rows = [{"step": 2, "loss": 7.5, "learning_rate": 1e-4}]
        state = {"log_history": rows, "global_step": 2, "max_steps": 20}
        (other / "trainer_state.json").write_text(json.dumps(state))
        await shown.shows("loss 7.5")
        assert "7.5" in shown.front.query(Chart).first().summary()

    run_app(Home(other.parent / "home"), script, target=other)


@pytest.mark.parametrize(
    "value", [0.5, *(pytest.param(value, marks=pytest.mark.slow) for value in (0.0, -3.0, 1e-30, 1e30))]
)
def test_a_single_point_is_drawn(other: Path, value: float) -> None:
    state = {"log_history": [{"step": 1, "loss": value}], "global_step": 1}
    (other / "trainer_state.json").write_text(json.dumps(state))

    async def script(shown: Shown) -> None:
        await shown.shows("step 1", "loss")
        for size in ((40, 12), (56, 18), (100, 28), (160, 45), (80, 24)):
            await shown.pilot.resize_terminal(*size)
            await shown.pilot.pause()

    run_app(Home(other.parent / "home"), script, target=other)


# sizes


@pytest.mark.slow
@pytest.mark.parametrize("run_id", ["aligned", "broken", "alive"])
def test_no_size_is_too_small_or_too_large(stocked: Home, run_id: str) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("aligned" if run_id == "aligned" else run_id)
        for size in ((20, 5), (1, 1), (40, 12), (56, 10), (300, 90), (80, 24)):
            await shown.pilot.resize_terminal(*size)
            await shown.press("5", "5", "6", "6", "1", "1", "right_square_bracket", "d", "escape", "x", "n")
            shown.assert_clean()
        await shown.press("1")
        assert len(_titles(shown)) == 1

    watch(stocked, run_id, script)


def test_the_last_chart_takes_what_its_row_has_left(stocked: Home) -> None:
    three = make_run(stocked, Stage.SFT, "three")
    write_metrics(three, {name: curve(1.0, 2.0) for name in ("loss", "learning_rate", "grad_norm")})

    async def script(shown: Shown) -> None:
        await shown.shows("gradient norm", "learning rate")
        await shown.until(lambda: len([chart for chart in shown.front.query(Chart) if chart.region]) == 3)
        first, second, third = (chart.region.width for chart in shown.front.query(Chart) if chart.region)
        assert third > first + second
        await shown.press("1")
        await shown.until(lambda: len([chart for chart in shown.front.query(Chart) if chart.region]) == 1)

    run_app(stocked, script, size=(160, 45), target="three")
