"""Conversion of a Stack Exchange dump to a prepared directory: one file of pairs per split, and a manifest.

::

    <out>/finetune.jsonl  reward.jsonl  rl.jsonl  evaluation.jsonl
    <out>/manifest.json   format, counts, source with SHA-256, licence

A row is ``question_id``, ``question``, ``response_j`` (better), ``response_k`` (worse), ``score_j``, ``score_k``; texts
are Markdown. The question is the post's body without its title, like the rows of ``lvwerra/stack-exchange-paired``,
which has no title column; as there, supervised fine-tuning reads ``question`` and ``response_j``.

Rows are shuffled in the order of a hash, so it depends on nothing but the posts and ``seed`` (a dump over 128 MiB is
shuffled in parts, which are hashes of the question).

The directory appears whole or not at all: everything is written beside it and renamed.
"""

import errno
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from ..contract.atomic_files import fsync_directory
from ..contract.disk_space import free, is_full, mib
from ..contract.errors import DataError, RefusedError, StackllamaError
from ..contract.stages import Split
from .manifest import MANIFEST, Report
from .markdown import to_markdown
from .pairs import MAX_PAIRS, Answer, make_pairs, score
from .posts import Post, read_posts
from .splits import split_of, stable_hash
from .spool import Spool, Thread
from .staging import Notice, own_staging

Progress = Callable[[str, int, int], object]
"""Called with the current phase (``read``, ``pair``), the amount done, and the total."""


class PreparedRow(Struct, frozen=True):
    """One line of a split's file."""

    question_id: int
    question: str
    response_j: str
    response_k: str
    score_j: int
    score_k: int


def prepare(
    posts: Path,
    out: Path,
    *,
    seed: int = 0,
    site: str = "",
    max_pairs: int = MAX_PAIRS,
    on_progress: Progress | None = None,
    on_notice: Notice | None = None,
) -> Report:
    """Read a dump's ``Posts.xml`` and write ``out``.

    Args:
        posts: the dump's Posts.xml. While this runs, the disk of ``out`` needs room for it once more.
        out: the directory to create; it may exist if it is empty.
        seed: selects the ten pairs of a question with more, and the order. It does not change any question's split.
        site: name of the site, hashed into the split: give it when several sites' directories are used together
            and question 7 of each should not be in the same split. Empty: the question's id alone decides.
        max_pairs: maximum number of pairs per question.
        on_progress: receives the progress.
        on_notice: receives notices about leftovers of an interrupted run.

    Raises:
        DataError: ``posts`` cannot be read as a dump, or has no questions or no pairs.
        RefusedError: ``out`` exists and is not an empty directory, or another process creates it.
        StackllamaError: ``out`` cannot be written.
    """
    began = time.monotonic()
    posts, out = posts.absolute(), out.absolute()
    _refuse_taken(out)
    report = Report(source=posts.name, seed=seed, site=site)
    with _staging(out, posts, on_notice) as staging:
        skipped: Counter[str] = Counter()
        spool_dir = staging / "spool"
        spool_dir.mkdir()
        with Spool(spool_dir, posts.stat().st_size if posts.is_file() else 0, seed) as spool:
            report.sha256 = _fill(spool, posts, report, skipped, on_progress)
            _write_pairs(spool, staging, report, skipped, max_pairs, on_progress)
        spool_dir.rmdir()
        if report.pairs == 0:
            raise DataError(f"{posts}: no pairs: no question has two answers with different scores.")
        report.skipped = dict(sorted(skipped.items()))
        report.seconds = round(time.monotonic() - began, 3)
        _write_manifest(staging, report)
    return report


def _fill(spool: Spool, path: Path, report: Report, skipped: Counter[str], on_progress: Progress | None) -> str:
    """Distribute all posts into the spool; return the SHA-256 of the file."""
    digest = hashlib.sha256()
    done = 0

    def on_bytes(chunk: bytes) -> None:
        nonlocal done
        digest.update(chunk)
        done += len(chunk)
        if on_progress is not None:
            on_progress("read", done, size)

    size = path.stat().st_size if path.is_file() else 0
    for post in read_posts(path, skipped, on_bytes):
        if post.id == post.question:
            report.questions += 1
        else:
            report.answers += 1
        spool.add(post)
    if report.questions == 0:
        raise DataError(f"{path} has no questions. Is it the Posts.xml of a Stack Exchange dump?")
    return digest.hexdigest()


