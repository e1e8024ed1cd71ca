"""Follower of a run to its end, reading its directory alone; of a pipeline through its active child.

Nothing is requested of the run: leaving (Ctrl-C) changes nothing for it.
"""

import os
import signal
import sys
import termios
import time
from collections.abc import Generator
from contextlib import contextmanager

from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.events import Event
from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.reconcile import reconcile

from .output import PROGRAM, can_redraw, say
from .plain_lines import Lines
from .run_status import say_outcome
from .tail import Display, Tail

POLL = 0.2  # seconds between polls


class Follower:
    """Polls one run and its pipeline's children. What happened before the first poll is folded in silently."""

    def __init__(self, home: Home, run: RunDir, display: Display) -> None:
        self.home = home
        self.run = run
        self.display = display
        stage = run.read_state().stage
        self.is_pipeline = stage is Stage.PIPELINE
        self._own = Tail(run, str(stage), stage)
        self._child: Tail | None = None
        self._announced: str | None = None
        self._waiting: str | None = None
        self._shown: set[str] = set()
        for event in self._own.read():
            self._note_child(event)
        if not self.is_pipeline:
            display.begin(self._own)

    def poll(self) -> State:
        """Show what is new and return the state. After an ended state nothing is left to read."""
        state = reconcile(self.run)  # first, so that the last events are there when it has ended
        self._show_waiting(state)
        for event in self._own.read():
            if self.is_pipeline:
                self._note_child(event)
            else:
                self.display.event(self._own, event)
        self._show_child()
        self.display.tick()
        return state

    def _show_waiting(self, state: State) -> None:
        """Say what the run waits for before it starts, whenever that changes."""
        if state.waiting and state.waiting != self._waiting:
            self.display.event(
                self._own, Event(seq=0, time=time.time(), kind="health", data={"message": state.waiting})
            )
        self._waiting = state.waiting

    @property
    def bad_lines(self) -> int:
        """Number of event lines that could not be read."""
        return self._own.bad_lines + (self._child.bad_lines if self._child else 0)

    def _note_child(self, event: Event) -> None:
        if self.is_pipeline and event.kind == "phase" and event.phase:
            self._show_child()  # the rest of the one before
            self._announced = event.phase

    def _show_child(self) -> None:
        if self._child:
            for event in self._child.read():
                self.display.event(self._child, event)
        if self._announced:
            self._open_child(self._announced)

    def _open_child(self, name: str) -> None:
        try:
            run = self.home.run(name)
            stage = run.read_state().stage
        except UsageError:
            return  # announced before it was created, or a phase that is not a run: try again
        self._announced = None
        if run.id in self._shown:
            return  # shown already: each attempt of the pipeline announces all its children
        self._shown.add(run.id)
        title = name.removeprefix(f"{self.run.id}-").replace("-merged", " merge")
        self._child = Tail(run, title, stage)
        for _ in self._child.read():
            pass
        self.display.begin(self._child)


def follow(home: Home, run: RunDir, *, plain: bool) -> State:
    """Show a run on stderr until it has ended.

    Raises:
        KeyboardInterrupt: Ctrl-C, after saying that the run continues.
    """
    display = choose_display(plain)
    try:
        with _terminated_gently(), _silent_control_keys():
            follower = Follower(home, run, display)
            while not (state := follower.poll()).has_ended:
                time.sleep(POLL)
    except KeyboardInterrupt:
        display.close()
        say(f"\nDetached. {run.id} is still running.")
        say(f"  follow: {PROGRAM} runs watch {run.id}")
        say(f"  stop:   {PROGRAM} runs stop {run.id}")
        raise
    except BaseException:
        display.close()
        raise
    display.close()
    if follower.bad_lines:
        say(f"{run.id}: {follower.bad_lines} lines of its events could not be read")
    say_outcome(run, state)
    return state


@contextmanager
def _terminated_gently() -> Generator[None]:
    """Exit with 143 on SIGTERM, after the terminal is restored: bars hide its cursor."""

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _silent_control_keys() -> Generator[None]:
    """Keep the terminal from echoing ``^C``, which could wrap: bars would then be redrawn a row too low."""
    if not (sys.stdin and sys.stdin.isatty() and _in_foreground(descriptor := sys.stdin.fileno())):
        yield
        return
    before = termios.tcgetattr(descriptor)
    silent = termios.tcgetattr(descriptor)
    silent[3] &= ~termios.ECHOCTL
    termios.tcsetattr(descriptor, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        if _in_foreground(descriptor):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _in_foreground(terminal: int) -> bool:
    """Return whether its settings are ours to change: a background job that tries is suspended."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # not the terminal that controls us: nobody else's job either
        return True


def choose_display(plain: bool) -> Display:
    """Return bars where stderr is a capable terminal, plain lines otherwise."""
    if plain or not can_redraw(sys.stderr):
        return Lines()
    from .bars import Bars  # rich takes long to import

    return Bars()
