"""Reader of dumps: accepted, counted and refused input."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stackllama_engine.contract.errors import DataError
from stackllama_engine.data import posts as posts_module
from stackllama_engine.data.posts import Post, read_posts


def test_questions_and_answers_are_read(dump: Any) -> None:
    path = dump.write([dump.answer(3, 2, -4, "a < b & c"), dump.question(2, "<p>é\n</p>", accepted=3)])
    assert list(read_posts(path)) == [
        Post(id=3, question=2, score=-4, accepted=None, body="a < b & c"),
        Post(id=2, question=2, score=1, accepted=3, body="<p>é\n</p>"),
    ]


def test_rows_left_out_are_counted(dump: Any) -> None:
    rows = [
        dump.question(1),
        {"Id": 2, "PostTypeId": 5, "Score": 0, "Body": "a tag's wiki"},
        {"Id": 3},
        {"Id": "three", "PostTypeId": 1, "Score": 0, "Body": ""},
        {"Id": 4, "PostTypeId": 2, "Score": 0, "Body": "an answer to nothing"},
        {"Id": 5, "PostTypeId": 1, "Score": 0},
        {"Id": 6, "PostTypeId": 2, "ParentId": 6, "Score": 0, "Body": "an answer to itself"},
        {"Id": 10**30, "PostTypeId": 1, "Score": 0, "Body": ""},
    ]
    skipped: Counter[str] = Counter()
    assert [post.id for post in read_posts(dump.write(rows), skipped)] == [1]
    assert skipped == {"other post type": 2, "Id, ParentId, Score or Body missing or wrong": 5}


def test_result_does_not_depend_on_chunks(dump: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dump.write(dump.forum(5))
    whole = list(read_posts(path))
    seen: list[bytes] = []
    monkeypatch.setattr(posts_module, "_CHUNK", 7)
    assert list(read_posts(path, on_bytes=seen.append)) == whole
    assert len(whole) == 20
    assert b"".join(seen) == path.read_bytes()


LAUGHS = '<!DOCTYPE posts [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE posts [<!ENTITY a SYSTEM "file:///etc/hostname">]>'
REMOTE = '<!DOCTYPE posts SYSTEM "http://127.0.0.1:9/posts.dtd">'


@pytest.mark.parametrize("doctype", [LAUGHS, OUTSIDE, REMOTE, "<!DOCTYPE posts>"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_doctype_is_refused_before_anything_is_read(tmp_path: Path, doctype: str, encoding: str) -> None:
    path = tmp_path / "Posts.xml"
    row = '<row Id="1" PostTypeId="1" Score="1" Body="&a;" />'
    path.write_text(f'<?xml version="1.0" encoding="{encoding}"?>\n{doctype}<posts>{row}</posts>', encoding=encoding)
    with pytest.raises(DataError, match=r"Posts\.xml: line 2: refused, because it has a DOCTYPE"):
        list(read_posts(path))


HEAD = '<?xml version="1.0"?>\n<posts>\n<row Id="1" PostTypeId="1" Score="1" Body="x" />\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (HEAD.encode(), r"truncated before </posts>: no element found: line 4, column 0"),
        (f"{HEAD}<row Id=".encode(), r"truncated before </posts>: unclosed token: line 4"),
        (f"{HEAD}<row></posts>".encode(), r"not well-formed XML: mismatched tag: line 4"),
        (f"{HEAD}</posts><posts/>".encode(), "not well-formed XML: junk after document element: line 4"),
        (f"{HEAD}<row Body='&undefined;'/></posts>".encode(), "not well-formed XML: undefined entity: line 4"),
        (HEAD.encode() + b"<row Body='\xff\xfe'/></posts>", "not well-formed XML"),
        (b"<users><row Id='1'/></users>", "not a Posts.xml: its root element is <users>"),
        (b"# A text\n", "not well-formed XML"),
        (b"7z\xbc\xaf\x27\x1c\0", "is a 7z archive; unpack it"),
        (b"PK\x03\x04rest", "is a zip archive; unpack it"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "Posts.xml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_posts(path))
    assert str(path) in str(caught.value)


def test_missing_file_and_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        list(read_posts(tmp_path / "none.xml"))
    with pytest.raises(DataError, match=r"is a directory; give the Posts\.xml of a dump"):
        list(read_posts(tmp_path))
    (tmp_path / "Posts.xml").touch()
    with pytest.raises(DataError, match=r"is a directory; give .*/Posts\.xml"):
        list(read_posts(tmp_path))


def test_an_endless_row_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posts_module, "_LONGEST_ROW", 1 << 20)
    path = tmp_path / "Posts.xml"
    path.write_text('<posts>\n<row Id="1" PostTypeId="1" Body="' + "x" * (3 << 20) + '" /></posts>')
    with pytest.raises(DataError, match="line 2: a row is longer"):
        list(read_posts(path))


# The peak is read from /proc: ru_maxrss survives exec, so it would be that of the test runner.
MEASURE = r"""
import re, sys
from pathlib import Path
from stackllama_engine.data.posts import read_posts
count = sum(1 for _ in read_posts(Path(sys.argv[1])))
print(count, int(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


def test_memory_does_not_grow_with_the_file(dump: Any) -> None:
    body = "word " * 1000
    small = dump.write((dump.answer(n, 1, 1, body) for n in range(2, 102)), "small.xml")
    large = dump.write((dump.answer(n, 1, 1, body) for n in range(2, 8002)), "large.xml")
    assert large.stat().st_size > 40_000_000
    root = str(Path(posts_module.__file__).parents[2])

    def measure(path: Path) -> list[int]:
        argv = [sys.executable, "-c", MEASURE, str(path)]
        done = subprocess.run(argv, env={"PYTHONPATH": root}, capture_output=True, text=True, check=True)
        return [int(word) for word in done.stdout.split()]

    (few, least), (many, most) = measure(small), measure(large)
    assert (few, many) == (100, 8000)
    assert most - least < 8, f"{least} MiB for 0.5 MB, {most} MiB for 40 MB"
