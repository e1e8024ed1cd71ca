"""A recipe that differs from the last attempt's: named key by key, confirmed or restored, never resumed silently."""

import shutil

import pytest

from stackllama_engine.contract.errors import RecipeError
from stackllama_engine.contract.recipe_io import build_recipe, dump_recipe, load_recipe
from stackllama_engine.contract.run_dir import Home, Launch, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher
from stackllama_engine.launch.recipe_changes import RecipeChangedError, keep_recipe, refuse_changed

from .conftest import wait_for, wait_for_phase


def _launched(home: Home, name: str = "one") -> RunDir:
    recipe = build_recipe(Stage.SFT, {"model_name_or_path": "gpt2", "use_cpu": True, "load_in_8bit": False})
    run = launcher.launch(launcher.plan(home, recipe, name))
    wait_for_phase(run, "finished")
    wait_for(lambda: not run.lock_is_held())
    for made in (run.adapter, run.merged):  # the fake worker makes them once
        shutil.rmtree(made)
    run.write_state(State(stage=Stage.SFT, phase="failed", attempt=1, created=1.0, ended=2.0, exit_code=1))
    return run


def _edit(run: RunDir, before: str, after: str) -> None:
    text = run.recipe_file.read_text()
    assert text.count(before) == 1
    run.recipe_file.write_text(text.replace(before, after))


@pytest.mark.usefixtures("fake_stages", "runs")
def test_a_changed_value_must_be_confirmed_once(home: Home) -> None:
    run = _launched(home)
    copy = run.attempt_dir(1) / "recipe.yaml"
    assert copy.read_bytes() == run.recipe_file.read_bytes() and run.read_launch().recipe_sha256
    _edit(run, "\nseed: 0\n", "\nseed: 8\n")
    with pytest.raises(
        RecipeChangedError, match=r"since attempt 1: `seed` 0 → 8\. To undo this: cp .*--recipe-changed"
    ):
        launcher.resume(home, "one")
    assert run.read_state().attempt == 1 and not run.attempt_dir(2).exists(), "nothing was started"
    launcher.resume(home, "one", recipe_changed=True)
    wait_for_phase(run, "finished")
    wait_for(lambda: not run.lock_is_held())
    run.write_state(State(stage=Stage.SFT, phase="failed", attempt=2, created=1.0, ended=2.0, exit_code=1))
    refuse_changed(run, Stage.SFT)  # it was seen: attempt 2 ran with it


def test_the_same_values_written_differently_are_no_change(home: Home) -> None:
    run = _stopped(home)
    run.recipe_file.write_text(f"# my notes\n{run.recipe_file.read_text()}\n\n")
    refuse_changed(run, Stage.SFT)


@pytest.mark.parametrize("damage", [b"\xff", b"seeed: 0\n", b"a: [", b""])
def test_an_unreadable_recipe_names_the_copy_that_restores_it(home: Home, damage: bytes) -> None:
    run = _stopped(home)
    run.recipe_file.write_bytes(damage)
    with pytest.raises(
        RecipeError, match=r"Restore the copy that the run kept: cp .*attempts/001/recipe\.yaml .*recipe\.yaml"
    ):
        launcher.resume(home, "one")
    shutil.copy(run.attempt_dir(1) / "recipe.yaml", run.recipe_file)
    refuse_changed(run, Stage.SFT)


def test_a_damaged_copy_falls_back_to_the_newest_checkpoint(home: Home) -> None:
    run = _stopped(home)
    (run.attempt_dir(1) / "recipe.yaml").write_bytes(b"\xff")
    checkpoint = run.checkpoints / "step-000003"
    checkpoint.mkdir()
    shutil.copy(run.recipe_file, checkpoint / "recipe.yaml")
    _edit(run, "\nseed: 0\n", "\nseed: 8\n")
    with pytest.raises(RecipeChangedError, match="since step-000003: `seed` 0 → 8"):
        refuse_changed(run, Stage.SFT)


def _stopped(home: Home) -> RunDir:
    """As a launch leaves it, without one."""
    text = dump_recipe(build_recipe(Stage.SFT, {"model_name_or_path": "gpt2", "use_cpu": True}))
    run = home.create(Stage.SFT, text, "one")
    run.attempt_dir(1).mkdir()
    run.write_launch(Launch(argv=[], cwd="/", host="h", created=1.0, recipe_sha256=keep_recipe(run, 1)))
    run.write_state(State(stage=Stage.SFT, phase="failed", attempt=1, created=1.0, ended=2.0, exit_code=1))
    return run


def _old(home: Home) -> RunDir:
    """As earlier versions wrote them: neither a copy nor a hash; a checkpoint holds its recipe."""
    text = dump_recipe(build_recipe(Stage.SFT, {"model_name_or_path": "gpt2", "use_cpu": True}))
    run = home.create(Stage.SFT, text, "old")
    run.attempt_dir(1).mkdir()
    run.write_launch(Launch(argv=[], cwd="/", host="h", created=1.0))
    run.write_state(State(stage=Stage.SFT, phase="failed", attempt=1, created=1.0, ended=2.0, exit_code=1))
    return run


def test_a_run_without_copies_is_compared_with_the_newest_checkpoint(home: Home) -> None:
    run = _old(home)
    _edit(run, "\nseed: 0\n", "\nseed: 8\n")
    refuse_changed(run, Stage.SFT)  # nothing is left to compare with
    checkpoint = run.checkpoints / "step-000003"
    checkpoint.mkdir()
    (checkpoint / "recipe.yaml").write_text(run.recipe_file.read_text().replace("\nseed: 8\n", "\nseed: 0\n"))
    with pytest.raises(RecipeChangedError, match="since step-000003: `seed` 0 → 8"):
        refuse_changed(run, Stage.SFT)


def test_a_pipeline_compares_the_stages_that_it_would_resume(home: Home) -> None:
    pipeline = home.create(Stage.PIPELINE, "# stage: pipeline\n", "p")
    pipeline.recipe_file.write_text(dump_recipe(load_recipe(Stage.PIPELINE, None, ["model_name_or_path=gpt2"])))
    for suffix, phase in (("sft", "failed"), ("reward", "finished")):
        stage = Stage(suffix)
        text = dump_recipe(build_recipe(stage, {"model_name_or_path": "gpt2"}))
        child = home.create(stage, text, f"p-{suffix}")
        child.attempt_dir(1).mkdir()
        (child.attempt_dir(1) / "recipe.yaml").write_text(text)
        child.write_launch(Launch(argv=[], cwd="/", host="h", created=1.0, parents=["p"]))
        child.write_state(State(stage=stage, phase=phase, attempt=1, created=1.0))  # type: ignore[arg-type]
        _edit(child, "\nseed: 0\n", "\nseed: 8\n")
    with pytest.raises(RecipeChangedError) as caught:
        refuse_changed(pipeline, Stage.PIPELINE)
    assert len(caught.value.reasons) == 1 and caught.value.reasons[0].startswith("Run `p-sft`: its recipe has changed")
