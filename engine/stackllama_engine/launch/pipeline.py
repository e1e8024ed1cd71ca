"""The coordinator of a pipeline: ``python -m stackllama_engine.launch.pipeline RUN_DIR``.

SFT → merge → reward → merge → PPO → merge. Each child is an ordinary run with a supervisor of its own; the
coordinator starts them in order, fills in what each takes from the ones before, and waits. It is torch-free, and is
itself the worker of an ordinary run: stopped by ``control/stop``, resumed by a new attempt.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from ..contract.children import CHILDREN, Child, child_id, parents_of
from ..contract.disk_space import is_full
from ..contract.errors import DamagedError, ExitCode, RefusedError, StackllamaError, StageError
from ..contract.events import EventWriter
from ..contract.recipe import PipelineRecipe
from ..contract.recipe_io import load_recipe
from ..contract.redact import redact_output
from ..contract.requests import WAITING_FOR_ROOM
from ..contract.run_dir import Home, RunDir, State, kind_of
from ..contract.stages import Stage
from ..contract.streams import open_standard_streams
from .function_hash import check_functions
from .launcher import allowed_in, launch, plan, resume
from .leftovers import remove_leftover
from .reconcile import reconcile
from .run_requests import try_to_stop
from .sections import stage_recipe

_POLL_SECONDS = 0.2
_ROOM_SECONDS = 5.0  # between two tries on a full disk
_OWN_CODES = (ExitCode.FAILED, ExitCode.USAGE, ExitCode.REFUSED)


Made = TypeVar("Made")


class _Stopped(Exception):
    """The pipeline ends with 75, by its own request or because somebody stopped a child."""


class Coordinator:
    """Runs the children of one pipeline in order.

    Args:
        run: the pipeline's run.
        events: its events file.
    """

    def __init__(self, run: RunDir, events: EventWriter) -> None:
        self.run = run
        self.events = events
        self.home = Home(run.path.parents[1])
        self.stop_asked = False  # set by a signal handler
        recipe = load_recipe(Stage.PIPELINE, run.recipe_file)
        if not isinstance(recipe, PipelineRecipe):
            raise TypeError(f"{run.recipe_file} is not a pipeline recipe")
        self.recipe = recipe

    def coordinate(self) -> dict[str, Any]:
        """Run every child that has not finished.

        Returns:
            ``{"children": {suffix: {"run", "seconds", "result"}}}``; seconds are those of the child's last attempt.

        Raises:
            StageError: a child failed or was lost; the text names it and its cause.
            StackllamaError: a child could not be launched.
        """
        results: dict[str, Any] = {}
        for index, child in enumerate(CHILDREN):
            run_id = child_id(self.run.id, child.suffix)
            self.events.write("phase", phase=run_id)
            self.events.write("progress", step=index, total_steps=len(CHILDREN))
            state = self._complete(child, run_id)
            results[child.suffix] = {
                "run": run_id,
                "seconds": round(max(0.0, (state.ended or 0.0) - (state.started or 0.0)), 3),
                "result": self._result(run_id),
            }
            self._write_results(results)
        self._when_there_is_room(lambda: self.run.write_json("result.json", {"children": results}))
        self.events.write("progress", step=len(CHILDREN), total_steps=len(CHILDREN))
        return {"children": results}

    def _write_results(self, results: dict[str, Any]) -> None:
        """Write the results of the children so far; where the disk is full, after the next child or at the end."""
        try:
            self.run.write_json("result.json", {"children": results})
        except OSError as error:
            if not is_full(error):
                raise
            self.events.write("health", data={"message": f"result.json could not be written yet: {error}"})

    def _result(self, run_id: str) -> dict[str, Any]:
        """Read a finished child's result; a damaged one is reported only, as later stages need just its model."""
        try:
            return self.home.run(run_id).read_json("result.json")
        except DamagedError as error:
            self.events.write("health", data={"message": str(error)})
            return {}

    def stop_requested(self) -> bool:
        """Return whether the pipeline was asked to stop, by request or by signal."""
        return self.stop_asked or "stop" in self.run.requests()

    def _complete(self, child: Child, run_id: str) -> State:
        """Bring one child to its end, from whatever state it is in."""
        run = self._find(run_id)
        if run is not None and (state := reconcile(run)).phase == "finished":
            return state
        if self.stop_requested():
            raise _Stopped("Stopped before the next stage started.")
        if child.stage is Stage.PPO:
            check_functions(self.run, self.recipe)  # what was confirmed for the pipeline is confirmed for its stage
        return self._follow(self._when_there_is_room(lambda: self._begin(child, run_id)))

    def _begin(self, child: Child, run_id: str) -> RunDir:
        """Launch or resume one child, unless it is alive."""
        run = self._find(run_id)
        if run is None:
            wired = {key: child_id(self.run.id, suffix) for key, suffix in child.wired.items()}
            recipe = stage_recipe(self.recipe, child.stage, wired)
            return launch(plan(self.home, recipe, run_id, parents=[self.run.id], allow=allowed_in(self.run)))
        if reconcile(run).has_ended:
            # who resumed the pipeline was asked
            return resume(self.home, run_id, recipe_changed=True, function_changed=True)
        return run

    def _when_there_is_room(self, do: Callable[[], Made]) -> Made:
        """Do what a full disk may refuse, as often as it takes.

        Raises:
            _Stopped: a stop was asked for while it waited.
        """
        waited = False
        while True:
            try:
                made = do()
            except (OSError, StackllamaError) as error:
                if not _lacked_room(error):
                    raise
                if not waited:
                    waited = True
                    self.events.write("health", data={"message": f"{WAITING_FOR_ROOM}: {error}"}, urgent=True)
            else:
                if waited:
                    self.events.write("health", data={"message": "there is room on the disk again"})
                return made
            deadline = time.monotonic() + _ROOM_SECONDS
            while time.monotonic() < deadline:
                if self.stop_requested():
                    raise _Stopped(
                        f"The disk is full, and a stop was asked for meanwhile. Make room under {self.home.path}."
                    )
                time.sleep(_POLL_SECONDS)

    def _find(self, run_id: str) -> RunDir | None:
        """Return the child's run, if there is one; what a launch that was cut short left is removed."""
        path = self.home.runs_dir / run_id
        if kind_of(path) == "leftover":
            remove_leftover(path)
        if not os.path.lexists(path):
            return None
        run = self.home.run(run_id)
        started = (run.path / "launch.json").is_file()  # if not, its launcher died on the way
        if started and self.run.id not in parents_of(run):
            raise RefusedError(
                f"A run `{run_id}` exists already and is not a child of `{self.run.id}`; remove it first."
            )
        return run

    def _follow(self, run: RunDir) -> State:
        stop_sent = False
        while not (state := reconcile(run)).has_ended:
            if not stop_sent and self.stop_requested():
                stop_sent = try_to_stop(run, state)
            time.sleep(_POLL_SECONDS)
        if state.phase == "finished":
            return state
        if state.phase == "stopped":
            raise _Stopped(f"Run `{run.id}` was stopped." + (f" {state.cause}" if state.cause else ""))
        raise _ChildFailed(run.id, state)


