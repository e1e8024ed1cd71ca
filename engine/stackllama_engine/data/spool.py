"""Regrouping of posts into questions with their answers, in bounded memory.

A dump has no defined order: an answer may come before its question or far behind it, and the largest dump (100 GB) does
not fit in memory. So posts are first distributed into files on disk by a hash of their question, each file with whole
questions and small enough to be read at once (a Grace hash join: https://en.wikipedia.org/wiki/Hash_join). Everything
is read and written sequentially. The disk needs room for the bodies once more. Memory is one file as Python objects
with its Markdown, about three times 128 MiB (a dump over 64 GiB has larger files rather than more: about 600 MiB at
100 GB).
"""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
from msgspec import Struct

from .posts import Post
from .splits import stable_hash

_BUCKET_BYTES = 1 << 27
_MOST_BUCKETS = 512  # open files; the usual limit is 1,024


class Thread(Struct, frozen=True):
    """A question and its answers by id."""

    question: Post
    answers: list[Post]


class Spool:
    """Files of posts under ``directory``; a context manager that closes them."""

    def __init__(self, directory: Path, source_bytes: int, seed: int = 0) -> None:
        self._count = max(1, min(_MOST_BUCKETS, math.ceil(source_bytes / _BUCKET_BYTES)))
        self._seed = seed
        self._paths = [directory / f"bucket-{number:03d}" for number in range(self._count)]
        self._encode = msgspec.json.Encoder().encode
        self._stack = ExitStack()

    def __enter__(self) -> "Spool":
        self._files = [self._stack.enter_context(path.open("wb")) for path in self._paths]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, post: Post) -> None:
        """Write a post into the file of its question."""
        bucket = stable_hash("bucket", self._seed, post.question) * self._count >> 64
        self._files[bucket].write(self._encode(post) + b"\n")

    def buckets(self, skipped: Counter[str]) -> Iterator[list[Thread]]:
        """Yield the questions of one file at a time; ``skipped`` counts answers without a question and repeated ids."""
        self._stack.close()
        decode = msgspec.json.Decoder(Post).decode
        for path in self._paths:
            with path.open("rb") as file:
                yield _group((decode(line) for line in file), skipped)
            path.unlink()


def _group(posts: Iterator[Post], skipped: Counter[str]) -> list[Thread]:
    by_id: dict[int, Post] = {}
    for post in posts:
        if by_id.setdefault(post.id, post) is not post:
            skipped["Id seen before"] += 1
    threads = {post.id: Thread(post, []) for post in by_id.values() if post.id == post.question}
    for number in sorted(by_id):
        post = by_id[number]
        if post.id == post.question:
            continue
        if post.question in threads:
            threads[post.question].answers.append(post)
        else:
            skipped["answer without its question"] += 1
    return [threads[number] for number in sorted(threads)]
