"""Which metrics are drawn together, stage by stage, the most telling first; whatever else a run reports comes after."""

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from stackllama_engine.contract.stages import Stage

Unit = Literal["number", "bytes"]

MEMORY = "memory"
"""The chart of memory has no metric: it shows the feed's ``memory`` series."""


class ChartSet(Struct, frozen=True):
    """One chart: its title and its metrics with their labels; shown when one of them is there."""

    title: str
    metrics: tuple[tuple[str, str], ...]
    unit: Unit = "number"


_LOSS = ChartSet("loss", (("loss", "train"), ("eval_loss", "held out")))
_RATE = ChartSet("learning rate", (("learning_rate", "learning rate"),))
_NORM = ChartSet("gradient norm", (("grad_norm", "norm"),))
_MEMORY = ChartSet(MEMORY, (), "bytes")
_SPEED = ChartSet(
    "tokens per second", (("tokens_per_second", "all tokens"), ("response_tokens_per_second", "response tokens"))
)


def _parts(prefix: str) -> tuple[tuple[str, str], ...]:
    """Metric and label of what a reward is summed up from."""
    names = ("model", "function", "length_penalty", "repetition_penalty")
    return tuple((f"{prefix}{name}", name.replace("_", " ")) for name in names)


CHARTS: dict[Stage | None, tuple[ChartSet, ...]] = {
    Stage.SFT: (
        _LOSS,
        ChartSet("token accuracy", (("mean_token_accuracy", "train"), ("eval_mean_token_accuracy", "held out"))),
        _MEMORY, _RATE, _NORM,
        ChartSet("entropy", (("entropy", "train"), ("eval_entropy", "held out"))),
        _SPEED,
    ),
    Stage.REWARD: (
        ChartSet("accuracy", (("accuracy", "train"), ("eval_accuracy", "held out"))),
        _LOSS,
        ChartSet("margin", (("margin", "train"), ("eval_margin", "held out"))),
        _MEMORY,
        ChartSet("reward", (("mean_reward", "mean"), ("min_reward", "min"), ("max_reward", "max"))),
        _RATE, _NORM, _SPEED,
    ),
    Stage.PPO: (
        ChartSet(
            "reward",
            (("objective/scores", "batch"), ("eval/mean_reward", "held out"), ("demo/true_utility", "true utility")),
        ),
        ChartSet(
            "KL to the reference",
            (
                ("objective/kl", "batch"), ("eval/kl", "held out"), ("objective/kl_k2", "penalty, k2"),
                ("objective/kl_k3", "penalty, k3"),
            ),
        ),
        ChartSet("loss", (("loss/policy_avg", "policy"), ("loss/value_avg", "value"))),
        _MEMORY,
        ChartSet("response length", (("response_length", "batch"), ("eval/response_length", "held out"))),
        ChartSet("entropy", (("policy/entropy_avg", "policy"),)),
        ChartSet("clip fraction", (("policy/clipfrac_avg", "policy"), ("val/clipfrac_avg", "value"))),
        ChartSet("ratio", (("val/ratio", "mean"), ("val/ratio_first", "determinism"))),
        ChartSet(
            "sampler against learner",
            (("sampling/logprob_difference", "largest difference"), ("sampling/kl_mismatch", "KL per token")),
        ),
        ChartSet("policy KL of an update", (("policy/approxkl_avg", "approx. KL"),)),
        ChartSet("KL coefficient", (("objective/kl_coef", "coefficient"),)),
        ChartSet("explained variance", (("val/var_explained", "value head"),)),
        ChartSet("parts of the reward", _parts("reward/")),
        ChartSet(
            "what PPO optimizes",
            (
                ("objective/rlhf_reward", "sum"), ("objective/scaled_scores", "scaled scores"),
                ("objective/penalties", "penalties"), ("objective/non_score_reward", "KL penalty"),
            ),
        ),
        ChartSet("parts of the reward, held out", _parts("eval/reward/")),
        ChartSet("seconds a step", (("time/rollout", "rollout"), ("time/score", "score"), ("time/update", "update"))),
        _RATE, _SPEED,
    ),
    None: (
        _LOSS,
        ChartSet("reward", (("reward", "reward"), ("objective/scores", "score"), ("rewards/mean", "mean"))),
        ChartSet("KL", (("kl", "KL"), ("objective/kl", "KL"))),
        _RATE, _NORM,
    ),
}  # fmt: skip

