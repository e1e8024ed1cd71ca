"""Raw rows of sources on this machine: the demo, prepared directories, files.

Separate from :mod:`.sources`, which also reads hub data sets, so that a launch can check its data without ``datasets``.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..contract.errors import DataError
from ..contract.stages import Split
from .columns import prompt_of
from .kinds import files_of, kind_of
from .manifest import read_manifest
from .row_files import position_of, read_file
from .splits import same_text, split_of, stable_hash

ALL = "all"


def local_rows(
    name: str, split: str, names: Mapping[str, str] | None = None, *, seed: int = 0
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (position, row as read) of one split, or of ``all``.

    Args:
        name: the source.
        split: one of ours, or ``all``.
        names: `dataset_columns`, which say what the prompt is, and it the split.
        seed: of the demo's generator.

    Raises:
        DataError: no such split, or unreadable.
    """
    splits = _splits(name, split)
    path = Path(name).expanduser()
    kind = kind_of(name)
    if kind == "demo":
        from .demo_data import generate

        for part in splits:
            yield from (("demo", row) for row in generate(part.value, seed))
    elif kind == "prepared":
        read_manifest(path)
        for part in splits:
            yield from ((f"{part}.jsonl, line {n}", row) for n, row in read_file(path / f"{part}.jsonl"))
    else:
        files = files_of(name)
        for file in files:
            for number, row in read_file(file):
                if split == ALL or _is_in(row, names, splits):
                    where = position_of(file, number)
                    yield where if len(files) == 1 else f"{file.name}, {where}", row


def stamp(name: str) -> str:
    """Return a cheap identity of a source, which changes when one of its files does (path, size, modification time).

    The identity of a hub data set is its name alone; pin it with a revision.

    Raises:
        DataError: no such source.
    """
    kind = kind_of(name)
    path = Path(name).expanduser().resolve()
    if kind == "hub":
        files: list[Path] = []
    elif kind == "demo":
        files = [Path(__file__).with_name("demo_data.py")]
    else:
        files = sorted(path.iterdir()) if kind == "prepared" else files_of(name)
    facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"{stable_hash(kind, name if kind in ('hub', 'demo') else str(path), repr(facts)):016x}"


def _splits(name: str, split: str) -> tuple[Split, ...]:
    if split == ALL:
        return tuple(Split)
    if split in list(Split):
        return (Split(split),)
    raise DataError(f"{name} has no split {split!r}; choose one of {', '.join(Split)} or {ALL}.")


def _is_in(row: Mapping[str, Any], names: Mapping[str, str] | None, splits: tuple[Split, ...]) -> bool:
    """Return whether a row's prompt is in one of the splits; a row without one is in each, where reading it fails."""
    text = prompt_of(row, names)
    return text is None or split_of(same_text(text)) in splits
