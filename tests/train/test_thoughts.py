"""Thoughts that a length limit cuts off, and `enable_thinking` on its way to the template."""

from dataclasses import replace
from pathlib import Path

import pytest

from stackllama_engine.contract.prompt_format import PromptFormat
from stackllama_engine.train import models
from stackllama_engine.train.encoding import Encoder
from stackllama_engine.train.ppo.thoughts import CUT, Thought, thought_of, thoughts_of

from .test_rollout_metrics import metrics_of, recipe, rollout

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think></think>' }}"
    "{% elif enable_thinking is defined and enable_thinking %}{{ '<think>\\n' }}{% endif %}{% endif %}"
)


@pytest.mark.parametrize(
    ("prompt", "response", "ended", "expected"),
    [
        ("Answer: ", "Yes.", True, Thought(False, False)),
        ("Answer: ", "Yes, and", False, Thought(False, False)),  # cut off, but no thought
        ("Answer: ", "<think>well</think>Yes.", True, Thought(True, False)),
        ("Answer: ", "<think>well</think>Yes, and", False, Thought(True, False)),  # the answer is cut off
        ("Answer: ", "<think>well, if", False, Thought(True, True)),
        ("Answer: ", "<think>well.", True, Thought(True, False)),  # ended by itself, not by the limit
        ("Answer: ", "</think><think>well", False, Thought(True, True)),
        ("assistant: <think>\n", "well</think>Yes", False, Thought(True, False)),
        ("assistant: <think>\n", "well, if", False, Thought(True, True)),
        ("assistant: <think></think>", "Yes", False, Thought(False, False)),
    ],
)
def test_thought_is_cut_off_when_the_limit_comes_before_its_end(
    prompt: str, response: str, ended: bool, expected: Thought
) -> None:
    assert thought_of(prompt, response, ended=ended) == expected


def test_enable_thinking_reaches_the_template_and_its_open_thought_is_found(base: Path) -> None:
    tokenizer = models.load_tokenizer(str(base))
    ends = {None: "assistant: ", True: "assistant: <think>\n", False: "assistant: <think></think>"}
    for enabled, end in ends.items():
        encoder = Encoder(tokenizer, PromptFormat(kind="chat", chat_template=TEMPLATE, enable_thinking=enabled))
        prompt = encoder.prompt("Why?")
        assert tokenizer.decode(prompt) == f"user: Why?\n{end}"
        thought = thoughts_of(tokenizer, [prompt], [tokenizer("well, if")["input_ids"]], [False])
        assert thought == [Thought(enabled is True, enabled is True)]


def test_share_is_of_all_responses_and_reported_only_where_there_is_a_thought() -> None:
    found = rollout()  # two responses
    assert CUT not in metrics_of(recipe(), replace(found, thoughts=[Thought(False, False)] * 2))
    assert metrics_of(recipe(), replace(found, thoughts=[Thought(True, True), Thought(False, False)]))[CUT] == 0.5
    assert metrics_of(recipe(), replace(found, thoughts=[Thought(True, False), Thought(False, False)]))[CUT] == 0.0
