"""Charts: metrics that are drawn together, and their curves. That each has a definition: tests/docs."""

from types import SimpleNamespace
from typing import cast

from stackllama_console.readers.chart_sets import charts_for, curves_of
from stackllama_console.readers.protocol import Reader
from stackllama_console.readers.series import Series
from stackllama_engine.contract.stages import Stage


def titles(*metrics: str) -> dict[str, tuple[tuple[str, str], ...]]:
    return {chart.title: chart.metrics for chart in charts_for(Stage.PPO, metrics, False)}


def test_throughputs_share_a_chart_with_either_or_both() -> None:
    both = titles("tokens_per_second", "response_tokens_per_second")
    assert list(both) == ["tokens per second"] and len(both["tokens per second"]) == 2
    assert [name for name, _ in titles("tokens_per_second")["tokens per second"]] == ["tokens_per_second"]


def test_reward_functions_are_drawn_with_the_other_components_under_their_own_names() -> None:
    shown = titles("reward/model", "reward/exact_number", "reward/exact_number_abstained", "eval/reward/exact_number")
    assert shown["reward components"] == (("reward/model", "model"), ("reward/exact_number", "exact number"))
    assert shown["held-out reward components"] == (("eval/reward/exact_number", "exact number"),)
    assert len(shown["reward/exact_number_abstained"]) == 1


def test_sampler_mismatch_has_a_chart_apart_from_the_ratio() -> None:
    shown = titles("val/ratio_first", "sampling/kl_mismatch", "sampling/logprob_difference")
    assert shown["ratio"] == (("val/ratio_first", "first mini-batch"),)
    assert len(shown["sampler against learner"]) == 2


def test_curves_of_pairs_labels_with_the_readers_series() -> None:
    policy, rss = Series("loss/policy_avg"), Series("rss")
    reader = cast("Reader", SimpleNamespace(series={policy.name: policy}, memory={"rss": rss}))
    curves = [curves_of(chart, reader) for chart in charts_for(Stage.PPO, reader.series, has_memory=True)]
    assert curves == [[("policy", policy)], [("rss", rss)]]
