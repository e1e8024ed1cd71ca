"""Whole runs on a GPU, through the real command: merge, chat, canary, killed and resumed, out of memory, NVML."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.train.test_resume_kills import events, in_phase, kill_when
from tests.train.toy import PPO, SFT, run_stage, wait_for

from stackllama_engine.contract.history import read_history
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.chat_process import chat_command
from stackllama_engine.launch.launcher import launch, plan, resume
from stackllama_engine.launch.nvml import Nvml, find_gpus

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

BF16 = ("dtype=bfloat16", "bf16=true")
STEPS = 6
_GIB = 1 << 30


@pytest.fixture(scope="module")
def sft(home: Home, base: Path, on_device: tuple[str, ...]) -> RunDir:
    return run_stage(home, Stage.SFT, f"model_name_or_path={base}", *SFT, *BF16, *on_device)


@pytest.fixture(scope="module")
def ppo_keys(base: Path, reward_model: Path, on_device: tuple[str, ...]) -> tuple[str, ...]:
    models = (f"model_name_or_path={base}", f"reward_model_path={reward_model}")
    return (*PPO, f"max_steps={STEPS}", "save_steps=2", "eval_steps=0", *models, *BF16, *on_device)


@pytest.fixture(scope="module")
def straight(home: Home, ppo_keys: tuple[str, ...]) -> RunDir:
    return run_stage(home, Stage.PPO, *ppo_keys)


def test_a_merge_is_verified(home: Home, sft: RunDir, on_device: tuple[str, ...]) -> None:
    merged = run_stage(home, Stage.MERGE, f"adapter_path={sft.id}", *on_device)
    assert json.loads((merged.path / "result.json").read_text())["verified"] is True
    assert list(merged.merged.glob("*.safetensors"))


def test_both_sides_answer_in_a_chat(sft: RunDir, device: str) -> None:
    question = {"id": 1, "prompt": "How do I boil an egg?", "temperature": 0, "max_new_tokens": 8}
    with _generator(sft, device) as generator:
        assert generator.stdin and generator.stdout
        assert json.loads(generator.stdout.readline())["ready"] is True
        generator.stdin.write(json.dumps(question) + "\n")
        generator.stdin.flush()
        done: list[str] = []
        while len(done) < 2:
            line = json.loads(generator.stdout.readline())
            assert "error" not in line, line
            done += [line["which"]] if "done" in line else []
    assert len(set(done)) == 2


@contextlib.contextmanager
def _generator(run: RunDir, device: str) -> Iterator["subprocess.Popen[str]"]:
    argv, environment = chat_command(run, cpu=device == "cpu")
    pipe = subprocess.PIPE
    process = subprocess.Popen(argv, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.usefixtures("only_gpu")
def test_the_canary_is_the_default_on_a_gpu(straight: RunDir) -> None:
    assert any(text.startswith("canary passed") for text in read_history(straight.events_files()).health)


def test_killed_and_resumed_continues_as_if_nothing_was(
    home: Home, ppo_keys: tuple[str, ...], straight: RunDir
) -> None:
    """A GPU's sums may come in another order, so the KL is near, and the ratio is still exactly 1."""
    broken = launch(plan(home, load_recipe(Stage.PPO, None, ppo_keys), canary=False))
    kill_when(broken, 1, in_phase("update", 4))
    resume(home, broken.id)
    assert wait_for(broken, lambda state: state.attempt == 2 and state.has_ended).phase == "finished"
    expected, again = _steps(straight, 1), _steps(broken, 2)
    resumed = min(again)
    assert resumed == 3 and [*again] == [*range(resumed, STEPS + 1)]
    first, before = again[resumed], expected[resumed]
    assert first["val/ratio_first"] == 1.0 and first["policy/approxkl_first"] == 0.0
    assert _number(first["objective/kl"]) == pytest.approx(_number(before["objective/kl"]), abs=1e-3)


def _steps(run: RunDir, attempt: int) -> dict[int, dict[str, float | None]]:
    """Return the metrics of each training step of an attempt."""
    trained = (event for event in events(run, attempt) if event.kind == "metrics" and "time/update" in event.metrics)
    return {event.step or 0: event.metrics for event in trained}


def _number(value: float | None) -> float:
    assert value is not None
    return value


@pytest.mark.usefixtures("only_gpu")
def test_running_out_of_memory_is_explained(home: Home, base: Path, tmp_path: Path) -> None:
    """The card is filled until a base of 1.5 GiB has no room, and the run says so in a sentence."""
    import torch

    large = _large_base(base, tmp_path / "large")
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    filling = torch.empty(max(0, free - 3 * _GIB // 2), dtype=torch.uint8, device="cuda")
    try:
        keys = (*SFT, "use_cpu=false", "dtype=float32", f"model_name_or_path={large}")
        run = launch(plan(home, load_recipe(Stage.SFT, None, keys)))
        state = wait_for(run, lambda state: state.has_ended)
    finally:
        del filling
        torch.cuda.empty_cache()
    assert state.phase == "failed" and state.cause
    assert state.cause.startswith("Out of GPU memory in phase load"), state.cause
    assert "Traceback" not in state.cause and "iB" in state.cause


def _large_base(base: Path, path: Path) -> Path:
    """Save a random base of 0.4 billion float32 weights with the toy's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    config: Any = AutoConfig.from_pretrained(base)
    config.update({"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 8, "head_dim": 512})
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(base).save_pretrained(path)
    return path


@pytest.mark.usefixtures("only_gpu")
def test_nvml_reads_this_card() -> None:
    import torch

    gpus, driver, error = find_gpus()
    assert gpus and driver and error is None
    assert all(0 < gpu.free <= gpu.memory for gpu in gpus)
    assert torch.cuda.get_device_name() in {gpu.name for gpu in gpus}
    nvml = Nvml()
    nvml.open()
    try:
        before = nvml.read()
        filling = torch.ones(1 << 30, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        after = nvml.read()
    finally:
        nvml.close()
    assert filling.numel() == 1 << 30
    grown = [(one.memory_used or 0) - (other.memory_used or 0) for one, other in zip(after, before, strict=True)]
    assert max(grown) >= 1 << 30
    assert all(one.memory_total and (one.utilisation is None or 0 <= one.utilisation <= 100) for one in after)
