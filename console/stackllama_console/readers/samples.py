"""``samples.jsonl``, indexed: a million generations may be sorted, searched and followed; their texts stay in the file.

Rows are spoken of by their number in the file. `SamplesFile.read` turns numbers into `Sample`, sanitised.
"""

import os
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedReader
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from stackllama_engine.contract.line_reader import MAX_LINE, LineReader
from stackllama_engine.contract.run_files import UNDECODABLE, open_file, read_file, why_unreadable

from ..sanitise import one_line, sanitise
from .sample_index import AFTER, BEFORE, DECODER, SampleIndex

Key = Literal["step", "reward", "kl", "length"]

_ORDERS_KEPT = 2  # of 8 MB for a million rows
_RESULT_BYTES = 8 << 20


class Sample(Struct, frozen=True, kw_only=True):
    """One generation. ``row`` is its number in the file, -1 where it comes from ``result.json``."""

    question: str
    response: str = ""
    row: int = -1
    step: int = 0
    reward: float | None = None
    rewards: dict[str, float | None] = {}
    """The reward's components by name."""
    columns: dict[str, Any] = {}
    """Further columns of the prompt's row."""
    kl: float | None = None
    """Sum over the response's tokens, against the reference."""
    length: int | None = None
    ended: bool | None = None
    utility: float | None = None
    split: str | None = None
    when: str | None = None


class Pair(Struct, frozen=True, kw_only=True):
    """A held-out prompt with its responses before and after PPO."""

    question: str
    before: Sample | None
    after: Sample | None


class SearchResult(Struct, frozen=True, kw_only=True):
    """Rows that hold a text, and the row to resume at; None: the end was reached."""

    rows: list[int]
    resume_at: int | None


class _Side(Struct, kw_only=True):
    question: str
    before: str | None = None
    after: str | None = None
    reward_before: float | None = None
    reward_after: float | None = None
    utility_before: float | None = None
    utility_after: float | None = None


class _Result(Struct):
    samples: list[_Side] = []


_SAMPLE = msgspec.json.Decoder(Sample)
_RESULT = msgspec.json.Decoder(_Result)


class SamplesFile:
    """The samples of one run. One thread polls; queries may come from the same or another thread.

    Attributes:
        path: the file; it need not exist yet.
        version: grows with every change. Row numbers stay valid unless ``generation`` changed as well.
        generation: how often the file was rewritten, as a resumed run does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = 0
        self.generation = 0
        self._error: str | None = None
        self._result_error: str | None = None
        self._reader = LineReader(path)
        self._index = SampleIndex()
        self._orders: dict[tuple[Key, bool], array[int]] = {}

    def __len__(self) -> int:
        return len(self._index)

    @property
    def bad_lines(self) -> int:
        """Lines of the file as it is now that are no samples."""
        return self._reader.bad_lines

    @property
    def error(self) -> str | None:
        """The reason why the file, or ``result.json`` when it was last asked for, cannot be read."""
        return self._error or self._result_error

    def poll(self) -> bool:
        """Index what is new; return whether anything changed."""
        before = self.version, self._error, self.bad_lines
        self._error = None
        try:
            self._read_on()
        except OSError as error:
            self._error = one_line(f"{self.path} cannot be read: {error.strerror}.")
        return before != (self.version, self._error, self.bad_lines)

    def _read_on(self) -> None:
        reader = self._reader
        if reader.inode is not None and not self.path.exists():
            self._start_over()
            return
        for lines in reader.blocks():
            if reader.restarts:
                break
            self._index.add(reader.position, lines, reader.decode(DECODER, lines))
            self.version += 1
        if reader.restarts:
            self._start_over()
            self._read_on()

    def _start_over(self) -> None:
        self._reader = LineReader(self.path)
        self._index = SampleIndex()
        self._orders = {}
        self.generation += 1
        self.version += 1

    # rows

    def order(self, by: Key, *, descending: bool = False) -> Sequence[int]:
        """Return all rows, sorted; equal ones in the file's order, those without a value last."""
        index = self._index
        key: tuple[Key, bool] = (by, descending)
        order = self._orders.pop(key, None)
        if order is None or len(order) != len(index):
            order = _sorted(_values(index, by), order or array("q"), len(index), descending)
        self._orders[key] = order
        while len(self._orders) > _ORDERS_KEPT:
            del self._orders[next(iter(self._orders))]
        return order

    def of_prompt(self, row: int) -> list[int]:
        """Return all rows with the same prompt as this one, itself among them, by step."""
        index = self._index
        rows = _all_equal(index.questions, index.questions[row], len(self))
        prompts = {sample.row: sample.question for sample in self.read(rows)}  # equal hashes need not be equal texts
        same = [other for other in rows if other in prompts and prompts[other] == prompts.get(row)]
        return sorted(same, key=index.steps.__getitem__)

    def search(self, text: str, *, start: int = 0, limit: int = 100, budget: int = 50_000) -> SearchResult:
        """Return rows from ``start`` on whose prompt or response holds a text, upper and lower case alike.

        Args:
            text: to search for.
            start: the row to begin at; ``SearchResult.resume_at`` of the search before.
            limit: stop after so many.
            budget: rows to search; 50,000 take some 0.1 s.
        """
        needle = text.casefold()
        stop = min(len(self), start + budget)
        rows: list[int] = []
        for sample in self._read_raw(range(start, stop)):
            if needle in sample.response.casefold() or needle in sample.question.casefold():
                rows.append(sample.row)
                if len(rows) == limit:
                    stop = sample.row + 1
                    break
        return SearchResult(rows=rows, resume_at=stop if stop < len(self) else None)

    # texts

    def read(self, rows: Iterable[int]) -> list[Sample]:
        """Return the samples of these rows, sanitised, in this order.

        Rows that the file no longer holds (it was rewritten since the last `poll`) are left out.

        Raises:
            IndexError: no such row.
        """
        return [_clean(sample) for sample in self._read_raw(rows)]

    def pairs(self, limit: int = 200) -> list[Pair]:
        """Return held-out prompts with their responses before and after PPO, those that have both first.

        From ``result.json`` beside the file, which holds a few of them, where the file has none. A prompt with
        several responses is paired in their order.
        """
        index = self._index
        sides: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for kind in (BEFORE, AFTER):
            for row in _all_equal(index.kinds, kind, len(self)):
                sides[index.questions[row]][kind == AFTER].append(row)
        row_pairs: list[tuple[int | None, int | None]] = [
            pair for both in sides.values() for pair in zip_longest(*both)
        ]
        row_pairs.sort(key=lambda pair: None in pair)
        shown = row_pairs[:limit]
        texts = {sample.row: sample for sample in self.read([row for pair in shown for row in pair if row is not None])}
        pairs = [_pair(*(None if row is None else texts.get(row) for row in pair)) for pair in shown]
        return [pair for pair in pairs if pair] or self._pairs_of_result()[:limit]

    def _pairs_of_result(self) -> list[Pair]:
        path = self.path.with_name("result.json")
        self._result_error = None
        try:
            result = _RESULT.decode(read_file(path, _RESULT_BYTES))
        except FileNotFoundError:
            return []
        except (OSError, *UNDECODABLE) as error:
            self._result_error = one_line(f"{path} cannot be read: {why_unreadable(error)}.")
            return []
        return [_pair_of_side(side) for side in result.samples]

    def _read_raw(self, rows: Iterable[int]) -> Iterator[Sample]:
        index = self._index
        try:
            file = os.fdopen(open_file(self.path), "rb")
        except OSError:  # `poll` says what is wrong with it
            return
        with file:
            if os.fstat(file.fileno()).st_ino != self._reader.inode:
                return
            for row in rows:
                sample = _read_one(file, index.offsets[row])
                if sample is not None and sample.step == index.steps[row]:
                    yield msgspec.structs.replace(sample, row=row)


