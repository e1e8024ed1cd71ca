"""The monitor's subject: a run, a pipeline, or another trainer's directory, with its log, samples and machine.

:meth:`Watched.poll` runs in a thread; everything else only returns what it read.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from stackllama_engine.contract.chat_target import checkpoint_names, has_target
from stackllama_engine.contract.errors import StackllamaError, UsageError
from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.gpu_watch import watched_cards

from ..eval_summary import conditions_of
from ..gpu_lines import GpuView
from ..readers.logs import LogReader
from ..readers.machine import Machine, describe, is_local
from ..readers.pipeline_reader import PipelineReader
from ..readers.protocol import Reader
from ..readers.run_reader import RunReader
from ..readers.samples import SamplesFile
from ..readers.timeline import RunEvent
from ..readers.waiting import WaitWatch
from ..request_texts import pending_requests
from ..results import pipeline_facts, result_lines, sample_lines, table
from ..sanitise import one_line

if TYPE_CHECKING:
    from ..readers.advice import Fix

_MACHINE_SECONDS = 2.0
_SAMPLES = 3


class Update(Struct, frozen=True, kw_only=True):
    """The result of one poll."""

    run: bool
    log: LogReader | None = None
    """The log, when it has new lines or is another one."""
    machine: str = ""
    gpus: GpuView | None = None
    """The GPUs that the run may use; None where it is not running here, or there are none."""


class Watched:
    """One subject and everything that is read with it.

    Args:
        source: the reader; of a pipeline its own, which holds the reader of the child shown.
        run: the run directory; None for another trainer's.
        log: a log of another trainer, if there is one; ours are found by attempt.
    """

    def __init__(self, source: Any, run: RunDir | None, log: Path | None = None) -> None:
        self.source = source
        self.run = run
        self.pipeline: PipelineReader | None = source if isinstance(source, PipelineReader) else None
        self.newest_samples: list[dict[str, Any]] = []
        self.result: list[str] = []
        """Lines of the result of a pipeline, or of a stage without curves."""
        self.predicted: float | None = None
        self.evaluation = ""
        """How the held-out prompts were sampled, where metrics of that are shown."""
        self.note = ""
        self.fix: Fix | None = None
        """The change that the cause of a failed run advises, or of a failed pipeline that of the stage shown; of any
        other run the one that its newest health finding advises."""
        self.left_nothing = False
        """Whether what is shown has saved nothing yet that could be chatted with."""
        self.has_checkpoint = False
        """Whether what is shown can be forked."""
        self._fix_of: object = None
        self.has_log = False
        """Whether the log that is shown has lines."""
        self.waiting = ""
        """What is done before the first step, and for how long; empty once it trains."""
        self.pending: list[str] = []
        """Requests that the run has not served yet, in words."""
        self._foreign_log = log
        self._log: LogReader | None = None
        self._log_of: object = None
        self._samples: SamplesFile | None = None
        self._samples_of: object = None
        self._predicted_of: object = None
        self._evaluation = ""
        self._evaluation_of: object = None
        self._machine = Machine(run.path.parents[1] if run else None)
        self._machine_at = 0.0
        self._machine_text = ""
        self._gpus: GpuView | None = None
        self._polled = False
        self._wait: WaitWatch | None = None
        self._wait_of: object = None

    @property
    def reader(self) -> Reader:
        """The reader that is shown: of a pipeline its child's."""
        return (self.pipeline.shown or self.pipeline) if self.pipeline else self.source

    @property
    def log(self) -> LogReader | None:
        """The log of what is shown; None where there is none."""
        return self._log

    @property
    def events(self) -> Sequence[RunEvent]:
        """What happened to the run that is shown; empty for another trainer's."""
        return self.reader.events if isinstance(self.reader, RunReader) else ()

    @property
    def shown_run(self) -> RunDir | None:
        """The run that is shown."""
        if self.pipeline:
            return self.pipeline.shown.run if self.pipeline.shown else None
        return self.run

    @property
    def state(self) -> State | None:
        """The state of the run itself, not of a pipeline's child."""
        return self.source.state if self.run else None

    def poll(self) -> Update | None:
        """Read what is new; None where nothing is."""
        shown = self.reader
        changed = self.source.poll() or not self._polled or shown is not self.reader
        self._polled = True
        self._predict()
        if changed:
            self.result = self._read_result()
            self.evaluation = self._read_evaluation()
            self._find_fix()
            shown = self.shown_run
            self.has_checkpoint = shown is not None and bool(checkpoint_names(shown))
            self.left_nothing = shown is not None and self.reader.phase != "finished" and not has_target(shown)
        log = self._read_log()
        samples = self._read_samples()
        machine = self._read_machine()
        waiting = self._read_waiting()
        if not (changed or log or samples or machine or waiting):
            return None
        return Update(run=changed or samples, log=log, machine=self._machine_text, gpus=self._gpus)

    def _predict(self) -> None:
        run = self.shown_run
        if run is None or self._predicted_of == run.id:
            return
        self._predicted_of = run.id
        self.predicted = predicted_peak(run)

    @property
    def shows_result(self) -> bool:
        """Whether there is a result to show in the place of curves: of a finished pipeline until a stage is chosen."""
        return bool(self.result) and (
            not self.reader.series or (self.pipeline is not None and not self.pipeline.chosen)
        )

    @property
    def shows_whole_pipeline(self) -> bool:
        """Whether what is shown is a finished pipeline's result rather than one of its stages."""
        return self.pipeline is not None and not self.pipeline.chosen and self.shows_result

    def _read_result(self) -> list[str]:
        run, state = self.run, self.state
        if self.pipeline and not self.pipeline.chosen and run and state and state.phase == "finished":
            facts = pipeline_facts(Home(run.path.parents[1]), run, state)
            return [*table(facts), "", *sample_lines(facts)]
        shown = self.shown_run
        if shown is None or self.reader.series:
            return []
        return result_lines(shown, self.reader.stage or Stage.MERGE)

    @property
    def shows_failure(self) -> bool:
        """Whether what is shown failed: a run, or a pipeline unless one of its other stages was chosen."""
        states = [self.state]
        if self.pipeline and self.pipeline.chosen and self.pipeline.shown:
            states.append(self.pipeline.shown.state)
        return all(state is not None and state.phase in ("failed", "lost") for state in states)

    def _find_fix(self) -> None:
        run, state = self.shown_run or self.run, getattr(self.reader, "state", None)
        findings = self.reader.history.findings
        key = run.id if run else None, state, self.shows_failure, tuple(findings.values())
        if key == self._fix_of:
            return
        self._fix_of, self.fix = key, None
        if run and state and self.shows_failure:
            from ..readers.advice import find_fix

            first = self.pipeline is not None and len(self.pipeline.children) == 1
            self.fix = find_fix(run, state, self.run if first else None)
        elif run and state and findings:
            from ..readers.advice import find_change

            self.fix = find_change(run, state.stage, findings.values())

    def _read_evaluation(self) -> str:
        run, state = self.shown_run, getattr(self.reader, "state", None)
        if run is None or self.reader.stage is not Stage.PPO or "eval/mean_reward" not in self.reader.history.last:
            return ""
        if self._evaluation_of != (run.id, state):
            self._evaluation_of = run.id, state
            self._evaluation = one_line(conditions_of(run))
        return self._evaluation

    def _read_log(self) -> LogReader | None:
        run = self.shown_run
        key = run.id if run else self._foreign_log
        if key is None:
            return None
        fresh = key != self._log_of
        if fresh:
            self._log_of = key
            self._log = LogReader(run or self._foreign_log or Path())
            self.has_log = False
        assert self._log is not None
        before = self._log.version
        self.has_log |= self._log.poll() > 0 or self._log.open_line is not None
        return self._log if fresh or self._log.version != before else None

    def _read_samples(self) -> bool:
        run = self.shown_run
        if run is None:
            return False
        if self._samples_of != run.id:
            self._samples_of = run.id
            self._samples = SamplesFile(run.samples_file)
        samples = self._samples
        if samples is None or not samples.poll():
            return False
        rows = samples.read(range(len(samples) - 1, max(-1, len(samples) - 1 - _SAMPLES), -1))
        self.newest_samples = [_sample(row) for row in rows]
        return True

    def _read_machine(self) -> bool:
        """Measure the machine while the run is alive here; return whether anything changed."""
        run, state = self.shown_run, getattr(self.reader, "state", None)
        alive = run is not None and state is not None and not state.has_ended
        if not alive or time.monotonic() - self._machine_at < _MACHINE_SECONDS:
            gone = not alive and bool(self._machine_text)
            if gone:
                self._machine_text, self._gpus = "", None
            return gone
        self._machine_at = time.monotonic()
        before = self._machine_text, self._gpus
        self._machine_text, self._gpus = self._measure(run) if run else ("", None)
        return before != (self._machine_text, self._gpus)

    def _read_waiting(self) -> bool:
        """Read what the run waits for and what it was asked; return whether either changed."""
        before = self.waiting, self.pending
        run, state = self.shown_run, getattr(self.reader, "state", None)
        self.waiting, self.pending = "", []
        if run is not None and state is not None and not state.has_ended:
            self.pending = pending_requests(run)
            if self._wait is None or self._wait_of != run.id:
                self._wait, self._wait_of = WaitWatch(run), run.id
            self.waiting = self._wait.text(state, self.reader.history)
        return before != (self.waiting, self.pending)

    def _measure(self, run: RunDir) -> tuple[str, GpuView | None]:
        """Return the machine in one line, and the GPUs that the run may use."""
        try:
            launch = run.read_launch()
        except UsageError:  # not started yet
            return "", None
        if not is_local(launch):
            self.note = f"runs on {launch.host}: its GPUs and CPU are not visible from here"
            return "", None
        reading = self._machine.read(run.path)
        cards = watched_cards(launch)
        gpus = tuple(gpu for gpu in reading.gpus if cards is None or gpu.index in cards)
        view = GpuView(gpus=gpus, pids=reading.run_pids, xids=reading.xids) if gpus else None
        return describe(reading), view