def _lacked_room(error: BaseException) -> bool:
    """Return whether a full disk is the cause; our error has the system's as its cause or context."""
    return any(one is not None and is_full(one) for one in (error, error.__cause__, error.__context__))


class _ChildFailed(StageError):
    """A child failed or was lost."""

    def __init__(self, run_id: str, state: State) -> None:
        super().__init__(f"Run `{run_id}` {'was lost' if state.phase == 'lost' else 'failed'}: {state.cause}")
        if state.exit_code is not None and state.exit_code in _OWN_CODES:
            self.exit_code = state.exit_code


class _End(Struct, frozen=True):
    exit_code: int
    cause: str | None = None


def main(arguments: list[str]) -> int:
    """Coordinate the pipeline of a run directory; the exit code is also in its ``end`` event."""
    run = RunDir(Path(arguments[0]))
    attempt = int(os.environ["STACKLLAMA_ATTEMPT"])
    events = EventWriter(run.attempt_dir(attempt) / "events.jsonl")
    end = _guarded(lambda: _coordinate(run, events))
    events.write("end", data={"exit_code": int(end.exit_code), "cause": end.cause})
    events.close()
    return int(end.exit_code)


def _coordinate(run: RunDir, events: EventWriter) -> None:
    coordinator = Coordinator(run, events)

    def ask(_number: int, _frame: object) -> None:
        coordinator.stop_asked = True

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    coordinator.coordinate()


def _guarded(work: Callable[[], None]) -> _End:
    try:
        work()
    except _Stopped as stopped:
        return _End(ExitCode.STOPPED, str(stopped))
    except StackllamaError as error:
        return _End(error.exit_code, str(error))
    except Exception as error:  # noqa: BLE001 - recorded as the cause, with the traceback in the log
        traceback.print_exc()
        return _End(ExitCode.FAILED, f"{type(error).__name__}: {error}")
    return _End(ExitCode.DONE)


if __name__ == "__main__":
    open_standard_streams()
    redact_output()
    sys.exit(main(sys.argv[1:]))
