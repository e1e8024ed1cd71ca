"""Deadlines of a worker's shutdown, in seconds after 0."""

import signal

import pytest

from stackllama_engine.launch.shutdown import Patience, Shutdown

PATIENCE = Patience(stop=100.0, term=10.0, linger=5.0)


@pytest.fixture
def shutdown() -> Shutdown:
    return Shutdown(PATIENCE)


def test_nothing_is_due_while_the_worker_runs(shutdown: Shutdown) -> None:
    assert shutdown.due(1e9) is None and not shutdown.is_overdue(1e9)


def test_a_stop_is_followed_by_sigterm_and_sigkill(shutdown: Shutdown) -> None:
    shutdown.stop(0.0)
    assert [shutdown.due(now) for now in (99.0, 100.0, 109.0, 110.0)] == [
        None,
        signal.SIGTERM,
        signal.SIGTERM,
        signal.SIGKILL,
    ]
    assert not shutdown.is_overdue(119.0) and shutdown.is_overdue(120.0)


def test_a_grace_is_three_of_the_longest_saves_and_half_an_hour_at_most(shutdown: Shutdown) -> None:
    for seconds in (50.0, 20.0):
        shutdown.save_took(seconds)
    assert (shutdown.grace(100.0), shutdown.grace(200.0)) == (150.0, 200.0)
    shutdown.save_took(1e6)
    assert shutdown.grace(100.0) == 1800.0


def test_a_stop_without_a_request_file_begins_with_sigterm(shutdown: Shutdown) -> None:
    shutdown.stop(0.0)
    shutdown.terminate(0.0)
    assert (shutdown.due(0.0), shutdown.due(110.0)) == (signal.SIGTERM, signal.SIGKILL)


def test_processes_that_outlive_a_worker_without_an_end_event_get_sigterm_first(shutdown: Shutdown) -> None:
    shutdown.worker_gone(0.0, end_written=False)
    assert (shutdown.due(0.0), shutdown.due(10.0)) == (signal.SIGTERM, signal.SIGKILL)


def test_processes_that_outlive_a_worker_with_an_end_event_are_killed(shutdown: Shutdown) -> None:
    shutdown.worker_gone(0.0, end_written=True)
    assert shutdown.due(0.0) is signal.SIGKILL


def test_a_worker_that_hangs_after_its_end_event_is_killed(shutdown: Shutdown) -> None:
    shutdown.end_written(0.0)
    shutdown.end_written(4.0)  # polled again: the first deadline counts
    assert (shutdown.due(4.0), shutdown.due(5.0)) == (None, signal.SIGKILL)


def test_kill_is_due_at_once(shutdown: Shutdown) -> None:
    shutdown.stop(0.0)
    shutdown.kill(1.0)
    assert shutdown.due(1.0) is signal.SIGKILL
