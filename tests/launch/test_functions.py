"""Looking for a reward function before launch: found where it will be imported, and judged by its source alone."""

from collections.abc import Collection
from pathlib import Path

import pytest

from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.recipe import PPORecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.functions import check_options, find_function, parameters_of
from stackllama_engine.launch.inputs import resolve_inputs

GOOD = "def judge(*, questions, responses):\n    return [0.0 for _ in responses]\nraise SystemExit('it was run')\n"


def find(reference: str, directory: Path | None = None, given: Collection[str] | None = None) -> str | None:
    return find_function(reference, str(directory) if directory else None, given)


def write(file: Path, text: str = GOOD) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_found_in_the_working_directory_then_in_pythonpath_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    write(there / "judges.py")
    monkeypatch.chdir(here)
    with pytest.raises(UsageError, match=r"there is no module `judges` in .*here, in PYTHONPATH"):
        find("judges:judge")
    monkeypatch.setenv("PYTHONPATH", f"missing:{there}")
    assert find("judges:judge") == str(there)
    write(here / "judges.py")
    assert find("judges:judge") == str(here)
    assert find("judges:judge", there) == str(there)


@pytest.mark.parametrize("package", ["", "__init__.py"])
def test_found_in_packages(tmp_path: Path, package: str) -> None:
    write(tmp_path / "one" / "two" / "judges.py")
    if package:
        write(tmp_path / "one" / package)
    write(tmp_path / "whole" / "__init__.py")
    assert find("one.two.judges:judge", tmp_path) == find("whole:judge", tmp_path) == str(tmp_path)


def test_an_installed_module_needs_no_directory() -> None:
    assert find("msgspec.json:schema_components") is None


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def jugde(questions, responses): ...", "defines no `judge`. Did you mean `jugde`?"),
        ("def judge(questions, responses) ...", "judges.py, line 1 is not valid Python"),
        ("def judge(texts): ...", "takes neither `completions` nor `responses`; it is called with keywords"),
        ("def judge(prompts, answer): ...", "takes neither `completions` nor `responses`"),
        ("async def judge(responses, scale): ...", "needs `scale`, which is neither a column of the data nor in"),
        ("def judge(completions, *, solution): ...", "in `reward_kwargs` (`answer`, `level`)."),
        ("def judge(answer, /, responses): ...", "takes `answer` by position only"),
    ],
)
def test_what_cannot_be_called_is_refused(tmp_path: Path, source: str, said: str) -> None:
    write(tmp_path / "judges.py", source)
    with pytest.raises(UsageError) as caught:
        find("judges:judge", tmp_path, {"answer", "level"})
    assert str(caught.value).startswith("`reward_funcs: judges:judge`: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "def judge(questions, responses): ...",
        "def judge(responses, questions, scale=2, *, more=1): ...",
        "def judge(responses): ...",
        "def judge(prompts, completions, answer, **kwargs): ...",
        "async def judge(completions, level): ...",
        "def judge(completions, question, answer, **kwargs): ...",
        "def judge(responses, **others): ...",
        "@anything\ndef judge(texts): ...",
        "judge = make()",
        "from elsewhere import judge",
        "from elsewhere import *",
        "try:\n    import fast as judge\nexcept ImportError:\n    judge = None",
        "class judge: ...",
        "def __getattr__(name): ...",
    ],
)
def test_what_might_be_a_function_is_let_through(tmp_path: Path, source: str) -> None:
    write(tmp_path / "judges.py", source)
    assert find("judges:judge", tmp_path, {"answer", "level"}) == str(tmp_path)


def test_columns_that_are_not_known_are_left_to_the_stage(tmp_path: Path) -> None:
    write(tmp_path / "judges.py", "def judge(completions, answer): ...")
    assert find("judges:judge", tmp_path) == str(tmp_path)


def test_ready_functions_need_no_directory() -> None:
    assert find("stackllama_engine.rewards:exact_number", None, {"answer"}) is None
    with pytest.raises(
        UsageError, match=r"`exact_number` in .*exact_number.py needs `answer`, which is neither a column"
    ):
        find("stackllama_engine.rewards:exact_number", None, {"solution"})


@pytest.mark.parametrize(
    ("source", "refused"),
    [
        ("def judge(completions, scale=1): ...", True),
        ("def judge(responses, *, skale=1): ...", False),
        ("def judge(responses, **others): ...", False),
        ("@anything\ndef judge(responses): ...", False),
        ("from elsewhere import judge", False),
    ],
)
def test_an_option_that_no_function_takes_is_refused_where_the_source_tells(
    tmp_path: Path, source: str, refused: bool
) -> None:
    write(tmp_path / "judges.py", source)
    keys = [f"reward_func_paths=[{tmp_path}]", "reward_funcs=judges:judge", "reward_kwargs.skale=2"]
    recipe = load_recipe(Stage.PPO, None, ["model_name_or_path=demo", "dataset_name=demo", *keys])
    if refused:
        with pytest.raises(UsageError, match="`reward_kwargs` has `skale`, and none of `reward_funcs` has such a"):
            resolve_inputs(Home(tmp_path / "home"), recipe)
    else:
        resolve_inputs(Home(tmp_path / "home"), recipe)


def test_options_are_those_of_any_function() -> None:
    ready = [parameters_of(f"stackllama_engine.rewards:{name}", None) for name in ("target_length", "valid_json")]
    check_options(ready, ["words"])
    with pytest.raises(UsageError, match="has `pattern`"):
        check_options(ready, ["words", "pattern"])


def test_a_launch_writes_down_where_the_function_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "judges.py")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(Stage.PPO, None, ["model_name_or_path=demo", "dataset_name=demo", "reward_funcs=judges:judge"])
    resolved, parents = resolve_inputs(Home(tmp_path / "home"), recipe)
    assert isinstance(resolved, PPORecipe) and parents == []
    assert (resolved.reward_funcs, resolved.reward_func_paths) == (["judges:judge"], [str(tmp_path)])
    wrong = load_recipe(Stage.PPO, None, ["model_name_or_path=demo", "dataset_name=demo", "reward_funcs=judges:judg"])
    with pytest.raises(UsageError, match="Did you mean `judge`"):
        resolve_inputs(Home(tmp_path / "home"), wrong)
