"""A small dump, written by the test that reads it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import pytest

Attributes = dict[str, object]


class Dump:
    """Writes a Posts.xml as Stack Exchange does: byte order mark, one row a line, all in attributes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def question(self, number: int, body: str = "<p>How?</p>", accepted: int | None = None) -> Attributes:
        row: Attributes = {"Id": number, "PostTypeId": 1, "Score": 1, "Body": body, "Title": f"Title {number}"}
        return row | ({} if accepted is None else {"AcceptedAnswerId": accepted})

    def answer(self, number: int, parent: int, votes: int, body: str | None = None) -> Attributes:
        text = f"<p>Answer {number}</p>" if body is None else body
        return {"Id": number, "PostTypeId": 2, "ParentId": parent, "Score": votes, "Body": text}

    def forum(self, questions: int = 40) -> list[Attributes]:
        """Questions with three answers of 0, 1 and 7 votes: scores 0, 1 and 3, so three pairs each."""
        rows: list[Attributes] = []
        for number in range(1, questions + 1):
            rows.append(self.question(number, f"<p>Question {number}?</p>"))
            rows += [self.answer(number * 1000 + i, number, votes) for i, votes in enumerate((0, 1, 7))]
        return rows

    def write(self, rows: Iterable[Attributes], name: str = "Posts.xml") -> Path:
        lines = (" ".join(f"{key}={quoteattr(str(value))}" for key, value in row.items()) for row in rows)
        body = "".join(f"  <row {line} />\n" for line in lines)
        path = self.directory / name
        path.write_text(f'\ufeff<?xml version="1.0" encoding="utf-8"?>\n<posts>\n{body}</posts>\n', encoding="utf-8")
        return path


@pytest.fixture
def dump(tmp_path: Path) -> Any:
    return Dump(tmp_path)
