"""Out of memory on one of two ranks, through the real command: both continue with halved micro-batches."""

import json
import os
from pathlib import Path

import pytest

from stackllama_engine.contract.events import EventReader
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train.restart import FILE

from .in_process import PPO, REWARDS
from .toy import SFT, run_stage

pytestmark = pytest.mark.slow

SITE = """
import os, sys
if "stackllama_engine.train" in sys.orig_argv and os.environ.get("RANK") == "1":
    import pathlib
    import torch
    from transformers.models.llama.modeling_llama import LlamaModel
    forward, mark = LlamaModel.forward, pathlib.Path(__file__).with_name("happened")
    def failing(self, *arguments, **named):
        if torch.is_grad_enabled() and not mark.exists():
            mark.touch()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, *arguments, **named)
    LlamaModel.forward = failing
"""


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.PPO])
def test_both_ranks_halve_and_the_effective_batch_stays(
    stage: Stage, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    (site / f"{REWARDS}.py").write_text("def length(*, questions, responses):\n    return [1.0] * len(responses)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    keys = {
        Stage.SFT: (*SFT, "max_steps=2", "save_steps=0"),
        Stage.PPO: (*PPO, "max_steps=1", f"reward_func_paths=[{site}]"),
    }[stage]
    batch = ("per_device_train_batch_size=2", "gradient_accumulation_steps=2", "num_processes=2")
    run = run_stage(Home(tmp_path / "home"), stage, f"model_name_or_path={base}", *keys, *batch)
    notices = [e.data["message"] for e in EventReader(run.attempt_dir(1) / "events.jsonl").read() if e.kind == "health"]
    halved = "`per_device_train_batch_size: 1` and `gradient_accumulation_steps: 4` on every rank (were 2 and 2)"
    assert [halved in message and "effective batch stays 4" in message for message in notices].count(True) == 1
    assert (site / "happened").exists()
    noted = json.loads((run.attempt_dir(1) / FILE).read_text())
    assert (noted["per_device_train_batch_size"], noted["gradient_accumulation_steps"]) == (1, 4)
    assert noted["count"] == (stage is Stage.SFT), "PPO continues in the same process"
