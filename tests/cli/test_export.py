"""`export`: what it refuses, what it writes, and that nothing of it needs torch."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from tests.old_runs import lay_out

from stackllama_console import file_modes
from stackllama_engine.contract.disk_space import Free
from stackllama_engine.contract.prompt_format import PromptFormat, write_prompt_format
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import export

TEMPLATE = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Lay out runs of an earlier version: SFT, reward, PPO and a pipeline."""
    return Home(lay_out(tmp_path_factory.mktemp("old")))


@pytest.fixture
def run_export(old: Home, tmp_path: Path, run_main: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: str) -> Any:
        return run_main("--home", str(old.path), "export", *arguments, "--to", str(tmp_path / "out"))

    return call


def front_matter(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def adapter_run(make_run: Callable[..., RunDir], name: str, base: dict[str, Any], stage: Stage = Stage.SFT) -> RunDir:
    """Make a finished run whose adapter's files hold only what export reads."""
    run = make_run(stage, name)
    run.adapter.mkdir()
    config = {"base_model_name_or_path": base["name"], "task_type": "CAUSAL_LM", "revision": None}
    tokenizer = {"eos_token": "</s>", "chat_template": "old", "added_tokens_decoder": {"7": {"content": "</s>"}}}
    files: dict[str, Any] = {"adapter_config.json": config, "base.json": base, "tokenizer_config.json": tokenizer}
    for file, content in files.items():
        (run.adapter / file).write_text(json.dumps(content))
    for weights in ("adapter_model", "value_head"):
        (run.adapter / f"{weights}.safetensors").write_bytes(weights.encode())
    (run.adapter / "critic").mkdir()
    return run


def test_adapter_of_a_hub_base_names_it_with_its_revision(
    make_run: Callable[..., RunDir], tmp_path: Path, run_main: Callable[..., Any]
) -> None:
    run = adapter_run(make_run, "chatty", {"name": "owner/model", "revision": "abc"})
    write_prompt_format(run.adapter, PromptFormat(kind="chat", chat_template=TEMPLATE, system_prompt="Be kind."))
    (run.adapter / "generation_config.json").write_text('{"eos_token_id": [7, 9], "pad_token_id": 0}')
    out = tmp_path / "out"
    found = run_main("export", "chatty", "--to", str(out), "--json")
    assert found.code == 0
    facts = found.json()
    assert (facts["run"], facts["result"], facts["base"], facts["notices"]) == ("chatty", "adapter", "owner/model", [])
    assert facts["files"].keys() == {path.name for path in out.iterdir()}
    assert not {"value_head.safetensors", "critic"} & {path.name for path in out.iterdir()}
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/model", "abc")
    assert (out / "chat_template.jinja").read_text() == TEMPLATE
    assert "chat_template" not in json.loads((out / "tokenizer_config.json").read_text())
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": [7, 9], "pad_token_id": 0}
    assert json.loads((out / "prompt_format.json").read_text())["system_prompt"] == "Be kind."
    card = (out / "README.md").read_text()
    assert "> Be kind." in card and "machine of the training only" not in card
    assert front_matter(out) == {
        "base_model": "owner/model",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["stackllama-console", "sft", "lora"],
    }


def test_generation_config_of_ppo_samples_as_in_training(
    make_run: Callable[..., RunDir], tmp_path: Path, run_main: Callable[..., Any]
) -> None:
    adapter_run(make_run, "ppo", {"name": "owner/model", "revision": None}, Stage.PPO)
    assert run_main("export", "ppo", "--to", str(tmp_path / "out")).code == 0
    found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert found == {"eos_token_id": [7], "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def test_pipeline_stands_for_its_ppo_stage_and_its_local_base_is_named(
    old: Home, tmp_path: Path, run_export: Callable[..., Any]
) -> None:
    done = run_export("pipeline")
    assert (done.code, done.out) == (0, f"{tmp_path / 'out'}\n")
    assert "export it with `stackllama-console export pipeline-sft-merged`" in done.err
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**The base is on the machine of the training only**" in card and "`pipeline-sft-merged`" in card
    assert "base_model" not in front_matter(tmp_path / "out")  # the hub refuses what is no hub id
    assert str(old.path.parent) not in card and "| model_name_or_path | pipeline-sft-merged/merged |" in card
    line = re.findall(r"^\| (pipeline-\S+) \| (\w+) \| (\S*) \|", card, re.MULTILINE)
    assert line == [
        ("pipeline-sft", "sft", "base"),
        ("pipeline-sft-merged", "merge", ""),
        ("pipeline-reward", "reward", "pipeline-sft-merged/merged"),
        ("pipeline-ppo", "ppo", "pipeline-sft-merged/merged"),
    ]
    assert "| mean reward | 0.0383 | 0.0383 |" in card and "torch 2.13.0" in card
    assert "Question: {question}" in card


def test_merged_model_is_that_of_the_merge_run(old: Home, tmp_path: Path, run_export: Callable[..., Any]) -> None:
    facts = run_export("pipeline-ppo", "--merged", "--json").json()
    assert (facts["run"], facts["result"], facts["base"]) == ("pipeline-ppo-merged", "model", None)
    assert front_matter(tmp_path / "out")["library_name"] == "transformers"
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 1.0
    assert "trained by PPO" in (tmp_path / "out" / "README.md").read_text()


def test_card_of_a_merge_names_the_run_that_was_deleted(tmp_path: Path, run_main: Callable[..., Any]) -> None:
    home = Home(lay_out(tmp_path / "old"))
    shutil.rmtree(home.runs_dir / "pipeline-sft")
    out = tmp_path / "out"
    assert run_main("--home", str(home.path), "export", "pipeline-sft-merged", "--to", str(out)).code == 0
    assert "By run `pipeline-sft`, which was deleted here." in (out / "README.md").read_text()


def test_reward_model_has_no_generation_config(tmp_path: Path, run_export: Callable[..., Any]) -> None:
    assert run_export("reward").code == 0
    assert not (tmp_path / "out" / "generation_config.json").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AutoPeftModelForSequenceClassification" in card and "trained by reward modelling" in card
    assert "This card states no licence: add `license:`" in card


@pytest.mark.parametrize(
    ("run", "code", "message"),
    [
        (("sft", "--merged"), 3, "`stackllama-console merge sft`, then export with --merged"),
        (("ppo-stopped",), 3, "`ppo-stopped` is stopped and has no result yet"),
        (("lost",), 2, "No run `lost`"),
        (
            ("sft", "--push", "me/model"),
            3,
            "which only this machine has. Push the merged model (--merged); or push the base",
        ),
        (("pipeline-ppo", "--push", "me/model"), 3, "(`stackllama-console export pipeline-sft-merged --push …`)"),
        (("sft", "--push", "a b"), 2, "`--push a b`: expected a repository of the hub, such as `name/sft`"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(
    run: tuple[str, ...], code: int, message: str, tmp_path: Path, run_export: Callable[..., Any]
) -> None:
    done = run_export(*run)
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1) and message in done.err
    assert not (tmp_path / "out").exists()


def test_existing_folder_is_not_touched_unless_it_is_empty(tmp_path: Path, run_export: Callable[..., Any]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("kept")
    done = run_export("sft")
    assert done.code == 2 and "exists already and is not an empty folder" in done.err
    assert [path.name for path in out.iterdir()] == ["mine"]
    (out / "mine").unlink()
    assert run_export("sft").code == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []


def test_folder_that_a_link_names_is_written(tmp_path: Path, run_export: Callable[..., Any]) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "there")
    assert run_export("sft").code == 0
    assert (tmp_path / "out").is_symlink() and (tmp_path / "there" / "README.md").is_file()


def test_directory_of_the_runs_is_refused(old: Home, run_main: Callable[..., Any]) -> None:
    to = old.runs_dir / "shared"
    done = run_main("--home", str(old.path), "export", "sft", "--to", str(to))
    assert done.code == 2 and "which is for runs alone; name a folder elsewhere" in done.err
    assert not to.exists()


def test_modes_are_those_of_the_person_s_umask_and_folder(
    old: Home, tmp_path: Path, run_export: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_modes, "_users", 0o027)
    out = tmp_path / "out"
    assert run_export("sft").code == 0
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o640}
    assert out.stat().st_mode & 0o777 == 0o750
    shared = tmp_path / "new"
    shared.mkdir()
    shared.chmod(0o2775)
    result = export.find_result(old, old.run("sft"), merged=False)
    export.write_folder(result, {}, shared, old)
    assert shared.stat().st_mode & 0o7777 == 0o2775


def test_full_disk_is_a_sentence_and_leaves_nothing(
    tmp_path: Path, run_export: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "free", lambda _: Free(1000, None))
    done = run_export("sft")
    assert done.code == 1 and "The disk is full: the export takes" in done.err and done.err.count("\n") == 1
    monkeypatch.undo()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.shutil, "copyfile", full)
    done = run_export("sft")
    assert done.code == 1 and "The disk is full" in done.err
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set; unset it"),
        (LocalTokenNotFoundError("none"), "there is no token"),
        (HfHubHTTPError.__bases__[0]("no route"), "the hub cannot be reached (no route)"),
    ],
)
def test_failed_upload_keeps_the_folder_and_says_how_to_go_on(
    error: Exception, reason: str, tmp_path: Path, run_export: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    done = run_export("pipeline-ppo", "--merged", "--push", "me/model")
    assert done.code == 1 and f"Not uploaded: {reason}" in done.err
    assert f"`hf upload --private me/model {tmp_path / 'out'}`" in done.err
    assert (tmp_path / "out" / "README.md").is_file()


def test_upload_sends_the_folder_to_a_private_repository(
    tmp_path: Path, run_export: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def create(_: Any, repository: str, **options: Any) -> Any:
        calls.append({"repository": repository, **options})
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repository}")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda _, **options: calls.append(options))
    done = run_export("pipeline-ppo", "--merged", "--push", "me/model")
    assert (done.code, done.out) == (0, "https://huggingface.co/me/model\n")
    assert calls[0] == {"repository": "me/model", "private": True, "exist_ok": True}
    assert (calls[1]["repo_id"], calls[1]["folder_path"]) == ("me/model", tmp_path / "out")


def test_export_imports_nothing_that_trains(old: Home, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom stackllama_console.__main__ import main\n"
        f"code = main(['--home', {str(old.path)!r}, 'export', 'ppo', '--to', {str(tmp_path / 'out')!r}])\n"
        "print(code, sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ.copy(), capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
