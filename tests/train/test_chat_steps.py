"""A chat's answer over static buffers is the one over a growing cache."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig

from stackllama_engine.contract.chat_messages import Ask
from stackllama_engine.train.chat import steps
from stackllama_engine.train.chat.answer import tokens
from stackllama_engine.train.chat.steps import GraphChoice
from stackllama_engine.train.ppo.cuda_graph import CaptureError, Direct

from .test_static_decoding import TINY

CPU = torch.device("cpu")
PROMPT = [1, 5, 6, 7]


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base).eval()


def ask(**more: Any) -> Ask:
    return Ask(id=1, prompt="", which=["tuned"], **{"max_new_tokens": 20, **more})


@pytest.fixture
def static(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the room that was made."""
    rooms: list[int] = []
    real = steps.static_cache
    monkeypatch.setattr(steps, "static_cache", lambda config, room: (rooms.append(room), real(config, room))[1])
    return rooms


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_static_steps_answer_the_same(model: Any, static: list[int], temperature: float) -> None:
    question = ask(temperature=temperature)
    grown = list(tokens(model, PROMPT, (), question))
    assert list(tokens(model, PROMPT, (), question, GraphChoice(CPU, wanted=True))) == grown
    stop = grown[3]
    ended = list(tokens(model, PROMPT, (stop,), question, GraphChoice(CPU, wanted=True)))
    assert ended == grown[: grown.index(stop) + 1]
    assert len(grown) == 20 and static == [32, 32]


def test_a_cpu_and_a_long_room_use_a_growing_cache(model: Any, static: list[int]) -> None:
    assert len(list(tokens(model, PROMPT, (), ask(max_new_tokens=2), GraphChoice(CPU)))) == 2
    assert not GraphChoice(CPU, wanted=True).fits(model, 4097)
    assert static == []


def test_graphs_can_be_left_out(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    monkeypatch.setenv("STACKLLAMA_LEAVE_OUT", "graph")
    assert not GraphChoice(torch.device("cuda")).fits(model, 8)
    monkeypatch.delenv("STACKLLAMA_LEAVE_OUT")
    assert GraphChoice(torch.device("cuda")).fits(model, 8)


def test_an_obstacle_is_told_once(capsys: pytest.CaptureFixture[str], static: list[int]) -> None:
    windows: Any = AutoModelForCausalLM.from_config(MistralConfig(**TINY, sliding_window=8)).eval()
    choice = GraphChoice(CPU, wanted=True)
    for _ in range(2):
        assert list(tokens(windows, PROMPT, (), ask(max_new_tokens=2), choice))
    assert capsys.readouterr().err == (
        "answers without CUDA graphs, which is slower: mistral has sliding windows or recurrent states\n"
    )
    assert static == []


def test_a_failed_capture_is_told_once_and_the_answer_goes_on(
    model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], static: list[int]
) -> None:
    class Fails(Direct):
        def capture(self, step: Callable[[], torch.Tensor]) -> Any:
            raise CaptureError("no such kernel")

    monkeypatch.setattr(steps, "recorder_for", lambda device: Fails())
    question, choice = ask(temperature=1.0), GraphChoice(CPU, wanted=True)
    grown = list(tokens(model, PROMPT, (), question))
    assert [list(tokens(model, PROMPT, (), question, choice)) for _ in range(2)] == [grown, grown]
    assert capsys.readouterr().err == "answers without CUDA graphs, which is slower: no such kernel\n"
    assert static == [32]
