"""`plan`: what it prints, and that it needs neither torch nor a network."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.llama_7b import LLAMA_7B

from stackllama_engine.budget.calibration import Kind, Row, add_row
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import calibrate
from stackllama_engine.launch import main_memory as machine_memory
from stackllama_engine.launch.machine_check import package_versions
from stackllama_engine.launch.main_memory import MainMemory

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("load_in_8bit=true", "lora_r=16", "per_device_train_batch_size=4", "max_length=1024")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(LLAMA_7B))
    return path


def test_the_document(model: Path, run_main: Callable[..., Any]) -> None:
    result = run_main("plan", "sft", f"model_name_or_path={model}", *WORDS, "--json", "--gpu", "12GiB")
    assert result.code == 0
    found = result.json()
    wanted = {"allocated", "reserved", "device", "phase", "components", "rule_of_thumb", "fits", "suggestions"}
    assert wanted <= set(found)
    assert 11.8e9 < found["allocated"] < 12.6e9
    assert sum(found["components"].values()) == found["allocated"] == found["phases"][found["phase"]]
    assert found["allocated"] <= found["reserved"][0] <= found["reserved"][1] <= found["device"][1]
    assert found["fits"] in ("tight", "no")
    assert found["place"] == {"bytes": 12 << 30, "name": "12GiB", "on_gpu": True, "gpus": 1}
    assert any(one["fits"] == "yes" for one in found["suggestions"])
    assert found["rule_of_thumb"][-1]["low"] == round(1.2 * found["model"]["parameters"])


FULL = ("load_in_8bit=false", "use_peft=false", "dtype=bfloat16")


def test_what_if_it_were_sharded(model: Path, run_main: Callable[..., Any]) -> None:
    words = ("plan", "sft", f"model_name_or_path={model}", *FULL, "--gpu", "A100-80GB", "--gpus", "8")
    whole = run_main(*words, "--json").json()
    assert whole["shard"] is None and whole["place"]["gpus"] == 8
    assert whole["components"]["ddp buckets"] == 2 * whole["model"]["parameters"]
    result = run_main(*words, "--shard", "fsdp", "--json")
    found = result.json()
    assert (result.code, found["fits"], found["suggestions"], found["device"]) == (1, "unknown", [], None)
    assert found["shard"] == {"kind": "fsdp", "ranks": 8} and "fsdp was never measured" in found["unknown"]
    assert whole["model"]["parameters"] * 8 / 8 <= found["at_least"] < whole["allocated"] / 3
    assert "estimate only; launch does not shard" in run_main(*words, "--shard", "zero3").out


def test_an_adapter_whose_base_is_sharded_is_estimated(model: Path, run_main: Callable[..., Any]) -> None:
    words = ("plan", "sft", f"model_name_or_path={model}", "load_in_8bit=false", "--gpu", "A100-80GB", "--gpus", "8")
    whole = run_main(*words, "--json").json()
    found = run_main(*words, "--shard", "fsdp", "--json").json()
    assert 8 * found["components"]["base weights"] == pytest.approx(whole["components"]["base weights"], abs=8)
    assert sum(found["components"].values()) == found["allocated"] < whole["allocated"]
    assert (found["fits"], found["unknown"], found["at_least"]) == ("yes", None, None)


MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
}


def test_what_nobody_knows_looks_like_no_success(model: Path, run_main: Callable[..., Any]) -> None:
    (model / "config.json").write_text(json.dumps(MIXTRAL))
    words = ("plan", "sft", f"model_name_or_path={model}", "base_precision=int8", "--gpu", "H200")
    result = run_main(*words)
    assert result.code == 1
    assert "unknown: at least 170.2 GiB, which is more than there is" in result.out
    assert "`base_precision: bf16`" in result.out and "allocated" not in result.out and "RULE" not in result.out
    document = run_main(*words, "--json")
    found = document.json()
    assert (document.code, found["fits"], found["suggestions"]) == (1, "unknown", [])
    assert found["at_least"] // (1 << 30) == 170 and "experts" in found["unknown"]
    keys = ("allocated", "reserved", "device", "phase", "components", "phases", "rule_of_thumb")
    assert [found[key] for key in keys] == [None] * len(keys)


def test_an_unknown_stage_is_not_hidden_by_a_larger_one_that_fits(model: Path, run_main: Callable[..., Any]) -> None:
    (model / "config.json").write_text(json.dumps(MIXTRAL))
    words = (
        "plan",
        "pipeline",
        f"model_name_or_path={model}",
        "load_in_8bit=true",
        "reward.load_in_8bit=false",
        "merge.use_cpu=false",
        "--gpu",
        "100TB",
    )
    result = run_main(*words)
    assert result.code == 1
    assert "decides" in result.err and "unknown: at least 170.2 GiB\n" in result.out
    stages = run_main(*words, "--json").json()["stages"]
    assert {name: one["fits"] for name, one in stages.items()} == {
        "sft": "unknown",
        "reward": "yes",
        "ppo": "unknown",
        "merge": "yes",
    }


@pytest.mark.parametrize(
    ("stage", "words", "said"),
    [
        ("sft", (*FULL, "--shard", "fsdp", "--gpu", "24GiB"), "--gpus 8"),
        ("sft", ("--shard", "zero3", "--gpu", "24GiB", "--gpus", "2", "base_precision=int8"), "base_precision: bf16"),
        ("ppo", ("reward_model_path=r", "--shard", "zero2", "--gpu", "24GiB", "--gpus", "2"), "Leave `--shard` out"),
    ],
)
def test_what_cannot_be_sharded_says_the_way_out(
    model: Path, run_main: Callable[..., Any], stage: str, words: tuple[str, ...], said: str
) -> None:
    result = run_main("plan", stage, f"model_name_or_path={model}", *words)
    assert result.code == 2
    assert said in result.err


def test_no_torch_is_imported(model: Path) -> None:
    code = (
        "import sys; from stackllama_console.__main__ import main; "
        f"code = main(['plan', 'sft', 'model_name_or_path={model}', '--json', '--gpu', '24GiB']); "
        "heavy = {'torch', 'numpy', 'transformers', 'textual', 'huggingface_hub', 'pynvml', 'statistics'}; "
        "heavy |= {'stackllama_engine.launch.launcher', 'stackllama_engine.launch.supervisor'}; "
        "print(sorted(heavy & set(sys.modules)), "
        "file=sys.stderr); sys.exit(code)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "console"), str(ROOT / "engine")])}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.strip()) == (0, "[]")
    assert json.loads(result.stdout)["fits"] == "yes"


def test_for_people(model: Path, run_main: Callable[..., Any]) -> None:
    text = run_main("plan", "sft", f"model_name_or_path={model}", "--gpu", "RTX-3080").out
    assert "6.74 billion parameters" in text
    assert "it does not fit" in text
    assert "base weights" in text and "first layer's backward" in text
    assert "int8 + LoRA" in text
    assert "per_device_train_batch_size=" in text
    assert "THEN" not in run_main("plan", "sft", f"model_name_or_path={model}", "--gpu", "H100").out


def test_a_pipeline_is_as_large_as_its_largest_stage(model: Path, run_main: Callable[..., Any]) -> None:
    found = run_main("plan", "pipeline", f"model_name_or_path={model}", "--json", "--gpu", "80GB").json()
    assert set(found["stages"]) == {"sft", "reward", "ppo", "merge"}
    assert found["allocated"] == max(stage["allocated"] for name, stage in found["stages"].items() if name != "merge")


def test_merges_of_a_pipeline_are_counted_where_they_run(
    model: Path, run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_memory, "main_memory", lambda: MainMemory(total=16 << 30, available=8 << 30))
    words = ("plan", "pipeline", f"model_name_or_path={model}", "bf16=true", "gradient_checkpointing=true")
    result = run_main(*words, "--gpu", "24GiB", "--json")
    stages = result.json()["stages"]
    assert {name: (one["place"]["on_gpu"], one["fits"]) for name, one in stages.items()} == {
        "sft": (True, "yes"),
        "reward": (True, "yes"),
        "ppo": (True, "yes"),
        "merge": (False, "no"),
    }
    assert stages["merge"]["allocated"] > 24 << 30
    assert (result.json()["fits"], result.json()["stage"]) == ("yes", "ppo")
    said = "merge runs on the CPU (`use_cpu: true`), not on 24GiB: it needs "
    assert said in result.err and "of main memory; this machine has 16.0 GiB." in result.err
    text = run_main(*words, "--gpu", "24GiB")
    assert "it fits" in text.out and "ppo needs the most GPU memory of all pipeline stages." in text.err
    on_card = run_main(*words, "merge.use_cpu=false", "--gpu", "24GiB", "--json")
    assert (on_card.json()["fits"], on_card.json()["stage"]) == ("no", "merge")
    assert "use_cpu" not in on_card.err


def test_a_pipeline_on_the_cpu_is_compared_with_this_machines_memory(
    model: Path, run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_memory, "main_memory", lambda: MainMemory(total=16 << 30, available=8 << 30))
    words = ("plan", "pipeline", f"model_name_or_path={model}", "use_cpu=true", "load_in_8bit=false", "--gpu", "80GB")
    found = run_main(*words, "--json").json()
    assert (found["fits"], found["place"]["on_gpu"], found["place"]["bytes"]) == ("no", False, 16 << 30)


def test_a_recipe_file_and_the_cpu(model: Path, tmp_path: Path, run_main: Callable[..., Any]) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("model_name_or_path: demo\nuse_cpu: true\nload_in_8bit: false\n")
    found = run_main("plan", "sft", str(file), "lora_r=4", "--json").json()
    assert not found["place"]["on_gpu"]
    assert found["fits"] == "yes"


def test_the_base_of_an_adapter_that_is_merged(
    model: Path, make_run: Callable[..., RunDir], run_main: Callable[..., Any]
) -> None:
    run = make_run(Stage.SFT, "tuned")
    run.adapter.mkdir()
    (run.adapter / "adapter_config.json").write_text("{}")
    (run.adapter / "base.json").write_text(json.dumps({"name": str(model)}))
    found = run_main("plan", "merge", "adapter_path=tuned", "--json", "--gpu", "80GB").json()
    assert found["model"]["parameters"] == 6_738_415_616
    assert found["allocated"] > 4 * 6_738_415_616


def test_a_reward_model_on_another_base_is_a_second_model(
    model: Path, tmp_path: Path, make_run: Callable[..., RunDir], run_main: Callable[..., Any]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(LLAMA_7B))
    sizes: dict[str, int] = {}
    for name, base in {"shared": model, "separate": other}.items():
        run = make_run(Stage.REWARD, name)
        run.adapter.mkdir()
        (run.adapter / "adapter_config.json").write_text("{}")
        (run.adapter / "base.json").write_text(json.dumps({"name": str(base)}))
        words = (f"model_name_or_path={model}", f"reward_model_path={name}")
        found = run_main("plan", "ppo", *words, "--json", "--gpu", "80GB").json()
        sizes[name] = found["allocated"]
        assert found["rough"] is None
    assert sizes["separate"] - sizes["shared"] > 13e9


def test_what_runs_measured_here_narrows_the_range_and_says_so(
    model: Path, home: Home, run_main: Callable[..., Any]
) -> None:
    words = ("plan", "sft", f"model_name_or_path={model}", "use_cpu=true", "load_in_8bit=false")
    before = run_main(*words, "--json").json()
    assert before["calibrated"] is None
    home.path.mkdir(exist_ok=True)
    low, high = before["device"]
    known = package_versions()
    kind = Kind(
        machine=calibrate.machine_name(socket.gethostname(), on_gpu=False),
        stage="sft",
        gpus=1,
        on_gpu=False,
        versions={name: known[name] for name in calibrate.MATTER if name in known},
        method="lora auto no autocast",
    )
    middle = (low + high) // 2
    for _ in range(3):
        row = Row(kind=kind, run="r", time=1.0, allocated=before["allocated"], interval=(low, high), measured=middle)
        add_row(home.path, row)
    after = run_main(*words, "--json").json()
    assert after["calibrated"] == "range narrowed by 3 finished runs of this kind on this machine"
    assert low < after["device"][0] < after["device"][1] < high
    assert after["allocated"] == before["allocated"]
    assert "range narrowed by 3 finished runs" in run_main(*words).out
    assert run_main(*words, "--gpu", "H100", "--json").json()["calibrated"] is None, "another machine's card"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sft", "model_name_or_path=org/far"], "not on this machine"),
        (["sft", "model_name_or_path=/nowhere"], "not on this machine"),
        (["sft", "model_name_or_path=demo", "--gpu", "RTX4o90"], "did you mean `RTX-4090`?"),
        (["sft", "model_name_or_path=demo", "max_lenth=3"], "Did you mean `max_length`?"),
        (["merge", "adapter_path=nothing"], "not on this machine"),
        (["sft"], "`model_name_or_path` is required"),
    ],
)
def test_mistakes_end_in_one_message(words: list[str], expected: str, run_main: Callable[..., Any]) -> None:
    result = run_main("plan", *words)
    assert (result.code, result.out) == (2, "")
    assert expected in result.err
    assert len(result.err.splitlines()) == 1


def test_a_hostile_model_is_refused_cleanly(
    model: Path, run_main: Callable[..., Any], payloads: list[str], assert_clean: Callable[[str], None]
) -> None:
    for payload in payloads:
        (model / "config.json").write_text(json.dumps({**LLAMA_7B, "model_type": payload}))
        result = run_main("plan", "sft", f"model_name_or_path={model}", "--gpu", "24GiB")
        assert result.code == 1 and "unknown: at least" in result.out
        assert_clean(result.out + result.err)
        (model / "config.json").write_text(json.dumps({**LLAMA_7B, "hidden_size": payload}))
        result = run_main("plan", "sft", f"model_name_or_path={model}", "--gpu", "24GiB", "--json")
        assert result.code == 2
        assert_clean(result.err)


@pytest.mark.slow
def test_a_trace_beside_the_formula(model: Path, run_main: Callable[..., Any]) -> None:
    words = ("plan", "sft", f"model_name_or_path={model}", *WORDS, "--trace")
    found = run_main(*words, "--json").json()["trace"]
    assert found["allocated"] == found["phases"][found["phase"]]
    assert abs(found["difference"]) < 0.01
    assert {"torch", "transformers", "peft", "trl", "bitsandbytes"} == set(found["versions"])


def test_a_merge_has_nothing_to_trace(run_main: Callable[..., Any], model: Path) -> None:
    result = run_main("plan", "merge", f"adapter_path={model}", "--trace")
    assert result.code == 2
    assert "a merge has none" in result.err
