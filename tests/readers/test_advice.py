"""Changes that a cause advises: what is read from its sentences, and what of that is one for the run's recipe."""

from pathlib import Path

import msgspec
import pytest
from tests.tui.screens_kit import make_run

from stackllama_console.readers.advice import Fix, advised_changes, find_change, find_fix
from stackllama_engine.contract.health import Finding
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage


@pytest.mark.parametrize(
    ("cause", "changes"),
    [
        ("`a_b=1 c=8` would have fitted: 10 GiB of 11 GiB.", [{"a_b": "1", "c": "8"}]),
        (
            "No change of the recipe is certain to fit; `base_precision=nf4` saves most (9 GiB).",
            [{"base_precision": "nf4"}],
        ),
        (
            "Use `packing=false`, or `packing_strategy=wrapped` to",
            [{"packing": "false"}, {"packing_strategy": "wrapped"}],
        ),
        ("Use `gradient_checkpointing: true` or a smaller `response_length`.", [{"gradient_checkpointing": "true"}]),
        ("set `a=1` and `b=2`, so that", [{"a": "1", "b": "2"}]),
        ("use `bf16: true` instead of `fp16`; the checkpoints", [{"bf16": "true", "fp16": "false"}]),
        ("`max_length=8`: none of 512 training rows has a prompt that leaves room; raise `max_length`.", []),
        ("set `save_steps` to a multiple of `eval_steps`", []),
        ("killed by SIGKILL", []),
    ],
)
def test_advised_changes_are_read_from_sentences(cause: str, changes: list[dict[str, str]]) -> None:
    assert advised_changes(cause) == changes


@pytest.mark.parametrize(
    ("overrides", "cause", "changes"),
    [
        ([], "`per_device_train_batch_size=1` would have fitted", {"per_device_train_batch_size": "1"}),
        (["per_device_train_batch_size=1"], "`per_device_train_batch_size=1` would have fitted", None),
        (["packing=false"], "Use `packing=false`, or `packing_strategy=wrapped` to", {"packing_strategy": "wrapped"}),
        ([], "use `bf16: true` instead of `fp16`", None),  # it did not train in float16
        (["fp16=true"], "use `bf16: true` instead of `fp16`", {"bf16": "true", "fp16": "false"}),
        ([], "use `no_such_key: 1`", None),
        ([], "use `per_device_train_batch_size: many`", None),
    ],
)
def test_fix_is_what_changes_the_runs_recipe(
    tmp_path: Path, overrides: list[str], cause: str, changes: dict[str, str] | None
) -> None:
    run = make_run(Home(tmp_path), Stage.SFT, "failed", *overrides, phase="failed")
    state = msgspec.structs.replace(run.read_state(), cause=cause)
    fix = find_fix(run, state)
    assert (fix.changes if fix else None) == changes
    assert find_fix(run, msgspec.structs.replace(state, phase="finished")) is None


@pytest.mark.parametrize(
    ("cause", "key"),
    [
        ("`max_length=8`: none of 512 training rows has a prompt that leaves room; raise `max_length`.", "max_length"),
        ("The loss became NaN; lower `learning_rate`.", "learning_rate"),
        ("set `save_steps` to a multiple of `eval_steps`", None),
        ("`logits` takes the largest share", None),
    ],
)
def test_the_one_key_that_a_cause_names_is_looked_at(tmp_path: Path, cause: str, key: str | None) -> None:
    run = make_run(Home(tmp_path), Stage.SFT, "failed", phase="failed")
    fix = find_fix(run, msgspec.structs.replace(run.read_state(), cause=cause))
    assert (fix and (fix.changes, fix.key)) == (key and ({}, key))


def test_fix_needs_the_recipe(tmp_path: Path) -> None:
    run = make_run(Home(tmp_path), Stage.SFT, "failed", phase="failed")
    run.recipe_file.unlink()
    state = msgspec.structs.replace(run.read_state(), cause="`per_device_train_batch_size=1` would have fitted")
    assert find_fix(run, state) is None


def test_change_of_a_finding_is_the_newest_that_changes_the_recipe(tmp_path: Path) -> None:
    run = make_run(Home(tmp_path), Stage.PPO, "running", "kl_coef=0.4", phase="running")
    old = Finding(rule="kl_high", step=10, seen="", tries=[{"kl_coef": "0.8"}])
    new = Finding(rule="no_end", step=20, seen="", tries=[{"kl_coef": "0.4"}, {"no_such_key": "1"}])
    assert find_change(run, Stage.PPO, [old, new]) == Fix(run_id="running", changes={"kl_coef": "0.8"})
    assert find_change(run, Stage.PPO, [new]) is None
    assert find_change(run, Stage.PPO, []) is None
