"""Columns of a source: those of the prompt and the responses, and those that are not read.

The prompt of a row consists of all its prompt columns, in this order and with a blank line between them::

    system or system_prompt     text before the question, in Orca-like sets
    question                    or prompt, or instruction
    input, then context         material for the question, in Alpaca and Dolly

Blank columns are left out, and so is a companion that the question already contains as lines of its own (in sets that
come with both the parts and the finished prompt). Splits and the search for duplicates use this whole prompt.

Text in any other column is not read; :func:`notices` names such columns, because training without the context raises
no error.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from msgspec import Struct

from ..contract.errors import DataError
from ..contract.stages import Stage

Row = dict[str, Any]

TEXT_COLUMNS = ("question", "response_j", "response_k")
ALIASES: dict[str, tuple[str, ...]] = {
    "question": ("question", "prompt", "instruction"),
    "response_j": ("response_j", "chosen", "response", "answer", "completion", "output"),
    "response_k": ("response_k", "rejected"),
}
BEFORE_QUESTION = ("system", "system_prompt")
AFTER_QUESTION = ("input", "context")
NEEDS: dict[Stage, tuple[str, ...]] = {
    Stage.SFT: ("question", "response_j"),
    Stage.REWARD: TEXT_COLUMNS,
    Stage.PPO: ("question",),
}
"""Columns that each stage reads."""

ALL_SCALARS = frozenset({"*"})
"""Stands for the names of every column of text, number or bool that is not used otherwise; see :func:`scalars_of`."""

LOOK_AT = 20
"""Number of first rows from which the columns with text are found."""


class Columns(Struct, frozen=True):
    """Use of a source's columns."""

    sources: dict[str, str]
    """Needed column → the source's column for it."""
    before: tuple[str, ...] = ()
    """Prompt columns before the question."""
    after: tuple[str, ...] = ()
    """Prompt columns after the question."""
    unread: tuple[str, ...] = ()
    """Columns with text that is not read; known after :func:`look_at`."""

    @property
    def style(self) -> Literal["question_answer", "chat", "none"]:
        """The prompt format that `auto` resolves to."""
        return "none" if self.sources.get("question") == "prompt" else "question_answer"

    @property
    def prompt(self) -> tuple[str, ...]:
        """Columns that make up the prompt, in order; empty if the question is not needed."""
        return (*self.before, self.sources["question"], *self.after) if "question" in self.sources else ()


def columns_of(row: Mapping[str, Any], needs: Iterable[str], name: str) -> Columns:
    """Find the columns of a source from one of its rows.

    Args:
        row: a row of the source.
        needs: names of :data:`TEXT_COLUMNS`, or any column of the source.
        name: name of the source, for errors.

    Raises:
        DataError: a needed column is missing; names the existing columns and what each stage needs.
    """
    needs = tuple(needs)
    sources = {need: column for need in needs if (column := _first(row, ALIASES.get(need, (need,))))}
    if missing := [need for need in needs if need not in sources]:
        raise DataError(
            f"{name}: no column {_names(missing[0])}; its columns are {', '.join(map(str, row)) or 'none'}. "
            f"{stage_needs()}"
        )
    has_prompt = "question" in sources
    before = _companions(row, BEFORE_QUESTION) if has_prompt else ()
    after = _companions(row, AFTER_QUESTION) if has_prompt else ()
    return Columns(sources, before, after)


def look_at(rows: Iterable[tuple[str, Mapping[str, Any]]], needs: Iterable[str], name: str) -> Columns | None:
    """Find the columns of a source from its first rows; None if there is no row.

    Args:
        rows: (position, row as read); at most :data:`LOOK_AT` are taken.
        needs: as for :func:`columns_of`.
        name: name of the source.

    Raises:
        DataError: as :func:`columns_of`, or a text column holds something else.
    """
    columns: Columns | None = None
    before: set[str] = set()
    after: set[str] = set()
    unread: dict[str, None] = {}
    for (where, row), _ in zip(rows, range(LOOK_AT), strict=False):
        columns = columns or columns_of(row, needs, name)
        clean_row(row, columns, f"{name}: {where}", Counter())
        of_row = columns_of(row, needs, name)
        before.update(of_row.before)
        after.update(of_row.after)
        unread |= dict.fromkeys(_unread(row, Columns(columns.sources, of_row.before, of_row.after)))
    return columns and Columns(
        columns.sources,
        tuple(column for column in BEFORE_QUESTION if column in before),
        tuple(column for column in AFTER_QUESTION if column in after),
        tuple(unread),
    )


