"""The table of runs: which columns have room, the cells of each run, and what of them changed since they were drawn."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar

from msgspec import Struct
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType

from ...readers.run_columns import COLUMNS, default_columns, group_name, last_text_within
from ...readers.run_row import Row
from ...sanitise import one_line
from ..state_style import findings_text, state_text
from .cells import cut_middle
from .fast_table import FastTable
from .typed_ahead import KeyTaker

_LEAST = {"state": 10, "step": 7, "age": 4, "duration": 9, "ETA": 4, "last": 16}
"""Room to grow, so that columns seldom move."""
_GROUP = "group"
_LEAST_RUN = 18
"""Cells to which names shrink before a column is left out."""
_LINES_AROUND = 7
"""Of a screen, what is not the table: heading, the run in words, filter, keys."""
_MINUTE = 60.0  # ages are not brought up to date more often


class View(Struct, frozen=True, kw_only=True):
    """How rows are shown: columns (empty: by the width), marks, the group of each, the time, the theme's colours.

    Attributes:
        width: of the screen, in cells, as ``height``.
        sort: name of the column that rows are sorted by.
    """

    width: int
    height: int = 0
    now: float
    theme: str
    variables: dict[str, str]
    columns: Sequence[str] = ()
    group: str = ""
    sort: str = ""
    tree: bool = True
    selected: Collection[str] = ()
    folded: Collection[str] = ()


class RunsTable(FastTable):
    """A table of runs; its cursor keys have names of our own.

    Attributes:
        rows_shown: the runs, from top to bottom.
        left_out: how many columns have no room, the one apart that the groups repeat.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "next run", id="table.down", show=False),
        Binding("k", "cursor_up", "previous run", id="table.up", show=False),
        Binding("g", "scroll_top", "first run", id="table.top", show=False),
        Binding("G", "scroll_bottom", "last run", id="table.bottom", show=False),
        Binding("enter", "select_cursor", "open", id="runs.open"),
    ]
    take_key: KeyTaker | None = None

    def __init__(self, *, id: str | None = None) -> None:  # Textual's name
        super().__init__(id=id, cursor_type="row", zebra_stripes=False, cell_padding=1)
        self.rows_shown: list[Row] = []
        self.left_out = 0
        self._cells: dict[str, tuple[Text, ...]] = {}
        self._made: dict[str, tuple[Row, object, dict[str, Text]]] = {}  # of rows and views that have not changed
        self._under: str | None = None
        self._names: tuple[str, ...] = ()
        self._widths: tuple[int, ...] = ()

    async def on_key(self, event: events.Key) -> None:
        """Let the screen see a key first: what is typed ahead may be meant for the filter."""
        if self.take_key is not None:
            await self.take_key(event)

    @property
    def current(self) -> Row | None:
        """The run under the cursor."""
        return self.rows_shown[self.cursor_row] if 0 <= self.cursor_row < len(self.rows_shown) else None

    def show(self, rows: list[Row], view: View, under: str | None = None) -> None:
        """Show these rows; the cursor stays on its run, and returns to it after a filter that matched none.

        Only cells that differ are drawn again.

        Args:
            rows: from top to bottom.
            view: how they are shown.
            under: the run that the cursor goes to.
        """
        self._under = under or (self.current.id if self.current else self._under)
        room = view.width
        if len(rows) >= view.height - _LINES_AROUND:  # with the header, more lines than there are
            room -= self.styles.scrollbar_size_vertical
        names, cells = self._with_room(rows, view, room)
        widths = _fit(cells, rows, _widths(names, cells.values()), names, room)
        same = [row.id for row in rows] == [row.id for row in self.rows_shown] and names == self._names
        if not same or any(now > before for now, before in zip(widths, self._widths, strict=True)):
            self._names, self._widths = names, widths
            self.clear(columns=True)
            for name, width in zip(names, widths, strict=True):
                self.add_column(name, key=name, width=width)
            for row in rows:
                self.add_row(*cells[row.id], key=row.id)
        else:
            self._update(rows, names, cells)
        if self._under in cells and (under or not same):
            self.move_cursor(row=list(cells).index(self._under), animate=False)
        self.rows_shown, self._cells = rows, cells

    def _update(self, rows: list[Row], names: tuple[str, ...], cells: dict[str, tuple[Text, ...]]) -> None:
        for row in rows:
            before = self._cells.get(row.id)
            for name, old, new in zip(names, before or (), cells[row.id], strict=False):
                if old is not new and (old.plain != new.plain or old.style != new.style):
                    self.update_cell(row.id, name, new)

    def _with_room(self, rows: list[Row], view: View, room: int) -> tuple[tuple[str, ...], dict[str, tuple[Text, ...]]]:
        """Return the columns that have room, and the cells."""
        names = [name for name in view.columns if name in COLUMNS] or default_columns(view.width)
        shown = {row.id for row in rows} if view.tree else set[str]()
        made = [self._make(row, names, view, row.depth > 0 and row.pipeline in shown) for row in rows]
        cells = {name: [each[name] for each in made] for name in names}
        if view.group:
            names.insert(0, _GROUP)
            cells[_GROUP] = _group_cells(rows, view.group, max(12, min(24, view.width // 4)))
        self.left_out = 0
        for name in _least_needed(names, view) if view.columns or view.group else ():
            if _room(names, cells) <= room:
                break
            names.remove(name)
            self.left_out += name != view.group
        by_row = {row.id: tuple(cells[name][index] for name in names) for index, row in enumerate(rows)}
        return tuple(names), by_row

    def _make(self, row: Row, names: Sequence[str], view: View, beneath: bool) -> dict[str, Text]:
        """Return the cells of one run; those of before where nothing has changed, as while a filter is typed."""
        marks = row.id in view.selected, row.id in view.folded
        context = (*names, *marks, beneath, view.width, view.tree, view.theme, view.now // _MINUTE)
        before = self._made.get(row.id)
        if before is not None and before[0] is row and before[1] == context:
            return before[2]
        cells = {name: _cell(row, name, view, beneath) for name in names}
        self._made[row.id] = row, context, cells
        return cells


def _least_needed(names: Sequence[str], view: View) -> list[str]:
    """Return the columns that can be left out, the first one first: what was added to the usual ones comes late."""
    usual = default_columns(view.width)
    kept = {"run", "state", "last", _GROUP, view.sort}
    rest = [name for name in reversed(names) if name not in kept]
    rest.sort(key=lambda name: (name != view.group, name not in usual))
    return [*rest, *({"last"} & set(names) - {view.sort})]


def _room(names: Sequence[str], cells: Mapping[str, Sequence[Text]]) -> int:
    """Return the columns of the terminal that a table takes at least: names and its last column can be cut."""
    sizes = {name: max([len(name), _LEAST.get(name, 0), *(cell.cell_len for cell in cells[name])]) for name in names}
    if "run" in sizes:
        sizes["run"] = min(sizes["run"], _LEAST_RUN)
    if names[-1] == "last":
        sizes["last"] = _LEAST["last"]
    return sum(sizes.values()) + 2 * len(names)


def _group_cells(rows: Sequence[Row], group: str, size: int) -> list[Text]:
    """Return a group's name and size for its first row, blanks for the others."""
    names = [group_name(row, group) for row in rows]
    return [
        Text(
            f"{cut_middle(one_line(name), size)} {names.count(name)}" if index == 0 or names[index - 1] != name else ""
        )
        for index, name in enumerate(names)
    ]


def _cell(row: Row, name: str, view: View, beneath: bool) -> Text:
    if name == "run":
        return _name_cell(row, view, beneath)
    if name == "state":
        return state_text(row.phase, view.variables).append_text(findings_text(row.findings, view.variables))
    column = COLUMNS[name]
    return Text(one_line(column.text(row, view.now)), justify="right" if column.right else None)


def _name_cell(row: Row, view: View, beneath: bool) -> Text:
    """Return a run's name; beneath its pipeline only what tells it from that."""
    mark = "▸" if row.id in view.folded and view.tree else " "
    mark = "■" if row.id in view.selected else mark
    name = f"└ {row.title or row.id.removeprefix(f'{row.pipeline}-')}" if beneath else row.name
    size = max(12, view.width * 2 // 5)
    return Text(f"{mark} {cut_middle(name, size)}", style="bold" if row.id in view.selected else "")


def _widths(names: Sequence[str], rows: Iterable[tuple[Text, ...]]) -> tuple[int, ...]:
    """Return the cells each column takes; Textual measures after painting, and what was painted before it stays."""
    widths = [max(len(name), _LEAST.get(name, 0)) for name in names]
    for row in rows:
        widths = [max(width, cell.cell_len) for width, cell in zip(widths, row, strict=True)]
    return tuple(widths)


def _fit(
    cells: dict[str, tuple[Text, ...]], rows: list[Row], widths: Sequence[int], names: Sequence[str], width: int
) -> tuple[int, ...]:
    """Cut names in the middle and the last column where there is no room; return the columns' widths."""
    sizes = list(widths)
    if "run" in names:
        at = names.index("run")
        others = sum(sizes) - sizes[at]
        if names[-1] == "last":
            others -= sizes[-1] - min(sizes[-1], _LEAST["last"])
        sizes[at] = min(sizes[at], max(_LEAST_RUN, width - others - 2 * len(sizes)))
        for name, own in cells.items() if sizes[at] < widths[at] else ():
            cell = Text(cut_middle(own[at].plain, sizes[at]), style=own[at].style)
            cells[name] = (*own[:at], cell, *own[at + 1 :])
    if names[-1] == "last":
        room = max(0, width - sum(sizes[:-1]) - 2 * len(sizes))
        for row in rows:
            *own, last = cells[row.id]
            if last.cell_len > room:
                cells[row.id] = (*own, Text(last_text_within(row, room)))
    return tuple(sizes)
