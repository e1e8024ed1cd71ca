"""Damaged runs and leftovers on the command line: listed, shown, repaired, removed; nothing hidden, nothing blocked."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stackllama_engine.contract.errors import RefusedError
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher
from stackllama_engine.launch.recipe_changes import RecipeChangedError

MakeRun = Callable[..., RunDir]
Main = Callable[..., Any]


@pytest.fixture
def bad(make_run: MakeRun) -> RunDir:
    run = make_run(Stage.SFT, "bad", "failed")
    (run.attempt_dir(1) / "log.txt").write_text("last words\n")
    (run.path / "state.json").write_bytes(b'{"stage": "sft", "phase": "fa\xffled"}')
    return run


def test_show_of_a_damaged_run_has_reason_and_next_steps(bad: RunDir, run_main: Main) -> None:
    shown = run_main("runs", "show", "bad")
    assert (shown.code, shown.err) == (0, "") and shown.out.splitlines()[0] == "bad  damaged"
    for part in ("stage      sft", "state.json cannot be read", "runs repair bad", "runs rm bad"):
        assert part in shown.out
    document = run_main("runs", "show", "bad", "--json").json()
    assert (document["run"], document["stage"], document["state"]) == ("bad", "sft", "damaged")
    assert "state.json cannot be read" in document["cause"]


def test_logs_of_a_damaged_run_are_printed(bad: RunDir, run_main: Main) -> None:
    assert run_main("runs", "logs", "bad").out == "last words\n"
    followed = run_main("runs", "logs", "bad", "-f")
    assert followed.out == "last words\n" and "state.json cannot be read" in followed.err


@pytest.mark.parametrize("words", [("stop", "bad"), ("resume", "bad"), ("watch", "bad"), ("save", "bad")])
def test_commands_refuse_a_damaged_run_in_one_sentence(bad: RunDir, run_main: Main, words: tuple[str, ...]) -> None:
    result = run_main("runs", *words)
    assert result.code in (2, 3) and len(result.err.splitlines()) == 1
    assert "state.json cannot be read" in result.err and "runs repair bad" in result.err


def test_stop_ends_a_running_damaged_run(make_run: MakeRun, run_main: Main) -> None:
    run = make_run(Stage.SFT, "alive", "running")
    (run.path / "state.json").write_bytes(b"\xff")
    result = run_main("runs", "stop", "alive", "--no-wait")
    assert result.code == 0 and "asked to save and stop" in result.err
    assert (run.control / "stop").is_file()
    assert run_main("runs", "repair", "alive").code == 3


def test_repair_makes_a_damaged_run_normal(bad: RunDir, run_main: Main) -> None:
    result = run_main("runs", "repair", "bad")
    assert result.code == 0 and "state.json was rebuilt: sft, lost, attempt 1" in result.err
    assert run_main("runs", "ls", "--json").json()["damaged"] == []
    again = run_main("runs", "repair", "bad", "--json")
    assert again.json() == {"run": "bad", "repaired": []} and "nothing is damaged" in again.err


def test_rm_deletes_a_damaged_run(bad: RunDir, run_main: Main) -> None:
    assert run_main("runs", "rm", "bad").code == 2, "not without --yes"
    assert run_main("runs", "rm", "bad", "--yes").code == 0 and not bad.path.exists()


@pytest.mark.parametrize("name", ["result.json", "lineage.json", "launch.json"])
def test_other_damaged_records_hide_nothing_in_show(make_run: MakeRun, run_main: Main, name: str) -> None:
    run = make_run(Stage.REWARD, "one")
    (run.path / name).write_bytes(b'{"accuracy": 1e999}')
    listed = run_main("runs", "ls", "--json").json()
    assert [each["state"] for each in listed["runs"]] == ["finished"]
    shown = run_main("runs", "show", "one")
    assert shown.code == 0 and (name == "lineage.json" or f"{name} cannot be read" in shown.out)
    assert run_main("runs", "rm", "one", "--yes").code == 0


@pytest.mark.parametrize("name", ["events.jsonl", "health.jsonl", "log.txt"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_pipe_or_folder_among_run_files_hangs_no_command(
    make_run: MakeRun, run_main: Main, name: str, kind: str
) -> None:
    run = make_run(Stage.SFT, "one", "failed")
    path = run.attempt_dir(1) / name
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to("/dev/zero")}[kind]()
    assert "one" in run_main("runs", "ls").out
    said = {"folder": "a directory", "pipe": "a pipe", "link": "a link"}[kind]
    shown = run_main("runs", "show", "one")
    assert shown.code == 0 and f"{said}, not a regular file" in shown.out
    logs = run_main("runs", "logs", "one")
    assert (logs.code, f"{said}, not a regular file" in logs.err) == ((2, True) if name == "log.txt" else (0, False))
    assert run_main("runs", "watch", "one").code == 1, "its own"


def test_rm_leftovers_deletes_what_ls_lists(make_run: MakeRun, run_main: Main, home: Home) -> None:
    make_run(Stage.SFT, "whole")
    names = [".deleted-old-0123", ".new-mine-0123", "half"]
    for name in names:
        (home.runs_dir / name / "control").mkdir(parents=True)
    listed = run_main("runs", "ls")
    assert f"leftovers: {', '.join(names)}; `stackllama-console runs rm --leftovers` removes them." in listed.err
    assert run_main("runs", "ls", "--json").json()["leftovers"] == names
    assert run_main("runs", "rm", "whole", "--leftovers").code == 2
    assert run_main("runs", "rm").code == 2
    assert run_main("runs", "rm", "half", "--json").json() == {"deleted": ["half"]}
    assert run_main("runs", "rm", "--leftovers", "--json").json() == {"deleted": names[:2]}
    assert [path.name for path in home.runs_dir.iterdir()] == ["whole"]


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("\n", 3)])
def test_resume_asks_about_a_changed_recipe_on_a_terminal(
    make_run: MakeRun, run_main: Main, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    run = make_run(Stage.SFT, "one", "failed")
    (run.attempt_dir(1) / "recipe.yaml").write_text(run.recipe_file.read_text().replace("\nseed: 0\n", "\nseed: 9\n"))
    asked: list[bool] = []

    def resume(_home: Home, run_id: str, *, recipe_changed: bool = False, **_: object) -> RunDir:
        asked.append(recipe_changed)
        if not recipe_changed:
            raise RecipeChangedError(["Run `one`: `seed` 9 → 0."])
        return run

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(launcher, "resume", resume)
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    result = run_main("runs", "resume", "one")
    assert result.code == code and "`seed` 9 → 0" in result.err and "[y/N]" in result.err
    assert asked == ([False, True] if code == 0 else [False])


def test_resume_of_a_changed_recipe_needs_a_flag_elsewhere(make_run: MakeRun, run_main: Main, tmp_path: Path) -> None:
    run = make_run(Stage.SFT, "one", "failed")
    (run.attempt_dir(1) / "recipe.yaml").write_text(run.recipe_file.read_text().replace("\nseed: 0\n", "\nseed: 9\n"))
    result = run_main("runs", "resume", "one")
    assert result.code == RefusedError.exit_code
    assert "its recipe has changed since attempt 1: `seed` 9 → 0" in result.err and "--recipe-changed" in result.err
    assert run.read_state().attempt == 1
