"""Serving requests at a step boundary: settings, samples, pause and continue."""

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


def serve(requests: Requests, reporter: Reporter, step: int, service: Service) -> Wanted:
    """Serve the requests that wait after ``step`` steps, and wait out a pause; collective.

    Returns:
        as soon as a stop or a save is wanted, or a save due, which the caller carries out (``requests.paused`` stays
        set then), or when there is nothing to wait for.
    """
    while True:
        wanted = requests.poll(step)
        if wanted.waits and not wanted.stop:
            if wait_for_room(requests, reporter, step):
                requests.must_stop = True
                return Wanted(stop=True)
            continue
        for change in wanted.changes:
            reporter.health(f"step {step}: {service.change(change)}")
            requests.served("set", step, change)
        if wanted.sample:
            if service.sample is not None:
                before = reporter.current_phase
                service.sample(step)
                reporter.phase(before)
            requests.served("sample", step)
        if wanted.pause:
            _pause(requests, reporter, step)
        if wanted.resume:
            _continue(requests, reporter, step)
        if wanted.stop or wanted.save or wanted.due or not requests.paused:
            return wanted
        time.sleep(_PAUSE_SECONDS)


def _pause(requests: Requests, reporter: Reporter, step: int) -> None:
    if not requests.paused:
        requests.paused = True
        reporter.phase(PAUSED)
        reporter.health(
            f"paused after step {step}; GPU memory stays allocated until continued: "
            f"`stackllama-console runs continue {reporter.run.id}`"
        )
    requests.served("pause", step)


def _continue(requests: Requests, reporter: Reporter, step: int) -> None:
    if requests.paused:
        requests.paused = False
        reporter.health(f"continued after step {step}")
        reporter.phase("train")
    requests.served("continue", step)
