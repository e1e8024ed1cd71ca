"""Every metric that a run reports: name, labels, unit, which way is better, its chart. The only place.

Charts, the monitor's panel and status line, ``runs ls``, ``runs watch``, comparisons and docs/metrics.md are views of
:data:`METRICS`. Its order is theirs: the most telling metrics of a stage first. Names are TRL's where TRL has one.
"""

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from .stages import Stage

Unit = Literal["number", "bytes", "seconds", "tokens/s", "tokens"]
Better = Literal["higher", "lower"]

SFT, REWARD, PREFERENCE, PPO, MERGE = Stage.SFT, Stage.REWARD, Stage.PREFERENCE, Stage.PPO, Stage.MERGE
MEMORY = "memory"
"""A metric whose values are in events of the kind ``memory``."""
OTHER = None
"""The stage of another trainer's run."""
_TRAINED_HERE = (SFT, REWARD, PREFERENCE, PPO)
_TRAINED = (*_TRAINED_HERE, OTHER)


class Metric(Struct, frozen=True, kw_only=True):
    """One metric.

    Attributes:
        name: in events and files.
        stages: that report it; several metrics may share a name, one per stage.
        label: in lists.
        chart: title of the chart that it is drawn in; empty: in one of its own.
        series: its label within that chart; empty: :attr:`label`.
        short: its label in one line; empty: it is not shown there.
        listed: its rank as the one number of a run in ``runs ls``; 0: never.
        listed_as: its label there, which scripts read as well; empty: :attr:`label`.
        better: which way is better; None: neither.
        unit: of its values.
        help: its definition, a sentence.
    """

    name: str
    stages: tuple[Stage | None, ...]
    label: str
    chart: str = ""
    series: str = ""
    short: str = ""
    listed: int = 0
    listed_as: str = ""
    better: Better | None = None
    unit: Unit = "number"
    help: str = ""


SELECTION = "eval/selection"
SCORES_STD = "objective/scores_std"
LENGTH_CORRELATION = "val/length_correlation"
REPETITION = "val/repetition"
OUTSIDE_RANGE = "val/scores_outside_range"
"""Metrics that the health rules read, by the names of ``train/ppo/response_metrics.py``."""

_KL = "KL to the reference"
_OBJECTIVE = "PPO's objective"

