"""What a library raises while it loads becomes one sentence with the file and the whole reason, on one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stackllama_engine.contract.errors import StageError
from stackllama_engine.contract.events import EventReader
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import models
from stackllama_engine.train.__main__ import _cause
from stackllama_engine.train.loading import loading, one_line
from stackllama_engine.train.loading_progress import reported
from stackllama_engine.train.reporting import Reporter
from stackllama_engine.train.signals import Stopped

CPU = torch.device("cpu")


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    shutil.copytree(base, tmp_path / "model")
    return tmp_path / "model"


def refusal(path: Path) -> str:
    with pytest.raises(StageError) as caught:
        models.load_plain(str(path), None, "float32", CPU)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_truncated_file_is_named(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert f"{file}: truncated: it has" in refusal(model)


def test_a_shape_that_does_not_fit_is_named_with_both_shapes(model: Path) -> None:
    file = model / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, file, {"format": "pt"})
    text = refusal(model)
    assert "its weights do not fit its config.json" in text
    assert "model.norm.weight" in text and "[3]" in text and "[64]" in text


def test_a_null_in_the_configuration_is_no_traceback(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"hidden_size": None}))
    text = refusal(model)
    assert f"Cannot load the model of {model}: " in text and "hidden_size" in text and "NoneType" in text


def test_a_truncated_adapter_is_named(tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.safetensors"
    save_file({"a": torch.ones(100)}, file)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(StageError, match=rf"Cannot load the adapter of {tmp_path}: {file}: truncated"):
        models.adapter_weights(tmp_path)


def test_all_lines_of_a_reason_are_kept_and_a_flood_is_cut() -> None:
    error = RuntimeError("Error(s) in loading state_dict for Linear:\n\tsize mismatch for weight: [1] from [2].")
    assert _cause(error, "load") == (
        "RuntimeError in phase load: Error(s) in loading state_dict for Linear: size mismatch for weight: [1] from [2]."
    )
    assert len(one_line(ValueError("word " * 1000))) < 800


@pytest.mark.parametrize("error", [Stopped(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_stop_and_a_full_memory_are_not_the_files_fault(error: Exception) -> None:
    with pytest.raises(type(error)), loading("base", "model"):
        raise error


def test_what_a_gguf_adapter_names_as_its_base_is_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy.gguf").touch()
    read = torch.nn.Linear(1, 1)
    read.config = torch.nn.Module()  # type: ignore[assignment]
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: read)
    loaded = models.load_plain(str(tmp_path / "toy.gguf"), None, "float32", CPU)
    assert loaded.name_or_path == str(tmp_path / "toy.gguf")


def test_weights_are_reported_once_a_second_and_at_the_end(tmp_path: Path) -> None:
    run = Home(tmp_path).create(Stage.SFT, "")
    run.attempt_dir(1).mkdir()
    moments = iter([0.0, 0.5, 1.0, 1.2, 2.5])
    reporter = Reporter(run, 1, is_main=True)
    assert list(reported(reporter, "abcd", lambda: next(moments))) == list("abcd")
    reporter.end(0)
    data = [event.data for event in EventReader(run.attempt_dir(1) / "events.jsonl").read() if event.kind == "activity"]
    assert [(each["doing"], each.get("share")) for each in data] == [
        ("reading weights", 0.0),
        ("reading weights", 0.5),
        ("reading weights", 1.0),
        ("preparing the model", None),
    ]
