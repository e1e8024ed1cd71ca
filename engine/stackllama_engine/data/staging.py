"""Staging directory in which a prepared directory is written, beside it and with a fixed name.

A process that is killed removes nothing. What it left is removed by the next that prepares the same directory, unless
another process still works on it (:mod:`..contract.working`).
"""

import glob
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from ..contract.errors import RefusedError
from ..contract.working import left_alone

Notice = Callable[[str], object]
"""Called with a notice for the user."""


@contextmanager
def own_staging(out: Path, on_notice: Notice | None = None) -> Generator[Path]:
    """Yield an empty directory beside ``out`` of this process alone; removed at the end if it still exists.

    Args:
        out: the directory to be created; its parent exists.
        on_notice: receives notices about leftovers, also those of earlier versions under other names.

    Raises:
        RefusedError: another process creates ``out``, or that cannot be known.
        OSError: it cannot be created.
    """
    folder = out.parent / f".{out.name}.preparing"
    left = False
    while True:
        is_new = _make(folder)
        try:
            with left_alone(folder) as alone:
                if alone is False or (alone is None and not is_new):
                    raise RefusedError(
                        f"{out} is being prepared by another process, or was left by one that was killed; wait, "
                        f"remove {folder}, or choose another --out."
                    )
                if is_new:
                    _report_leftovers(out, folder if left else None, on_notice)
                    yield from _removed_after(folder)
                    return
                left = left or any(folder.iterdir())
                shutil.rmtree(folder)  # marked as ours: no other process uses it meanwhile
        except FileNotFoundError:  # its owner has just finished
            continue


def _make(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _removed_after(folder: Path) -> Generator[Path]:
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _report_leftovers(out: Path, left: Path | None, on_notice: Notice | None) -> None:
    if on_notice is None:
        return
    if left is not None:
        on_notice(f"{left} was left by an interrupted `data prepare` and has been removed")
    for old in sorted(out.parent.glob(f".{glob.escape(out.name)}.tmp-*")):
        on_notice(f"{old} was left by an earlier version; remove it unless that is still running")
