"""The session of a stage: what happens once everything is loaded."""

import gc
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from stackllama_engine.train.session import Session
from stackllama_engine.train.signals import Stopped


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


class Cycle:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.own = self


def session(loaded: Any) -> Any:
    return SimpleNamespace(requests=SimpleNamespace(signals=SimpleNamespace(loaded=loaded)))


def test_what_is_loaded_is_left_out_of_garbage_collection_and_garbage_is_gone() -> None:
    gc.unfreeze()
    said: list[str] = []
    gone = weakref.ref(Cycle())
    Session.loaded(session(lambda: said.append("loaded")))
    assert said == ["loaded"] and gone() is None
    assert gc.get_freeze_count() > 10_000


def test_a_signal_that_came_before_stops_the_stage() -> None:
    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        Session.loaded(session(stop))
