"""The health of one run: rules applied to each step, each finding once until it clears."""

from collections.abc import Callable

from msgspec import Struct

from ..contract.health import Finding
from ..contract.recipe import PPORecipe
from .ppo_rules import Seen
from .rules import RULES, HealthRule
from .window import Known, Metrics, Window, WindowState

CLEAR = 10
"""Steps in a row without a finding after which its rule may find again, so that one on the edge does not repeat."""


class Active(Struct, frozen=True):
    """A finding that has not cleared."""

    finding: Finding
    quiet: int = 0
    """Steps since its rule last found something."""


class WatchState(Struct, frozen=True, kw_only=True):
    """All that a :class:`HealthWatch` goes by, for a checkpoint."""

    window: WindowState = WindowState()
    active: dict[str, Active] = {}
    """Rule → its finding."""


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
        self._active: dict[str, Active] = {}  # by rule

    @property
    def state(self) -> WatchState:
        """The state after the newest step."""
        return WatchState(window=self._window.state, active=dict(self._active))

    @state.setter
    def state(self, state: WatchState) -> None:
        self._window.state = state.window
        self._active = dict(state.active)

    @property
    def active(self) -> dict[str, Finding]:
        """The findings that have not cleared, by rule."""
        return {rule: active.finding for rule, active in self._active.items()}

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
            if rule.name in self._active:
                finding = self._active[rule.name].finding
            else:
                tries = [changes for changes in seen.tries if changes]
                finding = Finding(rule=rule.name, step=step, seen=seen.text, means=rule.means, tries=tries)
                findings.append(finding)
            self._active[rule.name] = Active(finding)
        return findings

    def remember(self, step: int, metrics: Metrics) -> None:
        """Add the metrics of an earlier attempt's step; metrics without scores are an evaluation's, and left out."""
        if "objective/scores" in metrics:
            self._window.add(step, metrics)

    def restore(self, earlier: list[Finding]) -> None:
        """Continue after the findings of earlier attempts: what was found and not cleared is not found again."""
        for finding in earlier:
            if finding.cleared:
                self._active.pop(finding.rule, None)
            else:
                self._active[finding.rule] = Active(finding)

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
        if rule not in self._active:
            return []
        active = self._active[rule]
        if active.quiet + 1 < CLEAR:
            self._active[rule] = Active(active.finding, active.quiet + 1)
            return []
        del self._active[rule]
        return [Finding(rule=rule, step=step, seen="nothing any longer", cleared=True)]
