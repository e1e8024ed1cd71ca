"""PPO killed in the middle of a rollout, of an update and of a save, and resumed, with the same result.

The worker is stopped as soon as it seems to be at the right place, examined while it cannot move, and then killed, or
let go on to the next such place.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stackllama_engine.contract.events import Event, EventReader
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.launcher import launch, plan, resume
from stackllama_engine.launch.processes import command_line, run_processes, send, usage
from stackllama_engine.train import checkpoint

from .in_process import finish
from .toy import PPO, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # five stages, one after the other

STEPS = 6
REWARD_FUNCTIONS = """
def score(*, questions, responses):
    return [len(set(response)) / 10 - len(question) / 1000 for question, response in zip(questions, responses)]

def picky(*, questions, responses):
    return [1.0 if questions.index(question) < 2 else 1 / 0 for question in questions]
"""
EVERYTHING = (
    *PPO,
    f"max_steps={STEPS}",
    "save_steps=1",
    "save_total_limit=9",
    "eval_steps=3",
    "random_length_limits=[24, 32]",
    "lr_scheduler_type=linear",
    "value_adapter=true",
    "value_adapter_layers=1",  # of two: it begins with states that scoring keeps
    "normalize_reward=true",
    "reward_funcs=killed_rewards:score",
    "reward_weights=2",
    "reward_model_weight=0.5",
    "length_penalty=0.25",
    "length_penalty_start=26",
    "repetition_penalty=0.5",
    "repetition_n_grams=1",
)


def events(run: RunDir, attempt: int) -> list[Event]:
    return list(EventReader(run.attempt_dir(attempt) / "events.jsonl").read())


def in_phase(name: str, times: int) -> Callable[[RunDir, int], bool]:
    """Whether an attempt has just entered a phase, not for the first ``times − 1`` times."""

    def check(run: RunDir, attempt: int) -> bool:
        found = events(run, attempt) if (run.attempt_dir(attempt) / "events.jsonl").exists() else []
        phases = [event.phase for event in found if event.kind == "phase"]
        return bool(found) and found[-1].kind == "phase" and phases[-1] == name and phases.count(name) >= times

    return check


def in_save(run: RunDir, attempt: int) -> bool:
    return any(path.name.startswith(".tmp-") for path in run.checkpoints.iterdir())


def kill_when(run: RunDir, attempt: int, there: Callable[[RunDir, int], bool]) -> None:
    """SIGKILL to the worker while it is there for certain."""
    wait_for(run, lambda state: state.attempt == attempt and worker(run) is not None)
    process = worker(run)
    assert process is not None
    deadline = time.monotonic() + 300
    while True:
        assert time.monotonic() < deadline and usage(process), f"attempt {attempt} was never seen there"
        if there(run, attempt) and send(process, signal.SIGSTOP):
            while (now := usage(process)) and not now.stopped:
                pass
            if there(run, attempt):
                break
            send(process, signal.SIGCONT)
        time.sleep(0.002)
    send(process, signal.SIGKILL)
    assert wait_for(run, lambda state: state.has_ended).phase == "failed"


def worker(run: RunDir) -> Any:
    """Find the process that trains, below accelerate's."""
    for process in run_processes(run.path):
        words = command_line(process)
        if "stackllama_engine.train ppo" in words and "accelerate" not in words:
            return process
    return None


def untimed(event: Event) -> dict[str, float | None]:
    """Metrics without those that a clock made."""
    return {k: v for k, v in event.metrics.items() if not k.startswith("time/") and not k.endswith("_per_second")}


def by_step(run: RunDir, attempts: int) -> dict[tuple[int | None, bool], list[dict[str, float | None]]]:
    """Collect what all attempts reported of each step, its training and its evaluation apart."""
    found: dict[tuple[int | None, bool], list[dict[str, float | None]]] = {}
    for attempt in range(1, attempts + 1):
        for event in events(run, attempt):
            if event.kind == "metrics":
                found.setdefault((event.step, "eval/kl" in event.metrics), []).append(untimed(event))
    return found


def files(run: RunDir) -> dict[str, bytes]:
    """Collect the trained adapters and heads, and everything that the last checkpoint holds."""
    last = run.checkpoints / f"step-{STEPS:06d}"
    paths = [*run.adapter.rglob("*.safetensors"), *last.iterdir()]
    # the recipe says how it was launched: that of a run in the test's process names no number of processes
    left_out = {checkpoint.MANIFEST, "recipe.yaml"}
    return {str(path.relative_to(run.path)): path.read_bytes() for path in paths if path.name not in left_out}


