"""Columns of a source: those of the prompt and the responses, and those that are not read.

The prompt of a row of text consists of all its prompt columns, in this order and with a blank line between them::

    system or system_prompt     text before the question, in Orca-like sets
    question                    or prompt, or instruction
    input, then context         material for the question, in Alpaca and Dolly

Blank columns are left out, and so is a companion that the question already contains as lines of its own (in sets that
come with both the parts and the finished prompt). Splits and the search for duplicates use this whole prompt.

Other schemas, conversations above all, are in :mod:`.schemas`. The recipe's `dataset_columns` names columns that have
other names: a named column replaces all columns of that role (:func:`renamed`). Unpaired data (prompt, completion and a
label that is true or false, by the first rows) serve SFT, which takes the rows whose label is true, and the prompts of
PPO.

Text in any other column is not read; :func:`notices` names such columns, because training without the context raises
no error.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import Any

from msgspec import Struct

from ..contract.errors import DataError
from ..contract.prompt_format import Kind
from ..contract.stages import Stage
from .schemas import BEFORE_QUESTION, MESSAGES, Schema, UnusableRowError, schema_of, text_length

Row = dict[str, Any]

TEXT_COLUMNS = ("question", "response_j", "response_k")
ALIASES: dict[str, tuple[str, ...]] = {
    "question": ("question", "prompt", "instruction"),
    "response_j": ("response_j", "chosen", "response", "answer", "completion", "output"),
    "response_k": ("response_k", "rejected"),
}
AFTER_QUESTION = ("input", "context")
LABEL = "label"
ALL_SCALARS = ("*",)
"""Stands for every column of text, numbers or true and false that is not read otherwise."""
NEEDS: dict[Stage, tuple[str, ...]] = {
    Stage.SFT: ("question", "response_j"),
    Stage.REWARD: TEXT_COLUMNS,
    Stage.PREFERENCE: TEXT_COLUMNS,
    Stage.PPO: ("question",),
}
"""Columns that each stage reads."""

LOOK_AT = 20
"""Number of first rows from which the columns with text are found."""
TEMPLATE_MARKS = (
    "<|im_start|>",
    "<|start_header_id|>",
    "<|user|>",
    "<start_of_turn>",
    "[INST]",
    "### Instruction",
    "### Human:",
    "\n\nHuman:",
)
"""Text that shows that a prompt was rendered by a template already."""

_OF_PROMPT = (*ALIASES["question"], *BEFORE_QUESTION, *AFTER_QUESTION)
_CONVERSATIONS = (MESSAGES, "conversations")
_ROLES: dict[str, tuple[str, ...]] = {
    "prompt": _OF_PROMPT,
    "chosen": ALIASES["response_j"],
    "completion": ALIASES["response_j"],
    "rejected": ALIASES["response_k"],
    MESSAGES: (*_OF_PROMPT, *ALIASES["response_j"], *ALIASES["response_k"]),
}
"""Names of `dataset_columns` → the columns that a column so named replaces."""
_OF_DATA_SETS = ("answers", "history", "info")
"""Columns that a schema of one data set is recognised by."""
_LABELS: dict[Any, bool] = {0: False, 1: True, "0": False, "1": True, "false": False, "true": True}


class Columns(Struct, frozen=True):
    """Use of a source's columns."""

    sources: dict[str, str]
    """Needed column → the source's column for it, as :func:`renamed` calls it."""
    before: tuple[str, ...] = ()
    """Prompt columns before the question."""
    after: tuple[str, ...] = ()
    """Prompt columns after the question."""
    unread: tuple[str, ...] = ()
    """Columns with text that is not read; known after :func:`look_at`."""
    style: Kind = "question_answer"
    """Prompt format that `auto` resolves to; final after :func:`look_at`."""
    schema: Schema | None = None
    """None: columns of text."""
    labelled: bool = False
    """Whether only rows whose label is true are examples."""
    names: Mapping[str, str] = {}
    """`dataset_columns`."""

    @property
    def prompt(self) -> tuple[str, ...]:
        """Columns that make up the prompt, in order; empty if the question is not needed."""
        if "question" not in self.sources:
            return ()
        return tuple(self.named(column) for column in (*self.before, self.sources["question"], *self.after))

    def named(self, column: str) -> str:
        """Return the source's own name of a column."""
        return self.names.get(column, column)

    @property
    def read(self) -> set[str]:
        """The source's columns that are read."""
        of_schema = self.schema.columns if self.schema else set[str]()
        used = {*self.sources.values(), *self.before, *self.after, *of_schema, *([LABEL] if self.labelled else [])}
        return {self.named(column) for column in used}


