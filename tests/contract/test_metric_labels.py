"""Labels of metrics are written in one place: the contract's table."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from stackllama_engine.contract.metrics import METRICS, label_of, short_of
from stackllama_engine.contract.stages import Stage

CONSOLE = Path(__file__).parents[2] / "console" / "stackllama_console"
LABELS = {
    text
    for metric in METRICS
    for text in (metric.label, metric.chart, metric.series, metric.short, metric.listed_as)
    if " " in text and text != "reward model"  # a label of one word is a word of the language too, as is this one
}


def _texts(source: str) -> Iterator[str]:
    """Yield the string constants of a module, parts of f-strings among them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _labels_in(source: str) -> set[str]:
    return {text for text in _texts(source) if text.strip(" ,.:·\n") in LABELS}


@pytest.mark.parametrize("file", sorted(CONSOLE.rglob("*.py")), ids=lambda file: str(file.relative_to(CONSOLE)))
def test_no_label_of_a_metric_is_written_in_the_console(file: Path) -> None:
    assert _labels_in(file.read_text(encoding="utf-8")) == set()


def test_label_in_an_f_string_is_noticed() -> None:
    assert _labels_in('"what true utility is"') == set()  # a sentence
    assert _labels_in('f"true utility {value}"') == {"true utility "}
    assert _labels_in('label = "mean reward"') == {"mean reward"}


def test_results_have_labels() -> None:
    assert label_of(Stage.PPO, "win_rate") == "wins against the base" and short_of(Stage.PPO, "win_rate") == "wins"
    assert label_of(Stage.PPO, "no/such") == "no/such" == short_of(Stage.PPO, "no/such")