def _write_pairs(
    spool: Spool,
    staging: Path,
    report: Report,
    skipped: Counter[str],
    max_pairs: int,
    on_progress: Progress | None,
) -> None:
    encode = msgspec.json.Encoder().encode
    done = 0
    with ExitStack() as stack:
        files = {split: stack.enter_context((staging / f"{split}.jsonl").open("wb")) for split in Split}
        for threads in spool.buckets(skipped):
            shuffled: list[tuple[int, Split, PreparedRow]] = []
            for thread in threads:
                shuffled += _rows(thread, report, skipped, max_pairs)
                done += 1
                if on_progress is not None:
                    on_progress("pair", done, report.questions)
            shuffled.sort(key=lambda item: item[0])
            for _, split, row in shuffled:
                files[split].write(encode(row) + b"\n")
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())


def _rows(
    thread: Thread, report: Report, skipped: Counter[str], max_pairs: int
) -> Iterator[tuple[int, Split, PreparedRow]]:
    """Yield the pairs of one question, each with its sort key in the shuffled order and its split."""
    report.questions_with_two_answers += len(thread.answers) > 1
    if len(thread.answers) < 2:
        return
    number = thread.question.id
    question = _markdown(thread.question, skipped)
    if not question:
        return
    answers = [
        Answer(post.id, score(post.score, post.id == thread.question.accepted), text)
        for post in thread.answers
        if (text := _markdown(post, skipped))
    ]
    pairs = make_pairs(number, answers, limit=max_pairs, seed=report.seed)
    report.ties += pairs.ties
    report.over_limit += pairs.over_limit
    report.pairs += len(pairs.kept)
    split = split_of(f"{report.site}/{number}" if report.site else number)
    report.splits[split].questions += bool(pairs.kept)
    report.splits[split].pairs += len(pairs.kept)
    for better, worse in pairs.kept:
        order = stable_hash("order", report.seed, number, better.id, worse.id)
        yield order, split, PreparedRow(number, question, better.text, worse.text, better.score, worse.score)


def _markdown(post: Post, skipped: Counter[str]) -> str:
    """Return the post's text; an empty one is counted."""
    try:
        text = to_markdown(post.body)
    except ValueError as error:
        skipped[str(error)] += 1
        return ""
    if not text:
        skipped["no text in its body"] += 1
    return text


def _refuse_taken(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise RefusedError(f"{out} exists and is not a directory; choose another --out.")
    if out.is_dir() and any(out.iterdir()):
        raise RefusedError(f"{out} exists and is not empty; choose another --out or remove it first.")


@contextmanager
def _staging(out: Path, posts: Path, on_notice: Notice | None) -> Iterator[Path]:
    """Yield a directory beside ``out`` that is renamed to ``out`` at the end, and removed when anything fails."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with own_staging(out, on_notice) as staging:
            yield staging
            staging.replace(out)
            fsync_directory(out.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise RefusedError(f"{out} was filled by another process meanwhile; choose another --out.") from None
        if is_full(error):
            raise StackllamaError(_no_room(out, posts)) from None
        raise StackllamaError(f"{out} cannot be written: {error.strerror}.") from None


def _no_room(out: Path, posts: Path) -> str:
    """Return the error of a full disk, after the partial directory was removed."""
    size = posts.stat().st_size
    return (
        f"The disk is full: {out} could not be written, and nothing of it was left behind. It needs room for "
        f"{posts.name} once more, {mib(size)} ({size:,} bytes), and for the pairs; there are {free(out.parent)}. Free "
        "some space, or choose another --out."
    )


def _write_manifest(staging: Path, report: Report) -> None:
    with (staging / MANIFEST).open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