def watch_run(home: Home, run_id: str) -> Watched:
    """Return what the monitor reads of a run of ours.

    Raises:
        UsageError: no such run, or it cannot be read.
    """
    run = home.run(run_id)
    pipeline = run.read_state().stage is Stage.PIPELINE
    return Watched(PipelineReader(run) if pipeline else RunReader(run), run)


def watch_directory(path: Path) -> Watched:
    """Return what the monitor reads of another trainer's directory.

    Raises:
        UsageError: nothing in it that can be watched.
    """
    from ..readers.foreign import open_foreign

    reader = open_foreign(path)
    watched = Watched(reader, None, getattr(reader, "log_file", None))
    watched.note = "read-only: another trainer's directory"
    return watched


def predicted_peak(run: RunDir) -> float | None:
    """Return the predicted peak in bytes: allocated on a GPU, the middle of the resident set's range on a CPU.

    None where it cannot say.
    """
    from stackllama_engine.launch.expected import expected

    try:
        prediction = expected(run, run.read_state().stage)
    except (StackllamaError, OSError):  # files that have gone: no line is drawn
        return None
    if prediction is None:
        return None
    return float(prediction.estimate.allocated if prediction.on_gpu else sum(prediction.estimate.device) / 2)


def _sample(row: Any) -> dict[str, Any]:
    return {"step": row.step, "question": row.question, "response": row.response, "reward": row.reward, "kl": row.kl}
