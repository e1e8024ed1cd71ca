"""A run that starts after another one: real supervisors with fake workers, and GPUs that others use."""

import os
import signal
from pathlib import Path

import pytest

from stackllama_engine.contract.base import DEMO_BASE
from stackllama_engine.contract.errors import RefusedError, UsageError
from stackllama_engine.contract.events import Event, Kind
from stackllama_engine.contract.recipe_io import build_recipe, dump_recipe
from stackllama_engine.contract.run_dir import Home, Launch, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher
from stackllama_engine.launch.gpu_room import Need, need_of, no_room
from stackllama_engine.launch.gpus import Card
from stackllama_engine.launch.nvml import Gpu
from stackllama_engine.launch.processes import send
from stackllama_engine.launch.reconcile import reconcile
from stackllama_engine.launch.run_requests import stop
from stackllama_engine.launch.start_after import Turn

from .conftest import Runs, wait_for, wait_for_phase
from .fake_nvml import FakeNvml

GIB = 1 << 30


def _after(runs: Runs, name: str, after: str, mode: str = "finish") -> RunDir:
    run = runs.create(name)
    runs.again(run, mode, after)
    return run


def test_a_run_waits_until_the_other_has_ended_and_then_starts(runs: Runs) -> None:
    first = runs.start("until-released", "first")
    wait_for_phase(first, "running")
    second = _after(runs, "second", "first")
    state = wait_for_phase(second, "queued")
    assert (state.waiting, state.started) == ("waiting for first to end", None)
    assert reconcile(second) == second.read_state() and second.lock_is_held()  # alive, whoever asks
    wait_for(lambda: second.read_state().supervisor is not None)
    with pytest.raises(RefusedError, match="alive"):
        launcher.resume(runs.home, "second")
    (first.path / "release").touch()
    wait_for_phase(first, "finished")
    state = wait_for_phase(second, "finished")
    assert state.waiting is None and state.started is not None and first.read_state().ended is not None
    assert state.started >= (first.read_state().ended or 0) - 0.01


def test_a_run_that_is_stopped_while_it_waits_waits_again_when_it_is_resumed(runs: Runs, fake_stages: None) -> None:
    first = runs.start("until-released", "first")
    second = _after(runs, "second", "first")
    wait_for_phase(second, "queued")
    state = stop(second, wait=True)
    assert (state.phase, state.exit_code, state.waiting) == ("stopped", 75, None)
    assert state.cause == "It was stopped while it waited for its turn; nothing had run."
    assert not (second.attempt_dir(1) / "log.txt").exists()
    assert launcher.resume(runs.home, "second").read_state().waiting == "waiting for first to end"
    wait_for(lambda: second.read_state().supervisor is not None)
    assert second.read_state().phase == "queued" and second.read_launch().after == "first"
    (first.path / "release").touch()
    wait_for_phase(second, "finished")
    assert first.read_state().has_ended


def test_a_run_that_has_had_its_turn_does_not_wait_again(runs: Runs, fake_stages: None) -> None:
    run = _after(runs, "second", "deleted", "fail")
    wait_for_phase(run, "failed")
    wait_for(lambda: not run.lock_is_held())
    launcher.resume(runs.home, "second")
    wait_for_phase(run, "finished")
    assert run.read_launch().after is None


@pytest.mark.parametrize("how", ["failed", "deleted", "alive"])
def test_any_end_of_the_other_run_will_do(home: Home, how: str) -> None:
    run = _run(home, Stage.SFT, "second", use_cpu=True)
    lock = None
    if how != "deleted":
        other = _run(home, Stage.SFT, "other")
        lock = other.acquire_lock()
        phase = "failed" if how == "failed" else "running"
        other.write_state(State(stage=Stage.SFT, phase=phase))  # type: ignore[arg-type]
    told: list[str] = []
    may_start = Turn(run, _launch(), Stage.SFT, lambda: bool(told), told.append).wait()
    assert (may_start, told) == ((False, ["waiting for other to end"]) if how == "alive" else (True, []))
    if lock is not None:
        os.close(lock)


def test_a_supervisor_that_is_killed_while_it_waits_leaves_a_lost_run(runs: Runs) -> None:
    runs.start("until-released", "first")
    second = _after(runs, "second", "first")
    wait_for(lambda: second.read_state().supervisor is not None)
    supervisor = second.read_state().supervisor
    assert supervisor is not None
    send(supervisor, signal.SIGKILL)
    wait_for(lambda: not second.lock_is_held())
    state = reconcile(second)
    assert (state.phase, state.waiting) == ("lost", None)


