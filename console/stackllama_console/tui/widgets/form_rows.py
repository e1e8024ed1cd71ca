"""Rows of a recipe form, laid out for a width: headings, fields, and each error below its field.

Pure: a form goes in, rows and strips come out.
"""

from collections.abc import Callable, Mapping
from typing import Literal

from msgspec import Struct
from rich.cells import cell_len
from rich.style import Style
from textual.strip import Strip

from ...readers.form import Form
from ...readers.form_aliases import aliases
from ...readers.form_fields import FormField
from ...sanitise import one_line
from .cells import Piece, cut, fit, strip_of, wrap

EMPTY = "empty"
BY_STAGE = "by stage"
NEEDED = "needed"
_ERROR_LINES = 3
_ERROR_INDENT = 4
_GUTTER = 3
_GAP = 2
_LEAST_VALUE = 12
Only = Literal["", "defaults", "source"]
"""Which fields are shown: all, or those that differ from something."""


class Row(Struct, frozen=True):
    """One line. Equal rows look the same."""

    kind: str
    """``note``, ``heading``, ``field`` or ``error``."""
    text: str
    """The note, heading or error; a field's name."""
    key: str = ""
    """The field that it belongs to; empty for notes and headings."""
    value: str = ""
    note: str = ""
    """What else the value was: in the recipe that filled the form, or by default."""
    changed: bool = False
    wrong: bool = False
    moved: bool = False
    """The recipe that filled the form has another value."""
    unused: bool = False
    """Another key's value leaves it without effect."""


class Glyphs(Struct, frozen=True):
    """Characters that rows are drawn with."""

    pointer: str = "›"
    changed: str = "●"
    moved: str = "Δ"
    wrong: str = "!"
    rule: str = "─"
    ellipsis: str = "…"


ASCII = Glyphs(pointer=">", changed="*", moved="#", rule="-", ellipsis="~")


def matching(form: Form, text: str, only: Only = "") -> list[FormField]:
    """Return the fields that match every word of a text, by key, help or another name of the key.

    The field that is called so comes first, then one that has this as another name, then those whose names contain
    the words, and what only the help or the section says last; without a text the form's order stays.

    Args:
        form: whose fields.
        text: words.
        only: those that differ from the defaults, or from the form's source; what is wrong is never left out.
    """
    words = text.lower().split()
    errors = form.errors()
    fields: list[FormField] = []
    for field in form.fields.values():
        differs = form.was(field.key) is not None if only == "source" else form.differs(field.key)
        if only and not (differs or field.key in errors):
            continue
        described = f"{field.key} {field.heading} {field.help} {aliases(field.name)}".lower()
        if all(word in described for word in words):
            fields.append(field)
    return sorted(fields, key=lambda field: _rank(field, words)) if words else fields


def _rank(field: FormField, words: list[str]) -> int:
    """Return how far a field is from what was asked for; 0: it is its name."""
    asked = " ".join(words).replace("_", " ")
    name, others = field.name.replace("_", " "), aliases(field.name)
    if asked in (name, field.key.lower().replace("_", " ")):
        return 0
    if asked in (other.replace("_", " ") for other in others.split()):
        return 1
    if all(word in name for word in asked.split()):
        return 2
    return 3 if all(word in f"{field.key} {others}" for word in words) else 4


def build_rows(form: Form, fields: list[FormField], width: int, last_edited: str) -> list[Row]:
    """Lay out headings, fields and errors of these fields."""
    errors, unused = form.errors(), form.unused()
    owners = _owners(form, [field.key for field in fields], errors, last_edited)
    rows: list[Row] = []
    heading = ""
    for field in fields:
        if field.heading != heading:
            heading = field.heading
            rows.append(Row("heading", heading))
        rows.append(_field_row(form, field, field.key in errors, unused.get(field.key, "")))
        if owners.get(errors.get(field.key, "")) == field.key:
            lines = wrap(one_line(errors[field.key]), max(8, width - _ERROR_INDENT - 2), _ERROR_LINES)
            rows += [Row("error", line, field.key, changed=index == 0) for index, line in enumerate(lines)]
    return rows


