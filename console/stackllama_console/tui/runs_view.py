"""How the list of runs is shown, and what a person says of runs: sort, columns, groups; tags, notes and titles."""

from collections.abc import Callable, Sequence

from stackllama_engine.contract.errors import StackllamaError
from stackllama_engine.contract.labels import Labels, change_tags, set_note, set_title
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.launch.ownership import check_run

from ..readers.run_columns import COLUMNS, GROUPS
from ..readers.run_row import Row
from .screen import ConsoleScreen
from .screens.choose import ChooseScreen
from .screens.columns import ColumnsScreen
from .screens.confirm import AskScreen

_NEWEST = "newest first"
_BY_TEXT = frozenset({"run", "stage", "model", "state", "tags", "note"})
"""Columns that are sorted from A to Z first; all others the highest first."""


class RunsView:
    """The dialogs of the list of runs; the choices are kept in the settings.

    Args:
        screen: the list.
        home: where the runs live.
        changed: called when the list has to be shown again.
    """

    def __init__(self, screen: ConsoleScreen, home: Home, changed: Callable[[], None]) -> None:
        self.screen = screen
        self.home = home
        self._changed = changed

    @property
    def sort(self) -> str:
        """The column that rows are sorted by, ``-`` before it for the highest first; empty: newest first."""
        sort = self.screen.console_app.settings.runs_sort
        return sort if sort.removeprefix("-") in COLUMNS else ""

    @property
    def group(self) -> str:
        """Name of the group; see `GROUPS`."""
        group = self.screen.console_app.settings.runs_group
        return group if group in GROUPS else GROUPS[0]

    @property
    def columns(self) -> list[str]:
        """The columns chosen; none: by the width."""
        return [name for name in self.screen.console_app.settings.runs_columns if name in COLUMNS]

    @property
    def words(self) -> str:
        """How rows are ordered, for the heading; empty where nothing was chosen."""
        by = f"by {self.sort.removeprefix('-')} {'↓' if self.sort.startswith('-') else '↑'}" if self.sort else ""
        groups = {"pipeline": "", "none": "not grouped"}.get(self.group, f"grouped by {self.group}")
        return "  ".join(filter(None, (by, groups)))

    def choose_sort(self) -> None:
        """Ask for a column to sort by; the same one again reverses the order."""
        current = self.sort.removeprefix("-")
        about = {name: column.about for name, column in COLUMNS.items()}
        if current:
            about[current] = f"{'↓' if self.sort.startswith('-') else '↑'} now; again: reversed"

        def chosen(name: str | None) -> None:
            if name is None:
                return
            if name == _NEWEST:
                sort = ""
            elif name == current:
                sort = current if self.sort.startswith("-") else f"-{current}"
            else:
                sort = name if name in _BY_TEXT else f"-{name}"
            self.screen.console_app.settings.runs_sort = sort
            self._keep()

        choices = [(_NEWEST, "as they were launched"), *about.items()]
        self.screen.console_app.push_screen(ChooseScreen("Sort by", choices, current or _NEWEST), chosen)

    def choose_columns(self, shown: Sequence[str]) -> None:
        """Ask for the columns to show; ``shown`` are those there are now."""

        def chosen(names: list[str] | None) -> None:
            if names is not None:
                self.screen.console_app.settings.runs_columns = names
                self._keep()

        self.screen.console_app.push_screen(ColumnsScreen(self.columns or shown), chosen)

    def next_group(self) -> None:
        """Group by pipeline, by stage, by model, not at all, in turn."""
        self.screen.console_app.settings.runs_group = GROUPS[(GROUPS.index(self.group) + 1) % len(GROUPS)]
        self._keep()

    def _keep(self) -> None:
        self.screen.console_app.remember()
        self._changed()

    # what a person says of runs

    def tag(self, rows: Sequence[Row]) -> None:
        """Ask for tags to add to runs and to remove from them."""
        present = " ".join(dict.fromkeys(tag for row in rows for tag in row.tags))
        which = rows[0].id if len(rows) == 1 else f"{len(rows)} selected runs"
        question = f"Tags of {which}: add words, remove with - before one" + (f"\nnow: {present}" if present else "")

        def label(run: RunDir, text: str) -> Labels:
            words = text.split()
            remove = [word[1:] for word in words if word.startswith("-")]
            return change_tags(run, [word for word in words if not word.startswith("-")], remove)

        self._ask(question, "paper -old", "", rows, label, lambda labels: f"tags: {' '.join(labels.tags) or 'none'}")

    def note(self, row: Row) -> None:
        """Ask for a note on a run."""
        question = f"Note on {row.id} (empty: none)"
        self._ask(question, "what it was for, what came out", row.note, [row], set_note, lambda _: "note kept")

    def rename(self, row: Row) -> None:
        """Ask for a title, which lists show in the place of the id."""
        question = f"Title of {row.id} (its id stays, for commands and for runs made from it; empty: none)"
        self._ask(question, row.id, row.title, [row], set_title, lambda labels: f"title: {labels.title or 'none'}")

    def _ask(
        self,
        question: str,
        placeholder: str,
        value: str,
        rows: Sequence[Row],
        label: Callable[[RunDir, str], Labels],
        done: Callable[[Labels], str],
    ) -> None:
        """Ask for a text and label runs with it, in a thread; what is wrong is said while it can be fixed."""
        said: list[str] = []

        def check(text: str) -> str:
            try:
                runs = [self.home.run(row.id) for row in rows]
                for run in runs:
                    check_run(run)
                labels = [label(run, text) for run in runs]
            except (StackllamaError, OSError) as error:
                return str(error)
            said[:] = [done(labels[0]) if len(rows) == 1 else f"{len(rows)} runs tagged"]
            return ""

        def answered(text: str | None) -> None:
            if text is not None:
                self.screen.say(f"{rows[0].id}: {said[0]}" if len(rows) == 1 else said[0])

        self.screen.console_app.push_screen(AskScreen(question, value, placeholder, check=check), answered)