def renamed(row: Mapping[str, Any], names: Mapping[str, str]) -> Mapping[str, Any]:
    """Return a row with the columns of `dataset_columns` under our names, and without those that they replace."""
    if not names:
        return row
    replaced = {column for name in names for column in _ROLES[name]} | {*_CONVERSATIONS, *_OF_DATA_SETS}
    kept = {column: value for column, value in row.items() if column not in replaced and column not in names.values()}
    return kept | {name: row[column] for name, column in names.items() if column in row}


def typical(rows: Iterable[Mapping[str, Any]], names: Mapping[str, str] | None = None) -> Mapping[str, Any] | None:
    """Return the row by which a source is recognised: the first of a schema, else of all; None if there is no row.

    A first row may have nulls or an empty list where others have messages. Of rows with a label it is one whose label
    is a class, if there is one.
    """
    rows, names = list(rows), names or {}
    whole = [row for row in rows if set(names.values()) <= set(row) and schema_of(renamed(row, names))] or rows
    classes = (row for row in whole if _is_class(renamed(row, names)))
    return next(classes, whole[0] if whole else None)


def columns_of(
    row: Mapping[str, Any], needs: Iterable[str], name: str, names: Mapping[str, str] | None = None
) -> Columns:
    """Find the columns of a source from one of its rows.

    Args:
        row: a row of the source.
        needs: names of :data:`TEXT_COLUMNS`.
        name: name of the source, for errors.
        names: `dataset_columns`.

    Raises:
        DataError: a needed column is missing; names the existing columns and what each stage needs.
    """
    needs, names = tuple(needs), names or {}
    own = f"its columns are {', '.join(map(str, row)) or 'none'}"
    for ours, column in names.items():
        if column not in row:
            raise DataError(f"{name}: no column {column}, which `dataset_columns` names for {ours}; {own}.")
    view = renamed(row, names)
    schema = schema_of(view)
    sources = {need: column for need in needs if (column := _source(view, need, schema))}
    unpaired = _is_unpaired(view)
    if missing := [need for need in needs if need not in sources]:
        if unpaired and missing == ["response_k"]:
            raise DataError(
                f"{name}: unpaired data (a completion with a label each), and a reward model needs pairs of a better "
                "and a worse response. SFT reads its rows with a true label, and PPO its prompts."
            )
        if schema and missing[0] == "response_j":  # a prompt of messages alone
            lacks = "chosen and rejected" if "response_k" in needs else "completion"
            example = f"dataset_columns.{lacks.split()[0]}=COLUMN"
            raise DataError(
                f"{name}: read as {schema.name}, and beside messages a response is read from {lacks}, as messages or "
                f"text; {own}. Name another column by `dataset_columns`, as in `{example}`."
            )
        raise DataError(f"{name}: no column {_names(missing[0])}; {own}. {stage_needs()}")
    labelled = unpaired and "response_j" in needs
    if schema:
        return Columns(sources, style=schema.style, schema=schema, labelled=labelled, names=names)
    has_prompt = "question" in sources
    return Columns(
        sources,
        _companions(view, BEFORE_QUESTION) if has_prompt else (),
        _companions(view, AFTER_QUESTION) if has_prompt else (),
        style="none" if sources.get("question") == "prompt" else "question_answer",
        labelled=labelled,
        names=names,
    )


def look_at(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    needs: Iterable[str],
    name: str,
    names: Mapping[str, str] | None = None,
) -> Columns | None:
    """Find the columns of a source from its first rows; None if there is no row.

    Args:
        rows: (position, row as read); at most :data:`LOOK_AT` are taken.
        needs: as for :func:`columns_of`.
        name: name of the source.
        names: `dataset_columns`.

    Raises:
        DataError: as :func:`columns_of`, or a text column holds something else.
    """
    needs = tuple(needs)
    first = list(islice(rows, LOOK_AT))
    row = typical((row for _, row in first), names)
    if row is None:
        return None
    columns = columns_of(row, needs, name, names)
    before: set[str] = set()
    after: set[str] = set()
    unread: dict[str, None] = {}
    rendered: list[bool] = []
    for where, row in first:
        clean = clean_rows(row, columns, f"{name}: {where}", Counter())
        rendered += [_is_rendered(one) for one in clean]
        view = renamed(row, columns.names)
        if columns.schema is None and "question" in columns.sources:
            before.update(_companions(view, BEFORE_QUESTION))
            after.update(_companions(view, AFTER_QUESTION))
        unread |= dict.fromkeys(_unread(row, columns, {*before, *after}))
    return Columns(
        columns.sources,
        tuple(column for column in BEFORE_QUESTION if column in before),
        tuple(column for column in AFTER_QUESTION if column in after),
        tuple(unread),
        style="none" if 2 * sum(rendered) > len(rendered) else columns.style,
        schema=columns.schema,
        labelled=columns.labelled,
        names=columns.names,
    )