def _read_one(file: BufferedReader, offset: int) -> Sample | None:
    """Return the sample that begins at a byte; None when there is another text by now."""
    if file.tell() != offset:
        file.seek(offset)
    try:
        return _SAMPLE.decode(file.readline(MAX_LINE + 1))
    except UNDECODABLE:
        return None


def _clean(sample: Sample) -> Sample:
    return msgspec.structs.replace(
        sample,
        question=sanitise(sample.question),
        response=sanitise(sample.response),
        rewards={one_line(name): value for name, value in sample.rewards.items()},
        columns={one_line(name): one_line(str(value)) for name, value in sample.columns.items() if value is not None},
        split=None if sample.split is None else one_line(sample.split),
        when=None if sample.when is None else one_line(sample.when),
    )


def _pair(before: Sample | None, after: Sample | None) -> Pair | None:
    one = before or after
    return Pair(question=one.question, before=before, after=after) if one else None


def _pair_of_side(side: _Side) -> Pair:
    def response(text: str | None, when: str, reward: float | None, utility: float | None) -> Sample | None:
        if text is None:
            return None
        return _clean(Sample(question=side.question, response=text, when=when, reward=reward, utility=utility))

    return Pair(
        question=sanitise(side.question),
        before=response(side.before, "before", side.reward_before, side.utility_before),
        after=response(side.after, "after", side.reward_after, side.utility_after),
    )


def _values(index: SampleIndex, by: Key) -> "array[int] | array[float]":
    return {"step": index.steps, "reward": index.rewards, "kl": index.kls, "length": index.lengths}[by]


def _sorted(values: "array[int] | array[float]", before: "array[int]", count: int, descending: bool) -> "array[int]":
    """Return rows sorted by value; what was sorted before is nearly so, and costs next to nothing."""
    rows = [*before, *range(len(before), count)]
    with_value = [row for row in rows if values[row] == values[row]]
    without_value = [row for row in rows if values[row] != values[row]]
    return array("q", [*sorted(with_value, key=values.__getitem__, reverse=descending), *without_value])


def _all_equal(values: "array[int]", value: int, stop: int) -> list[int]:
    """Return the indices of all entries with a value, found at the speed of ``array.index``."""
    indices: list[int] = []
    start = 0
    while start < stop:
        try:
            start = values.index(value, start, stop)
        except ValueError:
            break
        indices.append(start)
        start += 1
    return indices
