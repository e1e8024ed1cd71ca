"""Secrets that reach a log past every Python stream are masked in place."""

import os
from pathlib import Path

import pytest

from stackllama_engine.contract.redact import Redactor
from stackllama_engine.launch import scrub
from stackllama_engine.launch.scrub import Scrubber

CANARY = b"hf_canary0123456789"
REDACTOR = Redactor({CANARY.decode(): "HF_TOKEN"})
MASK = b"*" * len(CANARY)


def test_scrubber_masks_in_place_while_another_appends(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    scrubber = Scrubber(log, REDACTOR)
    assert scrubber.scrub() == 0  # not there yet
    writer = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(writer, b"a " + CANARY + b"\nhalf " + CANARY[:7])
    assert scrubber.scrub() == 1
    os.write(writer, CANARY[7:] + b" b\n")
    assert scrubber.scrub() == 1
    assert scrubber.scrub() == 0
    os.close(writer)
    assert log.read_bytes() == b"a " + MASK + b"\nhalf " + MASK + b" b\n"


def test_scrubber_masks_across_blocks_and_after_truncation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "_BLOCK", 10)
    log = tmp_path / "log.txt"
    scrubber = Scrubber(log, REDACTOR)
    for before in range(25):
        text = b"x" * before + CANARY + b"y" * 13 + CANARY
        log.write_bytes(text)
        assert Scrubber(log, REDACTOR).scrub() == 2
        assert log.read_bytes() == text.replace(CANARY, MASK)
    scrubber.scrub()
    log.write_bytes(CANARY)
    assert scrubber.scrub() == 1


def test_scrubber_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(CANARY)
    (tmp_path / "log.txt").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic link"):
        Scrubber(tmp_path / "log.txt", REDACTOR).scrub()
    assert (tmp_path / "mine").read_bytes() == CANARY
