"""The generator's process seen from the console: protocol, hostile and dying generators, none left behind."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from stackllama_console.readers import generator
from stackllama_console.readers.generator import ChatEvent, ChatProcess, Ended
from stackllama_engine.contract.chat_messages import Delta, Done, Failure, Ready
from stackllama_engine.contract.errors import RefusedError, UsageError
from stackllama_engine.contract.run_dir import RunDir
from stackllama_engine.contract.stages import Stage

FAKE = Path(__file__).with_name("fake_generator.py")
PATIENCE = 30.0
PAYLOADS = [
    "\x1b]52;c;aGVsbG8=\x07stolen",
    "\x1b[2J\x1b[Hcleared",
    "\x9b2Jone character",
    "over\rwritten\x07\x00",
    "\u202egnp.exe\u202c",
    "[@click=app.quit]markup[/]",
]
FORBIDDEN = {chr(code) for code in [*range(9), *range(11, 32), *range(127, 160)]} | set("\u202e\u202c")

Start = Callable[..., ChatProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[ChatProcess] = []

    def begin(*arguments: str) -> ChatProcess:
        started.append(ChatProcess([sys.executable, str(FAKE), *arguments], os.environ))
        return started[-1]

    yield begin
    for process in started:
        process.close()
        assert not process.alive


def until(process: ChatProcess, wanted: Callable[[ChatEvent], bool]) -> list[ChatEvent]:
    """Return everything up to and with the first event that is wanted."""
    events: list[ChatEvent] = []
    deadline = time.monotonic() + PATIENCE
    while True:
        for event in process.wait(1.0):
            events.append(event)
            if wanted(event):
                return events
        assert time.monotonic() < deadline, events


def until_ended(process: ChatProcess) -> Ended:
    last = until(process, lambda event: isinstance(event, Ended))[-1]
    assert isinstance(last, Ended)
    return last


def text(events: list[ChatEvent], which: str) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta) and event.which == which)


def test_answers_come_in_pieces_and_sides_in_order(start: Start) -> None:
    process = start("echo")
    question = process.ask("how so")  # before it is ready
    events = until(process, lambda event: isinstance(event, Done) and event.which == "tuned")
    assert isinstance(events[0], Ready) and events[0] == process.ready
    assert process.ready and process.ready.checkpoint == "step-000003"
    assert text(events, "base") == "base:how base:so " and text(events, "tuned") == "tuned:how tuned:so "
    done = [event for event in events if isinstance(event, Done)]
    assert [(event.id, event.which, event.tokens, event.ended) for event in done] == [
        (question, "base", 2, True),
        (question, "tuned", 2, True),
    ]
    assert process.poll() == []


def test_one_side_and_every_option_reach_the_generator(start: Start) -> None:
    process = start("facts")
    question = process.ask("q\n\U0001f389", ["tuned"], max_new_tokens=7, temperature=0.5, seed=3)
    asked = json.loads(text(until(process, lambda event: isinstance(event, Delta)), "tuned"))
    assert asked["session"] == asked["pid"] == process.pid  # Ctrl-C in our terminal does not reach it
    for name in ("session", "pid", "path"):
        del asked[name]
    assert asked == {
        "id": question,
        "prompt": "q\n\U0001f389",
        "which": ["tuned"],
        "max_new_tokens": 7,
        "temperature": 0.5,
        "seed": 3,
        "system": None,
    }


def test_error_ends_only_its_question(start: Start) -> None:
    process = start("echo")
    first, second = process.ask("fail"), process.ask("go")
    events = until(process, lambda event: isinstance(event, Done))
    assert Failure(id=first, error="no such answer") in events
    assert isinstance(events[-1], Done) and events[-1].id == second


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"seed": -1}]
)
def test_values_out_of_bounds_are_not_sent(start: Start, options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="invalid question: "):
        start("echo").ask("go", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "error"),
    [("x" * 100_001, "invalid question: "), ("half \ud800", "question contains an invalid")],
)
def test_prompt_that_no_line_can_carry_is_a_usage_error(start: Start, prompt: str, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        start("echo").ask(prompt)


def test_cancelled_answer_ends_as_cancelled(start: Start) -> None:
    process = start("waiting")
    question = process.ask("go")
    until(process, lambda event: isinstance(event, Delta))
    process.cancel(question)
    events = until(process, lambda event: isinstance(event, Done) and event.which == "tuned")
    assert [event.cancelled for event in events if isinstance(event, Done)] == [True, True]
    process.cancel(question)  # done meanwhile: nothing is sent
    process.cancel(99)
    assert process.ask("again") == question + 1
    assert isinstance(until(process, lambda event: True)[0], Delta)


def test_only_so_many_questions_wait(start: Start) -> None:
    process = start("waiting")
    for _ in range(64):
        process.ask("go", ["base"])
    with pytest.raises(RefusedError, match="64 questions are already waiting"):
        process.ask("go")
    process.cancel(1)
    until(process, lambda event: isinstance(event, Done) and event.id == 1)
    process.ask("go")


def test_hostile_text_and_lines_are_sanitised(start: Start) -> None:
    process = start("hostile", json.dumps(PAYLOADS))
    process.ask("go")
    events = until(process, lambda event: isinstance(event, Failure))
    assert process.ready
    said = [process.ready.model, process.ready.note or "", process.ready.device, text(events, "base")]
    said += [event.error for event in events if isinstance(event, Failure)]
    for one in said:
        assert one and not FORBIDDEN & set(one), ascii(one)
    assert "[@click=app.quit]markup[/]" in text(events, "base")  # text, for whoever shows it, as it is
    assert "\n" not in (process.ready.note or "\n")
    assert len(events) == 1 + len(PAYLOADS) + 1 and process.alive  # what was no reply is left out


def test_refusing_generator_ends_with_its_reason(start: Start) -> None:
    process = start("refuse")
    assert until_ended(process) == Ended(message="nothing is trained yet", exit_code=3)
    assert process.ready is None
    with pytest.raises(RefusedError, match="has ended"):
        process.ask("go")


@pytest.mark.parametrize(("prompt", "code", "how"), [("x", 9, "exit code 9"), ("killed", 137, "ended by SIGKILL")])
def test_dead_generator_ends_with_its_last_line(start: Start, prompt: str, code: int, how: str) -> None:
    process = start("die")
    process.ask(prompt)
    ended = until_ended(process)
    assert ended.exit_code == code
    assert ended.message == f"the generator ended unexpectedly ({how}): Traceback: boom"


def test_a_line_without_end_ends_the_generator(start: Start) -> None:
    assert until_ended(start("endless")).message == "the generator sent a line that never ends."


def test_a_generator_that_nobody_polls_waits(start: Start) -> None:
    process = start("flood")
    process.ask("go")
    deadline = time.monotonic() + PATIENCE
    while len(process._events) < generator._EVENTS:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(process.poll()) == generator._EVENTS
    more = process.wait(PATIENCE)
    assert more and len(more) <= generator._EVENTS
    assert len(process._log) <= 20
    process.close()  # also while its reader waits for room


@pytest.mark.slow
def test_close_ends_a_generator_that_does_not_listen(start: Start) -> None:
    process = start("deaf")
    until(process, lambda event: isinstance(event, Ready))
    for _ in range(3):
        process.ask("x" * 90_000)  # more than the pipe holds
    process.close()
    assert not process.alive
    assert not any(thread.is_alive() for thread in process._threads)
    process.close()
    assert process.poll()[-1] == Ended(message="the generator was closed.", exit_code=137)


def test_close_right_after_the_start_ends_it(start: Start) -> None:
    with start("echo") as process:
        pass
    assert not process.alive


def test_start_chat_runs_the_runs_generator(make_run: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(Stage.SFT, phase="running")
    with pytest.raises(RefusedError, match="trained nothing"):
        generator.start_chat(run)
    (run.checkpoints / "step-000003").mkdir()
    (run.checkpoints / "step-000003" / "manifest.json").write_bytes(msgspec.json.encode({}))

    def command(run: RunDir, checkpoint: str | None, *, cpu: bool) -> tuple[list[str], dict[str, str]]:
        assert (checkpoint, cpu) == ("step-000003", True)
        return [sys.executable, str(FAKE), "echo"], dict(os.environ)

    monkeypatch.setattr(generator, "chat_command", command)
    with generator.start_chat(run, cpu=True) as process:
        until(process, lambda event: isinstance(event, Ready))
