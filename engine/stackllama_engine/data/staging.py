"""Where a prepared directory is made: beside its place, under a name that the next one to be made there knows.

A process that is killed removes nothing. What it left is removed by the next that prepares the same directory, unless
somebody still works on it (:mod:`..contract.working`).
"""

import glob
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from ..contract.errors import RefusedError
from ..contract.working import left_alone

Notice = Callable[[str], object]
"""Called with a sentence that a person should read."""


@contextmanager
def own_staging(out: Path, on_notice: Notice | None = None) -> Generator[Path]:
    """An empty directory beside ``out``, nobody else's; removed at the end if it is still there.

    Args:
        out: the directory to be made; its parent exists.
        on_notice: told what was left there, and by earlier versions under other names.

    Raises:
        RefusedError: another process makes ``out``, or nobody can tell.
        OSError: it cannot be made.
    """
    folder = out.parent / f".{out.name}.preparing"
    left = False
    while True:
        made = _make(folder)
        try:
            with left_alone(folder) as alone:
                if alone is False or (alone is None and not made):
                    raise RefusedError(
                        f"{out} is being made by another process, or was when that ended; wait, remove {folder}, "
                        "or choose another --out."
                    )
                if made:
                    _tell(out, folder if left else None, on_notice)
                    yield from _removed_after(folder)
                    return
                left = left or any(folder.iterdir())
                shutil.rmtree(folder)  # marked as ours: nobody begins in it meanwhile
        except FileNotFoundError:  # whoever had it has just finished
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


def _tell(out: Path, left: Path | None, on_notice: Notice | None) -> None:
    if on_notice is None:
        return
    if left is not None:
        on_notice(f"{left} was left by a `data prepare` that was cut short, and has been removed")
    for old in sorted(out.parent.glob(f".{glob.escape(out.name)}.tmp-*")):
        on_notice(f"{old} was left by an earlier version; remove it unless that still runs")
