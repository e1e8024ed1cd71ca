"""Findings of the health rules: what a run's metrics say is going wrong, as data of a ``health`` event.

The rules themselves are :mod:`stackllama_engine.health`; the trainer applies them to every step, and docs/health.md
has a section per rule. A finding is written once, and once more (``cleared``) when its rule finds nothing any longer.
"""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

Rule = Literal[
    "kl_negative",
    "kl_high",
    "ratio_off",
    "clipping_high",
    "policy_frozen",
    "entropy_collapse",
    "entropy_high",
    "no_end",
    "reward_by_length",
    "reward_by_repetition",
    "scores_alike",
    "scores_out_of_range",
    "value_loss_spike",
    "critic_useless",
    "updates_skipped",
]
"""Names of the rules, in the order of docs/health.md."""

Changes = dict[str, str]
"""Recipe key → new value, as it is typed."""


class Finding(Struct, frozen=True, kw_only=True, rename={"tries": "try"}):
    """What a rule found at a step.

    Attributes:
        rule: a :data:`Rule`, or one of a newer version.
        step: after which it was found.
        seen: what was seen, with numbers; no full stop.
        means: what that usually means; a sentence.
        tries: changes of the recipe to try, alternatives of one or more keys each.
        cleared: the rule finds nothing any longer.
    """

    rule: str
    step: int
    seen: str
    means: str = ""
    tries: list[Changes] = []
    cleared: bool = False

    @property
    def link(self) -> str:
        """The section of the documentation."""
        return f"docs/health.md#{self.rule}"

    @property
    def message(self) -> str:
        """All of it as one notice."""
        if self.cleared:
            return f"{self.rule} cleared after step {self.step}"
        alternatives = (" and ".join(f"`{key}={value}`" for key, value in one.items()) for one in self.tries)
        tries = f" Try {', or '.join(alternatives)}." if self.tries else ""
        return f"{self.rule}, step {self.step}: {self.seen}. {self.means}{tries} ({self.link})"


def as_data(finding: Finding) -> dict[str, Any]:
    """Return a finding as data of its event."""
    return {"message": finding.message, "finding": msgspec.to_builtins(finding), "link": finding.link}


def finding_of(data: Mapping[str, Any] | None) -> Finding | None:
    """Return the finding in the data of a ``health`` event; None: it is another notice, or malformed."""
    try:
        return msgspec.convert((data or {})["finding"], Finding)
    except (KeyError, msgspec.ValidationError):
        return None
