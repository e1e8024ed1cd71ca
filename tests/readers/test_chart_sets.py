"""Which metrics are drawn together. That each has a definition: tests/docs."""

from stackllama_console.readers.chart_sets import charts_for
from stackllama_engine.contract.stages import Stage


def titles(*metrics: str) -> dict[str, tuple[tuple[str, str], ...]]:
    return {chart.title: chart.metrics for chart in charts_for(Stage.PPO, metrics, False)}


def test_both_throughputs_share_a_chart_and_an_older_run_has_one_of_them() -> None:
    both = titles("tokens_per_second", "response_tokens_per_second")
    assert list(both) == ["tokens per second"] and len(both["tokens per second"]) == 2
    assert [name for name, _ in titles("tokens_per_second")["tokens per second"]] == ["tokens_per_second"]


def test_the_sampler_has_a_chart_apart_from_the_ratio() -> None:
    shown = titles("val/ratio_first", "sampling/kl_mismatch", "sampling/logprob_difference")
    assert shown["ratio"] == (("val/ratio_first", "first mini-batch"),)
    assert len(shown["sampler against learner"]) == 2
