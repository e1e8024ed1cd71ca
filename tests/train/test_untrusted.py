"""Pickles and code that come with a model or a checkpoint: refused, and not executed."""

import ast
import functools
import json
import pickle
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import stackllama_engine
from stackllama_console.tui import themes
from stackllama_engine.contract.errors import RecipeError, StageError
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.contract.user_yaml import _Loader, _StrictLoader
from stackllama_engine.train import checkpoint, hf_trainer, models
from stackllama_engine.train.ppo import shared_base
from stackllama_engine.train.ppo.state import Trainables
from stackllama_engine.train.restart import Restart

CPU = torch.device("cpu")


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """Exists as soon as anything was executed."""
    return tmp_path / "executed"


def poison(path: Path, proof: Path) -> None:
    torch.save({"state": Payload(proof)}, path)
    with path.open("rb") as file:
        torch.load(file, weights_only=False)
    assert proof.exists(), "the payload does nothing, so this test would show nothing"
    proof.unlink()


@functools.cache
def all_calls() -> list[tuple[str, str, ast.Call]]:
    """Every call in the engine and the console: where, and the function's dotted name after a dot."""
    root = Path(stackllama_engine.__file__).parents[1]
    return [
        (f"{path.name}:{node.lineno}", f".{ast.unparse(node.func)}", node)
        for path in [*root.rglob("*.py"), *(root.parent / "console").rglob("*.py")]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """Those whose dotted name ends so."""
    return [(place, call) for place, dotted, call in all_calls() if dotted.endswith(f".{name}")]


@pytest.mark.parametrize(
    "name", ["torch.load", "pickle.load", "pickle.loads", "Unpickler", "load_state", "eval", "exec"]
)
def test_nothing_of_ours_reads_a_pickle_or_runs_text(name: str) -> None:
    found = [place for place, call in calls(name) if not (name == "eval" and not call.args)]  # model.eval()
    assert found == []


def test_yaml_is_read_safely() -> None:
    loaders = {(place.partition(":")[0], ast.unparse(call.keywords[0].value)) for place, call in calls("yaml.load")}
    assert loaders == {("user_yaml.py", "loader"), ("themes.py", "_FAST")}  # all are SafeLoaders:
    assert issubclass(_StrictLoader, _Loader) and issubclass(_Loader, yaml.SafeLoader)
    assert themes._FAST in (yaml.SafeLoader, getattr(yaml, "CSafeLoader", None))
    for name in ("yaml.safe_load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"):
        assert calls(name) == []


def test_remote_code_is_refused_in_recipes_and_never_asked_for() -> None:
    with pytest.raises(RecipeError, match="never executed"):
        load_recipe(Stage.SFT, None, ["model_name_or_path=gpt2", "trust_remote_code=true"])
    given = [word for _, call in calls("from_pretrained") for word in call.keywords if word.arg == "trust_remote_code"]
    assert len(given) >= 2
    assert {ast.unparse(word.value) for word in given} == {"False"}


@pytest.mark.parametrize("reward", [False, True])
def test_pickled_weights_are_refused(base: Path, tmp_path: Path, proof: Path, reward: bool) -> None:
    shutil.copytree(base, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    poison(tmp_path / "model" / "pytorch_model.bin", proof)
    with pytest.raises(StageError, match="no weights in safetensors"):
        models.load_plain(str(tmp_path / "model"), None, "float32", CPU, reward=reward, new_head=True)
    assert not proof.exists()


def test_code_of_a_repository_is_refused(base: Path, tmp_path: Path, proof: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(base, path)
    code = f"from pathlib import Path\nPath({str(proof)!r}).touch()\nclass A: pass\nclass B: pass\n"
    (path / "evil.py").write_text(code)
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.A", "AutoModelForCausalLM": "evil.B"}}
    (path / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((path / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.A", "evil.A"]}}
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    with pytest.raises(StageError, match="code from its own repository, which is never executed"):
        models.load_plain(str(path), None, "float32", CPU)
    with pytest.raises(StageError, match="code from its own repository, which is never executed"):
        models.load_tokenizer(str(path))
    assert not proof.exists()


def test_a_pickled_adapter_is_refused_by_merge_and_scorer(base: Path, tmp_path: Path, proof: Path) -> None:
    path = tmp_path / "adapter"
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    get_peft_model(model, LoraConfig(r=1, task_type="CAUSAL_LM")).save_pretrained(str(path))
    (path / "adapter_model.safetensors").unlink()
    poison(path / "adapter_model.bin", proof)
    plain = models.load_plain(str(base), None, "float32", CPU)
    for read in (lambda: models.load_adapter(plain, path), lambda: shared_base.score_weight(path)):
        with pytest.raises(StageError, match="hold pickles and are not read"):
            read()
    assert not proof.exists()


@pytest.mark.parametrize("name", ["policy", "value_head", "optimizer"])
def test_a_pickle_in_a_checkpoint_of_ppo_is_no_safetensors(tmp_path: Path, proof: Path, name: str) -> None:
    from safetensors.torch import save_file

    for each in ("policy", "value_head", "optimizer"):
        save_file({}, tmp_path / f"{each}.safetensors")
    (tmp_path / "state.json").write_text('{"step": 1, "kl_coef": 0.1, "scheduler": {}, "before": {}}')
    poison(tmp_path / f"{name}.safetensors", proof)
    weight = torch.nn.Linear(1, 1, bias=False)
    base: Any = SimpleNamespace(
        device="cpu",
        has_critic=True,
        has_separate_critic=False,
        load_policy_state=lambda _: None,
        value_head=torch.nn.Module(),
    )
    trainables: Any = Trainables.__new__(Trainables)
    trainables.base, trainables.optimizer = base, torch.optim.AdamW(weight.parameters())
    with pytest.raises(Exception, match=r"(?i)header"):  # safetensors' own
        trainables.load(tmp_path)
    assert not proof.exists()


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([1, 2]), "labels": torch.tensor([1, 2])}


def small_trainer(out: Path, steps: int) -> Trainer:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    arguments = TrainingArguments(
        output_dir=str(out), max_steps=steps, save_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
    )
    return Trainer(LlamaForCausalLM(config), arguments, train_dataset=Rows())


@pytest.mark.parametrize(
    "name",
    ["optimizer.pt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("scheduler.pt", "rng_state.pth"))],
)
def test_a_pickle_in_a_checkpoint_of_the_trainer(tmp_path: Path, proof: Path, name: str) -> None:
    """Replaced, the manifest says so; with a manifest made anew, the Trainer's own loading refuses it."""
    small_trainer(tmp_path / "out", 2).train()
    sealed = checkpoint.seal(tmp_path / "out" / "checkpoint-1", tmp_path, 1)
    assert checkpoint.problem(sealed) is None
    state = random.getstate()
    poison(sealed / name, proof)
    assert checkpoint.problem(sealed) == f"{name} is not as it was sealed"
    (sealed / checkpoint.MANIFEST).unlink()
    sealed.rename(tmp_path / "again")
    sealed = checkpoint.seal(tmp_path / "again", tmp_path, 1)
    reporter: Any = SimpleNamespace(
        run=SimpleNamespace(checkpoints=tmp_path), is_main=True, health=lambda _: None, phase=lambda _: None
    )
    requests = SimpleNamespace(signals=SimpleNamespace(loaded=lambda: None))
    session: Any = SimpleNamespace(
        reporter=reporter, requests=requests, restarts=SimpleNamespace(now=Restart()), loaded=lambda: None
    )
    recipe: Any = load_recipe(Stage.SFT, None, ["model_name_or_path=demo"])
    trainer: Any = small_trainer(tmp_path / "more", 2)
    with pytest.raises(StageError, match="nothing of it was executed"):
        hf_trainer.fit(trainer, SimpleNamespace(stopped=False), recipe, session)  # type: ignore[arg-type]
    assert not proof.exists()
    random.setstate(state)


def test_even_a_library_that_asks_for_it_executes_nothing(
    tmp_path: Path, proof: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(tmp_path / "custom_checkpoint_0.pkl", proof)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # as argv.py gives it to every stage
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "custom_checkpoint_0.pkl", weights_only=False)
    assert not proof.exists()
