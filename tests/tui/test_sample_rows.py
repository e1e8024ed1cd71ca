"""Samples as text, without a screen."""

from stackllama_console.readers.samples import Sample
from stackllama_console.tui.widgets.sample_rows import sample_text


def test_columns_follow_the_response_and_long_ones_are_cut() -> None:
    sample = Sample(question="1 + 1?", response="2", columns={"answer": "#### 2", "source": "x" * 900})
    lines = sample_text(sample).plain.splitlines()
    assert "answer  #### 2" in lines and lines.index("response  2") < lines.index("answer  #### 2")
    assert lines[-1].startswith("source  xxx") and len(lines[-1]) < 600
