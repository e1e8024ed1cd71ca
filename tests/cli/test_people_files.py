"""Files named by a person: whatever their content, a command ends soon, with one sentence and exit code 2."""

import json
import os
import re
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tests.tui.terminal import COMMAND, SOURCES

from stackllama_console.settings import load_settings
from stackllama_console.tui.keymap import read_keymap
from stackllama_console.tui.themes import read_theme
from stackllama_engine.contract import user_files
from stackllama_engine.contract.checkpoints import problem
from stackllama_engine.contract.redact import secret_values

_HANG_SECONDS = 60
Run = Callable[..., Any]
Write = Callable[[Path], object]

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 320,
    "dtype": "float16",
    "tie_word_embeddings": False,
}
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 10))
YAML = {
    "laughs": (LAUGHS, "more than 10,000 values"),
    "merges": (MERGES, "more than 10,000 values"),
    "many": ("- a\n" * 20_000, "more than 10,000 values"),
    "itself": ("a: &a {b: *a}\n", "an alias of a value that contains it"),
    "deep": ("a: " + "[" * 200_000, "nested more than 40 levels deep"),
    "hexadecimal": ("seed: 0x" + "f" * 900_000, "a number of 900,002 characters"),
    "base 60": ("seed: 1" + ":1" * 100_000, "a number of 200,001 characters"),
    "base 60, float": ("learning_rate: 1" + ":1" * 100_000 + ".0", "a number of 200,003 characters"),
    "digits": ("seed: " + "9" * 5000, "a number of 5,000 characters"),
    "tagged bool": ("a: !!bool maybe", "a value does not have the type of its tag"),
    "tagged int": ('a: !!int ""', "a value does not have the type of its tag"),
    "tagged time": ("a: !!timestamp noon", "a value does not have the type of its tag"),
    "large": ("# a comment\n" * 100_000, "larger than any file of this kind"),
}


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """Interrupt a read that waits for ever, and fail its test."""

    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_HANG_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_files, "_PIPE_SECONDS", 0.3)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(LLAMA))
    return path


def assert_refused(result: Any, *parts: str) -> None:
    assert result.code == 2, result
    assert len(result.err.splitlines()) == 1 and len(result.err) < 700, result.err[:2000]
    assert all(part in result.err for part in parts), result.err


@pytest.mark.parametrize("name", YAML)
def test_a_hostile_recipe_is_one_sentence(run_main: Run, tmp_path: Path, name: str) -> None:
    text, said = YAML[name]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text if text.startswith(("-", "#")) else f"model_name_or_path: demo\n{text}\n")
    assert_refused(run_main("plan", "sft", str(recipe)), str(recipe), said)
    assert_refused(run_main("recipe", "convert", str(recipe)), str(recipe), said)


@pytest.mark.parametrize(
    "words", [("plan", "sft"), ("launch", "sft"), ("recipe", "convert")], ids=lambda words: words[0]
)
def test_a_pipe_that_nobody_writes_to_is_no_recipe(run_main: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    os.mkfifo(pipe := tmp_path / "recipe.yaml")
    assert_refused(run_main(*words, str(pipe)), str(pipe), "nothing was written to this pipe")


def test_a_recipe_from_a_pipe_is_read_to_its_end(
    run_main: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_files, "_PIPE_SECONDS", 30.0)
    os.mkfifo(pipe := tmp_path / "recipe.yaml")

    def write() -> None:
        with pipe.open("w") as file:
            file.write("model_name_or_path: demo\n" + "# a comment\n" * 20_000 + "seed: -1\n")

    writer = threading.Thread(target=write)
    writer.start()
    result = run_main("plan", "sft", str(pipe), "max_length=no-number")
    writer.join()
    assert result.code == 2 and "max_length=no-number" in result.err and "seed=-1" in result.err


def test_an_endless_device_is_no_recipe(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "plan", "sft", "/dev/zero"],
        capture_output=True,
        text=True,
        timeout=_HANG_SECONDS,
        env=os.environ | {"PYTHONPATH": SOURCES},
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)),
    )
    assert done.returncode == 2
    assert done.stderr.strip().endswith("/dev/zero: cannot be read: a device or a terminal, not a regular file.")