def test_planning_refuses_to_wait_for_what_is_not_there(home: Home) -> None:
    recipe = build_recipe(Stage.SFT, {"model_name_or_path": "demo", "dataset_name": "demo", "use_cpu": True})
    with pytest.raises(UsageError, match="No run `nowhere`"):
        launcher.plan(home, recipe, after="nowhere")


def _gpu(free: float, index: int = 0) -> Gpu:
    return Gpu(index, "A GPU", 80 * GIB, round(free * GIB))


@pytest.mark.parametrize(
    ("need", "free", "why"),
    [
        (Need(40 * GIB, None), [50], ""),
        (Need(40 * GIB, None), [30], "waiting for memory of GPU 0: it needs 40.0, 30.0 of 80.0 GiB are free"),
        (Need(40 * GIB, None), [50, 39], "waiting for memory of GPU 1: it needs 40.0, 39.0 of 80.0 GiB are free"),
        (Need(40 * GIB, (0,)), [50, 39], ""),
        (Need(40 * GIB, (7,)), [10, 10], ""),  # not a GPU of this machine: the launch decides
        (Need(90 * GIB, None), [79], ""),  # nobody else is on it: waiting would change nothing
        (Need(None, None), [79], ""),
        (
            Need(None, None),
            [70],
            "waiting for memory of GPU 0: how much it needs is not known, 70.0 of 80.0 GiB are free",
        ),
        (Need(40 * GIB, ()), [1], ""),  # on the CPU
        (Need(0, None), [1], ""),  # a merge
        (Need(40 * GIB, None), [], ""),
    ],
)
def test_room_by_the_budgets_word(need: Need, free: list[float], why: str) -> None:
    assert no_room(need, lambda _: [_gpu(each, index) for index, each in enumerate(free)]) == why


def test_a_desktop_is_nobody_to_wait_for(gpus: FakeNvml) -> None:
    need = Need(75 * GIB, None)  # of 80 GiB, with 70 free
    assert no_room(need)
    gpus.drawing = {100: 7 * GIB, 101: GIB, 102: None}
    assert no_room(need) == ""
    gpus.drawing = {100: GIB, gpus.pid: 7 * GIB}  # which computes too
    assert no_room(need)


