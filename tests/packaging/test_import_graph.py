"""The check of circles between files: what counts as an import, and what is reported."""

from pathlib import Path

import pytest
from scripts import import_graph


def write(folder: Path, files: dict[str, str]) -> Path:
    """Make a source folder."""
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def test_imports_inside_functions_and_under_type_checking_count(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        {
            "house/__init__.py": "",
            "house/door.py": "def open():\n    from .room import enter\n",
            "house/room.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house import door\n",
            "house/roof.py": "import json\nimport house.room\n",
        },
    )
    graph = import_graph.graph_of([source])
    assert graph["house.door"] == {"house.room"}
    assert graph["house.room"] == {"house.door"}
    assert graph["house.roof"] == {"house.room"}
    assert import_graph.circles_of(graph) == [["house.door", "house.room"]]


def test_a_package_and_its_module_are_two_files(tmp_path: Path) -> None:
    source = write(tmp_path, {"house/__init__.py": "from . import door\n", "house/door.py": "from . import __doc__\n"})
    assert import_graph.circles_of(import_graph.graph_of([source])) == [["house", "house.door"]]


def test_graph_without_a_circle_reports_none() -> None:
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set[str]()}
    assert import_graph.circles_of(graph) == []
    assert import_graph.report(graph, []) == "import graph: 3 files, 3 imports, no circle\n"


def test_report_names_the_imports_that_close_a_circle() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set[str]()}
    text = import_graph.report(graph, import_graph.circles_of(graph))
    assert "3 files" in text and "c imports a" in text and "c imports d" not in text


def test_main_fails_on_a_circle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path, {"a.py": "import b\n", "b.py": "import a\n"})
    monkeypatch.setattr(import_graph, "SOURCES", (source,))
    assert import_graph.main([]) == 1
    assert "a imports b" in capsys.readouterr().out
