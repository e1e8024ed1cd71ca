"""Serving requests at a step boundary: settings, samples, pause and resume."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..contract.requests import PAUSED, Change
from .control import Requests, Wanted
from .disk_wait import wait_for_room
from .reporting import Reporter

_PAUSE_SECONDS = 0.3


@dataclass(frozen=True)
class Service:
    """A stage's answers to requests.

    Attributes:
        change: makes a change; returns a sentence about it.
        sample: generates samples for held-out prompts after this step; None where the stage generates no text.
    """

    change: Callable[[Change], str]
    sample: Callable[[int], None] | None


def serve(asked: Requests, reporter: Reporter, step: int, service: Service) -> Wanted:
    """Serve the requests that wait after ``step`` steps, and wait out a pause; collective.

    Returns:
        as soon as a stop or a save is wanted, or a save due, which are the caller's to do (``asked.paused`` then still
        holds), or when there is nothing to wait for.
    """
    while True:
        wanted = asked.poll(step)
        if wanted.waits and not wanted.stop:
            if wait_for_room(asked, reporter, step):
                asked.must_stop = True
                return Wanted(stop=True)
            continue
        for change in wanted.changes:
            reporter.health(f"step {step}: {service.change(change)}")
            asked.served("set", step, change)
        if wanted.sample:
            if service.sample is not None:
                before = reporter.current_phase
                service.sample(step)
                reporter.phase(before)
            asked.served("sample", step)
        if wanted.pause:
            _pause(asked, reporter, step)
        if wanted.go_on:
            _resume(asked, reporter, step)
        if wanted.stop or wanted.save or wanted.due or not asked.paused:
            return wanted
        time.sleep(_PAUSE_SECONDS)


def _pause(asked: Requests, reporter: Reporter, step: int) -> None:
    if not asked.paused:
        asked.paused = True
        reporter.phase(PAUSED)
        reporter.health(f"paused after step {step}; GPU memory stays allocated until resumed")
    asked.served("pause", step)


def _resume(asked: Requests, reporter: Reporter, step: int) -> None:
    if asked.paused:
        asked.paused = False
        reporter.health(f"resumed after step {step}")
        reporter.phase("train")
    asked.served("continue", step)
