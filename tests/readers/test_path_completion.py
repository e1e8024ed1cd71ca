"""Paths completed as a shell does."""

from pathlib import Path

import pytest

from stackllama_console.readers.path_completion import PATH_KEYS, complete_path
from stackllama_engine.contract.recipe import RECIPES


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("models/llama-7b", "models/llama-13b", "models/.hidden", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "models" / "bad\x1b[2J").mkdir()
    (tmp_path / "recipe.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "completed", "names"),
    [
        ("mo", "models/", ("models/",)),
        ("models/", "models/llama-", ("llama-13b/", "llama-7b/")),
        ("models/llama-7", "models/llama-7b/", ("llama-7b/",)),
        ("models/.h", "models/.hidden/", (".hidden/",)),
        ("rec", "recipe.yaml", ("recipe.yaml",)),
        ("~", "~/", ()),
        ("~/oth", "~/other/", ("other/",)),
        ("none", "none", ()),
        ("no/such/", "no/such/", ()),
        ("~nobody/x", "~nobody/x", ()),
        ("a\0b/", "a\0b/", ()),
    ],
)
def test_a_path_is_continued_as_far_as_its_candidates_agree(
    folder: Path, typed: str, completed: str, names: tuple[str, ...]
) -> None:
    completion = complete_path(typed)
    assert (completion.text, completion.names) == (completed, names)


def test_path_keys_are_recipe_keys() -> None:
    assert {name for recipe in RECIPES.values() for name in recipe.__struct_fields__} >= PATH_KEYS
