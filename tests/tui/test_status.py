"""What the monitor says of a run: the advice under its cause, each kind of failure with its own way out; silence."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stackllama_console.readers.eta import Eta
from stackllama_console.tui.widgets.outcome import advice
from stackllama_console.tui.widgets.status import eta_text, silence_text
from stackllama_engine.contract.run_dir import RunDir, State
from stackllama_engine.contract.stages import Stage

XID_31 = "A GPU error was logged at the same time: GPU 0: Xid 31, GPU memory page fault."


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (f"killed by SIGABRT. {XID_31}", "GPU error"),
        ("CUDA error: uncorrectable ECC error encountered", "GPU error"),
        ("Out of memory in phase train. The largest component is logits.", "smaller batch"),
        ("rank 1: Out of GPU memory in phase train.", "smaller batch"),
        ("torch.OutOfMemoryError: CUDA out of memory.", "smaller batch"),
        ("killed by SIGKILL \u2014 often the kernel's out-of-memory killer; check `dmesg`", "smaller batch"),
        ("Rank 0 was killed by SIGKILL, probably for its memory use: 3 GiB of 4 GiB.", "smaller batch"),
        ("an illegal memory access was encountered", "see the log"),
        ("The loss became NaN", "lower learning_rate"),
        ("No space left on device", "free disk space"),
    ],
)
def test_advice_follows_the_cause(cause: str, expected: str, tmp_path: Path) -> None:
    state = State(stage=Stage.SFT, phase="failed", attempt=1, created=0.0, exit_code=1, cause=cause)
    assert expected in advice(RunDir(tmp_path), state)


@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_advice_of_a_kill_by_another_program_is_not_about_memory(has_checkpoint: bool, tmp_path: Path) -> None:
    if has_checkpoint:
        (tmp_path / "checkpoints" / "step-000010").mkdir(parents=True)
        (tmp_path / "checkpoints" / "step-000010" / "manifest.json").write_text("{}")
    cause = (
        "rank 0 was killed by SIGKILL in phase train; the kernel's out-of-memory killer was not active, so a user or "
        "another program sent it. The limit is 4.0 GiB (this machine)."
    )
    state = State(stage=Stage.SFT, phase="failed", attempt=1, created=0.0, exit_code=137, cause=cause)
    said = advice(RunDir(tmp_path), state)
    assert "smaller batch" not in said
    assert said.startswith("r: resume from the last checkpoint" if has_checkpoint else "r: try the same again")
    memory = advice(RunDir(tmp_path), State(stage=Stage.SFT, phase="failed", created=0.0, cause="Out of memory"))
    assert ("r: resume from the last checkpoint" in memory) == has_checkpoint


@pytest.mark.parametrize(
    ("seconds", "words"), [(119, ""), (330, "no update for 5 minutes"), (7300, "no update for 2 hours")]
)
def test_a_run_that_writes_nothing_says_for_how_long_in_words(seconds: float, words: str) -> None:
    reader: Any = SimpleNamespace(phase="running", history=SimpleNamespace(updated=1000.0))
    assert silence_text(reader, 1000.0 + seconds) == words


def test_a_range_that_says_no_more_than_the_estimate_is_left_out() -> None:
    assert eta_text(Eta(low=3590.0, likely=3600.0, high=3650.0, pace=20.0), 180) == "1 h 00 m left  20 s/step"
    text = eta_text(Eta(low=3000.0, likely=3600.0, high=4200.0, pace=20.0), 180)
    assert text == "1 h 00 m left (50 m 00 s – 1 h 10 m)  20 s/step"