def _owners(form: Form, keys: list[str], errors: Mapping[str, str], last_edited: str) -> dict[str, str]:
    """Map each message to its one field: the last edited, else the first changed that it names."""
    owners: dict[str, str] = {}
    for message in set(errors.values()):
        if message == NEEDED:
            continue  # the value says it already
        named = [key for key in keys if errors.get(key) == message]
        changed = [key for key in named if form.differs(key)]
        if named:
            owners[message] = last_edited if last_edited in named else (changed or named)[0]
    return owners


def _field_row(form: Form, field: FormField, wrong: bool, unused: str) -> Row:
    changed = form.differs(field.key)
    default = EMPTY if not field.required else NEEDED
    if field.by_stage:
        default = BY_STAGE
    elif not field.required:
        default = one_line(form.default_text(field.key)) or EMPTY
    value = (one_line(form.text(field.key)) or EMPTY) if changed else default
    before = form.was(field.key)
    note = f"default {default}" if changed and not field.required else ""
    note = note if before is None else f"was {one_line(before) or EMPTY}"
    note = f"no effect with {unused}" if unused else note
    return Row("field", field.name, field.key, value, note, changed, wrong, before is not None, bool(unused))


def key_width(rows: list[Row], width: int) -> int:
    """Return the cells for the names: as many as the longest takes, while the values keep theirs."""
    longest = max((len(row.text) for row in rows if row.kind == "field"), default=0)
    return max(4, min(longest, width - _GUTTER - _GAP - max(_LEAST_VALUE, width * 2 // 5)))


def value_column(rows: list[Row], width: int) -> int:
    """Return the column at which values begin."""
    return _GUTTER + key_width(rows, width) + _GAP


def draw(row: Row, rows: list[Row], width: int, cursor: bool, style: Callable[[str], Style], glyphs: Glyphs) -> Strip:
    """Draw one row as a line; ``style`` gives the style of a part by its name."""
    base = style("cursor") if cursor else style("value")
    if row.kind == "heading":
        text = f"{glyphs.rule * 2} {row.text} "
        return strip_of([(cut(text, width) + glyphs.rule * (width - len(text)), style("heading"))], width, base)
    if row.kind == "note":
        return strip_of([(fit(row.text, width, ellipsis=glyphs.ellipsis), style("note"))], width, base)
    if row.kind == "error":
        mark = f"{glyphs.wrong} " if row.changed else ""
        indent = (" " * (_ERROR_INDENT if row.changed else _ERROR_INDENT + 2), base)
        return strip_of([indent, (mark + row.text, style("error"))], width, base)
    return strip_of(_field_pieces(row, key_width(rows, width), width, cursor, style, glyphs), width, base)


def _field_pieces(
    row: Row, keys: int, width: int, cursor: bool, style: Callable[[str], Style], glyphs: Glyphs
) -> list[Piece]:
    def of(name: str) -> Style:
        part_style = style(name)
        return style("cursor") + Style(bold=part_style.bold) if cursor else part_style

    mark = glyphs.changed if row.changed else " "
    mark = glyphs.wrong if row.wrong else glyphs.moved if row.moved else mark
    room = max(0, width - _GUTTER - keys - _GAP)
    value = cut(row.value, room, keep_end="/" in row.value, ellipsis=glyphs.ellipsis)
    missing = row.value == NEEDED and not row.changed
    key_style = "default" if row.unused else "changed" if row.changed else "key"
    value_style = "error" if missing else "changed" if row.changed and not row.unused else "default"
    return [
        (glyphs.pointer if cursor else " ", of("key")),
        (f"{mark} ", of("error" if row.wrong else "changed")),
        (
            fit(row.text, keys, ellipsis=glyphs.ellipsis) + " " * _GAP,
            of(key_style),
        ),
        (value + "  ", of(value_style)),
        *_note_pieces(row, room - cell_len(value) - 2, of, glyphs),
    ]


def _note_pieces(row: Row, room: int, of: Callable[[str], Style], glyphs: Glyphs) -> list[Piece]:
    """Draw the note beside a value, where there is room for a readable part of it."""
    if not row.note or room < len("default …"):
        return []
    return [(cut(row.note, room, ellipsis=glyphs.ellipsis), of("default"))]
