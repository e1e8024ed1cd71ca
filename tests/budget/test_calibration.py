"""Calibration by finished runs of the same kind and of no others."""

import fcntl
import os
import stat
from pathlib import Path

import msgspec
import pytest

from stackllama_engine.budget import calibration
from stackllama_engine.budget.architecture import Architecture
from stackllama_engine.budget.calibration import FILE, Calibration, Kind, Row, add_row, narrow, read_rows
from stackllama_engine.budget.estimate import Estimate, estimate
from stackllama_engine.contract.recipe import SFTRecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.stages import Stage

GPU = Kind(machine="here, A100", versions={"torch": "2.9"}, stage="sft", method="lora int8 bf16", gpus=1, on_gpu=True)


def recipe(*overrides: str) -> SFTRecipe:
    found = load_recipe(
        Stage.SFT, None, ["model_name_or_path=x", "bf16=true", *(overrides or ("base_precision=int8",))]
    )
    assert isinstance(found, SFTRecipe)
    return found


@pytest.fixture
def on_gpu(llama_7b: Architecture) -> Estimate:
    return estimate(recipe(), llama_7b, on_gpu=True)


def row(found: Estimate, position: float, *, kind: Kind = GPU, scale: float = 1.0) -> Row:
    """Make a row whose measurement has this position in the formula's interval."""
    low, high = (round(end * scale) for end in calibration.measured_interval(found, on_gpu=kind.on_gpu))
    measured = round(low + position * (high - low))
    return Row(kind=kind, run="r", time=1.0, allocated=found.allocated, interval=(low, high), measured=measured)


def place(found: Estimate, value: int) -> float:
    low, high = found.reserved
    return (value - low) / (high - low)


def test_three_rows_narrow_and_two_do_not(on_gpu: Estimate) -> None:
    rows = [row(on_gpu, position) for position in (0.30, 0.33, 0.36)]
    assert narrow(on_gpu, GPU, rows[:2]) == (on_gpu, None)
    found, told = narrow(on_gpu, GPU, rows)
    assert told == "range narrowed by 3 finished runs of this kind on this machine"
    assert [place(on_gpu, end) for end in found.reserved] == pytest.approx([0.28, 0.38], abs=1e-6)  # 0.33 ± max(.05)
    assert found.allocated == on_gpu.allocated
    assert found.device[1] - found.device[0] < on_gpu.device[1] - on_gpu.device[0]


def test_fewer_scattered_rows_narrow_less(on_gpu: Estimate) -> None:
    few, _ = narrow(on_gpu, GPU, [row(on_gpu, position) for position in (0.4, 0.5, 0.6)])
    assert [place(on_gpu, end) for end in few.reserved] == pytest.approx(
        [0.5 - 0.1 * 5 / 3, 0.5 + 0.1 * 5 / 3], abs=1e-6
    )
    many, _ = narrow(on_gpu, GPU, [row(on_gpu, position) for position in (0.4, *[0.5] * 8, 0.6)])
    assert [place(on_gpu, end) for end in many.reserved] == pytest.approx([0.38, 0.62], abs=1e-6)


def test_never_below_allocated_and_beyond_the_formula_only_where_it_was_measured(on_gpu: Estimate) -> None:
    inside, _ = narrow(on_gpu, GPU, [row(on_gpu, position) for position in (0.0, 0.5, 1.0)])
    assert inside.reserved == on_gpu.reserved
    below, _ = narrow(on_gpu, GPU, [row(on_gpu, position) for position in (-0.5, -0.5, -0.5)])
    assert on_gpu.allocated <= below.reserved[0] <= below.reserved[1]
    above, told = narrow(on_gpu, GPU, [row(on_gpu, position) for position in (1.2, 1.25, 1.3)])
    assert above.reserved[1] > on_gpu.reserved[1]
    assert told is not None and told.startswith("range corrected")


@pytest.mark.parametrize(
    "other",
    [{"machine": "there, A100"}, {"versions": {"torch": "2.8"}}, {"stage": "reward"}, {"method": "full"}, {"gpus": 2}],
)
def test_rows_of_another_kind_are_ignored(on_gpu: Estimate, other: dict[str, object]) -> None:
    rows = [row(on_gpu, 0.3, kind=msgspec.structs.replace(GPU, **other))] * 5
    assert narrow(on_gpu, GPU, rows) == (on_gpu, None)


def test_rows_of_another_size_are_ignored(on_gpu: Estimate) -> None:
    assert narrow(on_gpu, GPU, [row(on_gpu, 0.3, scale=0.2)] * 5)[1] is None
    assert narrow(on_gpu, GPU, [row(on_gpu, 0.3, scale=5)] * 5)[1] is None
    assert narrow(on_gpu, GPU, [row(on_gpu, 0.3, scale=0.3)] * 5)[1] is not None


def test_on_a_cpu_the_resident_set(llama_7b: Architecture) -> None:
    asked = recipe("load_in_8bit=false", "bf16=false")
    found = estimate(asked, llama_7b, on_gpu=False)
    kind = msgspec.structs.replace(GPU, machine="here, CPU", method=calibration.method_of(asked), on_gpu=False)
    known = Calibration(cpu="here, CPU", gpu="here, A100", versions=GPU.versions, rows=[row(found, 0.2, kind=kind)] * 3)
    narrowed, told = known.narrow(found, asked, gpus=1, on_gpu=False)
    assert told is not None and narrowed.reserved == found.reserved
    assert narrowed.device[1] - narrowed.device[0] == pytest.approx(0.1 * (found.device[1] - found.device[0]), abs=2)
    assert known.narrow(found, asked, gpus=1, on_gpu=True)[1] is None


def test_method_names_weights_and_autocast() -> None:
    assert calibration.method_of(recipe()) == "lora int8 bf16"
    assert calibration.method_of(recipe("load_in_8bit=false", "load_in_4bit=true")) == "lora nf4 bf16"
    assert (
        calibration.method_of(recipe("load_in_8bit=false", "use_peft=false", "bf16=false")) == "full auto no autocast"
    )


def test_file_is_private_and_truncated_or_foreign_lines_are_skipped(on_gpu: Estimate, tmp_path: Path) -> None:
    assert read_rows(tmp_path) == []
    add_row(tmp_path, row(on_gpu, 0.1))
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'\xff\n[1]\n{"kind": {}}\n' + b"[" * 5000 + b'\n{"run": "to')
    add_row(tmp_path, row(on_gpu, 0.2))
    assert [one.measured for one in read_rows(tmp_path)] == [row(on_gpu, 0.1).measured, row(on_gpu, 0.2).measured]
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert (tmp_path / FILE).read_bytes().count(b"\n") == 2


def test_the_file_is_bounded(on_gpu: Estimate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_MOST_ROWS", 3)
    for number in range(5):
        add_row(tmp_path, msgspec.structs.replace(row(on_gpu, 0.1), run=f"r{number}"))
    assert [one.run for one in read_rows(tmp_path)] == ["r2", "r3", "r4"]


def test_add_row_gives_up_on_a_lock_held_for_seconds(
    on_gpu: Estimate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_PATIENCE", 0.0)
    held = os.open(tmp_path / f".{FILE}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        with pytest.raises(OSError):
            add_row(tmp_path, row(on_gpu, 0.1))
    finally:
        os.close(held)