@pytest.fixture
def keys(tmp_path: Path, base: Path, reward_model: Path) -> Iterator[tuple[str, ...]]:
    (tmp_path / "killed_rewards.py").write_text(REWARD_FUNCTIONS)
    named = (f"model_name_or_path={base}", f"reward_model_path={reward_model}", f"reward_func_paths=[{tmp_path}]")
    yield (*EVERYTHING, *named)
    sys.modules.pop("killed_rewards", None)  # imported from this test's folder, by what ran in this process


GROUPS = ("advantage=rloo", "num_generations=2", "kl_in_loss=true", "skip_zero_std_groups=true")


@pytest.mark.parametrize("groups", [(), pytest.param(GROUPS, marks=pytest.mark.long)])
def test_killed_three_times_and_resumed_equals_straight(
    shared_home: Home, base: Path, keys: tuple[str, ...], groups: tuple[str, ...]
) -> None:
    keys = (*keys, *groups)
    straight, _ = finish(shared_home, base, Stage.PPO, *keys)
    said = by_step(straight, 1)
    assert [step for step, evaluated in said if not evaluated] == list(range(1, STEPS + 1))
    assert_parts_add_up(straight, said[STEPS, False][0])

    broken = launch(plan(shared_home, load_recipe(Stage.PPO, None, keys)))
    for attempt, there in enumerate((in_phase("rollout", 3), in_phase("update", 1), in_save), start=1):
        kill_when(broken, attempt, there)
        assert not broken.adapter.exists()
        resume(shared_home, broken.id)
    assert wait_for(broken, lambda state: state.attempt == 4 and state.has_ended).phase == "finished"

    resumed = [e.data["message"] for n in (2, 3, 4) for e in events(broken, n) if e.kind == "health"]
    assert len([text for text in resumed if text.startswith("resuming from step-")]) == 3
    again = by_step(broken, 4)
    assert again.keys() == said.keys() and any(len(rows) > 1 for rows in again.values())
    for place, rows in again.items():  # also of a step that was made, lost, and made again
        assert all(row == said[place][0] for row in rows), place
    assert broken.samples_file.read_text() == straight.samples_file.read_text()
    assert files(broken).keys() == files(straight).keys()
    for name, content in files(straight).items():
        assert files(broken)[name] == content, name
    critic = {"adapter/critic/adapter_model.safetensors", "adapter/value_head.safetensors"}
    assert critic & files(straight).keys() == (set() if groups else critic)
    state = msgspec.json.decode(files(straight)[f"checkpoints/step-{STEPS:06d}/state.json"])
    assert state["scores"]["count"] == STEPS * 4 and state["kl_coef"] != 0.2


def assert_parts_add_up(run: RunDir, last: dict[str, Any]) -> None:
    """Each part of the reward is logged apart: in metrics, evaluations and samples."""
    total = 0.5 * last["reward/model"] + 2 * last["reward/score"]
    total += last["reward/length_penalty"] + last["reward/repetition_penalty"]
    assert last["objective/scores"] == pytest.approx(total, abs=1e-5)
    assert last["reward/repetition_penalty"] < 0 and last["reward/length_penalty"] <= 0
    evaluated = by_step(run, 1)[STEPS, True][0]
    assert {"eval/reward/model", "eval/reward/score"} <= evaluated.keys()
    row = msgspec.json.decode(run.samples_file.read_bytes().splitlines()[0])
    parts = row["rewards"]
    weighed = 0.5 * parts["model"] + 2 * parts["score"] + parts["length_penalty"] + parts["repetition_penalty"]
    assert row["reward"] == pytest.approx(weighed, abs=1e-5)
    expected = len(set(row["response"])) / 10 - len(row["question"]) / 1000
    assert parts["score"] == pytest.approx(expected, abs=1e-6)


def test_a_function_that_fails_ends_the_run_and_names_the_text(shared_home: Home, keys: tuple[str, ...]) -> None:
    given = (*keys, "reward_funcs=killed_rewards:picky", "value_adapter=false", "value_adapter_layers=")
    state = wait_for(
        run := launch(plan(shared_home, load_recipe(Stage.PPO, None, given))), lambda state: state.has_ended
    )
    assert (state.phase, state.exit_code) == ("failed", 1)
    assert state.cause and "`reward_funcs: killed_rewards:picky` raised ZeroDivisionError" in state.cause
    assert "together, and for none alone" in state.cause  # each question by itself stands first
    assert "1 / 0" in (run.attempt_dir(1) / "log.txt").read_text()  # the traceback is in the log alone
    assert "Traceback" not in state.cause