@pytest.mark.parametrize("override", ["seed=0x" + "f" * 90_000, "learning_rate=1" + ":1" * 40_000 + ".0"])
def test_a_hostile_override_is_one_sentence(run_main: Run, override: str) -> None:
    result = run_main("plan", "sft", "model_name_or_path=demo", override)
    assert_refused(result, override.partition("=")[0], "expected a")


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def write(text: str) -> Write:
    return lambda path: path.write_text(text)


CONFIGS: dict[str, tuple[Write, str]] = {
    "pipe": (pipe, "a pipe, not a regular file"),
    "large": (write(json.dumps(LLAMA) + " " * (5 << 20)), "larger than any file of this kind"),
    "deep": (write('{"a": ' * 50_000), "nested too deeply"),
    "digits": (write(json.dumps(LLAMA)[:-1] + ', "a": ' + "9" * 50_000 + "}"), "out of range"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_config_is_one_sentence(run_main: Run, model: Path, name: str) -> None:
    make, said = CONFIGS[name]
    make(model / "config.json")
    result = run_main("plan", "sft", f"model_name_or_path={model}")
    assert_refused(result, str(model / "config.json"), said)


def test_pipes_in_the_place_of_other_files_of_a_model_change_nothing(run_main: Run, model: Path) -> None:
    words = ("plan", "sft", f"model_name_or_path={model}", "--json")
    plain = run_main(*words).json()["allocated"]
    for name in ("model.safetensors", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"):
        os.mkfifo(model / name)
    assert run_main(*words).json()["allocated"] == plain
    for file in model.glob("model.safetensors*"):
        file.unlink()
    words = ("launch", "sft", f"model_name_or_path={model}", "dataset_name=demo", "use_cpu=true", "load_in_8bit=false")
    done = run_main(*words, "--dry-run")
    assert done.code == 2 and "no *.safetensors" in done.err


@pytest.mark.parametrize("name", ["base.json", "adapter_config.json"])
def test_a_pipe_in_an_adapter_is_one_sentence(run_main: Run, tmp_path: Path, name: str) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "demo"}')
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    (adapter / name).unlink(missing_ok=True)
    os.mkfifo(adapter / name)
    assert_refused(run_main("plan", "merge", f"adapter_path={adapter}"), str(adapter))


def test_pipes_where_data_should_be_are_one_sentence(run_main: Run, tmp_path: Path, model: Path) -> None:
    os.mkfifo(posts := tmp_path / "Posts.xml")
    assert_refused(run_main("data", "prepare", str(posts), "--out", str(tmp_path / "out")), str(posts), "a pipe")
    (tmp_path / "home").mkdir(exist_ok=True)
    os.mkfifo(file := tmp_path / "home" / "calibration.jsonl")
    assert_refused(run_main("plan", "sft", f"model_name_or_path={model}"), str(file), "a pipe")


@pytest.mark.parametrize("what", ["pipe", *(name for name in YAML if name != "large")])
def test_a_hostile_theme_or_keymap_is_one_sentence(tmp_path: Path, what: str) -> None:
    file = tmp_path / "file.yaml"
    if what == "pipe":
        pipe(file)
    else:
        file.write_text(YAML[what][0])
    with pytest.raises(ValueError, match=re.escape(str(file))) as error:
        read_theme(file)
    keymap, notices = read_keymap(file, ["app.quit"])
    text, said = ("", "a pipe, not a regular file") if what == "pipe" else YAML[what]
    said = said if len(text) <= 64 * 1024 else "larger than any file of this kind"
    assert said in str(error.value) and keymap == {} and len(notices) == 1 and said in notices[0]


@pytest.mark.parametrize("make", [pipe, write('{"model": ' * 50_000), write(" " * (5 << 20))])
def test_hostile_settings_are_one_sentence_and_the_defaults(tmp_path: Path, make: Write) -> None:
    make(tmp_path / "settings.json")
    settings, said = load_settings(tmp_path / "settings.json")
    assert settings.theme == "dusk" and said is not None and "starting with the defaults" in said


def test_a_pipe_as_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "step-000001"
    checkpoint.mkdir()
    os.mkfifo(checkpoint / "manifest.json")
    assert problem(checkpoint) == "cannot be read (a pipe, not a regular file)"


def test_a_pipe_as_netrc_or_token_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    environment = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "pipe"), "HF_TOKEN_PATH": str(tmp_path / "pipe")}
    assert secret_values(environment) == {}