def clean_rows(row: Mapping[str, Any], columns: Columns, where: str, bad: Counter[str]) -> list[Row]:
    """Return the rows that a row as read stands for, each with the needed columns under our names.

    There is one, or several of the same question (:mod:`.schemas`), or none of a bad row, which is counted. A row of a
    conversation also has ``messages``.

    Raises:
        DataError: a column is missing, or holds something other than text.
    """
    for column in columns.names.values():
        if column not in row:
            raise DataError(f"{where}: column {column} is missing, which earlier rows have.")
    view = renamed(row, columns.names)
    if columns.labelled:
        label = view.get(LABEL)
        if (value := _label(label)) is None:
            raise DataError(
                f"{where}: column {LABEL} is {label!r}, not true or false as in the first rows. Rename the column if "
                "it is no verdict on the response."
            )
        if not value:
            bad[f"{LABEL} is false"] += 1
            return []
    if columns.schema:
        return _made(view, columns, columns.schema, where, bad)
    clean = _text_row(view, columns, where, bad)
    return [] if clean is None else [clean]


def _made(view: Mapping[str, Any], columns: Columns, schema: Schema, where: str, bad: Counter[str]) -> list[Row]:
    rows: list[Row] = []
    for need in columns.sources:
        if not any(column in view for column in schema.gives[need]):
            named = " (or ".join(columns.named(column) for column in schema.gives[need])
            raise DataError(
                f"{where}: column {named}{')' * (len(schema.gives[need]) - 1)} is missing, which other rows have. Rows "
                f"are read as {schema.name}; keep rows of another schema apart."
            )
    try:
        made = schema.read(view, columns.sources)
    except UnusableRowError as error:
        bad[str(error)] += 1
        return []
    except ValueError as error:
        raise DataError(f"{where}: {error}.") from None
    for one in made:
        clean: Row = {need: one[need] for need in columns.sources}
        reasons = [
            f"{need} {reason}"
            for need, text in clean.items()
            if (reason := _bad_text(_text(text, columns.named(columns.sources[need]), where)))
        ]
        if reasons:
            bad[reasons[0]] += 1
            continue
        rows.append(clean | ({MESSAGES: one[MESSAGES]} if MESSAGES in one and "question" in clean else {}))
    return rows


def _text_row(row: Mapping[str, Any], columns: Columns, where: str, bad: Counter[str]) -> Row | None:
    clean: Row = {}
    for need, column in columns.sources.items():
        named = columns.named(column)
        if column not in row:
            raise DataError(f"{where}: column {named} is missing, which earlier rows have.")
        text = _text(row[column], named, where)
        if reason := _bad_text(text):
            bad[f"{named} {reason}"] += 1
            return None
        clean[need] = text
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


def prompt_of(row: Mapping[str, Any], names: Mapping[str, str] | None = None) -> str | None:
    """Return the whole prompt of a row as read, which decides its split in a file; None if it has no question."""
    view = renamed(row, names or {})
    if schema := schema_of(view):
        try:
            question = schema.read(view, ("question",))[0]["question"]
        except (UnusableRowError, ValueError):
            return None
        return question if isinstance(question, str) else None
    column = _first(view, ALIASES["question"])
    question = view[column] if column else None
    if not isinstance(question, str):
        return None
    return _joined(view, question, BEFORE_QUESTION, AFTER_QUESTION)


