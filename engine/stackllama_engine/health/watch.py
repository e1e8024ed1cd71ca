"""The health of one run: rules applied to each step, each finding once until it clears."""

from collections.abc import Callable

from ..contract.health import Finding
from ..contract.recipe import PPORecipe
from .ppo_rules import Seen
from .rules import RULES, HealthRule
from .window import Known, Metrics, Window

CLEAR = 10
"""Steps in a row without a finding after which its rule may find again, so that one on the edge does not repeat."""


class HealthWatch:
    """Applies the rules to a PPO run.

    Args:
        recipe: the PPO recipe.
        known: of its base and reward model.
        notify: takes a notice on a rule that fails, which is left out from then on; None: its error is raised.
    """

    def __init__(
        self, recipe: PPORecipe, known: Known | None = None, notify: Callable[[str], None] | None = None
    ) -> None:
        self._recipe = recipe
        self._notify = notify
        self._failed: set[str] = set()
        self._window = Window(known or Known())
        self._quiet: dict[str, int] = {}  # rule that has found something → steps since it last did

    def observe(self, step: int, metrics: Metrics) -> list[Finding]:
        """Add the metrics of a step; return what was found, or is cleared, now."""
        self._window.add(step, metrics)
        findings: list[Finding] = []
        for rule in RULES:
            if rule.name in self._failed:
                continue
            seen = self._check(rule, step)
            if seen is None:
                findings += self._clear(rule.name, step)
                continue
            if rule.name not in self._quiet:
                tries = [changes for changes in seen.tries if changes]
                findings.append(Finding(rule=rule.name, step=step, seen=seen.text, means=rule.means, tries=tries))
            self._quiet[rule.name] = 0
        return findings

    def remember(self, step: int, metrics: Metrics) -> None:
        """Add the metrics of an earlier attempt's step; metrics without scores are an evaluation's, and left out."""
        if "objective/scores" in metrics:
            self._window.add(step, metrics)

    def restore(self, earlier: list[Finding]) -> None:
        """Continue after the findings of earlier attempts: what was found and not cleared is not found again."""
        for finding in earlier:
            if finding.cleared:
                self._quiet.pop(finding.rule, None)
            else:
                self._quiet[finding.rule] = 0

    def _check(self, rule: HealthRule, step: int) -> Seen | None:
        """Apply a rule; one that fails is reported once and left out afterwards, as a hint must not end training."""
        try:
            return rule.check(self._window, self._recipe)
        except Exception as error:
            if self._notify is None:
                raise
            self._failed.add(rule.name)
            self._notify(
                f"the health rule {rule.name} failed after step {step} and is left out from now on: "
                f"{type(error).__name__}: {error}"
            )
            return None

    def _clear(self, rule: str, step: int) -> list[Finding]:
        if rule not in self._quiet:
            return []
        self._quiet[rule] += 1
        if self._quiet[rule] < CLEAR:
            return []
        del self._quiet[rule]
        return [Finding(rule=rule, step=step, seen="nothing any longer", cleared=True)]
