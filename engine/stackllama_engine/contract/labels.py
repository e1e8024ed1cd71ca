"""What a person says of a run: a title, tags, a note; ``labels.json`` in its directory, and no file until something is.

No run reads it. The run's id stays what it was launched as, because recipes, checkpoints, child runs and other people's
commands name it: a run is renamed by its title alone.
"""

import re

import msgspec
from msgspec import Struct

from .atomic_files import write_whole
from .errors import DamagedError, RefusedError, UsageError
from .run_dir import RunDir
from .run_files import UNDECODABLE, decode_file, why_unreadable

LABELS_FILE = "labels.json"
MOST_TITLE, MOST_NOTE, MOST_TAGS = 80, 2000, 32
_TAG = re.compile(r"[^\s,:<>=\"'-][^\s,:<>=\"']{0,39}")
_MOST_BYTES = 1 << 16


class Labels(Struct, frozen=True, omit_defaults=True):
    """``labels.json``; of a run without one everything is empty."""

    title: str = ""
    tags: tuple[str, ...] = ()
    note: str = ""


def read_labels(run: RunDir) -> Labels:
    """Read a run's labels.

    Raises:
        DamagedError: the file cannot be read.
    """
    try:
        return decode_file(run.path / LABELS_FILE, Labels, _MOST_BYTES)
    except FileNotFoundError:
        return Labels()
    except (OSError, *UNDECODABLE) as error:
        raise DamagedError(
            f"{run.path / LABELS_FILE}: {why_unreadable(error)}. It holds only title, tags and note; remove it."
        ) from None


def set_title(run: RunDir, title: str) -> Labels:
    """Give a run another name in lists; an empty one takes it away.

    Raises:
        UsageError: it is too long, or has more than one line.
        DamagedError, RefusedError: see :func:`read_labels`; the file cannot be written.
    """
    return _write(run, title=_checked("title", title, MOST_TITLE))


def set_note(run: RunDir, note: str) -> Labels:
    """Write a note on a run; an empty one takes it away.

    Raises:
        UsageError, DamagedError, RefusedError: as :func:`set_title`.
    """
    return _write(run, note=_checked("note", note, MOST_NOTE))


def change_tags(run: RunDir, add: list[str], remove: list[str]) -> Labels:
    """Add and remove tags; those that are there, or not there, already are no error.

    Raises:
        UsageError: one cannot be a tag, or there are too many.
        DamagedError, RefusedError: as :func:`set_title`.
    """
    for tag in add:
        if not _TAG.fullmatch(tag) or not tag.isprintable():
            raise UsageError(
                f"`{tag}` cannot be a tag: at most 40 characters, none of them a space, comma, quote, `:`, `<`, `>` or "
                "`=`, and no `-` at its beginning."
            )
    tags = dict.fromkeys((*read_labels(run).tags, *add))
    for tag in remove:
        tags.pop(tag, None)
    if len(tags) > MOST_TAGS:
        raise UsageError(f"a run has at most {MOST_TAGS} tags; remove some.")
    return _write(run, tags=tuple(tags))


def _checked(what: str, text: str, most: int) -> str:
    text = text.strip()
    if len(text) > most or not text.isprintable():
        raise UsageError(f"a {what} is one line of at most {most} characters without control characters.")
    return text


def _write(run: RunDir, **changes: object) -> Labels:
    labels = msgspec.structs.replace(read_labels(run), **changes)
    path = run.path / LABELS_FILE
    try:
        if labels == Labels():
            path.unlink(missing_ok=True)
        else:
            write_whole(path, msgspec.json.format(msgspec.json.encode(labels), indent=2) + b"\n")
    except OSError as error:
        raise RefusedError(f"{path} cannot be written: {error.strerror or error}.") from None
    return labels
