"""Status of a run in words: its state, its exit code and the next steps."""

import sys

from stackllama_engine.contract.errors import ExitCode
from stackllama_engine.contract.run_dir import RunDir, State

from ..pipelines import newest, still_running
from ..run_facts import seconds
from ..sanitise import log_line, one_line
from ..units import duration
from .output import PROGRAM, paint, say

COLOURS = {
    "finished": "green",
    "running": "blue",
    "starting": "blue",
    "queued": "dim",
    "stopping": "yellow",
    "stalled": "yellow",
    "stopped": "yellow",
    "failed": "red",
    "lost": "red",
    "damaged": "red",
}

DAMAGED = "damaged"
"""Shown instead of a phase for a run whose state cannot be read."""


def exit_code(state: State) -> int:
    """Return the exit code of a command that followed the run."""
    if state.phase == "finished":
        return ExitCode.DONE
    return state.exit_code or (ExitCode.STOPPED if state.phase == "stopped" else ExitCode.FAILED)


def next_steps(run: RunDir, state: State) -> list[str]:
    """Return what to do next, nearly always commands, the likeliest first."""
    runs = f"{PROGRAM} runs"
    if child := still_running(run, state):
        return [f"{runs} watch {child.id}", f"{runs} stop {run.id}"]
    match state.phase:
        case "finished":
            if (run.path.parent / f"{run.id}-merged").exists():  # a pipeline's child, merged by it
                return []
            return {
                "sft": [f"{PROGRAM} merge {run.id}"],
                "reward": [f"{PROGRAM} launch ppo reward_model_path={run.id} …"],
                "ppo": [f"{PROGRAM} merge {run.id}"],
            }.get(state.stage, [])
        case "failed" | "lost":
            again = f"{runs} resume {run.id} --follow"
            if state.exit_code == ExitCode.USAGE:  # another attempt would read the same recipe
                again = "fix the recipe and relaunch"
            return [f"{runs} logs {(newest(run, state) or run).id}", again]
        case "stopped":
            return [f"{runs} resume {run.id} --follow"]
        case "stopping":
            return [f"{runs} watch {run.id}"]
        case _:
            return [f"{runs} watch {run.id}", f"{runs} stop {run.id}"]


def say_outcome(run: RunDir, state: State) -> None:
    """Print the end of a followed run on stderr: state, cause, last log lines where it failed, next step."""
    took = seconds(state)
    word = paint(state.phase, COLOURS[state.phase], sys.stderr)
    sys.stderr.write(f"{run.id}: {word}{f' in {duration(took)}' if took is not None else ''}\n")
    if state.cause and state.phase != "finished":
        say(f"  cause: {one_line(state.cause)}")
    if state.phase in ("failed", "lost") and state.last_lines:
        say("  last lines of its log:")
        for line in state.last_lines[-8:]:
            say(f"    {log_line(line)}")
    if child := still_running(run, state):
        say(f"  its stage `{child.id}` is still running")
    if state.phase != "finished":
        say_next(run, state)


def say_next(run: RunDir, state: State) -> None:
    """Print the next steps on stderr."""
    for index, command in enumerate(next_steps(run, state)):
        say(f"  {'next:' if index == 0 else '  or:'} {command}")
