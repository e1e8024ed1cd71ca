"""Charts: metrics that are drawn together, their curves, and their definitions in the docs."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from stackllama_console.readers.chart_sets import charts_for, charts_of, curves_of
from stackllama_console.readers.protocol import Reader
from stackllama_console.readers.series import Series
from stackllama_engine.contract.stages import Stage

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


def titles(*metrics: str) -> dict[str, tuple[tuple[str, str], ...]]:
    return {chart.title: chart.metrics for chart in charts_for(Stage.PPO, metrics, False)}


def test_throughputs_share_a_chart_with_either_or_both() -> None:
    both = titles("tokens_per_second", "response_tokens_per_second")
    assert list(both) == ["tokens per second"] and len(both["tokens per second"]) == 2
    assert [name for name, _ in titles("tokens_per_second")["tokens per second"]] == ["tokens_per_second"]


def test_sampler_mismatch_has_a_chart_apart_from_the_ratio() -> None:
    shown = titles("val/ratio_first", "sampling/kl_mismatch", "sampling/logprob_difference")
    assert shown["ratio"] == (("val/ratio_first", "first mini-batch"),)
    assert len(shown["sampler against learner"]) == 2


@pytest.mark.parametrize("prefix", ["objective/", "sampling/"])
def test_ppo_metrics_in_charts_are_defined_in_the_docs(prefix: str) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    named = {name for chart in charts_of(Stage.PPO) for name, _ in chart.metrics if name.startswith(prefix)}
    assert named and not [name for name in named if name not in text]


def test_curves_of_pairs_labels_with_the_readers_series() -> None:
    policy, rss = Series("loss/policy_avg"), Series("rss")
    reader = cast("Reader", SimpleNamespace(series={policy.name: policy}, memory={"rss": rss}))
    curves = [curves_of(chart, reader) for chart in charts_for(Stage.PPO, reader.series, has_memory=True)]
    assert curves == [[("policy", policy)], [("rss", rss)]]