FIGURES: dict[Stage | None, tuple[tuple[str, str], ...]] = {
    Stage.SFT: (
        ("eval_loss", "loss, held out"), ("loss", "loss, batch"), ("mean_token_accuracy", "token accuracy"),
        ("entropy", "entropy"), ("grad_norm", "gradient norm"), ("learning_rate", "learning rate"),
        ("tokens_per_second", "tokens/s"),
    ),
    Stage.REWARD: (
        ("accuracy", "accuracy"), ("eval_accuracy", "held-out accuracy"), ("margin", "margin"),
        ("eval_margin", "held-out margin"), ("loss", "loss"), ("mean_reward", "mean reward"),
        ("grad_norm", "gradient norm"), ("learning_rate", "learning rate"),
    ),
    Stage.PPO: (
        ("objective/scores", "reward, batch"), ("eval/mean_reward", "reward, held out"),
        ("demo/true_utility", "utility, batch"), ("eval/true_utility", "utility, held out"),
        ("objective/kl", "KL, batch"), ("eval/kl", "KL, held out"),
        ("objective/kl_coef", "KL coefficient"), ("policy/clipfrac_avg", "clip fraction"),
        ("policy/entropy_avg", "entropy"), ("loss/value_avg", "value loss"), ("loss/policy_avg", "policy loss"),
        ("val/ratio", "ratio"), ("sampling/logprob_difference", "sampler mismatch"),
        ("response_length", "response length"), ("val/var_explained", "explained variance"),
        ("sampling/kl_mismatch", "sampler KL"), ("objective/rlhf_reward", "objective"),
        ("objective/scaled_scores", "scaled scores"), ("objective/penalties", "penalties"),
        ("objective/non_score_reward", "KL penalty"), ("objective/kl_k2", "KL by k2, batch"),
        ("objective/kl_k3", "KL by k3, batch"),
        ("learning_rate", "learning rate"), ("tokens_per_second", "tokens/s"),
        ("response_tokens_per_second", "response tokens/s"), ("time/rollout", "rollout s"),
        ("time/score", "score s"), ("time/update", "update s"),
    ),
    Stage.MERGE: (("difference", "error of the merge"), ("difference_from_base", "change against the base")),
}  # fmt: skip
"""Metric and label of what stands in the panel of figures, by stage; other metrics follow under their own names."""


def charts_for(stage: Stage | None, metrics: Iterable[str], has_memory: bool) -> list[ChartSet]:
    """The charts that have something to show: the stage's own, then one for each metric that none of them holds."""
    there = set(metrics)
    chosen: list[ChartSet] = []
    for chart in CHARTS.get(stage, CHARTS[None]):
        found = tuple(pair for pair in chart.metrics if pair[0] in there)
        if found or (chart.title == MEMORY and has_memory):
            chosen.append(ChartSet(chart.title, found, chart.unit))
            there.difference_update(name for name, _ in found)
    return [*chosen, *(ChartSet(name, ((name, name.rpartition("/")[2]),)) for name in sorted(there) if name != "epoch")]


def figures_for(stage: Stage | None, metrics: Iterable[str]) -> list[tuple[str, str]]:
    """(metric, label) of the figures that are there, the stage's own first."""
    there = set(metrics)
    own = [pair for pair in FIGURES.get(stage, ()) if pair[0] in there]
    named = {name for name, _ in own}
    return [*own, *((name, name) for name in sorted(there - named))]
