"""Stages in this process, on a toy base: for faults that a test causes in the middle of a step."""

import importlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from stackllama_engine.contract.events import Event, EventReader
from stackllama_engine.contract.recipe_io import dump_recipe, load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train.reporting import Reporter
from stackllama_engine.train.restart import Restarts
from stackllama_engine.train.session import Session
from stackllama_engine.train.signals import SIGNALS, Signals, Stopped

from .toy import COMMON

REWARDS = "toy_rewards"
"""A module that gives PPO its reward, so that no reward model has to be trained first."""
PPO = (
    *COMMON,
    "max_train_samples=16",
    "max_eval_samples=4",
    "max_steps=3",
    "save_steps=0",
    "random_length_limits=[4, 8]",
    "early_stopping=false",
    "per_device_train_batch_size=4",
    "gradient_accumulation_steps=1",
    f"reward_funcs={REWARDS}:length",
    "num_ppo_epochs=2",
    "num_mini_batches=1",
    "local_rollout_forward_batch_size=4",
)


@dataclass
class Attempt:
    """One attempt of a run."""

    run: RunDir
    number: int
    recipe: Any
    session: Session

    @property
    def events(self) -> list[Event]:
        return list(EventReader(self.run.attempt_dir(self.number) / "events.jsonl").read())

    @property
    def health(self) -> str:
        """Every notice, joined."""
        return "\n".join(event.data["message"] for event in self.events if event.kind == "health")

    @property
    def phases(self) -> list[str | None]:
        return [event.phase for event in self.events if event.kind == "phase"]

    @property
    def served(self) -> list[dict[str, Any]]:
        return [event.data for event in self.events if event.kind == "request"]

    def metrics(self, name: str) -> dict[int, float | None]:
        """Step → value."""
        return {e.step or 0: e.metrics[name] for e in self.events if e.kind == "metrics" and name in e.metrics}

    def train(self) -> dict[str, Any] | None:
        """Run the stage to its end; return its facts, or None when it stopped as requested."""
        room = importlib.import_module(f"stackllama_engine.train.{self.recipe.stage}").run
        try:
            return room(self.recipe, self.session)
        except Stopped:
            return None


def write_rewards(directory: Path) -> None:
    """Write the module that :data:`PPO` takes its reward from."""
    directory.mkdir(exist_ok=True)
    text = "def length(*, questions, responses):\n    return [float(len(response)) for response in responses]\n"
    (directory / f"{REWARDS}.py").write_text(text)


@contextmanager
def attempt(home: Home, base: Path, stage: Stage, *keys: str, of: RunDir | None = None) -> Iterator[Attempt]:
    """Yield a first attempt, or the next one ``of`` a run; restore signal handlers afterwards."""
    directory = base.parent / "rewards"  # one for all tests: a module is imported once
    write_rewards(directory)
    known = sys.modules.get(REWARDS)
    if known is not None and Path(known.__file__ or "").parent != directory:
        del sys.modules[REWARDS]  # of another base: tests of another folder ran in this process
    given = [] if stage is Stage.MERGE else [f"model_name_or_path={base}"]
    own = stage is Stage.PPO and not any(key.startswith("reward_func_paths=") for key in keys)
    given += [f"reward_func_paths=[{directory}]"] if own else []
    recipe: Any = load_recipe(stage, None, [*given, *keys])
    run = of or home.create(stage, dump_recipe(recipe))
    number = len(run.attempt_dirs()) + 1
    run.attempt_dir(number).mkdir()
    before = [signal.getsignal(one) for one in SIGNALS]
    signals = Signals()
    set_seed(recipe.seed)
    reporter = Reporter(run, number, is_main=True)
    try:
        restarts = Restarts(run, number, signals)
        session = Session(run, reporter, signals, restarts, use_cpu=recipe.use_cpu)
        yield Attempt(run, number, restarts.now.applied(recipe), session)
    finally:
        reporter.end(0)
        for one, handler in zip(SIGNALS, before, strict=True):
            signal.signal(one, handler)


def finish(home: Home, base: Path, stage: Stage, *keys: str) -> tuple[RunDir, dict[str, Any]]:
    """Run a stage from beginning to end; return the run, and the facts that `result.json` would hold."""
    with attempt(home, base, stage, *keys) as one:
        facts = one.train()
    assert facts is not None
    return one.run, facts


def at_call(number: int, then: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``function`` so that ``then`` is called before its ``number``-th call."""
    calls = 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            then()
        return function(*arguments, **named)

    return counted
