"""The cause of a run that ran out of memory: the phase, the largest component, the change that would have fitted."""

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.llama_7b import LLAMA_7B

from stackllama_console.readers.advice import advised_changes
from stackllama_engine.contract.errors import ExitCode
from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.recipe_io import build_recipe, dump_recipe
from stackllama_engine.contract.run_dir import Home, Launch, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import autopsy, supervisor
from stackllama_engine.launch.attempt_outcome import Outcome
from stackllama_engine.launch.autopsy import explain
from stackllama_engine.launch.main_memory import MainMemory
from stackllama_engine.launch.oom import Killer
from stackllama_engine.launch.ranks import Death
from stackllama_engine.launch.reconcile import reconcile
from stackllama_engine.launch.shutdown import Patience

from .conftest import Runs

GIB = 1 << 30
CUDA = (
    "(CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of {} of which 18.06 MiB is free. "
    "Including non-PyTorch memory, this process has 11.66 GiB memory in use.)"
)
KILLED = Death(rank="1", host="node7", pid=4242, number=9, time=1.0, held=1900 << 20)
KERNEL = Killer(active=True, limit=2 * GIB, whose="memory.max of cgroup /job")
CPU = "([enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory)"


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Make a run of a 7B model whose newest attempt was in a given phase when it ended."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_bytes(msgspec.json.encode(LLAMA_7B))

    def run(stage: Stage = Stage.SFT, phase: str = "train", *, on_gpu: bool = True, **values: Any) -> RunDir:
        wanted: dict[str, Any] = {"model_name_or_path": str(model), "num_processes": 1}
        wanted |= {"reward_model_path": str(tmp_path / "gone")} if stage is Stage.PPO else {}
        wanted |= {"load_in_8bit": stage is not Stage.REWARD, "gradient_checkpointing": stage is Stage.SFT}
        found = Home(tmp_path / "home").create(stage, dump_recipe(build_recipe(stage, wanted | values)))
        found.attempt_dir(1).mkdir()
        environment = {"ACCELERATE_USE_CPU": str(not on_gpu).lower()}
        found.write_launch(Launch(argv=[], cwd="/", host="here", created=1.0, environment=environment))
        found.write_state(State(stage=stage, phase="running", attempt=1, created=1.0))
        writer = EventWriter(found.attempt_dir(1) / "events.jsonl")
        writer.write("phase", phase="load")
        writer.write("phase", phase=phase)
        writer.close()
        return found

    return run


def cause(
    run: RunDir, reported: str, *, code: int = 1, silent: bool = False, killer_active: bool = False
) -> str | None:
    outcome = Outcome(phase="failed", exit_code=code, cause=reported)
    killer = Killer(active=killer_active, limit=autopsy.main_memory().total, whose="this machine's memory")
    return explain(run, run.read_state(), outcome, silent=silent, killer=killer)