METRICS: tuple[Metric, ...] = (
    # SFT, reward model and preference
    Metric(
        name="accuracy",
        stages=(REWARD,),
        label="accuracy",
        chart="accuracy",
        series="train",
        short="accuracy",
        listed=2,
        better="higher",
        help="Share of pairs whose chosen response scores higher.",
    ),
    Metric(
        name="eval_accuracy",
        stages=(REWARD,),
        label="held-out accuracy",
        chart="accuracy",
        series="held-out",
        short="held-out accuracy",
        listed=1,
        listed_as="accuracy",
        better="higher",
        help="`accuracy` of held-out pairs.",
    ),
    Metric(
        name="rewards/accuracies",
        stages=(PREFERENCE,),
        label="accuracy",
        chart="accuracy",
        series="train",
        short="accuracy",
        listed=2,
        listed_as="accuracy",
        better="higher",
        help="Share of pairs whose chosen response has the higher implied reward: β × (log π − log π_ref). "
        "A tie counts as wrong here; at step 1 every pair is one.",
    ),
    Metric(
        name="eval_rewards/accuracies",
        stages=(PREFERENCE,),
        label="held-out accuracy",
        chart="accuracy",
        series="held-out",
        short="held-out accuracy",
        listed=1,
        listed_as="accuracy",
        better="higher",
        help="`rewards/accuracies` of held-out pairs, without ties.",
    ),
    Metric(
        name="rewards/margins",
        stages=(PREFERENCE,),
        label="margin",
        chart="margin",
        series="train",
        short="margin",
        better="higher",
        help="Mean implied reward of chosen minus rejected responses.",
    ),
    Metric(
        name="eval_rewards/margins",
        stages=(PREFERENCE,),
        label="held-out margin",
        chart="margin",
        series="held-out",
        better="higher",
        help="`rewards/margins` of held-out pairs.",
    ),
    Metric(
        name="loss",
        stages=(SFT, REWARD, PREFERENCE, OTHER),
        label="loss",
        chart="loss",
        series="train",
        short="loss",
        listed=3,
        better="lower",
        help="Training loss: per token in SFT, per pair in the other stages.",
    ),
    Metric(
        name="eval_loss",
        stages=(SFT, REWARD, PREFERENCE, OTHER),
        label="held-out loss",
        chart="loss",
        series="held-out",
        short="held-out loss",
        listed=2,
        listed_as="eval_loss",
        better="lower",
        help="`loss` of held-out rows; in the preference stage that of `loss_type: sigmoid`, whatever trains.",
    ),
    Metric(
        name="mean_token_accuracy",
        stages=(SFT, PREFERENCE),
        label="token accuracy",
        chart="token accuracy",
        series="train",
        short="token accuracy",
        better="higher",
        help="Share of tokens that are the most likely one; of chosen responses in the preference stage.",
    ),
    Metric(
        name="eval_mean_token_accuracy",
        stages=(SFT,),
        label="held-out token accuracy",
        chart="token accuracy",
        series="held-out",
        better="higher",
        help="`mean_token_accuracy` of held-out rows.",
    ),
    Metric(
        name="margin",
        stages=(REWARD,),
        label="margin",
        chart="margin",
        series="train",
        short="margin",
        better="higher",
        help="Mean score of chosen minus rejected responses.",
    ),
    Metric(
        name="eval_margin",
        stages=(REWARD,),
        label="held-out margin",
        chart="margin",
        series="held-out",
        better="higher",
        help="`margin` of held-out pairs.",
    ),
    Metric(
        name="rewards/chosen",
        stages=(PREFERENCE,),
        label="implied reward, chosen",
        chart="implied reward",
        series="chosen",
        help="Mean implied reward of chosen responses; below 0: less likely than under the reference.",
    ),
    Metric(
        name="rewards/rejected",
        stages=(PREFERENCE,),
        label="implied reward, rejected",
        chart="implied reward",
        series="rejected",
        help="Mean implied reward of rejected responses.",
    ),
    Metric(
        name="eval_rewards/chosen",
        stages=(PREFERENCE,),
        label="held-out implied reward, chosen",
        chart="implied reward",
        series="chosen, held-out",
        help="`rewards/chosen` of held-out pairs.",
    ),
    Metric(
        name="eval_rewards/rejected",
        stages=(PREFERENCE,),
        label="held-out implied reward, rejected",
        chart="implied reward",
        series="rejected, held-out",
        help="`rewards/rejected` of held-out pairs.",
    ),
    Metric(
        name="logps/chosen",
        stages=(PREFERENCE,),
        label="log-probability, chosen",
        chart="log-probability of a response",
        series="chosen",
        help="Mean log-probability of chosen responses, in nats.",
    ),
    Metric(
        name="logps/rejected",
        stages=(PREFERENCE,),
        label="log-probability, rejected",
        chart="log-probability of a response",
        series="rejected",
        help="Mean log-probability of rejected responses, in nats.",
    ),
    Metric(
        name="logits/chosen",
        stages=(PREFERENCE,),
        label="mean logit, chosen",
        chart="mean logit",
        series="chosen",
        help="Mean logit over the tokens of chosen responses.",
    ),
    Metric(
        name="logits/rejected",
        stages=(PREFERENCE,),
        label="mean logit, rejected",
        chart="mean logit",
        series="rejected",
        help="Mean logit over the tokens of rejected responses.",
    ),
    # PPO
    Metric(
        name="objective/scores",
        stages=(PPO,),
        label="reward",
        chart="reward",
        series="train",
        short="reward",
        listed=1,
        better="higher",
        help="Weighted sum of the reward components; raw.",
    ),
    Metric(
        name="eval/mean_reward",
        stages=(PPO,),
        label="held-out reward",
        chart="reward",
        series="held-out",
        better="higher",
        help="`objective/scores` of held-out prompts, without penalties.",
    ),
    Metric(
        name="demo/true_utility",
        stages=(PPO,),
        label="true utility",
        chart="reward",
        series="true utility",
        short="utility",
        better="higher",
        help="Demo only: the true quality of responses, which the reward model approximates.",
    ),
    Metric(
        name="eval/true_utility",
        stages=(PPO,),
        label="held-out true utility",
        better="higher",
        help="`demo/true_utility` of held-out prompts.",
    ),
    Metric(
        name="objective/kl",
        stages=(PPO,),
        label="KL",
        chart=_KL,
        series="train",
        short="KL",
        help="KL of a response to the reference, estimated by k1 (the sum of log-ratios), whatever `kl_estimator` is.",
    ),
    Metric(
        name="eval/kl",
        stages=(PPO,),
        label="held-out KL",
        chart=_KL,
        series="held-out",
        help="`objective/kl` of held-out prompts.",
    ),
    Metric(
        name="objective/kl_k2",
        stages=(PPO,),
        label="KL (k2)",
        chart=_KL,
        series="penalty, k2",
        help="With `kl_estimator: k2`: what the penalty subtracts, and what an adaptive `kl_coef` steers to `target`.",
    ),
    Metric(
        name="objective/kl_k3",
        stages=(PPO,),
        label="KL (k3)",
        chart=_KL,
        series="penalty, k3",
        help="With `kl_estimator: k3` or `kl_in_loss: true`: as `objective/kl_k2`.",
    ),
    Metric(
        name="loss/policy_avg",
        stages=(PPO,),
        label="policy loss",
        chart="loss",
        series="policy",
        short="policy loss",
        help="Clipped surrogate objective, negated, per token; with a `loss_type` other than `bnpo`, divided by that.",
    ),
    Metric(
        name="loss/value_avg",
        stages=(PPO,),
        label="value loss",
        chart="loss",
        series="value",
        short="value loss",
        help="Half the clipped squared error of the values, per token.",
    ),
    Metric(
        name="loss/kl_avg",
        stages=(PPO,),
        label="KL in the loss",
        chart="loss",
        series="KL, unweighted",
        help="With `kl_in_loss`: KL of the policy in training to the reference, estimated by k3, per token.",
    ),
    Metric(
        name=MEMORY,
        stages=_TRAINED_HERE,
        label="memory",
        chart="memory",
        unit="bytes",
        help="Bytes allocated on the device, or resident in main memory; from events of the kind `memory`.",
    ),
    # other trainers
    Metric(name="reward", stages=(OTHER,), label="reward", chart="reward", short="reward", better="higher"),
    Metric(name="objective/scores", stages=(OTHER,), label="score", chart="reward", series="score", better="higher"),
    Metric(name="rewards/mean", stages=(OTHER,), label="mean reward", chart="reward", series="mean", better="higher"),
    Metric(name="kl", stages=(OTHER,), label="KL", chart="KL", short="KL"),
    Metric(name="objective/kl", stages=(OTHER,), label="KL", chart="KL"),
    # reward model
    Metric(
        name="mean_reward",
        stages=(REWARD,),
        label="mean reward",
        chart="reward",
        series="mean",
        help="Mean score of all responses of a batch.",
    ),
    Metric(
        name="min_reward",
        stages=(REWARD,),
        label="lowest reward",
        chart="reward",
        series="min",
        help="Lowest score of a batch.",
    ),
    Metric(
        name="max_reward",
        stages=(REWARD,),
        label="highest reward",
        chart="reward",
        series="max",
        help="Highest score of a batch.",
    ),
    # PPO, what explains it
    Metric(
        name="response_length",
        stages=(PPO,),
        label="response length",
        chart="response length",
        series="train",
        unit="tokens",
        help="Mean tokens per response, the end token included.",
    ),
    Metric(
        name="eval/response_length",
        stages=(PPO,),
        label="held-out response length",
        chart="response length",
        series="held-out",
        unit="tokens",
        help="`response_length` of held-out prompts.",
    ),
    Metric(
        name=SCORES_STD,
        stages=(PPO,),
        label="spread of scores",
        chart="spread of scores",
        series="standard deviation",
        help="Standard deviation of `objective/scores` over the responses of a step; near 0 there is nothing to learn.",
    ),
    Metric(
        name=LENGTH_CORRELATION,
        stages=(PPO,),
        label="correlation of score and length",
        chart="score and length",
        series="correlation",
        help="Pearson's, of score and length over the responses of a step; missing where either does not vary.",
    ),
    Metric(
        name=REPETITION,
        stages=(PPO,),
        label="repetition",
        chart="repetition",
        series="repeated 3-grams",
        help="Mean share of a response's 3-grams of tokens that occur in it before: 1 − distinct-3.",
    ),
    Metric(
        name=OUTSIDE_RANGE,
        stages=(PPO,),
        label="scores outside the range",
        chart="scores outside the range",
        series="outside the range",
        better="lower",
        help="Share of responses whose reward model score no held-out pair of its own had; of reward runs since 0.3.",
    ),
    Metric(
        name="policy/entropy_avg",
        stages=(PPO,),
        label="entropy",
        chart="entropy",
        series="policy",
        help="Entropy of the next-token distribution, in nats per token.",
    ),
    Metric(
        name="policy/clipfrac_avg",
        stages=(PPO,),
        label="clip fraction",
        chart="clip fraction",
        series="policy",
        help="Share of tokens whose ratio was clipped.",
    ),
    Metric(
        name="val/clipfrac_avg",
        stages=(PPO,),
        label="value clip fraction",
        chart="clip fraction",
        series="value",
        help="Share of tokens whose value was clipped.",
    ),
    Metric(
        name="val/ratio",
        stages=(PPO,),
        label="ratio",
        chart="ratio",
        series="mean",
        help="Mean probability ratio of new to old policy.",
    ),
    Metric(
        name="val/ratio_first",
        stages=(PPO,),
        label="ratio, first mini-batch",
        chart="ratio",
        series="first mini-batch",
        help="`val/ratio` of the very first mini-batch. The learner is compared with itself, so 1 proves that its pass "
        "is deterministic, and nothing about the sampler.",
    ),
    Metric(
        name="policy/approxkl_first",
        stages=(PPO,),
        label="approximate KL, first mini-batch",
        help="`policy/approxkl_avg` of the very first mini-batch; 0 where `val/ratio_first` is 1.",
    ),
    Metric(
        name="sampling/logprob_difference",
        stages=(PPO,),
        label="sampler mismatch",
        chart="sampler against learner",
        series="largest difference",
        better="lower",
        help="Largest difference of a token's log-probability between sampler and learner, in nats.",
    ),
    Metric(
        name="sampling/kl_mismatch",
        stages=(PPO,),
        label="sampler KL",
        chart="sampler against learner",
        series="KL per token",
        better="lower",
        help="KL(sampler ‖ learner) per token: the mean of (r − 1) − log r with r = learner ÷ sampler (k3), over all "
        "sampled tokens.",
    ),
    Metric(
        name="policy/approxkl_avg",
        stages=(PPO,),
        label="approximate KL",
        chart="policy KL of an update",
        series="approximate KL",
        help="Approximate KL of old to new policy, ½ (log ratio)², per token.",
    ),
    Metric(
        name="policy/policykl",
        stages=(PPO,),
        label="policy KL",
        chart="policy KL of an update",
        series="policy KL",
        help="Mean old − new log-probability in the newest mini-batch; `early_stopping` compares it with its limit.",
    ),
    Metric(
        name="objective/kl_coef",
        stages=(PPO,),
        label="KL coefficient",
        chart="KL coefficient",
        series="coefficient",
        help="Weight of the KL penalty in this step.",
    ),
    Metric(
        name="val/var_explained",
        stages=(PPO,),
        label="explained variance",
        chart="explained variance",
        series="critic",
        better="higher",
        help="1 − Var(returns − values) / Var(returns).",
    ),
    Metric(
        name="frac_reward_zero_std",
        stages=(PPO,),
        label="groups without spread",
        chart="groups without spread",
        series="share",
        better="lower",
        help="With `advantage: rloo` or `grpo`: share of prompts whose responses all have the same score, before the "
        "KL penalty, so that they teach nothing.",
    ),
    Metric(
        name="reward/model",
        stages=(PPO,),
        label="reward model",
        chart="reward components",
        series="model",
        help="Mean score of the reward model.",
    ),
    Metric(
        name="reward/function",
        stages=(PPO,),
        label="reward function",
        chart="reward components",
        series="function",
        help="Mean score of a reward function over the responses that it did not abstain from; since 0.3 each of "
        "`reward_funcs` has its own metric, under its name.",
    ),
    Metric(
        name="reward/length_penalty",
        stages=(PPO,),
        label="length penalty",
        chart="reward components",
        series="length penalty",
        help="Mean reward component of `length_penalty`; at most 0.",
    ),
    Metric(
        name="reward/repetition_penalty",
        stages=(PPO,),
        label="repetition penalty",
        chart="reward components",
        series="repetition penalty",
        help="Mean reward component of `repetition_penalty`; at most 0.",
    ),
    Metric(
        name="reward/function_abstained",
        stages=(PPO,),
        label="abstained",
        help="Share of responses that a reward function abstained from; since 0.3 under its name.",
    ),
    Metric(
        name="objective/rlhf_reward",
        stages=(PPO,),
        label="objective",
        chart=_OBJECTIVE,
        series="sum",
        better="higher",
        help="`objective/scores` (`objective/scaled_scores` where scores are scaled) + `objective/penalties` + "
        "`objective/non_score_reward`.",
    ),
    Metric(
        name="objective/scaled_scores",
        stages=(PPO,),
        label="scaled scores",
        chart=_OBJECTIVE,
        series="scaled scores",
        help="`objective/scores` after `normalize_reward` and `cliprange_reward`, where either is set.",
    ),
    Metric(
        name="objective/penalties",
        stages=(PPO,),
        label="penalties",
        chart=_OBJECTIVE,
        series="penalties",
        help="Mean change by `reward_baseline` and `missing_eos_penalty` or `missing_eos_reward`, in the units of the "
        "scaled scores.",
    ),
    Metric(
        name="objective/non_score_reward",
        stages=(PPO,),
        label="KL penalty",
        chart=_OBJECTIVE,
        series="KL penalty",
        help="Mean KL penalty of a response: −`kl_coef` × its KL by `kl_estimator`.",
    ),
    Metric(
        name="objective/score_mean",
        stages=(PPO,),
        label="running mean of scores",
        chart="reward scaling",
        series="mean",
        help="With `normalize_reward`: the running mean that scores are centred by.",
    ),
    Metric(
        name="objective/score_std",
        stages=(PPO,),
        label="running std of scores",
        chart="reward scaling",
        series="standard deviation",
        help="With `normalize_reward`: the running standard deviation that scores are divided by.",
    ),
    Metric(
        name="objective/score_clipfrac",
        stages=(PPO,),
        label="clipped scores",
        help="With `cliprange_reward`: share of scores that were clipped.",
    ),
    Metric(
        name=SELECTION,
        stages=(PPO,),
        label="held-out selection",
        chart="held-out selection",
        series="held-out",
        better="higher",
        help="What decides which evaluation is the best: the mean of the reward function of weight 0 on held-out "
        "prompts; without one, of score − the recipe's `kl_coef` × KL.",
    ),
    Metric(
        name=f"{SELECTION}_se",
        stages=(PPO,),
        label="its standard error",
        help=f"Standard error of `{SELECTION}` over the held-out prompts.",
    ),
    Metric(
        name="eval/objective",
        stages=(PPO,),
        label="held-out objective",
        better="higher",
        help="PPO's objective on held-out prompts: score − `kl_coef` × KL.",
    ),
    Metric(
        name="eval/reward/model",
        stages=(PPO,),
        label="held-out reward model",
        chart="held-out reward components",
        series="model",
        help="`reward/model` of held-out prompts.",
    ),
    Metric(
        name="eval/reward/function",
        stages=(PPO,),
        label="held-out reward function",
        chart="held-out reward components",
        series="function",
        help="`reward/function` of held-out prompts.",
    ),
    Metric(
        name="eval/reward/length_penalty",
        stages=(PPO,),
        label="held-out length penalty",
        chart="held-out reward components",
        series="length penalty",
        help="`reward/length_penalty` of held-out prompts.",
    ),
    Metric(
        name="eval/reward/repetition_penalty",
        stages=(PPO,),
        label="held-out repetition penalty",
        chart="held-out reward components",
        series="repetition penalty",
        help="`reward/repetition_penalty` of held-out prompts.",
    ),
    # every stage
    Metric(
        name="learning_rate",
        stages=_TRAINED,
        label="learning rate",
        chart="learning rate",
        series="learning rate",
        short="lr",
        help="Learning rate of the policy's parameters.",
    ),
    Metric(
        name="grad_norm",
        stages=_TRAINED,
        label="gradient norm",
        chart="gradient norm",
        series="norm",
        help="Gradient norm before clipping; in PPO the policy's, in the newest mini-batch that was applied.",
    ),
    Metric(
        name="val/grad_norm",
        stages=(PPO,),
        label="critic gradient norm",
        chart="gradient norm",
        series="critic",
        help="`grad_norm` of the critic, which is clipped separately.",
    ),
    Metric(
        name="entropy",
        stages=(SFT, PREFERENCE),
        label="entropy",
        chart="entropy",
        series="train",
        help="Entropy of the next-token distribution, in nats per token.",
    ),
    Metric(
        name="eval_entropy",
        stages=(SFT,),
        label="held-out entropy",
        chart="entropy",
        series="held-out",
        help="`entropy` of held-out rows.",
    ),
    Metric(
        name="tokens_per_second",
        stages=_TRAINED_HERE,
        label="tokens/s",
        chart="tokens per second",
        series="all tokens",
        short="tokens/s",
        better="higher",
        unit="tokens/s",
        help="Tokens per second of the step, prompt and response, each counted once however many epochs read it. All "
        "stages but PPO: training tokens without padding. PPO: of rollout, scoring and update together.",
    ),
    Metric(
        name="response_tokens_per_second",
        stages=(PPO,),
        label="response tokens/s",
        chart="tokens per second",
        series="response tokens",
        better="higher",
        unit="tokens/s",
        help="Response tokens among those of `tokens_per_second`.",
    ),
    Metric(
        name="time/rollout",
        stages=(PPO,),
        label="seconds per rollout",
        chart="seconds per step",
        series="rollout",
        unit="seconds",
        help="Time to sample the responses of a step.",
    ),
    Metric(
        name="time/score",
        stages=(PPO,),
        label="seconds per scoring",
        chart="seconds per step",
        series="score",
        unit="seconds",
        help="Time to compute rewards, reference log-probabilities and values of a step.",
    ),
    Metric(
        name="time/update",
        stages=(PPO,),
        label="seconds per update",
        chart="seconds per step",
        series="update",
        unit="seconds",
        help="Time to update policy and critic in a step.",
    ),
    # the GPUs, by the supervisor; one of each per GPU
    Metric(
        name="gpu/*/utilization",
        stages=_TRAINED_HERE,
        label="GPU utilization",
        chart="GPU utilization, %",
        series="GPU",
        help="Percent of the time in which a kernel ran on GPU `*`, by NVML; a mean over 5 s, in a long run over more.",
    ),
    Metric(
        name="gpu/*/memory",
        stages=_TRAINED_HERE,
        label="GPU memory of this run",
        chart="GPU memory of this run",
        series="GPU",
        unit="bytes",
        help="Bytes that the run's processes hold on GPU `*`, by NVML; missing where it shows none, as in a container.",
    ),
    Metric(
        name="gpu/*/memory_used",
        stages=_TRAINED_HERE,
        label="GPU memory in use",
        chart="GPU memory in use",
        series="GPU",
        unit="bytes",
        help="Bytes in use on GPU `*`, by whomever.",
    ),
    Metric(
        name="gpu/*/power",
        stages=_TRAINED_HERE,
        label="GPU power",
        chart="GPU power, W",
        series="GPU",
        help="Power of GPU `*` in watts; mean as of `gpu/*/utilization`.",
    ),
    Metric(
        name="gpu/*/temperature",
        stages=_TRAINED_HERE,
        label="GPU temperature",
        chart="GPU temperature, °C",
        series="GPU",
        help="Highest temperature of GPU `*` in °C.",
    ),
    # counts
    Metric(
        name="num_tokens",
        stages=(SFT, REWARD, PREFERENCE),
        label="tokens so far",
        unit="tokens",
        help="Training tokens so far, without padding.",
    ),
    Metric(
        name="episode",
        stages=(PPO,),
        label="responses so far",
        help="Responses that were trained on so far, over all ranks.",
    ),
    Metric(
        name="val/num_tokens",
        stages=(PPO,),
        label="response tokens",
        unit="tokens",
        help="Response tokens of a step, over all ranks.",
    ),
    Metric(
        name="val/num_prompt_tokens",
        stages=(PPO,),
        label="prompt tokens",
        unit="tokens",
        help="Prompt tokens of a step, over all ranks.",
    ),
    Metric(
        name="val/num_eos_tokens",
        stages=(PPO,),
        label="responses that end",
        help="Responses of a step that end with the end token, over all ranks.",
    ),
    Metric(
        name="val/thoughts_cut_off",
        stages=(PPO,),
        label="thoughts cut off",
        better="lower",
        help="Share of responses that open `<think>` and reach the length limit before `</think>`, so that there is no "
        "answer; of models that think.",
    ),
    Metric(
        name="objective/entropy",
        stages=(PPO,),
        label="sequence entropy",
        help="Mean of −log-probability summed over a response: an estimate of the sequence's entropy.",
    ),
    Metric(
        name="ppo/updates",
        stages=(PPO,),
        label="updates",
        help="Mini-batches of a step that were applied.",
    ),
    Metric(
        name="ppo/skipped_updates",
        stages=(PPO,),
        label="skipped updates",
        better="lower",
        help="Mini-batches of a step that were not applied, for their ratio or gradient.",
    ),
    Metric(
        name="ppo/stopped_early",
        stages=(PPO,),
        label="stopped early",
        help="1 where `early_stopping` ended a step's update.",
    ),
    Metric(
        name="eval_pairs",
        stages=(REWARD, PREFERENCE),
        label="held-out pairs",
        help="Pairs that were evaluated.",
    ),
    Metric(
        name="eval_ties",
        stages=(REWARD, PREFERENCE),
        label="held-out ties",
        help="Held-out pairs whose scores, or implied rewards, are equal; held-out accuracy leaves them out.",
    ),
    Metric(
        name="eval_mean_reward",
        stages=(REWARD,),
        label="held-out reward",
        help="`mean_reward` of held-out pairs.",
    ),
    # results: keys of `result.json` that no event has
    Metric(
        name="loss_last",
        stages=(SFT, PREFERENCE),
        label="loss, training batch",
        better="lower",
        help="In results: `loss` of the last training batch, beside `loss_first`, that of the first.",
    ),
    Metric(
        name="difference",
        stages=(MERGE,),
        label="error of the merge",
        short="error",
        listed=1,
        listed_as="error",
        better="lower",
        help="Difference of the merged model's logits from those of base and adapter.",
    ),
    Metric(
        name="difference_from_base",
        stages=(MERGE,),
        label="change from the base",
        short="change",
        help="Difference of the merged model's logits from those of the base alone.",
    ),
    Metric(
        name="mean_reward",
        stages=(PPO,),
        label="mean reward",
        listed=2,
        listed_as="reward",
        better="higher",
        help="In results: `eval/mean_reward` before or after training.",
    ),
    Metric(
        name="true_utility",
        stages=(PPO,),
        label="true utility",
        short="utility",
        better="higher",
        help="In results: `eval/true_utility` before or after training; of a sample, its own.",
    ),
    Metric(
        name="kl",
        stages=(PPO,),
        label="KL per response",
        short="KL",
        help="In results: `eval/kl` before or after training; in the comparison to the base at its own temperature.",
    ),
    Metric(
        name="score",
        stages=(PPO,),
        label="score",
        short="score",
        better="higher",
        help="In the comparison with the base: reward less the penalty of a missing end.",
    ),
    Metric(
        name="win_rate",
        stages=(PPO,),
        label="wins against the base",
        short="wins",
        better="higher",
        help="In the comparison with the base: share of prompts with a better score than the base's, ties half.",
    ),
)

