"""Streaming reader of the posts of a Stack Exchange dump (``Posts.xml``).

Parsed with expat, which builds no tree: memory is one chunk and one row, whatever the size of the file. Dumps have no
DOCTYPE; a file with one is refused at its declaration, so no entity is ever defined, expanded or fetched.

A question has PostTypeId 1, an answer 2 with its question's Id in ParentId; other types (tag wikis, …) are counted
and left out. https://meta.stackexchange.com/questions/2677 documents the columns.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

from msgspec import Struct

from ..contract.errors import DataError
from ..contract.user_files import open_file
from .kinds import unpack_command

_CHUNK = 1 << 18
_LONGEST_ROW = 1 << 26  # bytes; a post has at most 30,000 characters, so a longer row is malicious or not a dump
_PACKED = {b"7z\xbc\xaf": "7z", b"PK\x03\x04": "zip", b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zX": "xz"}


class Post(Struct, frozen=True, array_like=True):
    """A question (``id == question``) or an answer to one. ``body`` is HTML."""

    id: int
    question: int
    score: int
    """Up-votes minus down-votes."""
    accepted: int | None
    """Id of the accepted answer, of a question."""
    body: str


def read_posts(
    path: Path, skipped: Counter[str] | None = None, on_bytes: Callable[[bytes], object] | None = None
) -> Iterator[Post]:
    """Yield questions and answers in the order of the file, which is arbitrary.

    Args:
        path: the dump's ``Posts.xml``.
        skipped: counts skipped rows by reason.
        on_bytes: called with every chunk read (to hash or count it).

    Raises:
        DataError: not readable, not well-formed, truncated, not a Posts.xml, or malicious; names file and position.
    """
    posts: list[Post] = []
    parser = _parser(path, posts, Counter() if skipped is None else skipped)
    fed = 0
    with _open(path) as file:
        while chunk := _read(file, path):
            if fed == 0:
                _refuse_packed(chunk, path)
            fed += len(chunk)
            if on_bytes is not None:
                on_bytes(chunk)
            _parse(parser, chunk, path)
            yield from posts
            posts.clear()
            if fed - parser.CurrentByteIndex > _LONGEST_ROW:
                raise DataError(
                    f"{path}: line {parser.CurrentLineNumber}: a row is longer than 64 MiB, so this is not a dump."
                )
    _finish(parser, path, fed)


def _open(path: Path) -> Any:
    if path.is_dir():
        inside = path / "Posts.xml"
        raise DataError(f"{path} is a directory; give {inside if inside.is_file() else 'the Posts.xml of a dump'}.")
    try:
        return open_file(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def _read(file: Any, path: Path) -> bytes:
    try:
        return file.read(_CHUNK)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def _refuse_packed(head: bytes, path: Path) -> None:
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            how = f" with {unpack_command(path)}" if name == "7z" else ""
            raise DataError(f"{path} is a {name} archive; unpack it{how} and give the Posts.xml inside.")


def _parser(path: Path, posts: list[Post], skipped: Counter[str]) -> Any:
    """Create an expat parser that appends to ``posts`` and refuses what no dump contains."""
    parser = expat.ParserCreate()
    depth = 0

    def on_doctype(*_: object) -> None:
        raise DataError(
            f"{path}: line {parser.CurrentLineNumber}: refused, because it has a DOCTYPE, which no Stack Exchange "
            "dump has."
        )

    def on_start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        if depth == 0 and name != "posts":
            raise DataError(f"{path} is not a Posts.xml: its root element is <{name[:40]}>, not <posts>.")
        if depth == 1 and name == "row" and (post := _post(attributes, skipped)) is not None:
            posts.append(post)
        depth += 1

    def on_end(_: str) -> None:
        nonlocal depth
        depth -= 1

    parser.StartDoctypeDeclHandler = on_doctype
    parser.StartElementHandler = on_start
    parser.EndElementHandler = on_end
    return parser


def _parse(parser: Any, chunk: bytes, path: Path) -> None:
    try:
        parser.Parse(chunk, False)
    except expat.ExpatError as error:
        raise DataError(f"{path}: not well-formed XML: {error}.") from None


def _finish(parser: Any, path: Path, fed: int) -> None:
    """Check that the document is complete.

    Raises:
        DataError: it is not.
    """
    if fed == 0:
        raise DataError(f"{path} is empty.")
    try:
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise DataError(f"{path}: truncated before </posts>: {error}. Copy or unpack the file again.") from None


def _post(attributes: dict[str, str], skipped: Counter[str]) -> Post | None:
    kind = attributes.get("PostTypeId")
    if kind not in ("1", "2"):
        skipped["other post type"] += 1
        return None
    with contextlib.suppress(KeyError, ValueError):
        return _question(attributes) if kind == "1" else _answer(attributes)
    skipped["Id, ParentId, Score or Body missing or wrong"] += 1
    return None


def _question(attributes: dict[str, str]) -> Post:
    number = _number(attributes["Id"])
    accepted = attributes.get("AcceptedAnswerId")
    return Post(
        id=number,
        question=number,
        score=_number(attributes["Score"]),
        accepted=_number(accepted) if accepted else None,
        body=attributes["Body"],
    )


def _answer(attributes: dict[str, str]) -> Post:
    number, question = _number(attributes["Id"]), _number(attributes["ParentId"])
    if number == question:
        raise ValueError("an answer to itself")
    return Post(
        id=number, question=question, score=_number(attributes["Score"]), accepted=None, body=attributes["Body"]
    )


def _number(text: str) -> int:
    """Parse an integer of 64 bits.

    Raises:
        ValueError: it is not one.
    """
    number = int(text)
    if abs(number) >= 1 << 63:
        raise ValueError("larger than 64 bits")
    return number
