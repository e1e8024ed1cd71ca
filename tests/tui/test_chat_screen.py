"""The chat under keys: two sides, streaming, cancelling, settings, checkpoints, and no generator left behind."""

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import PAYLOADS
from tests.tui.screens_kit import Driven, drive, isolate, make_run

from stackllama_console.readers.generator import ChatProcess
from stackllama_console.tui.screens import chat as chat_module
from stackllama_console.tui.screens.chat import ChatScreen
from stackllama_console.tui.widgets.turn_list import TurnList, wrap_text
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage

FAKE = Path(__file__).parents[1] / "readers" / "fake_generator.py"
PAYLOAD_TEXT = json.dumps([payload for payload in PAYLOADS if "never ended" not in payload])


class Starter:
    """Starts fake generators and remembers them."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments
        self.processes: list[ChatProcess] = []
        self.checkpoints: list[str | None] = []

    def __call__(self, run: RunDir, checkpoint: str | None) -> ChatProcess:
        self.checkpoints.append(checkpoint)
        self.processes.append(ChatProcess([sys.executable, str(FAKE), *self.arguments], os.environ))
        return self.processes[-1]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(chat_module, "randbelow", lambda _: 41)  # the first seed
    return isolate(tmp_path, monkeypatch)


@pytest.fixture
def run(home: Home) -> RunDir:
    run = make_run(home, Stage.PPO, "trained")
    run.adapter.mkdir()
    for step in (20, 40):
        (run.checkpoints / f"step-{step:06d}").mkdir()
    return run


def _talk(run: RunDir, starter: Starter, script: Callable[[Driven], Any], size: tuple[int, int] = (80, 24)) -> None:
    """Run a script and assert that no generator is alive afterwards, however the screen was left."""
    drive(Home(run.path.parents[1]), lambda: ChatScreen(run, start=starter), script, size)
    assert starter.processes
    assert not any(process.alive for process in starter.processes)


async def _ask(driven: Driven, text: str) -> None:
    await driven.until(lambda: driven.screen.process is not None)  # a thread starts it
    await driven.press("i")
    await driven.type(text)
    await driven.press("enter")


def test_both_sides_answer_beside_each_other_where_there_is_room(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("base and tuned of fake, step-000003, on cpu")
        await driven.type("hello there")
        await driven.press("enter")
        await driven.shows("› hello there", "tuned:there")
        line = next(line for line in driven.lines if "base:hello" in line)
        assert "tuned:hello tuned:there" in line and "│" in line
        assert driven.text.count("2 tokens · 0.5 s") == 2
        assert driven.screen.query_one("#prompt").value == "" and "trained" in driven.lines[0]

    _talk(run, Starter("echo"), script, (120, 30))


def test_sides_are_stacked_below_100_columns(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await _ask(driven, "hello there")
        await driven.shows("base:there", "tuned:there")
        rows = [index for index, line in enumerate(driven.lines) if "base:" in line or "tuned:" in line]
        assert len(rows) == 2 and rows[1] == rows[0] + 2  # the second side's title between them

    _talk(run, Starter("echo"), script)


def test_x_and_escape_cancel_before_escape_leaves(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("base and tuned of fake")
        for count, key in enumerate(("escape", "x"), start=1):
            await _ask(driven, "more")
            await driven.until(lambda count=count: driven.text.count("a beginning") == count)
            if key == "x":
                driven.screen.query_one(TurnList).focus()
            await driven.press(key)
            await driven.until(lambda count=count: driven.text.count("cancelled") == 2 * count)
        await driven.press("x")
        assert "Nothing is being generated." in driven.notices
        await driven.press("i", "escape")
        assert driven.app.screen is driven.screen and driven.screen.query_one(TurnList).has_focus
        await driven.press("escape")
        assert driven.app.screen is not driven.screen
        await driven.until(lambda: not starter.processes[0].alive)

    starter = Starter("waiting")
    _talk(run, starter, script)


def test_settings_are_changed_outside_of_the_line_and_sent(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("base and tuned of fake", "temperature 1 (t) · max 128 tokens (n)")
        await driven.press("t", "n")  # typed into the line
        assert driven.screen.query_one("#prompt").value == "tn"
        await driven.press("escape", "t", "n", "n")
        await driven.shows("temperature 1.3 (t) · max 512 tokens (n)")
        await driven.press("t")
        await driven.shows("temperature 0 (t)")
        await _ask(driven, "what was asked?")
        await driven.shows('"max_new_tokens": 512', '"temperature": 0.0', '"seed": 41')

    _talk(run, Starter("facts"), script, (200, 30))


def test_answers_have_a_reward_and_are_regenerated_with_another_seed(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("base and tuned of fake", "new seed per answer (s)")
        await driven.press("escape", "R")
        assert "Nothing has been asked yet." in driven.notices
        await _ask(driven, "why?")
        await driven.shows("base  reward 0.25 · 2 tokens · 0.5 s", "tuned  reward 0.25", "seed 41, None")
        await driven.press("escape", "R")
        await driven.shows("base  reward 1.25", "seed 42, None", "seed 41, None")
        assert driven.text.count("› why?") == 2
        assert "› why?  seed 41 · temperature 1" in driven.text and "› why?  seed 42 · temperature 1" in driven.text
        await driven.press("s")
        await driven.type("-1")
        await driven.press("enter")
        await driven.shows("expected a whole number")
        await driven.type("7")
        await driven.press("enter")
        await driven.shows("seed 7 (s)")
        await driven.press("R")
        await driven.shows("seed 7, None")
        assert "The seed is fixed" in driven.notices

    _talk(run, Starter("scored"), script, (80, 40))


def test_system_prompt_takes_the_place_of_the_runs_own(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("system prompt (p): Be kind.")
        await driven.press("escape", "p")
        await driven.type("Be brief.")
        await driven.press("enter")
        await driven.shows("system prompt (p): Be brief.")
        await _ask(driven, "why?")
        await driven.shows("seed 41, Be brief.")
        await driven.press("escape", "p")
        await driven.type("")
        await driven.press("enter")
        await driven.shows("system prompt (p): Be kind.")

    _talk(run, Starter("scored"), script, (120, 30))


def test_runs_without_a_chat_format_have_no_system_prompt(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("base and tuned of fake", "format question_answer")
        assert "system prompt" not in driven.lines[-1]
        await driven.press("escape", "p")
        assert "system prompt" not in driven.lines[-1]
        assert "Only the format chat has a system prompt" in driven.notices

    _talk(run, Starter("echo"), script, (120, 30))


def test_c_chooses_a_checkpoint_and_ends_the_generator_before(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await _ask(driven, "hello")
        await driven.shows("tuned:hello")
        await driven.press("escape", "c")
        await driven.shows("chat with", "result", "step-000040", "step-000020")
        await driven.press("j", "enter")
        await driven.until(lambda: starter.checkpoints == [None, "step-000040"])
        await driven.shows("— from here on: step-000040 —")
        assert not starter.processes[0].alive and "step-000040" in driven.lines[0]
        await _ask(driven, "again")
        await driven.shows("tuned:again", "tuned:hello")
        await driven.press("escape", "c", "g", "space")
        await driven.until(lambda: starter.checkpoints[-1] is None and len(starter.checkpoints) == 3)
        await driven.press("c")
        await driven.shows("chat with")
        await driven.press("escape")
        assert driven.app.screen is driven.screen

    starter = Starter("echo")
    _talk(run, starter, script)


def test_dead_generator_is_reported_and_r_restarts_it(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await _ask(driven, "die")
        await driven.shows("ended unexpectedly (exit code 9)", "✗ not answered")
        status = driven.screen.query_one("#status")
        await driven.until(lambda: "esc leaves the input, then r: restart" in str(status.content))
        await driven.press("escape")
        await driven.until(lambda: "input" not in str(status.content) and "r: restart" in str(status.content))
        await _ask(driven, "still there?")
        assert "generator is not running" in driven.notices
        await driven.press("escape", "r")
        await driven.until(lambda: len(starter.processes) == 2)
        await driven.shows("base and tuned of fake")

    starter = Starter("die")
    _talk(run, starter, script)


def test_one_answer_that_fails_does_not_end_the_conversation(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await _ask(driven, "fail")
        await driven.shows("✗ not answered: no such answer")
        await _ask(driven, "hello")
        await driven.shows("tuned:hello")

    _talk(run, Starter("echo"), script)


def test_a_generator_that_refuses_says_why(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("Nothing is trained yet.", "esc: back")

    _talk(run, Starter("refuse"), script)


@pytest.mark.parametrize(
    ("stage", "phase", "said"),
    [
        (Stage.REWARD, "finished", "is a reward model"),
        (Stage.PIPELINE, "finished", "is a pipeline"),
        (Stage.PPO, "running", "trained nothing that was saved yet"),
    ],
)
def test_runs_that_cannot_chat_say_so_and_start_nothing(home: Home, stage: Stage, phase: str, said: str) -> None:
    run = make_run(home, stage, "mute", phase=phase)

    async def script(driven: Driven) -> None:
        await driven.until(lambda: said in " ".join(driven.text.split()))
        assert driven.screen.process is None
        for key in ("x", "t", "n", "c", "r", "G"):
            await driven.press("escape" if driven.app.focused and driven.app.focused.id == "prompt" else key)
        await driven.shows("esc: back")

    drive(home, lambda: ChatScreen(run), script)


def test_a_generator_that_cannot_be_started_is_one_line(run: RunDir) -> None:
    def fail(run: RunDir, checkpoint: str | None) -> ChatProcess:
        raise OSError(12, "Cannot allocate memory")

    async def script(driven: Driven) -> None:
        await driven.shows("Cannot allocate memory")

    drive(Home(run.path.parents[1]), lambda: ChatScreen(run, start=fail), script)


def test_the_conversation_is_scrolled(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        for number in range(12):
            await _ask(driven, f"question{number}")
        await driven.shows("tuned:question11")
        turns = driven.screen.query_one(TurnList)
        await driven.until(lambda: not any(turn.open for turn in turns.turns))
        await driven.press("escape")
        tops: list[int] = []
        for key in ("g", "j", "k", "G", "ctrl+u", "ctrl+d"):
            await driven.press(key)
            tops.append(turns.scroll_offset.y)
        assert tops[:3] == [0, 1, 0] and tops[3] == turns.max_scroll_y > 20 and tops[4] < tops[3] == tops[5]
        await driven.press("g")
        await driven.shows("› question0")

    _talk(run, Starter("echo"), script)


def test_conversation_follows_new_text_only_at_its_end(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await _ask(driven, "many")
        turns = driven.screen.query_one(TurnList)
        await driven.until(lambda: turns.max_scroll_y > 20)
        assert turns.scroll_offset.y == turns.max_scroll_y
        driven.screen.query_one(TurnList).focus()
        await driven.press("g")
        before = turns.max_scroll_y
        await driven.until(lambda: turns.max_scroll_y > before)
        assert turns.scroll_offset.y == 0

    _talk(run, Starter("flood"), script)


@pytest.mark.slow
def test_generator_that_ignores_its_input_is_ended_too(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("base and tuned of fake")

    _talk(run, Starter("deaf"), script)


def test_while_it_loads_it_says_what_takes_so_long_and_which_keys_there_are(run: RunDir) -> None:
    gate = threading.Event()
    starter = Starter("echo")

    def slow(run: RunDir, checkpoint: str | None) -> ChatProcess:
        gate.wait(20)
        return starter(run, checkpoint)

    async def script(driven: Driven) -> None:
        await driven.shows("loading the model", "You can type already.")
        await driven.press(*"why")
        await driven.until(lambda: all(words in driven.lines[-1] for words in ("enter ask", "esc back")))
        await driven.press("escape")
        await driven.until(lambda: all(words in driven.lines[-1] for words in ("i write", "q quit", "esc back")))
        gate.set()
        await driven.shows("base and tuned of fake")
        assert "loading" not in driven.text

    drive(Home(run.path.parents[1]), lambda: ChatScreen(run, start=slow), script, size=(120, 24))


def test_leaving_while_it_loads_leaves_nothing_behind(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await driven.press("escape", "escape")
        assert driven.app.screen is not driven.screen
        await driven.pilot.pause()

    starter = Starter("deaf")
    drive(Home(run.path.parents[1]), lambda: ChatScreen(run, start=starter), script)
    assert not any(process.alive for process in starter.processes)


@pytest.mark.parametrize(
    "size", [(80, 24), pytest.param((160, 45), marks=pytest.mark.slow), pytest.param((20, 5), marks=pytest.mark.slow)]
)
def test_hostile_answers_are_plain_and_clean(run: RunDir, size: tuple[int, int]) -> None:
    async def script(driven: Driven) -> None:
        await driven.until(lambda: driven.screen.process and driven.screen.process.ready)
        for payload in PAYLOADS:
            await _ask(driven, payload)
            driven.assert_clean()
        turns = driven.screen.query_one(TurnList)
        await driven.until(lambda: turns.turns and not any(turn.open for turn in turns.turns))
        await driven.press("escape")
        for key in ("g", *["ctrl+d"] * 12, "c", "escape"):
            await driven.press(key)
            driven.assert_clean()
        assert driven.app.screen is driven.screen and "[/INST]" in "\n".join(turns.lines)

    _talk(run, Starter("hostile", PAYLOAD_TEXT), script, size)


def test_resizing_to_nothing_and_back_survives(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await _ask(driven, "hello there")
        await driven.shows("tuned:there")
        for size in ((20, 5), (1, 1), (160, 45), (80, 24)):
            await driven.pilot.resize_terminal(*size)
            await driven.pilot.pause()
            driven.assert_clean()
        await driven.shows("› hello there", "tuned:hello tuned:there")

    _talk(run, Starter("echo"), script)


def test_wrapping_keeps_line_ends_and_breaks_long_words() -> None:
    assert wrap_text("a bb ccc\n\ndddddd e", 4) == ["a bb", "ccc", "", "dddd", "dd", "e"]
    assert wrap_text("漢字漢字 x", 4) == ["漢字", "漢字", "x"]
    assert wrap_text("  indented", 20) == ["  indented"]


def test_greedy_answers_have_no_seed_and_do_not_change(run: RunDir) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("base and tuned of fake")
        await driven.press("escape")
        assert not any(words in driven.lines[-1] for words in ("x cancel", "R regenerate"))
        driven.screen.temperature = 0.0
        await _ask(driven, "why?")
        await driven.shows("› why?  temperature 0", "reward 0.25 (reward model alone) · 2 tokens")
        await driven.press("escape")
        await driven.until(lambda: all(words in driven.lines[-1] for words in ("x cancel", "R regenerate")))
        await driven.press("R")
        assert "At temperature 0 the answers change only with other settings." in driven.notices

    _talk(run, Starter("scored", "functions"), script, (160, 40))


def test_how_long_it_has_been_loading_is_shown(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("loading the model")
        monkeypatch.setattr(chat_module, "monotonic", lambda: driven.screen._loading_since + 75.0)
        driven.screen.show_loading()
        await driven.shows("loading the model, 1 m 15 s;")

    _talk(run, Starter("silent"), script, (120, 24))
