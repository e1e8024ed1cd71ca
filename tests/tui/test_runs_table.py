"""What the list of runs shows where there is little room: numbers whole, names told apart, columns that matter."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stackllama_console.readers.run_row import Row
from stackllama_console.tui.widgets.runs_table import RunsTable, View
from stackllama_engine.contract.stages import Stage

VARIABLES = {name: "#ffffff" for name in ("primary", "warning", "success", "error", "secondary", "accent")}
LONG = "aligned-with-a-name-that-says-how-it-was-made"


@dataclass
class Drawn:
    """A table that keeps what it was given."""

    columns: dict[str, int] = field(default_factory=dict[str, int])
    cells: dict[str, tuple[Any, ...]] = field(default_factory=dict[str, tuple[Any, ...]])

    def texts(self, name: str) -> list[str]:
        at = list(self.columns).index(name)
        return [row[at].plain for row in self.cells.values()]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    drawn = Drawn()
    add = {
        "clear": lambda self, columns=False: (drawn.columns.clear(), drawn.cells.clear()),
        "add_column": lambda self, name, key, width: drawn.columns.update({name: width}),
        "add_row": lambda self, *cells, key: drawn.cells.update({key: cells}),
    }
    for name, method in add.items():
        monkeypatch.setattr(RunsTable, name, method)
    return drawn


def _row(name: str, stage: Stage = Stage.PPO, **fields: Any) -> Row:
    known: dict[str, Any] = {"created": 1.0, "phase": "finished", "step": 1000, "total_steps": 1000}
    known |= {"metric": ("reward", 1.159e-6)}
    return Row(id=name, path=Path(name), stage=stage, **(known | fields))


def _show(rows: list[Row], **fields: Any) -> RunsTable:
    table = RunsTable()
    known: dict[str, Any] = {"width": 80, "height": 24, "now": 100.0, "theme": "", "variables": VARIABLES}
    table.show(rows, View(**(known | fields)))
    return table


@pytest.mark.parametrize(("rows", "room"), [(3, 80), (40, 78)])
def test_the_table_has_room_beside_its_scroll_bar_and_its_numbers_are_whole(drawn: Drawn, rows: int, room: int) -> None:
    _show([_row(f"{LONG}-{number}") for number in range(rows)])
    widths = list(drawn.columns.values())
    texts = drawn.texts("last")
    assert set(texts) <= {"reward 1.159e-6", "1.159e-6"}
    assert sum(widths[:-1]) + len(texts[0]) + 2 * len(widths) <= room


@pytest.mark.parametrize("columns", [(), ("run", "stage", "model", "state", "step", "age", "KL", "note", "last")])
def test_grouped_runs_keep_their_name_their_state_and_what_they_are_sorted_by(
    drawn: Drawn, columns: tuple[str, ...]
) -> None:
    rows = [_row(f"{LONG}-{number}", model="/models/meta-llama/Llama-2-7b-hf", note="n" * 30) for number in range(3)]
    table = _show(rows, columns=columns, group="model", sort="KL")
    assert list(drawn.columns)[:2] == ["group", "run"] and "state" in drawn.columns and "model" not in drawn.columns
    assert "KL" in drawn.columns or not columns
    assert sum(list(drawn.columns.values())[:-1]) + 2 * len(drawn.columns) + len(drawn.texts("last")[0]) <= 80
    assert table.left_out > 0


def test_added_columns_stay_longer_than_the_usual_ones(drawn: Drawn) -> None:
    _show([_row(LONG)], columns=("run", "stage", "state", "step", "age", "duration", "KL", "loss", "last"))
    assert [*drawn.columns] == ["run", "stage", "state", "duration", "KL", "loss", "last"]


def test_names_that_differ_at_their_ends_are_told_apart(drawn: Drawn) -> None:
    _show([_row(f"{LONG}-ppo"), _row(f"{LONG}-ppo-merged", Stage.MERGE)])
    first, second = drawn.texts("run")
    assert first.endswith("-ppo") and second.endswith("-ppo-merged") and "…" in first


def test_a_stage_has_its_whole_id_where_its_pipeline_is_not_shown(drawn: Drawn) -> None:
    child = _row("whole-ppo", depth=1, pipeline="whole")
    _show([_row("whole", Stage.PIPELINE), child])
    assert drawn.texts("run")[1] == "  └ ppo"
    _show([child])
    assert drawn.texts("run") == ["  whole-ppo"]