def test_a_pipeline_waits_for_the_gpus_of_its_largest_stage(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1,2,0")
    monkeypatch.setattr("stackllama_engine.launch.gpus._device_count", lambda: 4)
    for name, most, cards in (("two", {"num_processes": 2}, (3, 1)), ("all", {}, (3, 1, 2, 0))):
        stages = {"sft": {"num_processes": 1}, "reward": most, "ppo": {"num_processes": 1}}
        recipe = build_recipe(Stage.PIPELINE, {"model_name_or_path": "nobody/has-this"} | stages)
        run = home.create(Stage.PIPELINE, dump_recipe(recipe), name)
        assert need_of(run, _launch(), Stage.PIPELINE).cards == cards


def test_a_driver_that_does_not_answer_is_waited_for() -> None:
    def silent(_: float) -> list[Gpu]:
        raise RefusedError("NVML has not answered for 2 s: the GPU driver hangs.")

    assert no_room(Need(1, None), silent) == "NVML has not answered for 2 s"


def _run(home: Home, stage: Stage, name: str, **values: object) -> RunDir:
    recipe = build_recipe(stage, {"model_name_or_path": "demo", "dataset_name": "demo"} | values)
    return home.create(stage, dump_recipe(recipe), name)


def _launch(**environment: str) -> Launch:
    return Launch(argv=[], cwd="/", host="h", created=0.0, environment=environment, after="other")


def test_need_is_the_budgets_estimate_on_the_runs_own_gpus(home: Home, tmp_path: Path) -> None:
    base = {"model_name_or_path": str(DEMO_BASE), "base_precision": "dtype", "gradient_checkpointing": False}
    run = _run(home, Stage.SFT, "on-gpu", **base)
    need = need_of(run, _launch(ACCELERATE_USE_CPU="false", CUDA_VISIBLE_DEVICES="3,5"), Stage.SFT)
    assert need.cards == (3, 5) and need.bytes is not None and GIB < need.bytes < 3 * GIB
    on_cpu = need_of(_run(home, Stage.SFT, "on-cpu", use_cpu=True, **base), _launch(), Stage.SFT)
    assert not on_cpu.any
    elsewhere = _run(home, Stage.SFT, "unknown", **(base | {"model_name_or_path": "nobody/has-this"}))
    assert need_of(elsewhere, _launch(), Stage.SFT).bytes is None


def test_need_includes_the_share_of_the_gpu_that_vllm_takes(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"model_name_or_path": str(DEMO_BASE), "dtype": "bfloat16", "reward_model_path": "nowhere"}
    own = {"base_precision": "dtype", "gradient_checkpointing": False, "vllm_gpu_memory_utilization": 0.25}
    needs: list[int | None] = []
    for name, card in (("large", Card("A GPU", 80 * GIB)), ("small", Card("A GPU", 40 * GIB)), ("unknown", None)):
        monkeypatch.setattr("stackllama_engine.launch.gpu_room.first_card", lambda _, card=card: card)
        run = _run(home, Stage.PPO, name, **base, **own, use_vllm=True)
        needs.append(need_of(run, _launch(CUDA_VISIBLE_DEVICES="0"), Stage.PPO).bytes)
    large, small, unknown = needs
    assert unknown is None and large is not None and small is not None
    assert small > 10 * GIB and 10 * GIB <= large - small < 12 * GIB  # a quarter of 40 GiB and its margin


def test_runs_that_wait_start_one_at_a_time(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stackllama_engine.launch.start_after.need_of", lambda *_: Need(GIB, None))
    monkeypatch.setattr("stackllama_engine.launch.start_after.no_room", lambda _: "")
    told: list[str] = []
    turns = [
        Turn(_run(home, Stage.SFT, name, use_cpu=True), _launch(), Stage.SFT, lambda: len(told) > 0, told.append)
        for name in ("one", "two")
    ]
    assert turns[0].wait()
    assert not turns[1].wait() and told == ["waiting for another queued run to start"]
    turns[0].end()
    told.clear()
    assert turns[1].wait() and (home.path / "queue.lock").is_file()


def test_a_run_without_room_does_not_keep_the_turn(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    full, idle = Need(GIB, (0,)), Need(GIB, (1,))
    looks: list[Need] = []

    def room(need: Need) -> str:
        looks.append(need)
        return "no room" if need is full and len(looks) > 1 else ""  # it is taken between its two looks

    monkeypatch.setattr("stackllama_engine.launch.start_after.need_of", lambda run, *_: full if run.id == "a" else idle)
    monkeypatch.setattr("stackllama_engine.launch.start_after.no_room", room)
    told: list[str] = []
    starts = Turn(_run(home, Stage.SFT, "b"), _launch(), Stage.SFT, lambda: len(told) > 1, told.append)
    began: list[bool] = []

    def other_starts() -> bool:
        if told:
            began.append(starts.wait())
        return bool(told)

    waits = Turn(_run(home, Stage.SFT, "a"), _launch(), Stage.SFT, other_starts, told.append)
    assert not waits.wait() and told == ["no room"] and looks[:2] == [full, full] and began == [True]
    starts.end()


@pytest.mark.parametrize(
    ("stage", "kind", "step", "ends"),
    [
        (Stage.PPO, "progress", 0, False),
        (Stage.PPO, "metrics", 0, False),  # of the evaluation before the first step
        (Stage.PPO, "samples", 1, False),
        (Stage.PPO, "progress", 1, True),
        (Stage.PIPELINE, "progress", 0, False),
        (Stage.PIPELINE, "progress", 3, False),
    ],
)
def test_a_turn_lasts_until_the_first_step_and_a_pipelines_until_its_end(
    home: Home, monkeypatch: pytest.MonkeyPatch, stage: Stage, kind: Kind, step: int, ends: bool
) -> None:
    monkeypatch.setattr("stackllama_engine.launch.start_after.need_of", lambda *_: Need(GIB, None))
    monkeypatch.setattr("stackllama_engine.launch.start_after.no_room", lambda _: "")
    told: list[str] = []
    first = Turn(_run(home, Stage.SFT, "one"), _launch(), stage, lambda: False, told.append)
    assert first.wait()
    first.event(Event(seq=1, time=1.0, kind=kind, step=step))
    second = Turn(_run(home, Stage.SFT, "two"), _launch(), Stage.SFT, lambda: len(told) > 0, told.append)
    assert second.wait() == ends
    first.end()
    second.end()
