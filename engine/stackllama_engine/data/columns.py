"""Which columns of a source are the prompt and the responses, and which nobody reads.

The prompt of a row is made of all its prompt columns, in this order and with a blank line between them::

    system or system_prompt     what Orca-like sets put before the question
    question                    or prompt, or instruction
    input, then context         what Alpaca and Dolly put the question's material in

Blank ones are left out, and so is a companion that the question already holds as lines of its own (sets that come with
both the parts and the finished prompt). Splits and the search for equal questions go by this whole prompt.

Text in any other column is not read; :func:`notices` names such columns, because a prompt without its context trains
as smoothly as one with it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

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
"""What a stage reads of a row."""

LOOK_AT = 20
"""Rows that tell which columns hold text."""


class Columns(Struct, frozen=True):
    """How a source's columns are used."""

    sources: dict[str, str]
    """Needed column → the source's column that gives it."""
    before: tuple[str, ...] = ()
    """Prompt columns that come before the question."""
    after: tuple[str, ...] = ()
    """Prompt columns that come after it."""
    unread: tuple[str, ...] = ()
    """Columns with text that nobody reads; known once rows were looked at (:func:`look_at`)."""

    @property
    def prompt(self) -> tuple[str, ...]:
        """The columns that make the prompt, in order; empty where the question is not needed."""
        return (*self.before, self.sources["question"], *self.after) if "question" in self.sources else ()


def columns_of(row: Mapping[str, Any], needs: Iterable[str], name: str) -> Columns:
    """The columns of a source, by one of its rows.

    Args:
        row: as the source gives it.
        needs: names of :data:`TEXT_COLUMNS`, or any column of the source.
        name: of the source, for errors.

    Raises:
        DataError: a needed column is missing; names those that are there and what each stage needs.
    """
    needs = tuple(needs)
    sources = {need: column for need in needs if (column := _first(row, ALIASES.get(need, (need,))))}
    if missing := [need for need in needs if need not in sources]:
        raise DataError(
            f"{name}: no column {_names(missing[0])}; its columns are {', '.join(map(str, row)) or 'none'}. "
            f"{stage_needs()}"
        )
    prompted = "question" in sources
    before = _companions(row, BEFORE_QUESTION) if prompted else ()
    after = _companions(row, AFTER_QUESTION) if prompted else ()
    return Columns(sources, before, after)


def look_at(rows: Iterable[tuple[str, Mapping[str, Any]]], needs: Iterable[str], name: str) -> Columns | None:
    """The columns of a source, by its first rows, each of which is read; None: there is no row.

    Args:
        rows: (where it stands, row as found); at most :data:`LOOK_AT` are taken.
        needs: as for :func:`columns_of`.
        name: of the source.

    Raises:
        DataError: as :func:`columns_of`, or a text column holds something else.
    """
    found: Columns | None = None
    before: set[str] = set()
    after: set[str] = set()
    unread: dict[str, None] = {}
    for (where, row), _ in zip(rows, range(LOOK_AT), strict=False):
        found = found or columns_of(row, needs, name)
        clean_row(row, found, f"{name}: {where}", Counter())
        of_row = columns_of(row, needs, name)
        before.update(of_row.before)
        after.update(of_row.after)
        unread |= dict.fromkeys(_unread(row, Columns(found.sources, of_row.before, of_row.after)))
    return found and Columns(
        found.sources,
        tuple(column for column in BEFORE_QUESTION if column in before),
        tuple(column for column in AFTER_QUESTION if column in after),
        tuple(unread),
    )


def clean_row(row: Mapping[str, Any], columns: Columns, where: str, bad: Counter[str]) -> Row | None:
    """The needed columns under their own names; ``None``, and counted, for a bad row.

    Raises:
        DataError: a column is missing, or holds something other than text.
    """
    clean: Row = {}
    for need, column in columns.sources.items():
        if column not in row:
            raise DataError(f"{where}: no column {column}, which earlier rows have.")
        value = row[column]
        if need in ALIASES and (reason := _bad_text(_text(value, column, where))):
            bad[f"{column} {reason}"] += 1
            return None
        clean[need] = value
    if "question" not in clean:
        return clean
    for column in (*columns.before, *columns.after):
        _text(row.get(column), column, where)
    # by this row, not the first: exporters leave a column out of the rows that have nothing in it (datasets#5726)
    before, after = _companions(row, BEFORE_QUESTION), _companions(row, AFTER_QUESTION)
    for column in (*before, *after):
        if "\0" in (row[column] or ""):
            bad[f"{column} has a NUL byte"] += 1
            return None
    clean["question"] = _joined(row, clean["question"], before, after)
    return clean


def prompt_of(row: Mapping[str, Any]) -> str | None:
    """The whole prompt of a row as found; None where it has no question. What a file's splits go by."""
    column = _first(row, ALIASES["question"])
    question = row[column] if column else None
    if not isinstance(question, str):
        return None
    return _joined(row, question, BEFORE_QUESTION, AFTER_QUESTION)


def notices(name: str, columns: Columns) -> list[str]:
    """What a person should know about how a source is read, a sentence each."""
    found: list[str] = []
    if len(columns.prompt) > 1:
        found.append(f"{name}: the prompt is {_listed(columns.prompt)}, joined with a blank line between")
    if columns.unread:
        found.append(
            f"{name}: text in {_listed(columns.unread)} is not read; put what the model should see into the prompt or "
            "the response"
        )
    return found


def stage_needs() -> str:
    """Which columns each stage needs, in a sentence."""
    return "; ".join(f"{stage} needs {_listed([_names(n) for n in needs])}" for stage, needs in NEEDS.items()) + "."


def _names(need: str) -> str:
    """``question (or prompt, instruction)``."""
    others = ALIASES.get(need, (need,))[1:]
    return f"{need} (or {', '.join(others)})" if others else need


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _first(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _companions(row: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are there and may be text: a list or an object of this name means something else."""
    return tuple(name for name in names if name in row and (row[name] is None or isinstance(row[name], str)))


def _unread(row: Mapping[str, Any], columns: Columns) -> list[str]:
    """Columns with text that are not read; what another stage reads as a response is no surprise."""
    others = {column for need in TEXT_COLUMNS if need not in columns.sources for column in ALIASES[need]}
    read = {*columns.sources.values(), *columns.prompt, *others}
    return [column for column, value in row.items() if column not in read and _has_text(value)]


def _joined(row: Mapping[str, Any], question: str, before: tuple[str, ...], after: tuple[str, ...]) -> str:
    def parts(names: tuple[str, ...]) -> list[str]:
        texts = [text for name in names if isinstance(text := row.get(name), str) and text.strip()]
        return [text for text in texts if f"\n{text.strip()}\n" not in f"\n{question}\n"]

    return "\n\n".join((*parts(before), question, *parts(after)))


def _text(value: Any, column: str, where: str) -> str | None:
    """Raises: DataError: it is neither text nor null."""
    if value is None or isinstance(value, str):
        return value
    hint = " A chat has to be flattened to text first." if isinstance(value, (list, dict)) else ""
    raise DataError(f"{where}: column {column} holds {type(value).__name__}, not text.{hint}")


def _bad_text(text: str | None) -> str | None:
    if text is None:
        return "is null"
    if not text or text.isspace():
        return "is blank"
    return "has a NUL byte" if "\0" in text else None


def _has_text(value: Any) -> bool:
    """Whether there is text in it, at any depth."""
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, dict):
        return any(_has_text(one) for one in value.values())  # type: ignore[reportUnknownVariableType]
    return isinstance(value, list) and any(_has_text(one) for one in value)  # type: ignore[reportUnknownVariableType]
