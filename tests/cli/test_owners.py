"""A home that others own or may write: nothing is executed or changed in it, everything can be read."""

import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage

MakeRun = Callable[..., RunDir]
TRUST = "STACKLLAMA_TRUST_OWNER"
NOBODY = 65534
SWAPPED = "model_name_or_path: demo\ndataset_name: demo\nload_in_8bit: false\n# mallory was here\n"

DEMO = ["model_name_or_path=demo", "dataset_name=demo", "load_in_8bit=false"]
CHANGING = [
    ["launch", "sft", *DEMO],
    ["launch", "sft", *DEMO, "--dry-run"],
    ["pipeline", *DEMO],
    ["demo", "--plain"],
    ["merge", "one"],
    ["runs", "resume", "one"],
    ["runs", "stop", "one"],
    ["runs", "stop", "alive", "--no-wait"],
    ["runs", "rm", "one", "--yes"],
    *(["runs", ask, "alive"] for ask in ("save", "sample", "pause", "continue")),
    ["runs", "set", "alive", "learning_rate=1e-5"],
    ["runs", "repair", "damaged"],
    ["runs", "rm", "half"],
    ["runs", "rm", "--leftovers"],
]
READING = [["runs", "ls"], ["runs", "show", "one"], ["runs", "logs", "one"], ["runs", "ls", "--json"]]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a home to a second user")


@pytest.fixture(autouse=True)
def _nobody_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUST, "")  # also restores what --trust-owner sets


@pytest.fixture
def stocked(home: Home, make_run: MakeRun) -> Home:
    """Make a stopped run, a running one, a damaged one, and what a deletion left."""
    make_run(Stage.SFT, "one", "stopped", overrides=["load_in_8bit=false"])
    make_run(Stage.SFT, "alive", "running")
    (make_run(Stage.SFT, "damaged", "stopped").path / "state.json").write_bytes(b"\xff")
    (home.runs_dir / "half" / "control").mkdir(parents=True)
    return home


def give_away(path: Path) -> None:
    for each in (path, *path.rglob("*")):
        os.chown(each, NOBODY, NOBODY)


def contents(home: Home) -> dict[str, tuple[int, bytes]]:
    """Every path in it with its time of change, and what is in the files."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (home.path, *home.path.rglob("*"))
    }


@needs_root
def test_a_recipe_that_its_owner_swapped_is_not_resumed_by_root(stocked: Home, run_main: Callable[..., Any]) -> None:
    run = stocked.run("one")
    run.recipe_file.write_text(SWAPPED)
    give_away(stocked.path)
    before = contents(stocked)
    result = run_main("runs", "resume", "one")
    name = pwd.getpwuid(NOBODY).pw_name
    assert result.code == 3
    assert f"{stocked.path} belongs to {name} (uid {NOBODY})" in result.err
    assert f"--trust-owner {name}" in result.err
    assert contents(stocked) == before


@needs_root
@pytest.mark.parametrize("what", ["", "runs", "runs/one", "runs/one/recipe.yaml", "runs/one/checkpoints"])
def test_whatever_of_a_run_belongs_to_another_stops_a_resume(
    what: str, stocked: Home, run_main: Callable[..., Any]
) -> None:
    os.chown(stocked.path / what, NOBODY, NOBODY)
    result = run_main("runs", "resume", "one")
    assert result.code == 3 and f"{stocked.path / what} belongs to" in result.err


@needs_root
@pytest.mark.parametrize("words", CHANGING, ids=" ".join)
def test_nothing_is_changed_in_the_home_of_another(
    words: list[str], stocked: Home, run_main: Callable[..., Any]
) -> None:
    give_away(stocked.path)
    before = contents(stocked)
    result = run_main(*words)
    assert result.code == 3 and f"belongs to {pwd.getpwuid(NOBODY).pw_name}" in result.err
    assert contents(stocked) == before


@needs_root
@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_the_home_of_another_can_be_looked_at(words: list[str], stocked: Home, run_main: Callable[..., Any]) -> None:
    (stocked.run("one").attempt_dir(1) / "log.txt").write_text("said\n")
    give_away(stocked.path)
    before = contents(stocked)
    assert run_main(*words).code == 0
    assert contents(stocked) == before


@needs_root
def test_a_lost_run_of_another_is_shown_and_left_as_it_is(
    stocked: Home, make_run: MakeRun, run_main: Callable[..., Any]
) -> None:
    run = make_run(Stage.SFT, "gone", "stopped")
    run.write_state(msgspec.structs.replace(run.read_state(), phase="running", ended=None, exit_code=None))
    give_away(stocked.path)
    before = contents(stocked)
    shown = run_main("runs", "show", "gone", "--json").json()
    assert (shown["state"], "Not recorded" in shown["cause"]) == ("lost", True)
    assert contents(stocked) == before


@needs_root
@pytest.mark.parametrize("by", ["name", "number", "environment"])
def test_an_owner_can_be_trusted_by_name(
    by: str, stocked: Home, run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    give_away(stocked.path)
    owner = str(NOBODY) if by == "number" else pwd.getpwuid(NOBODY).pw_name
    if by == "environment":
        monkeypatch.setenv(TRUST, f"root, {owner}")
        result = run_main("runs", "rm", "one", "--yes")
    else:
        result = run_main("runs", "rm", "one", "--yes", "--trust-owner", owner)
    assert result.code == 0 and not (stocked.runs_dir / "one").exists()


@pytest.mark.parametrize("words", CHANGING, ids=" ".join)
def test_nothing_is_changed_where_everybody_may_write(
    words: list[str], stocked: Home, run_main: Callable[..., Any]
) -> None:
    stocked.runs_dir.chmod(0o777)
    before = contents(stocked)
    result = run_main(*words)
    assert result.code == 3 and contents(stocked) == before
    assert f"{stocked.runs_dir} (owner " in result.err and "mode 0777" in result.err
    assert f"chmod go-w {stocked.runs_dir}" in result.err


def test_a_recipe_that_everybody_may_write_is_not_resumed(stocked: Home, run_main: Callable[..., Any]) -> None:
    stocked.run("one").recipe_file.chmod(0o666)
    result = run_main("runs", "resume", "one")
    assert result.code == 3 and "recipe.yaml (owner " in result.err and "mode 0666" in result.err


def test_naming_oneself_lifts_what_others_may_write(stocked: Home, run_main: Callable[..., Any]) -> None:
    """A container's volume whose mode cannot be changed."""
    stocked.runs_dir.chmod(0o777)
    assert run_main("--trust-owner", str(os.geteuid()), "runs", "rm", "one", "--yes").code == 0


