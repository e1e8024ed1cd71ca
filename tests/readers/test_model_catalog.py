"""Models of this machine: every place is looked at, nothing hostile stops it or comes through."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from stackllama_console.readers import model_catalog
from stackllama_console.readers.model_catalog import ModelEntry, describe, find_models, locate
from stackllama_engine.contract.base import DEMO_BASE
from stackllama_engine.contract.recipe_io import dump_recipe, load_recipe
from stackllama_engine.contract.run_dir import Home, State
from stackllama_engine.contract.stages import Stage

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 10,
    "tie_word_embeddings": True,
    "architectures": ["LlamaForCausalLM"],
}
PARAMETERS = 4 * 64 + 3 * 128 + 80 + 24


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


def put_model(path: Path, **changes: Any) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(CONFIG | changes))
    return path


def put_cached(cache: Path, folder: str, commit: str = "a" * 40, **changes: Any) -> Path:
    refs = cache / folder / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(commit)
    return put_model(cache / folder / "snapshots" / commit, **changes)


def put_run(home: Home, name: str, phase: str = "finished", created: float = 1.0, **changes: Any) -> None:
    run = home.create(Stage.MERGE, dump_recipe(load_recipe(Stage.MERGE, None, ["adapter_path=x"])), name)
    run.write_state(State(stage=Stage.MERGE, phase=phase, created=created))  # type: ignore[arg-type]
    put_model(run.merged, **changes)


def listed(home: Home, cache: Path, **more: Any) -> list[ModelEntry]:
    return list(find_models(home, cache=cache, **more))


def test_the_demo_comes_first_and_alone_on_an_empty_machine(home: Home, tmp_path: Path) -> None:
    (demo,) = listed(home, tmp_path / "nowhere", folders=[tmp_path / "nowhere"])
    assert (demo.name, demo.kind, demo.parameters, demo.warning) == ("demo", "demo", 391_104, None)
    assert demo.bytes_on_disk and demo.bytes_on_disk > 700_000


def test_every_place_in_order(home: Home, cache: Path, tmp_path: Path) -> None:
    put_run(home, "older")
    put_run(home, "newer", created=2.0)
    put_cached(cache, "models--org--cached")
    put_model(tmp_path / "mine" / "one")
    (tmp_path / "mine" / "notes").mkdir()
    found = listed(home, cache, recent=["org/far", "older", "demo"], folders=[tmp_path / "mine"])
    assert [(one.kind, one.name) for one in found] == [
        ("demo", "demo"),
        ("run", "newer"),
        ("run", "older"),
        ("recent", "org/far"),
        ("cache", "org/cached"),
        ("folder", str(tmp_path / "mine" / "one")),
    ]
    assert [one.parameters for one in found[1:]] == [PARAMETERS, PARAMETERS, None, PARAMETERS, PARAMETERS]
    assert found[3].warning and "not on this machine" in found[3].warning


def test_it_is_lazy(home: Home, cache: Path) -> None:
    put_cached(cache, "models--org--cached").joinpath("config.json").write_text("{")
    assert next(find_models(home, cache=cache)).name == "demo"


def test_only_finished_merges_are_models(home: Home, cache: Path) -> None:
    put_run(home, "running", phase="running")
    assert [one.kind for one in listed(home, cache)] == ["demo"]


def test_merged_reward_model_is_marked_as_generating_nothing(home: Home, cache: Path) -> None:
    put_run(home, "judge", architectures=["LlamaForSequenceClassification"])
    assert "generates none" in (listed(home, cache)[1].warning or "")


def test_the_cache_in_all_its_states(home: Home, cache: Path) -> None:
    put_cached(cache, "models--gpt2")
    put_cached(cache, "models--org--encoder", architectures=["BertModel"])
    put_cached(cache, "models--org--truncated").joinpath("model.safetensors").write_bytes(b"\x01")
    put_cached(cache, "datasets--org--rows")
    (cache / "models--org--empty").mkdir()
    (cache / "models--org--dangling" / "refs").mkdir(parents=True)
    (cache / "models--org--dangling" / "refs" / "main").write_text("b" * 40)
    (cache / "version.txt").write_text("1")
    found = {one.name: one for one in listed(home, cache)}
    assert sorted(found) == ["demo", "gpt2", "org/truncated"]
    assert found["gpt2"].warning is None
    assert found["org/truncated"].architecture is None
    assert "truncated" in (found["org/truncated"].warning or "")


def test_a_reference_cannot_lead_out_of_the_cache(home: Home, cache: Path, tmp_path: Path) -> None:
    put_model(tmp_path / "secret")
    for number, commit in enumerate(["../../../secret", str(tmp_path / "secret"), "", "x" * 5000, "a\n../../secret"]):
        refs = cache / f"models--org--m{number}" / "refs"
        refs.mkdir(parents=True)
        (refs.parent / "snapshots").mkdir()
        (refs / "main").write_text(commit)
    assert [one.name for one in listed(home, cache)] == ["demo"]


def test_a_gguf_repository_offers_its_files(home: Home, cache: Path) -> None:
    snapshot = put_cached(cache, "models--org--small")
    (snapshot / "config.json").unlink()
    (snapshot / "small.gguf").write_bytes(b"GGUF")
    (entry,) = listed(home, cache)[1:]
    assert entry.name == str(snapshot / "small.gguf")
    assert "truncated" in (entry.warning or "")


def test_a_huge_cache_is_cut(home: Home, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_catalog, "MOST", 3)
    for number in range(5):
        put_cached(cache, f"models--org--m{number}")
    assert len(listed(home, cache)) == 1 + 3


def test_names_are_shown_sanitised(home: Home, cache: Path, tmp_path: Path) -> None:
    name = "ev\x1b[2Jil\u202e"
    put_model(tmp_path / "mine" / name, model_type="\x1b]0;title\x07x")
    (entry,) = listed(home, cache, folders=[tmp_path / "mine"])[1:]
    assert entry.name.endswith(name)
    assert entry.title.endswith("evil")
    assert "refused at launch" in (entry.warning or "")
    odd = describe(home, "org/\x1b[31mred", cache)
    assert odd.title == "org/red"


def test_warning_is_one_clean_line(home: Home, cache: Path, tmp_path: Path) -> None:
    put_model(tmp_path / "mine" / "m", model_type="\x1b]0;title\x07two\nlines")
    (entry,) = listed(home, cache, folders=[tmp_path / "mine"])[1:]
    assert entry.warning and entry.warning.isprintable()


def test_where_a_name_is_found(home: Home, cache: Path, tmp_path: Path) -> None:
    put_run(home, "merged")
    cached = put_cached(cache, "models--org--m")
    here = put_model(tmp_path / "here")
    assert locate(home, "demo", cache) == DEMO_BASE
    assert locate(home, "merged", cache) == home.run("merged").merged
    assert locate(home, str(here), cache) == here.resolve()
    assert locate(home, "org/m", cache) == cached
    for unknown in ("org/other", "x" * 5000, "a\0b", "~nobody-at-all/x", "../..//", "", "org/../m", "a/b/c"):
        found = locate(home, unknown, cache)
        assert found is None or found.exists()
    assert describe(home, "org/m", cache).parameters == PARAMETERS


def test_the_environment_says_where_the_cache_is(home: Home, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_cached(cache, "models--org--m")
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    assert [one.name for one in find_models(home)] == ["demo", "org/m"]


def test_no_library_that_trains_or_draws_is_loaded() -> None:
    import subprocess

    code = (
        "import sys, stackllama_console.readers.model_catalog; "
        "print(*sorted({'torch', 'numpy', 'transformers', 'huggingface_hub', 'rich', 'textual'} & set(sys.modules)))"
    )
    root = Path(model_catalog.__file__).parents[2]
    engine = root.parent / "engine"
    result = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": f"{root}:{engine}"}, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout.split()) == (0, []), result.stderr
