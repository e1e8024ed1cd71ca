"""Samples as text, without a screen."""

from stackllama_console.readers.samples import Sample
from stackllama_console.tui.widgets.panels import sample_lines
from stackllama_console.tui.widgets.sample_rows import sample_text, side_text


def test_columns_follow_the_response_and_long_ones_are_cut() -> None:
    sample = Sample(question="1 + 1?", response="2", columns={"answer": "#### 2", "source": "x" * 900})
    lines = sample_text(sample).plain.splitlines()
    assert "answer  #### 2" in lines and lines.index("response  2") < lines.index("answer  #### 2")
    assert lines[-1].startswith("source  xxx") and len(lines[-1]) < 600


def test_samples_without_a_reward_say_nothing_of_one() -> None:
    row = {"step": 4, "question": "1 + 1?", "response": "2", "reward": None, "kl": None}
    assert sample_lines([row], 40, 9)[0].plain == "step 4"
    assert sample_lines([row | {"reward": 0.5}], 40, 9)[0].plain == "step 4  reward 0.5"
    sample = Sample(question="1 + 1?", response="2", step=4, row=0)
    assert sample_text(sample).plain.startswith("step 4\n")
    assert "reward" not in side_text("after", sample).plain
    assert "reward 0.500" in sample_text(Sample(question="?", response="2", reward=0.5)).plain
