"""Health rules applied to each PPO step: findings become events, and those of `pause_on` stop the run."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from ...contract.children import known_parents
from ...contract.events import EventReader
from ...contract.health import Finding, finding_of
from ...contract.metrics import SCORE_STD
from ...contract.recipe import PPORecipe
from ...contract.run_dir import RunDir
from ...contract.run_files import UNDECODABLE, decode_file
from ...contract.stages import Stage
from ...health.watch import HealthWatch, WatchState
from ...health.window import Known
from ..session import Session


class HealthChecks:
    """Watches the metrics of every step, whether they are logged or not; only rank 0 does anything.

    Args:
        recipe: the PPO recipe.
        session: reporter and requests of this rank.
    """

    def __init__(self, recipe: PPORecipe, session: Session) -> None:
        self._recipe = recipe
        self._session = session
        self._watch = HealthWatch(recipe, known_of(recipe), session.reporter.health)

    @property
    def state(self) -> WatchState:
        """The state after the newest step, for a checkpoint; on rank 0."""
        return self._watch.state

    def resume(self, step: int, state: WatchState | None = None) -> None:
        """Continue from a step, of earlier attempts or before a rollback.

        What was found in steps that are made again is cleared; what cleared in them is reported again.

        Args:
            step: that the run continues from.
            state: of its checkpoint; None: there is none, or it is of a version that kept no state, and what the events
                hold of the steps until then is taken: the metrics of the logged ones alone.
        """
        if not self._session.is_main:
            return
        self._watch.state = state or WatchState()
        findings = self._read_events(step, add_metrics=state is None)
        if state is None:
            self._watch.restore([finding for finding in findings if finding.step <= step])
        shown, active = _active(findings), self._watch.active
        for rule in sorted(shown - active.keys()):
            self._session.reporter.finding(Finding(rule=rule, step=step, seen="its steps are made again", cleared=True))
        for rule in sorted(active.keys() - shown):
            self._session.reporter.finding(active[rule])

    def _read_events(self, step: int, *, add_metrics: bool) -> list[Finding]:
        """Return the findings of all attempts; add the metrics until a step to the window if so asked."""
        findings: list[Finding] = []
        events = (EventReader(file).read_what_can_be() for file in self._session.run.events_files())
        for event in chain.from_iterable(events):
            if event.kind == "metrics" and event.step is not None:
                if add_metrics and event.step <= step:
                    self._watch.remember(event.step, event.metrics)
            elif finding := finding_of(event.data):
                findings.append(finding)
        return findings

    def after_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report what the rules find after a step; where `pause_on` names one, every rank is to save and stop."""
        if not self._session.is_main:
            return
        for finding in self._watch.observe(step, metrics):
            self._session.reporter.finding(finding)
            if finding.rule in self._recipe.pause_on and not finding.cleared:
                self._session.requests.must_stop = True
                self._session.reporter.stop_cause = (
                    f"`pause_on` stopped the run after step {step}: {finding.message} Resume to continue all the same; "
                    f"{finding.rule} stops it again only after it has cleared."
                )


def _active(findings: Sequence[Finding]) -> set[str]:
    """Return the rules whose last finding is not cleared."""
    return {rule for rule, cleared in {finding.rule: finding.cleared for finding in findings}.items() if not cleared}


def known_of(recipe: PPORecipe) -> Known:
    """Read what the runs that trained base and reward model wrote in their results, where there are such runs."""
    merge = RunDir(Path(recipe.model_name_or_path).parent)
    trained = [merge.path.parent / parent for parent in known_parents(merge)[:1]]
    sft = _result(trained[0]) if trained else {}
    reward = _result(Path(recipe.reward_model_path).parent) if recipe.reward_model_path else {}
    return Known(
        base_loss=_number(sft.get("eval_loss")) if sft.get("stage") == Stage.SFT.value else None,
        score_std=_number(reward.get(SCORE_STD)),
    )


def _result(run: Path) -> dict[str, Any]:
    """Return a run's ``result.json``; empty where there is none that can be read."""
    try:
        return decode_file(run / "result.json", dict[str, Any])
    except (OSError, *UNDECODABLE):
        return {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
