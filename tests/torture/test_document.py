"""Tests named in docs/reliability.md exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
DOCUMENT = TESTS.parent / "docs" / "reliability.md"


def rows() -> dict[int, str]:
    """Return case → row of the table of tests."""
    text = DOCUMENT.read_text().partition("## Every case and its test")[2].partition("## Counts")[0]
    return {int(match[1]): match[2] for match in re.finditer(r"^\| (\d+) \| (.*)$", text, re.MULTILINE)}


def test_every_case_has_a_row_and_every_test_in_it_exists() -> None:
    table = rows()
    assert sorted(table) == list(range(1, 28))
    for case, row in table.items():
        for name in re.findall(r"`([a-z_]+/test_[^`]+)`", row):
            file, _, function = name.partition("::")
            assert (TESTS / file).is_file(), (case, name)
            assert f"def {function}" in (TESTS / file).read_text(), (case, name)