def machine_has(monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    monkeypatch.setattr(autopsy, "main_memory", lambda: MainMemory(memory, memory))


def test_explain_names_component_and_fitting_change_on_a_gpu(make: Any) -> None:
    run = make(per_device_train_batch_size=4, gradient_accumulation_steps=2, bf16=True)
    text = cause(run, f"Out of GPU memory in phase train. Halve it. {CUDA.format('11.76 GiB')}")
    assert text is not None
    assert text.startswith("Out of GPU memory in phase train: `")
    assert "train: `base weights` (" in text and " GiB expected there. `" in text
    assert "per_device_train_batch_size=" in text and "gradient_accumulation_steps=" in text
    assert "would have fitted" in text and " of 11.8 GiB." in text
    assert text.endswith(CUDA.format("11.76 GiB")), "what the allocator said stays"
    assert "Halve it" not in text and "\n" not in text
    assert [*advised_changes(text)[0]] == ["per_device_train_batch_size", "gradient_accumulation_steps"]


@pytest.mark.parametrize(
    ("phase", "capacity", "largest"),
    [("rollout", "23.69", "kv cache"), ("score", "12.00", "temporaries"), ("update", "23.69", "activations")],
)
def test_explain_of_ppo_estimates_the_phase_that_died(make: Any, phase: str, capacity: str, largest: str) -> None:
    run = make(
        Stage.PPO,
        phase,
        load_in_8bit=False,
        load_in_4bit=True,
        bf16=True,
        per_device_train_batch_size=8,
        local_rollout_forward_batch_size=64,
    )
    text = cause(run, f"Out of GPU memory in phase {phase}. Halve it. {CUDA.format(f'{capacity} GiB')}")
    assert text is not None and f"in phase {phase}: " in text and f"`{largest}` (" in text
    lever = "per_device_train_batch_size=" if phase == "update" else "local_rollout_forward_batch_size="
    assert lever in text and "would have fitted" in text


def test_explain_of_loading_suggests_smaller_weights_only(make: Any) -> None:
    run = make(phase="load", per_device_train_batch_size=4, bf16=True, load_in_8bit=False)
    text = cause(run, f"Out of GPU memory in phase load. Halve it. {CUDA.format('12.00 GiB')}")
    assert text is not None and "base_precision" in text and "per_device_train_batch_size" not in text


def test_explain_suggests_a_certain_saving_where_the_estimate_fits(make: Any) -> None:
    run = make(per_device_train_batch_size=4, bf16=True)
    text = cause(run, f"Out of GPU memory in phase train. Halve it. {CUDA.format('79.00 GiB')}")
    assert text is not None and "The estimate fits into 79.0 GiB: another process held memory" in text
    assert "would have fitted" not in text and "needs less" in text


def test_explain_tells_ram_from_gpu_memory(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_has(monkeypatch, 20 * GIB)
    on_cpu = make(on_gpu=False, load_in_8bit=False, per_device_train_batch_size=4)
    text = cause(on_cpu, f"Out of memory in phase train. Halve it. {CPU}")
    assert text is not None and text.startswith("Out of memory in phase train: `") and text.endswith(CPU)
    text = cause(make(), f"rank 1: Out of memory in phase load. Halve it. {CPU}")
    assert text == f"rank 1: Out of memory in phase load: this machine's RAM, not GPU memory. {CPU}"


def test_explain_names_the_kernels_oom_killer(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_has(monkeypatch, 64 * GIB)
    run = make(on_gpu=False, load_in_8bit=False)
    for code in (137, 1):  # accelerate makes 1 of it
        text = cause(run, f"exit code {code}", code=code, silent=True, killer_active=True)
        assert text is not None
        assert text.startswith("Killed while the kernel's out-of-memory killer was active: out of memory in ")
    assert cause(run, "exit code 1", killer_active=True) is None, "it said itself why it ended"
    assert cause(run, "exit code 7", code=7, silent=True, killer_active=True) is None


def test_explain_of_an_uncounted_kill_is_memory_only_near_the_limit(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(on_gpu=False, load_in_8bit=False)
    machine_has(monkeypatch, 512 * GIB)
    assert cause(run, "killed", code=137, silent=True) is None
    machine_has(monkeypatch, 16 * GIB)
    text = cause(run, "killed", code=137, silent=True)
    assert text is not None and text.startswith("Killed, probably for its memory use: out of memory in phase train: `")


def test_explain_names_a_kill_that_accelerate_does_not_report(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_has(monkeypatch, 512 * GIB)
    text = cause(make(on_gpu=False, load_in_8bit=False), "exit code 1: {'loss': '5.9'}", silent=True)
    assert text is not None
    assert text.startswith("Killed by a signal in phase train; `accelerate launch` does not report which.")


def killed_cause(run: RunDir, killed: Death = KILLED, killer: Killer = KERNEL) -> str:
    """Return the cause where rank 0 only reported that its peer was gone."""
    outcome = Outcome(
        phase="failed", exit_code=137, cause="RuntimeError in phase train: Connection closed by peer. GLHF!"
    )
    text = explain(run, run.read_state(), outcome, killer=killer, killed=killed)
    assert text is not None and "GLHF" not in text
    return text


def test_explain_of_a_killed_rank_has_used_memory_and_limit(make: Any) -> None:
    text = killed_cause(make(on_gpu=False, load_in_8bit=False))
    assert text.startswith(
        "rank 1 on node7 was killed by SIGKILL in phase train by the kernel's out-of-memory killer: the run used "
        "1.9 GiB of 2.0 GiB (memory.max of cgroup /job). `"
    )
    assert "`base weights` (" in text and text.endswith(".") and "GiB expected there" in text
    on_gpu = killed_cause(make(), killer=msgspec.structs.replace(KERNEL, peak=GIB))
    assert on_gpu.endswith("(memory.max of cgroup /job). This machine's RAM, not GPU memory.")


def test_explain_falls_back_to_the_cgroups_peak(make: Any) -> None:
    run, killed = make(), msgspec.structs.replace(KILLED, held=0)
    assert "the run used 1.0 GiB of 2.0 GiB" in killed_cause(run, killed, msgspec.structs.replace(KERNEL, peak=GIB))
    assert "the limit is 2.0 GiB (memory.max of cgroup /job)" in killed_cause(run, killed)


def test_explain_of_a_sigkill_that_the_kernel_did_not_count(make: Any) -> None:
    run = make(on_gpu=False, load_in_8bit=False)
    roomy = Killer(active=False, limit=512 * GIB, whose="this machine's memory")
    assert killed_cause(run, killer=roomy) == (
        "rank 1 on node7 was killed by SIGKILL in phase train; the kernel's out-of-memory killer was not "
        "active, so a user or another program sent it. The run used 1.9 GiB of 512.0 GiB (this machine's memory)."
    )
    assert "check `dmesg`. The run used" in killed_cause(run, killer=msgspec.structs.replace(roomy, active=None))
    near = killed_cause(run, killer=msgspec.structs.replace(roomy, limit=2 * GIB))
    assert "SIGKILL in phase train, probably for its memory use: the run used 1.9 GiB of 2.0 GiB" in near


def test_explain_of_another_signal_only_names_it(make: Any) -> None:
    killed = msgspec.structs.replace(KILLED, number=11, rank=None)
    assert killed_cause(make(), killed) == "the worker on node7 was killed by SIGSEGV in phase train."
    unnamed = killed_cause(make(), msgspec.structs.replace(KILLED, number=None))
    assert unnamed.startswith("rank 1 on node7 was killed by an unknown signal in phase train")


def test_explain_keeps_the_cause_of_other_failures(make: Any) -> None:
    run = make()
    assert cause(run, "`loss` became nan at step 3.") is None
    assert cause(run, "ValueError in phase train: Out of GPU memory in phase x") is None
    done = Outcome(phase="finished", exit_code=ExitCode.DONE)
    assert explain(run, run.read_state(), done, killer=KERNEL, killed=KILLED) is None


def test_explain_keeps_the_cause_of_a_phase_without_an_estimate(make: Any) -> None:
    run = make(phase="evaluate")
    assert cause(run, f"Out of GPU memory in phase evaluate. Halve it. {CUDA.format('12.00 GiB')}") is None


def test_supervisor_records_the_explained_cause(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    run, state = runs.end("out-of-memory")
    assert state.phase == "failed" and state.cause is not None
    assert state.cause.startswith("Out of memory in phase train: `") and "expected there" in state.cause
    assert state.cause.endswith("(DefaultCPUAllocator: can't allocate memory)")
    deadline = time.monotonic() + 30
    while run.lock_is_held() and time.monotonic() < deadline:  # the state is written before the supervisor ends
        time.sleep(0.02)
    assert not (run.attempt_dir(1) / "supervisor.txt").exists()


def test_a_failing_explanation_keeps_the_outcome(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make()
    (run.path / "launch.json").write_text("{")
    watching = supervisor.Supervisor(run, 1, Patience())
    notes: list[str] = []
    monkeypatch.setattr(supervisor, "log_line", notes.append)
    assert watching._outcome(9).cause is not None
    assert len(notes) == 1 and "launch.json" in notes[0]


def test_reconcile_records_the_explained_cause(make: Any) -> None:
    run = make(per_device_train_batch_size=4, bf16=True)
    writer = EventWriter(run.attempt_dir(1) / "events.jsonl")
    said = f"Out of GPU memory in phase train. Halve it. {CUDA.format('11.76 GiB')}"
    writer.write("end", data={"exit_code": 1, "cause": said})
    writer.close()
    state = reconcile(run)
    assert state.phase == "failed" and state.cause is not None and "would have fitted" in state.cause
