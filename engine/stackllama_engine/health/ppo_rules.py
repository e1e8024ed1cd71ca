"""What each rule looks for in a PPO run: a function of the newest metrics and the recipe.

Each returns what it saw, or None. The newest values are means over all ranks; windows are in PPO steps. Thresholds
without a source of their own were fixed on the demo (docs/health.md says how, and what they find on other seeds).
"""

from statistics import fmean, median, stdev

from msgspec import Struct

from ..contract.health import Changes
from ..contract.metrics import LENGTH_CORRELATION, OUTSIDE_RANGE, REPETITION, SCORES_STD
from ..contract.recipe import PPORecipe
from .window import Window

_SHORT, _LONG = 5, 10
"""Steps of a window: enough to tell a trend from one batch's noise."""
_FAR = 2.0
"""Times `target`. The controller multiplies its error by at most 0.2 per horizon (arXiv:1909.08593, section 2.2): from
1.2 times the target on it pushes as hard as it can."""
_KL_FIXED, _KL_PER_TOKEN = 10.0, 0.3
"""Nats per response, where TRL's training FAQ would have it below, and per token, as long responses may differ more;
with a fixed coefficient, which has no target."""
_CLIPPED = 0.3
_RATIO_OFF = 0.1
_STILL = 1e-7
"""Approximate KL per token of an update that changes nothing."""
_COLLAPSED = 0.3
"""Share of the entropy at the start."""
_UNSURE = 1.4
"""Times the base's held-out loss: of a calibrated model the entropy of its own responses is about that loss."""
_ENDS_LOST = 0.2
_ENDS_FEW = 0.5
_ALIKE = 0.02
"""Share of the spread at the start."""
_LESS_SPREAD = 1 / 3
_OUTSIDE = 0.2
_SPIKE = 5.0
_USELESS = -0.05
"""Explained variance; 0 is that of the mean, give or take a batch's noise."""
_SKIPPED = 0.2
_BY_LENGTH = 0.5
"""Correlation of score and length over the responses of a step."""
_LONGER = 1.25
_REPEATED = 0.15


class Seen(Struct, frozen=True):
    """What a rule saw: a sentence with numbers and without a full stop, and changes to try."""

    text: str
    tries: list[Changes] = []


def kl_negative(window: Window, recipe: PPORecipe) -> Seen | None:
    """Find a KL below 0 by more than the noise of its estimate: k1 is unbiased, and a KL is never negative."""
    values = window.newest("objective/kl", _SHORT)
    if not values or max(values) >= 0:
        return None
    mean, error = fmean(values), stdev(values) / _SHORT**0.5
    if mean > -0.05 or mean > -3 * error:
        return None
    tries: list[Changes] = [{"use_vllm": "false"}] if recipe.use_vllm else []
    return Seen(
        f"the KL to the reference was {mean:.2f} ± {error:.2f} over {_SHORT} steps, and it cannot be < 0", tries
    )


def kl_high(window: Window, recipe: PPORecipe) -> Seen | None:
    """Find a KL far above `target`; with a fixed coefficient, high per response and per token."""
    values, lengths = window.newest("objective/kl", _SHORT), window.newest("response_length", _SHORT)
    if not values or not lengths:
        return None
    kl, per_token = fmean(values), fmean(values) / fmean(lengths)
    if recipe.adap_kl_ctrl and kl <= _FAR * recipe.target:
        return None
    if not recipe.adap_kl_ctrl and (kl <= _KL_FIXED or per_token <= _KL_PER_TOKEN):
        return None
    limit = f"`target` is {recipe.target:g}" if recipe.adap_kl_ctrl else f"{per_token:.2f} per token"
    tries = [_more_kl(window), {"learning_rate": f"{recipe.learning_rate / 2:.3g}"}]
    return Seen(f"the KL to the reference was {kl:.1f} nats per response over {_SHORT} steps ({limit})", tries)


def ratio_off(window: Window, recipe: PPORecipe) -> Seen | None:
    """Find a mean ratio away from 1, which is its mean over what the old policy samples, whatever the new one is."""
    values = window.newest("val/ratio", 3)
    if not values or min(abs(value - 1) for value in values) <= _RATIO_OFF:
        return None
    return Seen(f"the mean ratio was {fmean(values):.2f} over 3 steps instead of 1", _smaller_steps(recipe))


def clipping_high(window: Window, recipe: PPORecipe) -> Seen | None:
    """Find updates of which many tokens are clipped: they move the policy further than a rollout can tell it."""
    values = window.newest("policy/clipfrac_avg", _LONG)
    if not values or fmean(values) <= _CLIPPED:
        return None
    upper = "" if recipe.epsilon_high is None else f" and `epsilon_high={recipe.epsilon_high:g}`"
    return Seen(
        f"{fmean(values):.0%} of the tokens were clipped at `cliprange={recipe.cliprange:g}`{upper} over {_LONG} steps",
        _smaller_steps(recipe),
    )


