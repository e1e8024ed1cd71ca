"""Inputs of a form, checked as a launch does: each key by itself, then all of them together."""

from pathlib import Path

import pytest

from stackllama_console.readers.draft import LaunchForm
from stackllama_console.readers.input_check import find_unusable, refusal
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage


@pytest.mark.parametrize("value", ["demo", "some/model-3b", "gpt2"])
def test_what_a_launch_takes_has_no_refusal(tmp_path: Path, value: str) -> None:
    assert refusal(Home(tmp_path), "model_name_or_path", value) == ""


@pytest.mark.parametrize("value", ["no/such/id/x", "a b", "--x", "/no/such/folder", "\x1b[2J"])
def test_what_it_refuses_is_named_in_one_clean_line(tmp_path: Path, value: str) -> None:
    said = refusal(Home(tmp_path), "model_name_or_path", value)
    assert said.startswith("`model_name_or_path: ") and said.isprintable()


def test_a_stages_own_key_is_blamed_and_only_while_it_says_that(tmp_path: Path) -> None:
    form = LaunchForm(Stage.PIPELINE)
    form.set("model_name_or_path", "demo")
    form.set("ppo.dataset_name", "/no/such/data")
    assert not form.looked_up
    inputs = form.inputs()
    assert form.take_unusable(inputs, find_unusable(Home(tmp_path), inputs, form.estimable()))
    assert form.looked_up and list(form.errors()) == ["ppo.dataset_name"] and form.recipe() is not None
    form.set("lora_r", "4")
    assert form.looked_up and list(form.errors()) == ["ppo.dataset_name"]
    form.set("ppo.dataset_name", "demo")
    assert not form.looked_up and not form.errors()
