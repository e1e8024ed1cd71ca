"""Every stage in every precision of the base, and PPO's first ratio with each of the engine's paths on and off."""

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from tests.train import in_process, toy

from stackllama_engine.contract.events import EventReader
from stackllama_engine.contract.history import read_history
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import varlen
from stackllama_engine.train.left_out import NAMES, VARIABLE

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

PRECISIONS = {
    "float32": ("load_in_8bit=false", "dtype=float32"),
    "bf16": ("load_in_8bit=false", "dtype=bfloat16", "bf16=true"),
    "int8": ("load_in_8bit=true", "dtype=bfloat16", "bf16=true"),
    "nf4": ("load_in_8bit=false", "load_in_4bit=true", "dtype=bfloat16", "bf16=true"),
}
SHORT = ("max_steps=3", "save_steps=0")
STAGES = {
    Stage.SFT: (*toy.SFT, *SHORT),
    Stage.REWARD: (*toy.REWARD, *SHORT),
    Stage.PREFERENCE: (*toy.COMMON, *SHORT),
    Stage.PPO: (*in_process.PPO, "kl_coef=0.05"),
}
OPTIONS = ("", *NAMES, ",".join(NAMES), "liger")


@pytest.fixture(autouse=True)
def mixed_precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Set the mixed precision of the process, as `accelerate launch` does for a run."""
    precision = request.node.callspec.params.get("precision", "bf16")
    mixed = "bf16" if "bf16=true" in PRECISIONS[precision] else "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", mixed)
    AcceleratorState._reset_state()
    yield mixed
    AcceleratorState._reset_state()


def metrics_of(run: RunDir) -> list[dict[str, Any]]:
    events = list(EventReader(run.attempt_dir(1) / "events.jsonl").read())
    assert not any(event.nonfinite for event in events)
    return [event.metrics for event in events if event.kind == "metrics"]


def assert_first_ratio_is_one(run: RunDir) -> None:
    """Insist that in every step the pass with gradients repeats the one without, bit for bit."""
    steps = [row for row in metrics_of(run) if "val/ratio_first" in row]
    assert len(steps) == 3
    assert [row["val/ratio_first"] for row in steps] == [1.0] * 3
    assert [row["policy/approxkl_first"] for row in steps] == [0.0] * 3


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_stage_trains_in_precision(
    home: Home,
    base: Path,
    reward_model: Path,
    on_device: tuple[str, ...],
    device: str,
    mixed_precision: str,
    stage: Stage,
    precision: str,
) -> None:
    model = (f"reward_model_path={reward_model}",) if stage is Stage.PPO else ()
    run, facts = in_process.finish(home, base, stage, *STAGES[stage], *PRECISIONS[precision], *on_device, *model)
    assert facts["steps"] == 3
    assert AcceleratorState().mixed_precision == mixed_precision
    losses = [row[name] for row in metrics_of(run) for name in ("loss", "loss/policy_avg") if name in row]
    assert len(losses) >= 3 and all(math.isfinite(loss) for loss in losses)
    if stage is Stage.PPO:
        assert_first_ratio_is_one(run)
    if device == "cuda":
        memory = read_history(run.events_files()).memory
        assert memory["allocated"] and memory["reserved"] and memory["reserved"] >= memory["allocated"]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_first_ratio_is_one_with_each_option(
    home: Home,
    base: Path,
    on_device: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    option: str,
) -> None:
    if option == "liger" and importlib.util.find_spec("liger_kernel") is None:
        pytest.skip("liger-kernel is not installed: `pip install '.[fast]'`")
    monkeypatch.setenv(VARIABLE, "" if option == "liger" else option)
    keys = ("use_liger_kernel=true",) if option == "liger" else ()
    run, _ = in_process.finish(home, base, Stage.PPO, *STAGES[Stage.PPO], *PRECISIONS[precision], *on_device, *keys)
    assert_first_ratio_is_one(run)


@pytest.mark.parametrize("padding", ["prompts of many lengths", "prompts of one length"])
def test_first_ratio_is_one_padded_or_not(
    tmp_path: Path, home: Home, base: Path, on_device: tuple[str, ...], padding: str
) -> None:
    questions = ["why " * (1 if "one" in padding else count) + str(count) for count in range(1, 10)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"question": "{question}"}}\n' for question in questions))
    keys = (f"dataset_name={rows}", "dataset_train_split=all", "dataset_test_split=all", *PRECISIONS["bf16"])
    run, _ = in_process.finish(home, base, Stage.PPO, *STAGES[Stage.PPO], *keys, *on_device)
    assert_first_ratio_is_one(run)


@pytest.mark.parametrize("precision", ["bf16"])
def test_packed_rows_train_alike_with_and_without_masks(
    home: Home, base: Path, on_device: tuple[str, ...], device: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = "by_varlen" if device == "cuda" else "by_document"
    calls: list[int] = []
    monkeypatch.setattr(varlen, kernel, in_process.at_call(1, lambda: calls.append(1), getattr(varlen, kernel)))
    keys = (*toy.SFT, *SHORT, "lora_dropout=0", *PRECISIONS[precision], *on_device)
    _, apart = in_process.finish(home, base, Stage.SFT, *keys)
    assert calls
    monkeypatch.setenv(VARIABLE, "varlen")
    _, masked = in_process.finish(home, base, Stage.SFT, *keys)
    assert apart["loss_first"] == pytest.approx(masked["loss_first"], rel=1e-3)
    assert apart["loss_last"] == pytest.approx(masked["loss_last"], rel=1e-2)
