"""An exported folder loads by the three lines of its model card, and is the model that was trained."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from stackllama_console.__main__ import main
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import models

from .in_process import PPO as PPO_KEYS
from .in_process import finish
from .toy import REWARD, SFT

pytestmark = pytest.mark.slow
LINES = re.compile(r"```python\n(import peft.*?)```", re.DOTALL)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def load(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Export a run, run the lines of its card in the folder, and return the names that they define."""

    def exported(run_id: str) -> dict[str, Any]:
        folder = tmp_path / "exported" / run_id
        assert main(["--home", str(home.path), "export", run_id, "--to", str(folder)]) == 0
        code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        assert len(code) == 1 and len(code[0].splitlines()) == 3
        names: dict[str, Any] = {}
        monkeypatch.chdir(folder)
        exec(code[0], names)
        return names

    return exported


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> torch.Tensor:
    return model.eval()(input_ids=torch.tensor([ids])).logits.float()


def test_adapter_and_merged_model_load_by_the_lines_of_their_card(
    home: Home, base: Path, load: Callable[[str], dict[str, Any]]
) -> None:
    sft, _ = finish(home, base, Stage.SFT, *SFT, "max_steps=3", "dtype=float32")
    merge, _ = finish(home, base, Stage.MERGE, f"adapter_path={sft.adapter}", "dtype=float32")
    names = load(sft.id)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    lines, own = (LINES.findall(text)[0] for text in (readme, Path("README.md").read_text()))
    assert [line.replace("math-7b-ppo", ".") for line in lines.splitlines() if line] == own.splitlines()
    chat = [{"role": "user", "content": "How do I get a pan clean?"}]
    text = names["tokenizer"].apply_chat_template(chat, tokenize=False)
    assert text == "Question: How do I get a pan clean?\n\nAnswer: "
    ids = names["tokenizer"](text)["input_ids"]
    cpu = torch.device("cpu")
    trained = models.load_adapter(models.load_plain(str(base), None, "float32", cpu), sft.adapter)
    expected = logits(trained, ids)
    assert torch.allclose(logits(names["model"], ids), expected, atol=1e-5)
    assert not torch.allclose(logits(names["model"].unload(), ids), expected, atol=1e-5)
    assert GenerationConfig.from_pretrained(".").eos_token_id == [2]
    merged = load(merge.id)
    assert torch.allclose(logits(merged["model"], ids), expected, atol=1e-4)
    assert merged["model"].generation_config.eos_token_id == [2]
    assert merged["tokenizer"].apply_chat_template(chat, tokenize=False) == text


def test_ppo_exports_its_policy_alone(home: Home, base: Path, load: Callable[[str], dict[str, Any]]) -> None:
    run, _ = finish(home, base, Stage.PPO, *PPO_KEYS, "max_steps=1", "temperature=0.7")
    assert (run.adapter / "critic").is_dir()
    model = load(run.id)["model"]
    assert list(model.peft_config) == ["default"]
    generation = GenerationConfig.from_pretrained(".")
    assert (generation.temperature, generation.top_k, generation.do_sample) == (0.7, 0, True)


def test_reward_model_gives_the_trained_scores(home: Home, base: Path, load: Callable[[str], dict[str, Any]]) -> None:
    run, _ = finish(home, base, Stage.REWARD, *REWARD, "max_steps=2")
    merge, _ = finish(home, base, Stage.MERGE, f"adapter_path={run.adapter}", "dtype=float32")
    ids = [5, 6, 7, 8]
    score = logits(load(run.id)["model"], ids)
    merged = logits(load(merge.id)["model"], ids)
    assert score.shape == (1, 1)
    assert torch.allclose(score, merged, atol=1e-4)
