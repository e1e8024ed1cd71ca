import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stackllama_console import __main__ as entry
from stackllama_console.cli.parser import parse
from stackllama_console.readers.choices import model_folders
from stackllama_engine import __version__

ROOT = Path(__file__).resolve().parents[2]
SOURCES = os.pathsep.join([str(ROOT / "console"), str(ROOT / "engine")])


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    return subprocess.run(
        [sys.executable, "-m", "stackllama_console", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def test_no_arguments_without_a_terminal_exit_with_2(run_main: Callable[..., Any]) -> None:
    result = run_main()
    assert result.code == 2
    assert result.out == ""
    assert "the console needs a terminal" in result.err and "runs watch" in result.err


@pytest.mark.parametrize("words", [["--help"], ["launch", "--help"], ["runs", "--help"], ["runs", "stop", "--help"]])
def test_help_fits_80_columns_and_exits_with_0(
    words: list[str], run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = run_main(*words)
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= 80


def test_version_is_printed(run_main: Callable[..., Any]) -> None:
    result = run_main("--version")
    assert (result.code, result.out) == (0, f"stackllama-console {__version__}\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["lauch", "sft"], "did you mean `launch`?"),
        (["runs", "sl"], "did you mean `ls`?"),
        (["launch", "ppp"], "did you mean `ppo`?"),
        (["launch", "sft", "--folow"], "did you mean `--follow`?"),
        (["launch", "sft", "--drr-run"], "did you mean `--dry-run`?"),
        (["--json", "runs", "ls"], "`--json` goes after `runs ls`."),
        (["doctor", "now"], "`now`: one argument too many ("),
        (["doctor", "--zzz"], "has no option `--zzz` ("),
        (["runs", "stop"], "missing RUN ("),
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--seed", "x"], "`--seed x`: expected a whole number"),
        (["runs", "logs", "-n", "0"], "`--lines 0`: expected a whole number"),
        (["runs", "ls", "--stage", "sfft"], "`--stage sfft`: did you mean `sft`?"),
        (
            ["runs", "ls", "--stage", "x"],
            "`--stage x`: expected one of sft, reward, preference, ppo, merge, pipeline (",
        ),
        (["launch"], "missing STAGE ("),
        (["chat", "x", "--seed"], "`--seed`: expected a value ("),
        (["launch", "sft", "learning_rte=1", "model_name_or_path=demo"], "Did you mean `learning_rate`?"),
        (["launch", "sft", "a.yaml", "b.yaml"], "`b.yaml` is neither key=value nor the recipe file"),
        (["launch", "sft", "nosuch.yaml"], "no such recipe file"),
        (["runs", "show", "../x"], "is not a run name"),
        (["runs", "show", "nosuch"], "No run `nosuch`"),
        (["launch", "sft", "na\udcffme.yaml"], "not valid UTF-8"),
    ],
)
def test_mistake_is_one_line_and_exits_with_2(words: list[str], expected: str, run_main: Callable[..., Any]) -> None:
    result = run_main(*words)
    assert result.code == 2
    assert result.out == ""
    assert expected in result.err
    assert result.err.count("\n") == 1
    assert ". (" not in result.err


def test_overrides_may_follow_options(run_main: Callable[..., Any]) -> None:
    result = run_main("launch", "sft", "--name", "n", "model_name_or_path=demo", "--dry-run", "nokey=1")
    assert result.code == 2
    assert "has no key `nokey`" in result.err


def test_crash_is_one_line_and_a_file_without_secrets(
    run_main: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary_0123456789")

    def broken(_: object) -> None:
        local_secret = "-".join(["value", "of", "a", "local"])
        raise ValueError("hf_canary_0123456789 \x1b[2J", len(local_secret))

    monkeypatch.setattr(entry, "handler", lambda _: broken)
    result = run_main("info")
    assert result.code == 1
    assert result.err.count("\n") == 1 and "\x1b" not in result.err
    (file,) = (tmp_path / "state" / "stackllama").glob("crash-*.txt")
    assert str(file) in result.err
    text = file.read_text()
    assert "ValueError" in text and "in broken" in text
    assert "hf_canary" not in text and "<HF_TOKEN>" in text
    assert "value-of-a-local" not in text
    assert file.stat().st_mode & 0o777 == 0o600


def test_crash_line_has_no_secrets(run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary_0123456789")

    def broken(_: object) -> None:
        raise ValueError("canary_0123456789")

    monkeypatch.setattr(entry, "handler", lambda _: broken)
    assert "canary" not in run_main("info").err


def test_interrupt_exits_with_130(run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "handler", lambda _: interrupted)
    result = run_main("info")
    assert (result.code, result.err) == (130, "")


def test_closed_pipe_exits_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    done = subprocess.run(
        [sys.executable, "-m", "stackllama_console", "info", "--json"],
        env=environment,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("words", "code"),
    [("runs ls >&-", 0), ("--help >&-", 0), ("runs ls --json <&- >&- 2>&-", 0), ("runs show x 2>&-", 2)],
)
def test_closed_streams_exit_quietly(words: str, code: int, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": SOURCES, "XDG_STATE_HOME": str(tmp_path)}
    shell = ["sh", "-c", f'exec "$0" -m stackllama_console {words}', sys.executable]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code and "unexpected" not in done.stderr
    assert not list(tmp_path.rglob("crash-*"))


def test_unencodable_character_does_not_crash(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": SOURCES, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "stackllama_console", "--home", str(tmp_path / "häuser"), "info"],
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 and b"h?user" in done.stdout


def test_unreadable_home_is_one_line(run_main: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run_main("--home", str(tmp_path / "file"), "runs", "ls")
    assert result.err.count("\n") == 1 and result.code in (0, 1, 2)
    assert "unexpected" not in result.err


def test_deleted_current_directory_is_one_sentence(
    run_main: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for words in (["--home", "relative", "runs", "ls"], ["open", "."]):
        result = run_main(*words)
        assert result.code == 1 and "current directory has been deleted" in result.err
    assert run_main("runs", "ls").code == 0  # which needs none
    assert model_folders(["/models/one"])[-1] == Path("/models")


def test_home_option_works_before_and_after_the_command(run_main: Callable[..., Any], tmp_path: Path) -> None:
    before = run_main("--home", str(tmp_path / "a"), "info", "--json").json()
    after = run_main("info", "--json", "--home", str(tmp_path / "a")).json()
    assert before["home"] == after["home"] == str(tmp_path / "a")


HEAVY = ["torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "textual"]
PROBE = """
import sys
from stackllama_console.__main__ import main
code = main(sys.argv[2:])
loaded = [name for name in sys.argv[1].split(",") if name in sys.modules]
sys.stderr.write("LOADED " + ",".join(loaded))
sys.exit(code)
"""


def modules(names: list[str], *arguments: str) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, ",".join(names), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr.rpartition("LOADED ")[2]


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["runs", "ls"], ["runs", "ls", "--json"], ["info"]])
def test_quick_commands_import_neither_torch_nor_textual_nor_rich(words: list[str]) -> None:
    assert modules([*HEAVY, "rich", "psutil", "lxml"], *words)[1] == ""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["doctor"], None),
        (["launch", "sft", "model_name_or_path=demo", "--dry-run"], None),
        (["runs", "show", "nosuch"], 2),
        (["data", "preview", "demo"], 0),
        (["data", "prepare", "nosuch.xml", "--out", "nosuch"], 2),
    ],
)
def test_commands_import_no_training_packages(words: list[str], code: int | None) -> None:
    ended, loaded = modules(HEAVY, *words)
    assert loaded == ""
    assert code is None or ended == code


@pytest.mark.parametrize("words", ["--ascii open x", "open x --ascii", "--ascii demo", "--ascii"])
def test_drawing_options_work_before_and_after_the_command(words: str) -> None:
    arguments = parse(words.split())
    assert arguments.ascii is True and arguments.mouse is False
