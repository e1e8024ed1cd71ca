"""Rows of a stage tokenised in batches, and large data sets once: the result is kept in the user's cache.

The name of a kept file is a hash of what its content depends on: the rows as text, the tokenizer, the prompt format,
what the stage makes of a row, and the versions of the libraries. Two runs that tokenise the same at once write the same
file; each writes under a name of its own and renames it. A run works on its own link of a file, so that whatever
removes the file meanwhile takes nothing from it.
"""

import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from datasets import Dataset
from pyarrow import ArrowInvalid

from ..contract.atomic_files import PRIVATE_DIR
from ..contract.errors import UsageError
from ..contract.run_dir import RunDir
from ..contract.user_dirs import user_dir
from .encoding import Encode, Encoder
from .session import CACHE

BATCH = 1000
"""Rows whose texts are tokenised together."""
KEPT_FROM = 10_000
"""Rows from which on the result is kept; fewer are tokenised in a second."""
MOST_KEPT = 8 << 30
_ABANDONED = 3600  # seconds without a change
"""Bytes of kept files; the one unused for longest goes first."""
_FORMAT = "2"
"""Of kept files; another one when encoding changes."""
_log = logging.getLogger(__name__)


class BatchTokenizing:
    """Encodes all rows of a data set in batches, or takes the result of an earlier run.

    Args:
        encoder: that the stage's encoding uses.
        run: the run's directory; files of its own are in its cache.
        what: the stage and the keys that say what it makes of a row.
    """

    def __init__(self, encoder: Encoder, run: RunDir, *what: object) -> None:
        self._encoder = encoder
        self._own = run.path / CACHE
        self._what = what

    def __call__(self, rows: Dataset, encode: Encode) -> Dataset:
        """Return ``rows.map(encode)`` without the columns of ``rows``."""
        names = rows.column_names
        kept_long = len(rows) >= KEPT_FROM and "strftime_now" not in (self._encoder.format.chat_template or "")
        key = self._key(rows) if kept_long and self._encoder.tokenizer.is_fast else None
        own = self._own / f"tokens-{key}.arrow"
        if key and (kept := _taken(key, own, len(rows))) is not None:
            return kept

        def encode_batch(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
            batch = [
                dict(zip(names, values, strict=True)) for values in zip(*(columns[name] for name in names), strict=True)
            ]
            encoded = self._encoder.encode_together(encode, batch)
            return {name: [row[name] for row in encoded] for name in encoded[0]}

        options: dict[str, Any] = {"cache_file_name": str(own), "new_fingerprint": key[:16]} if key else {}
        tokens = rows.map(encode_batch, batched=True, batch_size=BATCH, remove_columns=names, **options)
        if key:
            _keep(key, own)
        return tokens

    def _key(self, rows: Dataset) -> str:
        digest = hashlib.sha256()
        for part in self._dependencies():
            digest.update(part)
            digest.update(b"\0")
        for batch in rows.iter(BATCH):
            digest.update(msgspec.json.encode(batch))
        return digest.hexdigest()

    def _dependencies(self) -> Iterator[bytes]:
        encoder, tokenizer = self._encoder, self._encoder.tokenizer
        backend: Any = tokenizer
        yield repr((_FORMAT, *(version(name) for name in ("transformers", "tokenizers", "datasets")))).encode()
        yield repr((type(tokenizer).__name__, encoder.ends_with, encoder.stop_ids, *self._what)).encode()
        # a template may print them, and which tokens they are is no part of the backend
        yield repr(sorted(tokenizer.special_tokens_map.items())).encode()
        yield encoder.format.digest.encode()
        yield backend.backend_tokenizer.to_str().encode()


def cache_dir() -> Path:
    """Return the directory of kept files: ``$XDG_CACHE_HOME/stackllama/tokens``.

    Raises:
        UsageError: no home directory is known.
    """
    return user_dir("XDG_CACHE_HOME", ".cache") / "stackllama" / "tokens"


def _taken(key: str, own: Path, rows: int) -> Dataset | None:
    """Return a kept result, through a link of the run's own; None where there is none that can be read."""
    if not own.exists():
        with contextlib.suppress(OSError, UsageError):
            kept = cache_dir() / f"{key}.arrow"
            os.utime(kept)  # it was used
            own.parent.mkdir(mode=PRIVATE_DIR, parents=True, exist_ok=True)
            _link(kept, own)
    if not own.exists():
        return None
    try:
        tokens = Dataset.from_file(str(own))
    except (ArrowInvalid, OSError) as error:
        _log.warning("%s cannot be read and is made again: %s", own.name, error)
    else:
        if len(tokens) == rows:
            return tokens
    own.unlink()
    with contextlib.suppress(OSError, UsageError):
        (cache_dir() / f"{key}.arrow").unlink()
    return None


def _keep(key: str, own: Path) -> None:
    """Keep a result for other runs; where that is not possible, they tokenise again."""
    try:
        folder = cache_dir()
        folder.mkdir(mode=PRIVATE_DIR, parents=True, exist_ok=True)
        if (size := own.stat().st_size) > MOST_KEPT:
            return
        _make_room(folder, size)
        _link(own, folder / f"{key}.arrow")
    except (OSError, UsageError) as error:
        _log.warning("the tokens of this data set are not kept for other runs: %s", error)


def _link(source: Path, target: Path) -> None:
    """Make ``target`` the same file, or a copy on another file system, all at once.

    Raises:
        OSError: it cannot be made.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        try:
            os.link(source, temporary)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _make_room(folder: Path, size: int) -> None:
    """Remove the files unused for longest until another one of this size fits."""
    for left in folder.glob(".*.arrow.*"):  # of a process that was killed
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()
    files: list[tuple[float, int, Path]] = []
    for path in folder.glob("*.arrow"):
        with contextlib.suppress(OSError):  # removed by another run
            stat = path.stat()
            files.append((stat.st_mtime, stat.st_size, path))
    total = size + sum(held for _, held, _ in files)
    for _, held, path in sorted(files):
        if total <= MOST_KEPT:
            return
        path.unlink(missing_ok=True)
        total -= held