def test_an_owner_that_nobody_knows_is_a_mistake(stocked: Home, run_main: Callable[..., Any]) -> None:
    result = run_main("runs", "stop", "one", "--trust-owner", "nobody-of-that-name")
    assert result.code == 2 and "no user is called 'nobody-of-that-name'" in result.err


def test_an_owner_that_nobody_knows_makes_no_run_a_damaged_one(
    stocked: Home, make_run: MakeRun, run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(Stage.SFT, "gone", "stopped")
    run.write_state(msgspec.structs.replace(run.read_state(), phase="running", ended=None, exit_code=None))
    monkeypatch.setenv(TRUST, "nobody-of-that-name")
    result = run_main("runs", "ls")
    assert result.code == 2 and "no user is called 'nobody-of-that-name'" in result.err
    assert "damaged" not in result.out + result.err and "runs rm" not in result.err


def test_a_home_behind_a_directory_that_everybody_may_rename_in(tmp_path: Path, run_main: Callable[..., Any]) -> None:
    """The sticky bit, as /tmp has it, makes the difference; a link on the way counts like a directory."""
    shared = tmp_path / "shared"
    (shared / "mine").mkdir(parents=True)
    (tmp_path / "home-link").symlink_to(shared / "link")
    (shared / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir(mode=0o700)
    for home in (shared / "mine" / "home", tmp_path / "home-link"):
        shared.chmod(0o1777)
        dry = ["launch", "sft", *DEMO, "--dry-run", "--home", str(home)]
        assert run_main(*dry).code == 0
        shared.chmod(0o777)
        refused = run_main(*dry)
        assert refused.code == 3 and f"{shared} (owner " in refused.err


@needs_root
def test_a_link_is_as_good_as_what_it_leads_to(tmp_path: Path, run_main: Callable[..., Any]) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    os.chown(tmp_path / "theirs", NOBODY, NOBODY)
    refused = run_main("launch", "sft", *DEMO, "--dry-run", "--home", str(tmp_path / "link"))
    assert refused.code == 3 and f"{tmp_path / 'theirs'} belongs to" in refused.err


@needs_root
def test_a_group_of_others_is_refused_and_one_of_ones_own_is_not(tmp_path: Path, run_main: Callable[..., Any]) -> None:
    home = tmp_path / "grouped"
    home.mkdir()
    home.chmod(0o770)
    dry = ["launch", "sft", *DEMO, "--dry-run", "--home", str(home)]
    os.chown(home, 0, 0)  # root's group has no other members
    assert run_main(*dry).code == 0
    os.chown(home, 0, NOBODY)
    refused = run_main(*dry)
    assert refused.code == 3 and "is writable by group " in refused.err
