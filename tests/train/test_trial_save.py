"""What cannot be saved is refused, or put right and said, before the first step."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, GenerationConfig

from stackllama_engine.contract.errors import StageError
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import hf_trainer, trial_save

from .in_process import attempt
from .toy import SFT

LLAMA_2 = {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.9, "top_p": 0.6, "do_sample": False}
FULL = (*SFT, "use_peft=false", "save_steps=0", "max_steps=1", "max_train_samples=8", "max_eval_samples=1")


@pytest.fixture
def unsaveable(base: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(base, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(LLAMA_2))
    yield tmp_path / "model"


@pytest.mark.slow
def test_a_temperature_without_sampling_is_put_right_before_full_training(unsaveable: Path, tmp_path: Path) -> None:
    with attempt(Home(tmp_path / "home"), unsaveable, Stage.SFT, *FULL) as one:
        assert one.train() is not None
    assert "it is saved with `do_sample: true`" in one.health
    saved = json.loads((one.run.merged / "generation_config.json").read_text())
    assert saved["do_sample"] is True and saved["temperature"] == 0.9
    assert not (one.run.path / "scratch" / "trial").exists()


@pytest.mark.slow
@pytest.mark.parametrize("peft", ["true", "false"])
def test_what_cannot_be_saved_ends_the_run_before_it_trains(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peft: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Some tensors share memory:\n  [{'a', 'b'}]")

    trained: list[object] = []
    monkeypatch.setattr(hf_trainer, "fit", lambda *given: trained.append(given))
    monkeypatch.setattr(trial_save, "_write", fail)
    said = r"cannot be saved: RuntimeError: Some tensors share memory: \[\{'a'"
    with (
        attempt(Home(tmp_path / "home"), base, Stage.SFT, *FULL, f"use_peft={peft}") as one,
        pytest.raises(StageError, match=said),
    ):
        one.train()
    assert trained == []


def test_a_generation_config_that_nothing_puts_right_is_refused(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    assert trial_save.fix_generation_config(model, "base") is None
    model.generation_config = GenerationConfig()
    model.generation_config.max_new_tokens = -1
    with pytest.raises(StageError, match=r"generation_config.json of base is not valid .*max_new_tokens"):
        trial_save.fix_generation_config(model, "base")


def test_shared_weights_that_no_file_can_hold_are_found(base: Path, tmp_path: Path) -> None:
    """Tied by hand, unknown to the model's configuration: safetensors refuses them, with one row as with all."""
    model = AutoModelForCausalLM.from_pretrained(base)
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    model.model.layers[0].mlp.gate_proj.weight.data = model.model.layers[0].mlp.up_proj.weight.data[:, ::1]

    class Tokenizer:
        def save_pretrained(self, path: str) -> None: ...

    trial_save._write(AutoModelForCausalLM.from_pretrained(base), Tokenizer(), tmp_path / "good")
    assert (tmp_path / "good" / "model.safetensors").stat().st_size < 20_000
    with pytest.raises(Exception, match=r"(?i)shared?"):
        trial_save._write(model, Tokenizer(), tmp_path / "bad")
