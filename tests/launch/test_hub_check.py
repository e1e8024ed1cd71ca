"""The hub before a launch: what it withholds is said by its name, in one sentence, and in time."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.launch.fake_hub import GATED, NO_REVISION, OK, FakeHub, dataset, file, model, serve
from tests.weights import write_weights

from stackllama_engine.contract.errors import RefusedError
from stackllama_engine.contract.recipe import AnyRecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import hub_check, launcher
from stackllama_engine.launch.hub_check import check_hub
from stackllama_engine.launch.inputs import resolve_inputs
from stackllama_engine.launch.timeouts import Asker

SOURCES = os.pathsep.join(str(Path(__file__).resolve().parents[2] / part) for part in ("console", "engine"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Serve `org/base`, `org/gated`, `org/bare` (no weights) and two data sets to somebody without login or cache."""
    monkeypatch.setenv("STACKLLAMA_HUB_DEADLINE", "20")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(hub_check, "_HUB", Asker("the hub"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    answers = model("org/base") | model("org/gated", GATED) | {file("org/bare"): OK}
    answers |= {file("org/base", revision="v9"): NO_REVISION}
    answers |= dataset("org/rows") | dataset("org/locked", "auto") | {"/api/datasets/org/locked/auth-check": GATED}
    with serve(answers) as hub:
        monkeypatch.setattr(hub_check, "endpoint", lambda: hub.address)
        yield hub


def sft(name: str, *words: str) -> AnyRecipe:
    """Return an SFT recipe; its data are the demo's unless a word says otherwise."""
    return load_recipe(Stage.SFT, None, [f"model_name_or_path={name}", "dataset_name=demo", *words])


def problem(recipe: AnyRecipe) -> str:
    with pytest.raises(RefusedError) as caught:
        check_hub(recipe)
    return str(caught.value)


def test_what_can_be_downloaded_is_not_refused(hub: FakeHub) -> None:
    check_hub(sft("org/base", "dataset_name=org/rows"))
    assert hub.asked == [file("org/base"), file("org/base", "model.safetensors"), "/api/datasets/org/rows"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("org/none",), ("`model_name_or_path: org/none`", "no such model", "hf auth login")),
        (("org/bare",), ("`model_name_or_path: org/bare`", "has no model.safetensors or")),
        (("org/base", "model_revision=v9"), ("`model_revision: v9`",)),
        (("org/gated",), ("`model_name_or_path: org/gated`: a gated model, and nobody is logged in", "/org/gated")),
        (("demo", "dataset_name=org/no"), ("`dataset_name: org/no`", "no such data set")),
        (("demo", "dataset_name=org/locked"), ("`dataset_name: org/locked`: a gated data set", "/datasets/org/locked")),
    ],
)
def test_each_problem_has_its_name(
    hub: FakeHub, tmp_path: Path, words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    recipe, _ = resolve_inputs(Home(tmp_path / "home"), sft(*words))
    text = problem(recipe)
    assert all(part in text for part in parts), text


def test_a_login_without_access_is_told_to_accept_the_licence(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    text = problem(sft("org/gated"))
    assert "this account has no access: accept its licence at" in text and "logged in" not in text


def test_offline_is_said_by_the_variables_name(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, and the model is not in the cache" in problem(sft("org/base"))
    assert not hub.asked


def test_a_hub_that_refuses_connections_is_unreachable(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_check, "endpoint", lambda: "http://person:secret@127.0.0.1:9")
    text = problem(sft("org/base", "dataset_name=org/rows"))
    assert text.startswith("`model_name_or_path: org/base`, `dataset_name: org/rows`: would be downloaded")
    assert text.count("the hub at 127.0.0.1:9 cannot be reached") == 1 and "secret" not in text


def test_a_hub_that_never_answers_is_given_up_in_time(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = threading.Event()
    monkeypatch.setenv("STACKLLAMA_HUB_DEADLINE", "0.05")
    monkeypatch.setattr(hub_check, "_problem", lambda _: hangs.wait(60))
    try:
        assert "cannot be reached (the hub has not answered for" in problem(sft("org/base"))
    finally:
        hangs.set()


def test_every_stage_of_a_pipeline_is_asked_about_once(hub: FakeHub) -> None:
    recipe = load_recipe(Stage.PIPELINE, None, ["model_name_or_path=org/base", "dataset_name=org/rows"])
    check_hub(recipe)
    assert len(hub.asked) == 3
    judged = load_recipe(Stage.PPO, None, ["model_name_or_path=demo", "dataset_name=demo", "reward_model_path=org/no"])
    assert "`reward_model_path: org/no`" in problem(resolve_inputs(Home(Path("/nowhere")), judged)[0])


def test_what_is_cached_whole_is_not_asked_about(hub: FakeHub, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--away"
    snapshot = repository / "snapshots" / ("b" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("b" * 40)
    (snapshot / "config.json").write_text("{}")
    assert "no such model" in problem(sft("org/away"))  # its weights would be downloaded
    write_weights(snapshot)
    (tmp_path / "hub" / "datasets--org--away" / "snapshots" / "c").mkdir(parents=True)
    hub.asked.clear()
    check_hub(sft("org/away", "dataset_name=org/away", "dataset_streaming=false"))
    check_hub(sft("org/away", f"model_revision={'b' * 40}"))
    assert not hub.asked
    assert "no such data set" in problem(sft("org/away", "dataset_name=org/away", "dataset_streaming=true"))


def test_a_launch_refuses_before_anything_is_created(hub: FakeHub, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with pytest.raises(RefusedError, match="a gated model"):
        launcher.plan(home, sft("org/gated", "use_cpu=true"))
    assert not home.path.exists()


@pytest.mark.slow
def test_the_command_refuses_by_hf_endpoint_and_a_dry_run_does_not_ask(hub: FakeHub, tmp_path: Path) -> None:
    environment = os.environ | {
        "HF_ENDPOINT": hub.address,
        "PYTHONPATH": SOURCES,
        "STACKLLAMA_HOME": str(tmp_path / "h"),
    }
    words = ["launch", "sft", "model_name_or_path=org/gated", "dataset_name=demo", "use_cpu=true"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "stackllama_console", *words, *more]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)

    refused = run()
    assert refused.returncode == 3 and "a gated model, and nobody is logged in" in refused.stderr
    assert not (tmp_path / "h").exists()
    planned = run("--dry-run", "--json")
    assert planned.returncode == 0 and json.loads(planned.stdout)["recipe"]["model_name_or_path"] == "org/gated"
