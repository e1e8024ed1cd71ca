"""Recognition of secrets, and their redaction in texts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stackllama_engine.contract.redact import Redactor, secret_names, secret_values

CANARY = "hf_canary0123456789"


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "HF_TOKEN_2", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "openai_key", "MY_PASSWORD", "SSH_PASSPHRASE"],
)
def test_secret_names_are_recognised(name: str) -> None:
    assert secret_names([name]) == [name]


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "AWS_SECRET_FILE", "KEYMAP", "HF_HUB_OFFLINE"]
)
def test_other_names_are_not_secrets(name: str) -> None:
    assert secret_names([name]) == []


def test_values_come_from_environment_files_and_urls(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_of-the-token-file\n")
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password of-the-netrc\n")
    environment = {
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path),
        "WANDB_API_KEY": CANARY,
        "SHORT_TOKEN": "abc",
        "HTTPS_PROXY": "http://me:in-the-proxy@host:80",
        "KEY": "first long line\nsecond long line",
        "REFERENCE_TOKEN": str(tmp_path),
    }
    assert secret_values(environment) == {
        "hf_of-the-token-file": "HF_TOKEN",
        "of-the-netrc": "netrc:api.wandb.ai",
        CANARY: "WANDB_API_KEY",
        "in-the-proxy": "HTTPS_PROXY",
        "first long line\nsecond long line": "KEY",
        "first long line": "KEY",
        "second long line": "KEY",
    }


def test_every_string_of_a_structure_is_redacted() -> None:
    redactor = Redactor({CANARY: "HF_TOKEN", f"{CANARY}-longer": "OTHER", 'quote"d and long': "QUOTED"})
    value = {"rows": [{"text": f"a {CANARY}-longer b"}, 3, None, 1.5], CANARY: 'x quote\\"d and long'}
    assert redactor.value(value) == {"rows": [{"text": "a <OTHER> b"}, 3, None, 1.5], "<HF_TOKEN>": "x <QUOTED>"}
    assert redactor.found_in(f"url?{CANARY}") == "HF_TOKEN"
    assert redactor.found_in("harmless") is None


def test_without_secrets_nothing_changes() -> None:
    redactor = Redactor({})
    assert redactor.text(CANARY) == CANARY
    assert (redactor.longest, redactor.spans(CANARY.encode()), redactor.found_in(CANARY)) == (0, [], None)


def test_output_of_a_process_is_redacted(tmp_path: Path) -> None:
    code = (
        "import logging, os; from stackllama_engine.contract.redact import redact_output; redact_output()\n"
        "print('out', os.environ['HF_TOKEN']); logging.warning('log %s', os.environ['HF_TOKEN'])\n"
        "raise ValueError(os.environ['HF_TOKEN'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"HF_TOKEN": CANARY}, capture_output=True, text=True, check=False
    )
    assert done.stdout == "out <HF_TOKEN>\n"
    assert "log <HF_TOKEN>" in done.stderr and "ValueError: <HF_TOKEN>" in done.stderr
    assert CANARY not in done.stderr