def policy_frozen(window: Window, recipe: PPORecipe) -> Seen | None:
    """Find updates that change nothing, though the schedule's learning rate is not at its end."""
    moved, rates = window.newest("policy/approxkl_avg", _LONG), window.newest("learning_rate", _LONG)
    peak = window.peak("learning_rate")
    if not moved or not rates or not peak or min(rates) < 0.1 * peak or max(moved) > _STILL:
        return None
    tries = [{"learning_rate": "3e-5"}] if recipe.learning_rate < 3e-5 else []
    return Seen(f"{_LONG} updates changed the policy by at most {max(moved):.0e} nats per token", tries)


def entropy_collapse(window: Window, recipe: PPORecipe) -> Seen | None:
    """Find an entropy of the next token that is a fraction of what it was."""
    early, values = window.early("policy/entropy_avg"), window.newest("policy/entropy_avg", _SHORT)
    if not early or not values or fmean(values) >= _COLLAPSED * fmean(early):
        return None
    return Seen(
        f"the entropy fell from {fmean(early):.2f} to {fmean(values):.2f} nats per token",
        [{"ent_coef": f"{2 * recipe.ent_coef or 0.005:g}"}, _more_kl(window)],
    )


def entropy_high(window: Window, recipe: PPORecipe) -> Seen | None:
    """Find a base that is much less sure of its responses than of the texts that it was trained on."""
    early = window.early("policy/entropy_avg")
    values = window.newest("policy/entropy_avg", _SHORT)
    loss = window.known.base_loss
    if not early or not values or loss is None or recipe.temperature > 1:
        return None
    if min(fmean(early), fmean(values)) <= _UNSURE * loss:
        return None
    return Seen(
        f"the entropy was {fmean(values):.2f} nats per token ({fmean(early):.2f} in the first {len(early)} steps), but "
        f"the held-out loss of the base's own training was {loss:.2f}"
    )


def no_end(window: Window, recipe: PPORecipe) -> Seen | None:
    """Find few responses that end by themselves, or fewer than at the start.

    Not with random limits, which are for a base that never ends one.
    """
    if recipe.random_length_limits is not None:
        return None
    ends, early = _end_share(window, newest=True), _end_share(window, newest=False)
    lengths = window.newest("response_length", _SHORT)
    if ends is None or early is None or not lengths or not (ends < _ENDS_FEW or ends < early - _ENDS_LOST):
        return None
    tries: list[Changes] = [{"missing_eos_penalty": f"{2 * recipe.eos_penalty or 1:g}"}]
    if early >= _ENDS_FEW:
        tries.append(_more_kl(window))
    return Seen(
        f"{ends:.0%} of the responses end by themselves ({early:.0%} at the start); {fmean(lengths):.0f} tokens of at "
        f"most {recipe.longest_response} on average",
        tries,
    )


def reward_by_length(window: Window, recipe: PPORecipe) -> Seen | None:
    """Find scores that rise with lengths, where in a step the longer responses have the higher scores."""
    correlations = window.newest(LENGTH_CORRELATION, _SHORT)
    change, rise = _change(window, "response_length"), _rise(window)
    if not correlations or change is None or rise is None or fmean(correlations) < _BY_LENGTH:
        return None
    before, now = change
    if now < _LONGER * before or rise <= 0:
        return None
    return Seen(
        f"responses grew from {before:.0f} to {now:.0f} tokens while scores rose by {rise:.2g}, and over the responses "
        f"of a step score and length correlate by {fmean(correlations):.2f}",
        [{"length_penalty": f"{2 * recipe.length_penalty or 0.01:g}", "length_penalty_start": f"{before:.0f}"}],
    )


def reward_by_repetition(window: Window, recipe: PPORecipe) -> Seen | None:
    """Find scores that rise with repetition."""
    change, rise = _change(window, REPETITION), _rise(window)
    if change is None or rise is None or rise <= 0 or change[1] - change[0] < _REPEATED:
        return None
    return Seen(
        f"the share of repeated 3-grams rose from {change[0]:.0%} to {change[1]:.0%} while scores rose by {rise:.2g}",
        [{"repetition_penalty": f"{2 * recipe.repetition_penalty or 1:g}"}],
    )


