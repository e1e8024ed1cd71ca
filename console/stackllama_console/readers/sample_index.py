"""Index of ``samples.jsonl``: where each row begins and its sort keys, 49 bytes per row, no texts."""

from array import array
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from stackllama_engine.contract.events import Step

TRAINING, BEFORE, AFTER, HELD_OUT = range(4)
"""Kinds of rows: made by a training step; a response to a held-out prompt before PPO, after it, or at another time."""

_Length = Annotated[int, Meta(ge=0, le=1 << 53)]


class Indexed(Struct, frozen=True, kw_only=True, gc=False):
    """The part of a row that the index is made from. The response is stepped over, not decoded."""

    step: Step
    question: str
    reward: float | None = None
    kl: float | None = None
    length: _Length = 0
    split: str | None = None
    when: str | None = None

    @property
    def kind(self) -> int:
        """`TRAINING`, `BEFORE`, `AFTER` or `HELD_OUT`."""
        if self.when == "before":
            return BEFORE
        if self.when == "after":
            return AFTER
        return HELD_OUT if self.split == "evaluation" else TRAINING


DECODER = msgspec.json.Decoder(Indexed)
_NONE = float("nan")


class SampleIndex:
    """Parallel arrays, one entry per row, in the order of the file. NaN stands for a value that a row lacks."""

    __slots__ = ("kinds", "kls", "lengths", "offsets", "questions", "rewards", "steps")

    def __init__(self) -> None:
        self.offsets: array[int] = array("q")
        """Byte at which the row begins."""
        self.steps: array[int] = array("q")
        self.rewards: array[float] = array("d")
        self.kls: array[float] = array("d")
        self.lengths: array[int] = array("q")
        self.questions: array[int] = array("q")
        """Hash of the prompt; equal hashes are compared again when the row is read."""
        self.kinds: array[int] = array("b")

    def __len__(self) -> int:
        return len(self.kinds)  # filled last, so that another thread sees whole rows only

    def add(self, position: int, lines: bytes, rows: list[Indexed | None]) -> None:
        """Add the rows of some terminated lines that begin at a byte of the file; None is stepped over."""
        entries: list[tuple[int, Indexed]] = []
        for line, row in zip(lines.split(b"\n"), rows, strict=False):  # after the last line end there is none
            if row is not None:
                entries.append((position, row))
            position += len(line) + 1
        self.offsets.extend([offset for offset, _ in entries])
        self.steps.extend([row.step for _, row in entries])
        self.rewards.extend([_NONE if row.reward is None else row.reward for _, row in entries])
        self.kls.extend([_NONE if row.kl is None else row.kl for _, row in entries])
        self.lengths.extend([row.length for _, row in entries])
        self.questions.extend([hash(row.question) for _, row in entries])
        self.kinds.extend([row.kind for _, row in entries])
