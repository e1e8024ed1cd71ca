"""Runs that a launch can wait for. No Textual."""

from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.run_dir import Home, RunDir, State

from ..sanitise import one_line
from ..units import span
from .choices import Choice

AT_ONCE = Choice(value="", title="at once", facts="wait for no run")


def alive_choices(home: Home, now: float) -> list[Choice]:
    """Return the runs that have not ended, the newest first, after the choice to wait for none. For a thread.

    Raises:
        OSError: the directory of runs cannot be read.
    """
    alive: list[tuple[RunDir, State]] = []
    for run in reversed(home.runs()):
        try:
            state = run.read_state()
        except UsageError:  # damaged, or removed meanwhile: it can be waited for by its id alone
            continue
        if not state.has_ended:
            alive.append((run, state))
    return [AT_ONCE, *(_choice(run, state, now) for run, state in alive)]


def _choice(run: RunDir, state: State, now: float) -> Choice:
    doing = one_line(state.waiting) if state.waiting else str(state.phase)
    facts = f"{state.stage} · {doing} · for {span(max(0.0, now - (state.started or state.created)))}"
    return Choice(value=run.id, title=one_line(run.id), facts=facts)