def scores_alike(window: Window, recipe: PPORecipe) -> Seen | None:
    """Find responses that have nearly the same score.

    Nearly: none of the spread at the start, or from the start on a fraction of the spread that the reward model's
    scores of its own held-out responses had.
    """
    values, early = window.newest(SCORES_STD, 3), window.early(SCORES_STD)
    start = fmean(early) if early else 0.0
    if not values:
        return None
    seen = f"the scores of a step's responses had a standard deviation of at most {max(values):.2g} for 3 steps"
    if max(values) <= max(1e-6, _ALIKE * start):
        return Seen(seen)
    own = window.known.score_std
    if recipe.reward_funcs or own is None or not early or max(start, *values) >= _LESS_SPREAD * own:
        return None
    return Seen(f"{seen} ({start:.2g} at the start), and those of the reward model's own held-out responses {own:.2g}")


def scores_out_of_range(window: Window, recipe: PPORecipe) -> Seen | None:
    """Find scores that the reward model gave no held-out pair of its own."""
    values, scores = window.newest(OUTSIDE_RANGE, 3), window.newest("reward/model", 3)
    if not values or not scores or fmean(values) <= _OUTSIDE:
        return None
    return Seen(
        f"{fmean(values):.0%} of the scores (mean {fmean(scores):.2g}) are outside of those that the reward model gave "
        "held-out pairs",
        [_more_kl(window)],
    )


def value_loss_spike(window: Window, recipe: PPORecipe) -> Seen | None:
    """Find a value loss many times what it was."""
    values = window.newest("loss/value_avg", 2 * _LONG)
    if not values:
        return None
    newest, usual, highest = values[-1], median(values[:-1]), max(values[:-1])
    if usual <= 0 or newest <= _SPIKE * usual or newest <= 2 * highest:  # 0: sparse rewards, nothing to compare with
        return None
    return Seen(
        f"the value loss was {newest:.3g}, {newest / usual:.0f} times its median over {2 * _LONG - 1} steps",
        _smaller_critic_steps(recipe),
    )


def critic_useless(window: Window, recipe: PPORecipe) -> Seen | None:
    """Find a critic that predicts returns worse than their mean would; in the first steps it may."""
    values = window.newest("val/var_explained", _LONG)
    if not values or window.step < 2 * _LONG or fmean(values) >= _USELESS:
        return None
    return Seen(
        f"the critic explained {fmean(values):.2f} of the variance of the returns over {_LONG} steps",
        _smaller_critic_steps(recipe) if fmean(values) < -1 else [{"vf_coef": f"{2 * recipe.vf_coef or 0.1:g}"}],
    )


def updates_skipped(window: Window, recipe: PPORecipe) -> Seen | None:
    """Find mini-batches that were not applied, for their ratio or a number that is not finite."""
    skipped = window.newest("ppo/skipped_updates", _SHORT)
    applied = window.newest("ppo/updates", _SHORT)
    if not skipped or not applied or sum(skipped) < _SKIPPED * (sum(skipped) + sum(applied)) or not sum(skipped):
        return None
    return Seen(
        f"{sum(skipped):.0f} of {sum(skipped) + sum(applied):.0f} mini-batches of {_SHORT} steps were skipped "
        f"(`ratio_threshold={recipe.ratio_threshold:g}`, or not finite)",
        _smaller_steps(recipe),
    )


def _more_kl(window: Window) -> Changes:
    coef = window.newest("objective/kl_coef", 1)
    return {"kl_coef": f"{2 * coef[0]:.3g}" if coef and coef[0] else "0.1"}


def _smaller_steps(recipe: PPORecipe) -> list[Changes]:
    tries: list[Changes] = [{"learning_rate": f"{recipe.learning_rate / 2:.3g}"}]
    if recipe.num_ppo_epochs > 1:
        tries.append({"num_ppo_epochs": str(recipe.num_ppo_epochs // 2)})
    return tries


def _smaller_critic_steps(recipe: PPORecipe) -> list[Changes]:
    rate = recipe.value_learning_rate or recipe.learning_rate
    return [{"value_learning_rate": f"{rate / 2:.3g}"}, {"normalize_reward": "true"}]


def _end_share(window: Window, *, newest: bool) -> float | None:
    """Return the share of responses that end by themselves; None: not known."""

    def values(name: str) -> list[float]:
        return window.newest(name, _SHORT) if newest else window.early(name)

    ends, tokens, lengths = map(values, ("val/num_eos_tokens", "val/num_tokens", "response_length"))
    if not ends or not tokens or not lengths or min(lengths) <= 0:
        return None
    responses = [total / length for total, length in zip(tokens, lengths, strict=True)]
    return sum(ends) / sum(responses)


def _change(window: Window, name: str) -> tuple[float, float] | None:
    """Return a metric's mean over the first steps and over the newest; None: the run is too short."""
    early, newest = window.early(name), window.newest(name, _SHORT)
    return (fmean(early), fmean(newest)) if early and newest and window.step >= _LONG else None


def _rise(window: Window) -> float | None:
    """Return by how much scores rose since the first steps; None: too short a run."""
    change = _change(window, "objective/scores")
    return change[1] - change[0] if change else None
