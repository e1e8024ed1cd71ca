"""Counted trials: few in `make test`, all of them in `make torture`, which records how many passed."""

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.launch.conftest import FAKE_WORKER, Runs, home, runs

FULL = os.environ.get("STACKLLAMA_TORTURE") == "full"
RESULTS = os.environ.get("STACKLLAMA_TORTURE_RESULTS")

Trial = Callable[[int], None]


class Counted:
    """Repeats a trial and records how often it passed.

    Attributes:
        chance: random numbers, seeded by the description, so that a failure can be repeated.
    """

    def __init__(self) -> None:
        self.chance = random.Random()

    def run(self, case: int, what: str, trial: Trial, *, few: int, all_of_them: int) -> None:
        """Run every trial; the first failure is raised after the others were run.

        Args:
            case: its number in docs/reliability.md.
            what: short description.
            trial: called with its number.
            few: how many in the ordinary suite.
            all_of_them: how many in `make torture`.
        """
        count = all_of_them if FULL else few
        seed = int(os.environ.get("STACKLLAMA_TORTURE_SEED", "0")) or time.time_ns() % 1_000_000
        print(f"STACKLLAMA_TORTURE_SEED={seed}")
        self.chance.seed(f"{seed} {what}")
        started, failures = time.monotonic(), list[BaseException]()
        for number in range(count):
            try:
                trial(number)
            except Exception as error:  # noqa: BLE001 - counted, and raised after all trials
                print(f"trial {number}: {error}")
                failures.append(error)
        if RESULTS:
            row = {
                "case": case,
                "what": what,
                "trials": count,
                "good": count - len(failures),
                "seconds": round(time.monotonic() - started),
            }
            with Path(RESULTS).open("a") as file:
                file.write(json.dumps(row) + "\n")
        if failures:
            raise failures[0]


@pytest.fixture
def counted() -> Iterator[Counted]:
    yield Counted()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that only `make torture` has time for."""
    if not FULL:
        left_out = [item for item in items if item.get_closest_marker("torture")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


__all__ = ["FAKE_WORKER", "FULL", "Counted", "Runs", "counted", "home", "runs"]