def available(row: Mapping[str, Any], names: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return those of :data:`TEXT_COLUMNS` that a source has, by one of its rows."""
    view = renamed(row, names or {})
    schema = schema_of(view)
    return tuple(need for need in TEXT_COLUMNS if _source(view, need, schema))


def notices(name: str, columns: Columns) -> list[str]:
    """List notices for the user about how a source's columns are read."""
    lines: list[str] = []
    if columns.schema:
        lines.append(f"{name}: read as {columns.schema.name}")
    if columns.labelled:
        lines.append(f"{name}: unpaired data; rows whose label is false are left out")
    if len(columns.prompt) > 1:
        lines.append(f"{name}: the prompt is {_list(columns.prompt)}, joined by a blank line")
    if columns.unread:
        lines.append(
            f"{name}: the model does not see the text in {_list(columns.unread)}; move it into the prompt or the "
            "response if it should"
        )
    return lines


def extra_columns(rows: Iterable[Mapping[str, Any]], columns: Columns, extra: Collection[str], name: str) -> list[str]:
    """Return the names of further columns to add to rows: those that are named, or for `*` all of text and numbers.

    Args:
        rows: first rows of the source.
        columns: how the source is read; what is read is not added for `*`, except a question of the source's own name.
        extra: names, or :data:`ALL_SCALARS`.
        name: name of the source, for errors.

    Raises:
        DataError: a named column is in none of the rows.
    """
    rows = list(rows)
    if tuple(extra) != ALL_SCALARS:
        there = dict.fromkeys(column for row in rows for column in row)
        if missing := [column for column in extra if rows and column not in there]:
            own = ", ".join(map(str, there))
            raise DataError(f"{name}: no column {missing[0]}; its columns are {own}.")
        return list(extra)
    values: dict[str, list[Any]] = {}
    for row in rows:
        for column, value in row.items():
            values.setdefault(column, []).extend([] if value is None else [value])
    own = {columns.names.get("prompt")} - {*ALIASES["question"]} if columns.schema is None else set[str]()
    reserved = columns.read - own | {"question", MESSAGES}
    return [
        column
        for column, of_column in values.items()
        if column not in reserved and of_column and all(isinstance(value, str | int | float) for value in of_column)
    ]


def stage_needs() -> str:
    """Return in one sentence which columns each stage needs, and how to name others."""
    needs = "; ".join(f"{stage} needs {_list([_names(n) for n in needs])}" for stage, needs in NEEDS.items())
    return f"{needs}. Name other columns by `dataset_columns`, as in `dataset_columns.prompt=COLUMN`."


def _source(view: Mapping[str, Any], need: str, schema: Schema | None) -> str | None:
    return _first(view, schema.gives.get(need, ()) if schema else ALIASES[need])


def _is_unpaired(view: Mapping[str, Any]) -> bool:
    return "completion" in view and "rejected" not in view and _label(view.get(LABEL)) is not None


def _is_class(view: Mapping[str, Any]) -> bool:
    return "completion" in view and view.get(LABEL) is not None and _label(view[LABEL]) is None


def _label(value: Any) -> bool | None:
    """Return whether a label is true; None if it is none, but a class of its own."""
    try:
        return _LABELS.get(value.lower() if isinstance(value, str) else value)
    except TypeError:  # a list
        return None


def _is_rendered(row: Row) -> bool:
    question = row.get("question", "")
    return MESSAGES not in row and any(mark in question for mark in TEMPLATE_MARKS)


def _names(need: str) -> str:
    """Return a column with its other names: ``question (or prompt, instruction)``."""
    others = ALIASES[need][1:]
    return f"{need} (or {', '.join(others)})"


def _list(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _first(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _companions(row: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns that exist and may be text; a list or an object of such a name means something else."""
    return tuple(name for name in names if name in row and (row[name] is None or isinstance(row[name], str)))


def _unread(row: Mapping[str, Any], columns: Columns, companions: set[str]) -> list[str]:
    """List the source's columns with text that are not read, except those that another stage reads as a response."""
    if columns.schema and columns.schema.named:
        return []
    others = {columns.named(column) for need in TEXT_COLUMNS if need not in columns.sources for column in ALIASES[need]}
    used = columns.read | companions | others
    return [column for column, value in row.items() if column not in used and text_length(value)]


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
    hint = " Messages are read from columns called messages, prompt, completion, chosen and rejected."
    raise DataError(
        f"{where}: column {column} holds {type(value).__name__}, not text.{hint * isinstance(value, list | dict)}"
    )


def _bad_text(text: str | None) -> str | None:
    if text is None:
        return "is null"
    if not text or text.isspace():
        return "is blank"
    return "has a NUL byte" if "\0" in text else None
