"""Runs on other machines, in words: their machine, and when a file of theirs last changed."""

import time
from typing import Any

from stackllama_engine.contract.run_dir import RunDir, State
from stackllama_engine.launch.run_location import Elsewhere, elsewhere

from .sanitise import one_line
from .units import span


def elsewhere_text(run: RunDir, state: State) -> str:
    """Return `in_words` of where a run is now; empty for a run on this machine, and one that has ended."""
    return in_words(elsewhere(run, state))


def in_words(there: Elsewhere | None) -> str:
    """Return ``on gpu17, last sign 5 minutes ago``; no age where the clocks disagree."""
    if there is None:
        return ""
    seconds = there.age(time.time())
    sign = f"last sign {span(seconds)} ago" if seconds is not None and seconds >= 60 else "last sign just now"
    return f"on {one_line(there.host)}, {sign if there.last_sign is not None else 'no sign of it yet'}"


def as_facts(there: Elsewhere | None) -> dict[str, Any] | None:
    """Return the same as JSON facts; ages in seconds, None where the clocks disagree."""
    if there is None:
        return None
    return {"host": there.host, "last_sign": there.last_sign, "last_sign_age": there.age(time.time())}
