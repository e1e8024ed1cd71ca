"""Preview of a data source: its first rows, lengths of texts, and number of rows where that is cheap.

A hub source is read in a separate process (``python -m stackllama_engine.data preview``), so that callers, above all
the console, never import ``datasets``, and a hub that hangs can be abandoned.
"""

import os
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ..contract.errors import DataError
from ..contract.prompt_format import Kind as PromptKind
from ..contract.prompt_format import PromptFormat
from ..contract.stages import Split
from ..contract.threads import thread_environment, threads_per_process
from .columns import NEEDS, Row, notices
from .kinds import PAIRED, Kind, has_known_columns, kind_of
from .local import ALL
from .manifest import read_manifest
from .row_files import count_rows
from .schemas import MESSAGES, conversation_text
from .sources import open_rows, read_columns, text_columns

_LOOK_AT = 200  # rows
_PATIENCE = 120.0  # seconds for a hub


class Length(Struct, frozen=True):
    """Lengths in characters of a column's texts, over the rows read."""

    shortest: int
    median: int
    longest: int


class Preview(Struct, frozen=True, kw_only=True):
    """The first rows of a split."""

    source: str
    kind: Kind
    split: str
    columns: list[str]
    style: PromptKind = "question_answer"
    """Prompt format that `prompt_format: auto` resolves to."""
    rows: list[dict[str, Any]]
    texts: list[str]
    """The same rows as text: with the better response, as supervised fine-tuning reads them, or the prompt alone."""
    stages: list[str] = []
    """Stages that can use the source, by its columns."""
    notices: list[str] = []
    """Columns of the prompt if there are several, and text that is not read."""
    looked_at: int
    """Number of rows read, from which lengths and skips are counted."""
    lengths: dict[str, Length]
    skipped: dict[str, int] = {}
    """Skipped rows among those read, by reason."""
    total: int | None = None
    """Number of rows of the split, if they can be counted without reading them."""
    counts: dict[str, int] = {}
    """Pairs by split, of a prepared directory."""


def preview(
    name: str,
    split: str | None = None,
    *,
    count: int = 3,
    config: str | None = None,
    revision: str | None = None,
    patience: float = _PATIENCE,
) -> Preview:
    """Read the first rows of a source.

    Args:
        name: the source.
        split: the split; None: finetune, all of a file, or ``train`` of a hub data set.
        count: number of rows to show.
        config: configuration of a hub data set.
        revision: revision of a hub data set.
        patience: seconds to wait for the hub.

    Raises:
        DataError: as :func:`.sources.open_rows`; it has no prompt, so no stage can use it; or the hub did not answer
            in time.
    """
    if kind_of(name) == "hub":
        return _in_process(name, split, count, config, revision, patience)
    return preview_here(name, split, count=count)


def preview_here(
    name: str,
    split: str | None = None,
    *,
    count: int = 3,
    config: str | None = None,
    revision: str | None = None,
    names: Mapping[str, str] | None = None,
) -> Preview:
    """Read the first rows of a source in this process, even of a hub data set.

    Raises:
        DataError: as :func:`.sources.open_rows`; or it has no prompt.
    """
    kind = kind_of(name)
    split = split or _default_split(name, kind)
    skipped: Counter[str] = Counter()
    columns = text_columns(name, split, config=config, revision=revision, names=names)
    rows = list(
        open_rows(
            name,
            split,
            config=config,
            revision=revision,
            limit=max(count, _LOOK_AT),
            needs=columns,
            names=names,
            skipped=skipped,
        )
    )
    used = read_columns(name, split, columns, config=config, revision=revision, names=names)
    total, counts = _totals(Path(name).expanduser(), kind, split)
    return Preview(
        source=name,
        kind=kind,
        split=split,
        columns=list(columns),
        style=used.style,
        rows=rows[:count],
        texts=[_as_text(row, used.style) for row in rows[:count]],
        stages=[stage.value for stage, needs in NEEDS.items() if set(needs) <= set(columns)],
        notices=[] if has_known_columns(name) else notices(name, used),
        looked_at=len(rows),
        lengths={column: _length(rows, column) for column in columns},
        skipped=dict(skipped),
        total=total,
        counts=counts,
    )


def _as_text(row: Row, style: PromptKind) -> str:
    """Return prompt and response as text; of a conversation, whose template only a tokenizer has, its paragraphs."""
    response = row.get("response_j")
    if style != "chat":
        return PromptFormat(kind=style).render(row["question"], response or "")
    answer = [{"role": "assistant", "content": response}] if response is not None else []
    return conversation_text([*row[MESSAGES], *answer])


def _default_split(name: str, kind: Kind) -> str:
    if kind in ("file", "files"):
        return ALL
    return "train" if kind == "hub" and name != PAIRED else Split.FINETUNE.value


def _totals(path: Path, kind: Kind, split: str) -> tuple[int | None, dict[str, int]]:
    """Return the number of rows of the split, and pairs by split, if they can be counted without reading rows."""
    if kind == "prepared":
        counts = {name: count.pairs for name, count in read_manifest(path).splits.items()}
        return (sum(counts.values()) if split == ALL else counts[split]), counts
    return (count_rows(path) if kind == "file" and split == ALL else None), {}


def _length(rows: list[Row], column: str) -> Length:
    lengths = [len(row[column]) for row in rows]
    return Length(shortest=min(lengths), median=round(statistics.median(lengths)), longest=max(lengths))


def _in_process(
    name: str, split: str | None, count: int, config: str | None, revision: str | None, patience: float
) -> Preview:
    argv = [sys.executable, "-m", "stackllama_engine.data", "preview", name, "--count", str(count)]
    for flag, value in (("--split", split), ("--config", config), ("--revision", revision)):
        argv += [f"{flag}={value}"] if value is not None else []
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
    try:
        environment = os.environ | {"PYTHONPATH": path} | thread_environment(threads_per_process())
        done = subprocess.run(argv, env=environment, capture_output=True, timeout=patience)
    except subprocess.TimeoutExpired:
        raise DataError(
            f"Hub data set {name!r} did not answer within {patience:.0f} s. Check the network, or use a local file."
        ) from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise DataError(lines[-1] if lines else f"Hub data set {name!r} cannot be read (exit {done.returncode}).")
    return msgspec.json.decode(done.stdout, type=Preview)
