"""The run under the cursor of the list in words: what it is, what is wrong with it, and the keys that make sense."""

from collections.abc import Sequence

from rich.text import Text

from ...readers.recipe_model import model_label
from ...readers.run_row import Row
from ...sanitise import one_line
from ..run_keys import advice_of_run, run_keys


def about_lines(row: Row, selected: Sequence[str]) -> list[Text]:
    """Return the lines of one run; with runs selected, which keys act on those."""
    facts = [one_line(row.id), str(row.stage or ""), model_label(row.model)]
    labels = ["" if row.is_foreign else row.title, " ".join(f"#{tag}" for tag in row.tags), row.note]
    first = Text("  ".join(filter(None, facts)), style="dim")
    if said := "  ".join(filter(None, labels)):
        first.append(f"  {said}", style="not dim")
    lines = [first]
    if row.elsewhere:
        lines.append(Text(f"{row.phase} {row.elsewhere}: from here it can only be viewed and stopped"))
    if row.phase == "queued" and row.at:
        lines.append(Text(row.at))
    if row.error:
        lines.append(Text(row.error))
    if row.cause and row.phase != "finished":
        lines.append(Text(f"cause: {row.cause}"))
    if hint := _of_selection(selected) if selected else _advice(row):
        lines.append(Text(hint, style="dim"))
    return lines


def keys_of(row: Row) -> frozenset[str]:
    """Return the actions that can do something to a run of the list; another trainer's is only forgotten."""
    return frozenset({"open", "delete"}) if row.is_foreign else run_keys(row.stage, row.phase, saved=row.saved)


def _advice(row: Row) -> str:
    if row.is_foreign:
        return "enter: open, D: forget it (its files stay)"
    began = row.started is not None or row.phase != "stopped"
    return advice_of_run(row.stage, row.phase, exit_code=row.exit_code, saved=row.saved, began=began)


def _of_selection(selected: Sequence[str]) -> str:
    these = f"the {len(selected)} selected" if len(selected) > 1 else one_line(selected[0])
    return f"x, w, r, D act on {these}" + (", c compares them" if len(selected) > 1 else "") + "; esc: clear selection"
