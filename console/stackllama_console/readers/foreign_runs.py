"""The runs in another trainer's directory: the directory itself, or those in folders below it.

A directory with a known file of its own is one run, whatever is below it. Else each topmost folder with one is a run:
three folders of TensorBoard events are three runs, and so are the output directories of three trainers. A trainer's
starts below its ``runs/`` are one run that was restarted (see `foreign_files.group_of`), and ``train`` beside
``validation`` one run with two writers.
"""

from collections.abc import Collection
from pathlib import Path

from msgspec import Struct

from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.user_dirs import expanded

from ..sanitise import one_line
from .foreign import open_foreign
from .foreign_files import find_files, group_of

_WRITERS = frozenset({"train", "training", "val", "valid", "validation", "eval", "evaluation", "test"})
"""Names of folders that a program writes side by side, such as those of Keras."""


class ForeignRun(Struct, frozen=True):
    """A run of another trainer: ``name`` is its folder below the directory, sanitised; ``changed`` in Unix seconds."""

    path: Path
    name: str
    changed: float


def runs_in(path: Path) -> list[ForeignRun]:
    """Return the runs in a directory, those that were written to last first; at least one.

    Args:
        path: the directory; or a file in one, which is then the run.

    Raises:
        UsageError: it cannot be read, or holds nothing that can be followed.
    """
    path = expanded(path).absolute()
    folder = path.parent if path.is_file() else path
    try:
        holders = find_files(folder).holders if folder.is_dir() else {}
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error.strerror or error}.") from None
    if not holders:
        open_foreign(path)  # says what was looked for
    changed: dict[Path, int] = {}
    below = {holder.relative_to(folder) for holder in holders}
    for holder, moment in holders.items():
        root = folder if path.is_file() or folder in holders else folder / _root(holder.relative_to(folder), below)
        changed[root] = max(changed.get(root, 0), moment)
    topmost = [root for root in changed if not any(parent in changed for parent in root.parents)]
    runs = [
        ForeignRun(root, one_line(str(root.relative_to(folder))) if root != folder else one_line(root.name), at / 1e9)
        for root in topmost
        for at in [max(moment for other, moment in changed.items() if other.is_relative_to(root))]
    ]
    return sorted(runs, key=lambda run: (-run.changed, run.name))


def _root(folder: Path, holders: Collection[Path]) -> Path:
    """Return the run that a folder with known files belongs to; all are relative to the directory."""
    parts = group_of(folder, holders).parts
    while parts and parts[-1].lower() in _WRITERS:
        parts = parts[:-1]
    return Path(*parts)
