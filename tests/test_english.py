"""Phrases that may not come back, in code, tests and documents; single words are in `.codespell-dictionary`."""

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_READ = ("tests/fixtures/", "tests/test_english.py", "docs/measurements/", "docs/images/", "LICENSE")
SUFFIXES = (".py", ".md", ".toml", ".yaml", ".yml", ".tcss")

_UNITS = "answers|bytes|checkpoints|lines|logits|pairs|parameters|points|prompts|questions|records|responses|rows"
_UNITS += "|samples|seconds|sequences|steps|tokens|trials"
_PER = "batch|checkpoint|device|epoch|GPU|key|layer|line|logit|pair|parameter|prompt|question|rank|response|run"
_PER += "|second|sequence|side|stage|step|token|turn|weight"
_NOT_RUNNING = "the|a|an|to|disk|stdout|stderr|top|one|its|GPU|each"  # "goes on the command line"
_SPACE = r"(?:[ ]|\n\s*#?[ ]*)"
PHRASES = {
    rf"(?:go|goes|going|went|gone) on(?! (?:{_NOT_RUNNING})\b)": "resumes, continues",
    r"(?:stand|stands|stood) still": "stalled",
    r"(?:is|are|was|be|run|runs|stage|child|process|trainer|one) at work": "running",
    r"(?:is|are|was|were|it|things|which) held out": "held-out",
    r"(?<=\")leave it(?=\")": "cancel",  # as a key's label
    rf"(?:{_UNITS}) an? (?:{_PER})": "per",
    r"(?:pause or go on|pause / resume)": "pause / continue",
    r"charts before": "previous charts",
    r"pipeline: stage before": "previous stage",
    r"(?:is|are) no number": "must be a number",
    r"as if nothing had happened": "as before",
}
"""Each phrase, as a pattern of whole words, and what is said instead."""

ALLOWED: dict[str, tuple[str, ...]] = {
    "tests/contract/test_stdout.py": ("goes on",),  # what a program of the test prints
}
"""Phrases that stay where they are, with the reason."""


@cache
def texts() -> dict[str, str]:
    """Return the tracked and the new files that people write."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {
        name: (ROOT / name).read_text(encoding="utf-8")
        for name in names
        if name.endswith(SUFFIXES) and not name.startswith(NOT_READ) and (ROOT / name).is_file()
    }


def hits(name: str, pattern: re.Pattern[str]) -> Iterator[str]:
    """Yield `file:line: phrase`; a phrase may be broken by the end of a line, and the next line's indentation."""
    text = texts()[name]
    for match in pattern.finditer(text):
        phrase = " ".join(re.sub(r"\n\s*#?", " ", match[0]).split())
        if phrase.lower() not in ALLOWED.get(name, ()):
            yield f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {phrase}"


@pytest.mark.parametrize("phrase", PHRASES)
def test_phrase_is_not_used(phrase: str) -> None:
    pattern = re.compile(rf"\b{phrase.replace(' ', _SPACE)}\b", re.IGNORECASE)
    found = [hit for name in texts() for hit in hits(name, pattern)]
    assert not found, f"say “{PHRASES[phrase]}” instead:\n" + "\n".join(found)


def test_a_reward_model_is_not_called_a_judge() -> None:
    pattern = re.compile(r"\bjudg(?:e|es|ed|ing)\b", re.IGNORECASE)
    found = [hit for name in texts() if not name.startswith("tests/") for hit in hits(name, pattern)]
    assert not found, "say “reward model” or “score” instead:\n" + "\n".join(found)
