"""What a run does before its first step, for how long already, and how long that usually takes."""

import itertools
import statistics
import time

from stackllama_engine.contract.errors import StackllamaError
from stackllama_engine.contract.events import EventReader
from stackllama_engine.contract.history import History
from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage

from ..sanitise import one_line
from ..units import duration
from .recipe_model import model_label, recipe_model

_BEFORE_TRAINING = ("start", "load")
_EARLIER_RUNS = 5
_FIRST_EVENTS = 500


def waits(state: State, history: History) -> bool:
    """Return whether a run has started and not begun to train yet in this attempt."""
    if state.has_ended or state.stage is Stage.PIPELINE or state.phase == "queued":
        return False
    return state.phase == "starting" or history.phase in _BEFORE_TRAINING


def waiting_text(state: State, history: History, now: float, usual: float | None = None) -> str:
    """Return ``reading weights 34%, 25 s (usually starts in 40 s)``; empty once it trains.

    Args:
        state: of the run.
        history: of its events.
        now: Unix seconds; the time that has passed is shown in steps of five seconds, so that it seldom changes.
        usual: seconds before the first step in earlier runs.
    """
    if not waits(state, history):
        return ""
    doing = "importing libraries"
    if state.phase != "starting" and history.phase == "load":
        doing = one_line((history.doing and history.at) or "loading")
    passed = max(0.0, now - (state.started or state.created))
    text = f"{doing}, {duration(passed // 5 * 5)}"
    return f"{text} (usually starts in {duration(usual)})" if usual else text


class WaitWatch:
    """Follows one run until it trains; what is usual is read once per attempt."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._usual: float | None = None
        self._usual_of = 0

    def text(self, state: State | None, history: History) -> str:
        """Return :func:`waiting_text` of this moment."""
        if state is None or not waits(state, history):
            return ""
        if self._usual_of != state.attempt:
            self._usual_of = state.attempt
            self._usual = usual_wait(Home(self._run.path.parents[1]), self._run)
        return waiting_text(state, history, time.time(), self._usual)


def usual_wait(home: Home, run: RunDir) -> float | None:
    """Return the median seconds before the first step, of the newest runs of this stage and model; None without any."""
    try:
        stage, model = run.read_state().stage, model_label(recipe_model(run.recipe_file))
    except (StackllamaError, OSError):
        return None
    seconds = (_seconds_of(other, stage, model) for other in reversed(home.runs()) if other.id != run.id)
    found = list(itertools.islice((each for each in seconds if each is not None), _EARLIER_RUNS))
    return statistics.median(found) if found else None


def _seconds_of(run: RunDir, stage: Stage, model: str) -> float | None:
    """Return the seconds before the first step of a run's first attempt; None where it is another's, or had none."""
    try:
        state = run.read_state()
        if state.stage is not stage or model_label(recipe_model(run.recipe_file)) != model:
            return None
        began = state.started if state.attempt == 1 else None  # which is the newest attempt's
        for event in itertools.islice(EventReader(run.attempt_dir(1) / "events.jsonl").read(), _FIRST_EVENTS):
            began = event.time if began is None else began
            if event.kind == "progress" or (event.kind == "phase" and event.phase not in _BEFORE_TRAINING):
                return max(0.0, event.time - began)
    except (StackllamaError, OSError):
        return None
    return None