_FUNCTIONS = {"reward/": "reward components", "eval/reward/": "held-out reward components"}
ABSTAINED = "_abstained"
"""After the metric of a reward function: the share of responses that it abstained from."""

SCORE_RANGE, SCORE_STD = "score_range", "score_std"
"""Keys of a reward run's ``result.json``: lowest and highest score of its held-out responses, standard deviation."""

RESULTS: dict[str, Better] = {"after.mean_reward": "higher", "after.true_utility": "higher"}
"""Numbers of ``result.json`` that are in no event, and which way is better."""


def metrics_of(stage: Stage | None) -> list[Metric]:
    """Return the metrics of a stage (None: of another trainer's run), the most telling first."""
    return [metric for metric in METRICS if stage in metric.stages]


def function_chart(name: str) -> str:
    """Return the chart of a metric that has a reward function's name; empty for others."""
    is_share = name.endswith(ABSTAINED)
    return next((chart for prefix, chart in _FUNCTIONS.items() if name.startswith(prefix) and not is_share), "")


def headline(stage: Stage | None) -> list[Metric]:
    """Return the metrics of a stage that are shown in one line."""
    return [metric for metric in metrics_of(stage) if metric.short]


def headline_names(stage: Stage | None) -> list[str]:
    """Return the names of a stage's `headline`."""
    return [metric.name for metric in headline(stage)]


def label_of(stage: Stage | None, name: str) -> str:
    """Return a metric's label in lists; its name where the stage has no such metric."""
    return next((metric.label for metric in metrics_of(stage) if metric.name == name), name)


def short_of(stage: Stage | None, name: str) -> str:
    """Return a metric's label in one line or as the head of a column; its name where it has none."""
    return next((metric.short for metric in headline(stage) if metric.name == name), name)


def unit_of(stage: Stage | None, name: str) -> Unit:
    """Return the unit of a metric's values; a plain number where the stage has no such metric."""
    for metric in metrics_of(stage):
        if metric.name == name:
            return metric.unit
    return "number"


def listed(stage: Stage) -> list[Metric]:
    """Return the candidates for the one number per run in ``runs ls``, the best first."""
    return sorted((metric for metric in metrics_of(stage) if metric.listed), key=lambda metric: metric.listed)


def better(name: str) -> Better | None:
    """Return which way a metric is better, whatever the stage; None: neither."""
    ways: Iterable[Better | None] = (metric.better for metric in METRICS if metric.name == name)
    return RESULTS.get(name) or next((way for way in ways if way), None)