def clean_row(row: Mapping[str, Any], columns: Columns, where: str, bad: Counter[str]) -> Row | None:
    """Return the needed columns under their standard names; None for a bad row, which is counted.

    Raises:
        DataError: a column is missing, or holds something other than text.
    """
    clean: Row = {}
    for need, column in columns.sources.items():
        if column not in row:
            raise DataError(f"{where}: column {column} is missing, which earlier rows have.")
        value = row[column]
        if need in ALIASES and (reason := _bad_text(_text(value, column, where))):
            bad[f"{column} {reason}"] += 1
            return None
        clean[need] = value
    if "question" not in clean:
        return clean
    for column in (*columns.before, *columns.after):
        _text(row.get(column), column, where)
    # from this row, not the first: exporters omit a column from rows in which it is empty (datasets#5726)
    before, after = _companions(row, BEFORE_QUESTION), _companions(row, AFTER_QUESTION)
    for column in (*before, *after):
        if "\0" in (row[column] or ""):
            bad[f"{column} has a NUL byte"] += 1
            return None
    clean["question"] = _joined(row, clean["question"], before, after)
    return clean


def scalars_of(row: Mapping[str, Any], columns: Columns) -> Row:
    """Return the text, numbers and flags of a row that make up no prompt and, by our own names, no pair."""
    used = {*columns.sources.values(), *columns.before, *columns.after, *TEXT_COLUMNS}
    return {
        column: value
        for column, value in row.items()
        if column not in used and (value is None or isinstance(value, str | int | float))
    }


def prompt_of(row: Mapping[str, Any]) -> str | None:
    """Return the whole prompt of a row as read, which decides its split in a file; None if it has no question."""
    column = _first(row, ALIASES["question"])
    question = row[column] if column else None
    if not isinstance(question, str):
        return None
    return _joined(row, question, BEFORE_QUESTION, AFTER_QUESTION)


def notices(name: str, columns: Columns) -> list[str]:
    """List notices for the user about how a source's columns are read."""
    lines: list[str] = []
    if len(columns.prompt) > 1:
        lines.append(f"{name}: the prompt is {_listed(columns.prompt)}, joined by a blank line")
    if columns.unread:
        lines.append(
            f"{name}: text in {_listed(columns.unread)} is not read; move it into the prompt or the response if the "
            "model should see it"
        )
    return lines


def stage_needs() -> str:
    """Return in one sentence which columns each stage needs."""
    return "; ".join(f"{stage} needs {_listed([_names(n) for n in needs])}" for stage, needs in NEEDS.items()) + "."


def _names(need: str) -> str:
    """Return a column with its other names: ``question (or prompt, instruction)``."""
    others = ALIASES.get(need, (need,))[1:]
    return f"{need} (or {', '.join(others)})" if others else need


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _first(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _companions(row: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns that exist and may be text; a list or an object of such a name means something else."""
    return tuple(name for name in names if name in row and (row[name] is None or isinstance(row[name], str)))


def _unread(row: Mapping[str, Any], columns: Columns) -> list[str]:
    """List columns with text that are not read, except those that another stage reads as a response."""
    others = {column for need in TEXT_COLUMNS if need not in columns.sources for column in ALIASES[need]}
    used = {*columns.sources.values(), *columns.prompt, *others}
    return [column for column, value in row.items() if column not in used and _has_text(value)]


def _joined(row: Mapping[str, Any], question: str, before: tuple[str, ...], after: tuple[str, ...]) -> str:
    def parts(names: tuple[str, ...]) -> list[str]:
        texts = [text for name in names if isinstance(text := row.get(name), str) and text.strip()]
        return [text for text in texts if f"\n{text.strip()}\n" not in f"\n{question}\n"]

    return "\n\n".join((*parts(before), question, *parts(after)))


def _text(value: Any, column: str, where: str) -> str | None:
    """Return the value if it is text or null.

    Raises:
        DataError: it is neither.
    """
    if value is None or isinstance(value, str):
        return value
    hint = " Flatten a chat to text first." if isinstance(value, (list, dict)) else ""
    raise DataError(f"{where}: column {column} holds {type(value).__name__}, not text.{hint}")


def _bad_text(text: str | None) -> str | None:
    if text is None:
        return "is null"
    if not text or text.isspace():
        return "is blank"
    return "has a NUL byte" if "\0" in text else None


def _has_text(value: Any) -> bool:
    """Return whether the value contains text, at any depth."""
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, dict):
        return any(_has_text(one) for one in value.values())  # type: ignore[reportUnknownVariableType]
    return isinstance(value, list) and any(_has_text(one) for one in value)  # type: ignore[reportUnknownVariableType]
