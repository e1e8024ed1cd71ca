"""`chat`: questions from the command line and from stdin, answers as text and as JSON, with a generator made up."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stackllama_console.readers import generator as reader
from stackllama_engine.contract.chat_messages import Delta
from stackllama_engine.contract.run_dir import RunDir
from stackllama_engine.contract.stages import Stage

FAKE = Path(__file__).parents[1] / "readers" / "fake_generator.py"


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the fake generator that every run gets."""

    def use(*arguments: str) -> None:
        command = [sys.executable, str(FAKE), *arguments]
        monkeypatch.setattr(reader, "chat_command", lambda *_, **__: (command, dict(os.environ)))

    use("echo")
    return use


@pytest.fixture
def run(make_run: Callable[..., RunDir]) -> RunDir:
    made = make_run(Stage.SFT, "mine")
    made.adapter.mkdir()
    return made


def test_chat_answers_one_prompt(run: RunDir, generator: Callable[..., None], run_main: Callable[..., Any]) -> None:
    result = run_main("chat", run.id, "--prompt", "how so")
    assert (result.code, result.out) == (0, "base\nbase:how base:so \ntuned\ntuned:how tuned:so \n")
    assert result.err == "mine: loading …\nbase and tuned of fake, step-000003, on cpu\n"


def test_chat_tells_rewards_and_takes_a_system_prompt(
    run: RunDir, generator: Callable[..., None], run_main: Callable[..., Any]
) -> None:
    generator("scored")
    result = run_main("chat", run.id, "--prompt", "how so", "--system-prompt", "Be brief.")
    assert result.out == "base\nseed 0, Be brief.\ntuned\nseed 0, Be brief.\n"
    assert "reward of base: 0.25\nreward of tuned: 0.25\n" in result.err
    answer = run_main("chat", run.id, "--prompt", "how so", "--json").json()["answers"][0]
    assert answer["tuned"] == {
        "text": "seed 0, None",
        "tokens": 2,
        "seconds": 0.5,
        "ended": True,
        "cancelled": False,
        "reward": 0.25,
    }


def test_chat_prints_one_json_document(
    run: RunDir, generator: Callable[..., None], run_main: Callable[..., Any]
) -> None:
    result = run_main("chat", run.id, "--prompt", "go", "--json")
    side = {"tokens": 2, "seconds": 0.5, "ended": True, "cancelled": False}
    answer = {"prompt": "go", "base": {"text": "base:go ", **side}, "tuned": {"text": "tuned:go ", **side}}
    assert result.json() == {"run": "mine", "checkpoint": "step-000003", "model": "fake", "answers": [answer]}


def test_chat_asks_each_line_of_stdin(
    run: RunDir, generator: Callable[..., None], run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\n  \nfail\ntwo"))
    result = run_main("chat", run.id, "--json")
    assert [answer["prompt"] for answer in result.json()["answers"]] == ["one", "fail", "two"]
    assert result.json()["answers"][1] == {"prompt": "fail", "error": "no such answer"}
    assert result.code == 1 and "not answered: no such answer" in result.err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_ctrl_c_cancels_the_answer_and_the_next_question_is_asked(
    run: RunDir, generator: Callable[..., None], run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator("waiting")  # it answers nothing to its end unless that is cancelled
    wait = reader.ChatProcess.wait

    def interrupted(process: reader.ChatProcess, seconds: float) -> list[reader.ChatEvent]:
        events = wait(process, seconds)
        if pending:
            raise pending.pop()
        if any(isinstance(event, Delta) for event in events):
            pending.append(KeyboardInterrupt())
        return events

    pending: list[KeyboardInterrupt] = []
    monkeypatch.setattr(reader.ChatProcess, "wait", interrupted)
    monkeypatch.setattr("sys.stdin", Terminal("one\ntwo\n"))
    result = run_main("chat", run.id, "--json")
    assert result.code == 0
    answers = result.json()["answers"]
    assert [answer["prompt"] for answer in answers] == ["one", "two"]
    assert all(answer["base"]["cancelled"] and answer["tuned"]["cancelled"] for answer in answers)
    assert answers[0]["base"]["text"] == "a beginning "
    assert result.err.count("? ") == 3 and "Ctrl-D quits" in result.err


def test_ctrl_c_outside_an_answer_ends_chat(
    run: RunDir, generator: Callable[..., None], run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator("waiting")
    ended: list[reader.ChatProcess] = []
    close = reader.ChatProcess.close

    def closed(process: reader.ChatProcess) -> None:
        close(process)
        ended.append(process)

    def interrupted(process: reader.ChatProcess, seconds: float) -> list[reader.ChatEvent]:
        raise KeyboardInterrupt

    monkeypatch.setattr(reader.ChatProcess, "close", closed)
    monkeypatch.setattr(reader.ChatProcess, "wait", interrupted)
    assert run_main("chat", run.id, "--prompt", "go").code == 130
    assert [process.alive for process in ended] == [False]


def test_chat_sanitises_answers(
    run: RunDir,
    generator: Callable[..., None],
    run_main: Callable[..., Any],
    payloads: list[str],
    assert_clean: Callable[[str], None],
) -> None:
    generator("hostile", json.dumps(payloads))
    result = run_main("chat", run.id, "--prompt", "go")
    assert result.code == 1 and "[@click=app.quit]markup[/]" in result.out
    assert_clean(result.out)
    assert_clean(result.err)


@pytest.mark.parametrize(
    ("mode", "code", "message"),
    [("refuse", 3, "nothing is trained yet"), ("die", 1, "ended unexpectedly (exit code 9): Traceback: boom")],
)
def test_chat_reports_a_generator_that_ends(
    run: RunDir,
    generator: Callable[..., None],
    run_main: Callable[..., Any],
    mode: str,
    code: int,
    message: str,
) -> None:
    generator(mode)
    result = run_main("chat", run.id, "--prompt", "go")
    assert result.code == code and message in result.err and result.out == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nine"], 2, "Did you mean `mine`?"),
        (["mine", "--checkpoint", "7"], 2, "has no checkpoint `7`; there are: none."),
        (["empty"], 3, "is failed and has trained nothing that was saved yet"),
        (["judge"], 3, "is a reward model: it scores responses and writes none"),
        (["mine", "--temperature", "nan"], 2, "`--temperature nan`: expected a number from 0 to 100"),
        (["mine", "--max-new-tokens", "0"], 2, "expected a whole number"),
        (["mine", "--max-new-tokens", "999999"], 2, "invalid question"),
    ],
)
def test_chat_reports_mistakes_with_their_exit_code(
    run: RunDir,
    generator: Callable[..., None],
    make_run: Callable[..., RunDir],
    run_main: Callable[..., Any],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    make_run(Stage.PPO, "empty", "failed")
    make_run(Stage.REWARD, "judge")
    result = run_main("chat", *arguments, "--prompt", "go")
    assert result.code == code, result
    assert message in result.err
