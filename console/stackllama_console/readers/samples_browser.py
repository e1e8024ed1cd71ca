"""Listings of the samples browser: rows sorted, filtered, of one prompt, or pairs of before and after PPO.

Usable from a thread; nothing here knows the screen. Of a million rows only numbers are held.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct

from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.run_dir import RunDir, State
from stackllama_engine.contract.stages import Stage

from ..eval_summary import conditions_of
from ..sanitise import one_line
from .run_state import StateWatch
from .samples import Key, Pair, Sample, SamplesFile

Mode = Literal["rows", "prompt", "pairs"]
SORTS: tuple[Key, ...] = ("step", "reward", "kl", "length")

_FOUND = 5_000  # rows of a filter that are listed
_SEARCHED = 200_000  # rows searched per poll

_REASONS = {
    Stage.SFT: "An SFT run has no samples unless A asked for some while it ran. Chat (esc, then t) shows its answers.",
    Stage.REWARD: "A reward run has no samples: it scores responses and generates none. See the PPO run that uses it.",
    Stage.PREFERENCE: "A preference run has no samples unless A asked for some. Chat (esc, then t) shows its answers.",
    Stage.MERGE: "A merge has no samples: it generates nothing. Chat (esc, then t) shows the merged model's answers.",
    Stage.PIPELINE: "No stage of this pipeline has samples yet: PPO writes them.",
}


class Wanted(Struct, frozen=True, kw_only=True):
    """The listing a person asked for."""

    mode: Mode = "rows"
    sort: Key = "step"
    descending: bool = True
    text: str = ""
    """Only rows that hold it."""
    prompt: int = -1
    """In mode ``prompt``: the row whose prompt is followed."""


class Listing(Struct, kw_only=True):
    """The listing that a `Wanted` asks for.

    Attributes:
        wanted: what was asked.
        rows: numbers of the rows to list; empty in mode ``pairs``.
        pairs: in mode ``pairs``, what to list.
        cursor: position of the selected row among them, 0 when it is not there.
        total: rows of the file.
        generation: row numbers of another generation mean other rows.
        searching: a filter has not reached the end yet.
        evaluation: in mode ``pairs``, how the prompts were sampled.
        live: whether more may come.
        note: a sentence for the person; why there is nothing, or what went wrong.
    """

    wanted: Wanted
    rows: Sequence[int] = ()
    pairs: list[Pair] = []
    cursor: int = 0
    total: int = 0
    generation: int = 0
    searching: bool = False
    evaluation: str = ""
    live: bool = False
    note: str = ""

    def __len__(self) -> int:
        return len(self.pairs if self.wanted.mode == "pairs" else self.rows)


class SamplesBrowser:
    """The samples of one run, as they are asked for. One thread at a time."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.samples = SamplesFile(run.samples_file)
        self._watch = StateWatch(run)
        self._last: tuple[Wanted, int, State | None, str | None] | None = None
        self._text = ""
        self._found: list[int] = []
        self._resume_at = 0
        self._generation: int = 0

    def poll(self, wanted: Wanted, selected: int) -> Listing | None:
        """Poll and return a new listing, or None where it would say the same as the last one."""
        samples = self.samples
        samples.poll()
        self._watch.poll()
        searching = self._search(wanted.text)
        now = wanted, samples.version, self._watch.state, samples.error
        if now == self._last and not searching:
            return None
        self._last = now
        pairs = samples.pairs() if wanted.mode == "pairs" else []
        rows = self._rows(wanted)
        state = self._watch.state
        return Listing(
            wanted=wanted,
            rows=rows,
            pairs=pairs,
            cursor=_place(rows, selected),
            total=len(samples),
            generation=samples.generation,
            searching=self._resume_at < len(samples) and bool(wanted.text),
            evaluation=self._evaluation() if pairs else "",
            live=state is not None and not state.has_ended,
            note=samples.error or self._watch.error or self._reason(wanted, rows, pairs),
        )

    def read(self, rows: Iterable[int]) -> list[Sample]:
        """Return the texts of rows; those that are gone are left out."""
        count = len(self.samples)
        return self.samples.read([row for row in rows if row < count])

    def _evaluation(self) -> str:
        try:
            return conditions_of(self.run)
        except UsageError:  # a damaged result; the note says so where the pairs come from it
            return ""

    def _rows(self, wanted: Wanted) -> Sequence[int]:
        samples = self.samples
        if wanted.mode == "pairs":
            return ()
        if wanted.mode == "prompt":
            return samples.of_prompt(wanted.prompt) if wanted.prompt < len(samples) else ()
        order = samples.order(wanted.sort, descending=wanted.descending)
        if not wanted.text:
            return order
        matches = set(self._found)
        return [row for row in order if row in matches]

    def _search(self, text: str) -> bool:
        """Continue the search; return whether any row was searched."""
        if text != self._text or self.samples.generation != self._generation:
            self._text = text
            self._generation = self.samples.generation
            self._found, self._resume_at = [], 0
        count = len(self.samples)
        if not text or self._resume_at >= count or len(self._found) >= _FOUND:
            return False
        room = _FOUND - len(self._found)
        result = self.samples.search(text, start=self._resume_at, limit=room, budget=_SEARCHED)
        self._found += result.rows
        self._resume_at = count if result.resume_at is None else result.resume_at
        return True

    def _reason(self, wanted: Wanted, rows: Sequence[int], pairs: list[Pair]) -> str:
        """Return why there is nothing to list; empty where there is."""
        if rows or pairs:
            return ""
        if len(self.samples) and wanted.mode == "pairs":
            return "Nothing to compare yet: PPO samples its held-out prompts before its first step and at the end."
        if len(self.samples):
            return f"No sample holds “{one_line(wanted.text)}”." if wanted.text else "This prompt's samples are gone."
        state = self._watch.state
        if state is None:
            return ""
        if state.stage in _REASONS:
            return _REASONS[state.stage]
        if state.has_ended:
            return "No samples: the run ended before its first step, or its recipe sets num_sample_generations: 0."
        return "No samples yet: they are written at each step."


def _place(rows: Sequence[int], selected: int) -> int:
    try:
        return rows.index(selected)
    except ValueError:
        return 0
