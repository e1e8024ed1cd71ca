"""Widget of a recipe form: rows with a cursor, one input that opens on the row being edited, help below."""

from typing import Any, ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Static

from ...readers.form import Form
from ...readers.form_fields import FormField
from ...readers.path_completion import PATH_KEYS
from ...sanitise import one_line
from .cells import cut, wrap
from .form_list import FormList
from .form_rows import Only, Row, build_rows, matching
from .path_completer import complete
from .typed_ahead import TypedAhead
from .value_input import ValueInput

_HELP_FROM_HEIGHT = 8
_NARROW = 60
_ON_ROWS = ("edit", "cycle", "default", "filter", "only_changed", "section", "top", "bottom")


class RecipeForm(Container):
    """Shows and edits a :class:`Form`. Posts :class:`Changed` at each keystroke that changes a value.

    Args:
        form: what is filled in; may come later with :meth:`show`.
        ascii: draw with ASCII alone.
        id: the widget's id.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "move(1)", "next key", id="form.down", show=False),
        Binding("k,up", "move(-1)", "previous key", id="form.up", show=False),
        Binding("g,home", "top", "first key", id="form.top", show=False),
        Binding("G,end", "bottom", "last key", id="form.bottom", show=False),
        Binding("ctrl+d,pagedown", "page(1)", "page down", id="form.page_down", show=False),
        Binding("ctrl+u,pageup", "page(-1)", "page up", id="form.page_up", show=False),
        Binding("right_curly_bracket", "section(1)", "next section", id="form.next_section", show=False),
        Binding("left_curly_bracket", "section(-1)", "previous section", id="form.previous_section", show=False),
        Binding("e", "edit", "edit", id="form.edit"),  # enter is the screen's: it launches
        Binding("space", "cycle(1)", "next choice or edit", id="form.next_choice", show=False),
        Binding("backspace", "cycle(-1)", "previous choice", id="form.previous_choice", show=False),
        Binding("d", "default", "reset to default", id="form.default", show=False),
        Binding("slash", "filter", "filter", id="form.filter"),
        Binding("a", "only_changed", "show changed only", id="form.only_changed", show=False),
        Binding("tab", "complete", "complete path", id="form.complete", show=False),
        Binding("escape", "cancel", "cancel", id="form.cancel", show=False),
    ]
    DEFAULT_CSS = """
    RecipeForm {
        layout: vertical;
        layers: rows editor;
        & FormList { layer: rows; }
        & #form-help { layer: rows; height: 3; padding: 0 1; background: $panel; color: $foreground; }
        & #form-input { layer: editor; position: absolute; display: none; }
        & #form-input:focus { background: $surface; color: $foreground; text-style: bold; }
        &.-narrow #form-help { height: 5; }
        &.-short #form-help { display: none; }
    }
    """

    class Changed(Message):
        """A value changed, whether or not it is valid."""

        def __init__(self, form: Form) -> None:
            self.form = form
            super().__init__()

    class Highlighted(Message):
        """The cursor moved to another key."""

        def __init__(self, key: str) -> None:
            self.key = key
            super().__init__()

    def __init__(self, form: Form | None = None, *, ascii: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self.form = form
        self._list = FormList(ascii=ascii, id="form-rows")
        self._help = Static("", id="form-help", markup=False)
        self._input = ValueInput("form-input")
        self._editing: FormField | None = None
        self._before: str | None = None  # what was typed before the edit; None: the default
        self._turns = TypedAhead(self, self._list, self._input, lambda: self.editing)
        self._list.take_key, self._input.take_key = self._turns.rows_key, self._turns.field_key
        self._input.submitted = self.finish
        self._filtering = False
        self._filter = ""
        self._only: Only = ""
        self._came_from = ""  # the key before filtering
        self._last_edited = ""
        self._highlighted = ""
        self._names = ("", "")  # a completed path, and its candidates

    def compose(self) -> ComposeResult:
        """Lay out rows, help and the input that floats above them."""
        yield self._list
        yield self._help
        yield self._input

    # -- for the screen -------------------------------------------------------------------------------------------

    @property
    def editing(self) -> bool:
        """True while the input is open."""
        return self._editing is not None or self._filtering

    @property
    def cursor_key(self) -> str:
        """The key under the cursor; empty without one."""
        return self._list.cursor_key

    def focus(self, scroll_visible: bool = True) -> Any:
        """Focus the rows."""
        self._list.focus(scroll_visible)
        return self

    def show(self, form: Form) -> None:
        """Show another form, from its beginning; the filter stays."""
        self._close()
        self.form = form
        self._last_edited = ""
        self.redraw(next(iter(form.fields)))

    def apply(self, changes: dict[str, str]) -> None:
        """Set several values, as a suggestion of the budget does, and post :class:`Changed`.

        Raises:
            KeyError: a key that the form has not; none was set.
        """
        if self.form is None:
            return
        self._close()
        for key in changes:
            self.form.fields[key]  # all or none
        for key, text in changes.items():
            self.form.set(key, text)
        self._changed(next(iter(changes), ""))

    def filter(self, text: str) -> None:
        """Show only the fields whose key or help holds every word; empty text shows all."""
        self._filter = one_line(text)
        self.redraw()

    def move_to(self, key: str) -> None:
        """Put the cursor on a key, if it is shown."""
        self.redraw(key)

    def finish(self) -> None:
        """Close the input and keep what was typed."""
        self._close(refocus=True)

    def redraw(self, key: str = "") -> None:
        """Show what the form says now; the cursor goes to ``key`` or stays."""
        if self.form is None or not self._list.row_width:
            return
        self._only = "" if self._only == "source" and self.form.source is None else self._only
        fields = matching(self.form, self._filter, self._only)
        rows = build_rows(self.form, fields, self._list.row_width, self._last_edited)
        self._list.show_rows([*self._notes(len(fields)), *rows], key)
        self._follow()

    async def take_key(self, event: events.Key) -> None:
        """Handle a key that reached a widget beside the form: the filter's, and what is typed into it ahead."""
        if self.editing:
            await self._turns.rows_key(event)
        elif event.key == "slash":
            event.stop()
            self.action_filter()

    # -- events ---------------------------------------------------------------------------------------------------

    def on_resize(self, event: events.Resize) -> None:
        """Lay out the rows for another width."""
        self.set_class(event.size.height < _HELP_FROM_HEIGHT, "-short")
        self.set_class(event.size.width < _NARROW and event.size.height >= 2 * _HELP_FROM_HEIGHT, "-narrow")
        self.call_after_refresh(self.redraw)

    @on(FormList.Moved)
    def _moved(self, event: FormList.Moved) -> None:
        event.stop()
        self._follow()

    @on(FormList.Chosen)
    def _chosen(self, event: FormList.Chosen) -> None:
        event.stop()
        self.action_edit()

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        if event.value == self._input.value:  # else another keystroke came after it
            self._take(event.value)

    @on(Input.Blurred)
    def _blurred(self, event: Input.Blurred) -> None:
        event.stop()
        if self.screen.focused is not self._input:  # else it is open again
            self._close()

    # -- actions --------------------------------------------------------------------------------------------------

    def action_move(self, fields: int) -> None:
        """Move to the next or previous key; what is being edited is kept."""
        self._close(refocus=True)
        self._list.move(fields)

    def action_page(self, direction: int) -> None:
        """Move a page up or down."""
        self._close(refocus=True)
        self._list.move_page(direction)

    def action_section(self, direction: int) -> None:
        """Move to the next or previous section."""
        self._list.move_section(direction)

    def action_top(self) -> None:
        """Move to the first key."""
        self._list.move(-len(self._list.rows))

    def action_bottom(self) -> None:
        """Move to the last key."""
        self._list.move(len(self._list.rows))

    def action_edit(self) -> None:
        """Open the input on the cursor's row; flags and choices take the next value instead."""
        field = self._field()
        if field is None or self.form is None:
            return
        if field.kind in ("flag", "choice"):
            self.action_cycle(1)
            return
        self._close()
        self._before = self.form.text(field.key) if self.form.differs(field.key) else None
        self._list.show_cursor()
        self._editing = field
        self._open(one_line(self.form.text(field.key)), field.bounds_text)

    def action_cycle(self, direction: int) -> None:
        """Set the next or previous choice; a typed field opens with the next."""
        field = self._field()
        if field is None or self.form is None:
            return
        if field.kind not in ("flag", "choice"):
            if direction > 0:
                self.action_edit()
            return
        choices = [*(["true", "false"] if field.kind == "flag" else []), *field.choices]
        if field.optional:
            choices.insert(0, "")
        text = self.form.text(field.key)
        here = choices.index(text) if text in choices else -direction if direction < 0 else -1
        self.form.set(field.key, choices[(here + direction) % len(choices)])
        self._changed(field.key)

    def action_default(self) -> None:
        """Reset the cursor's key to its default."""
        field = self._field()
        if field is not None and self.form is not None and self.form.differs(field.key):
            self.form.reset(field.key)
            self._changed(field.key)

    def action_filter(self) -> None:
        """Open the input on the first row, to filter the keys."""
        if self.form is not None:
            self._close()
            self._filtering, self._came_from = True, self.cursor_key
            self._to_first()
            self._open(self._filter, "words of a key or its help")

    def action_only_changed(self) -> None:
        """Show only what differs from the defaults, then from the recipe that filled the form, then everything."""
        order: list[Only] = ["", "defaults", *(["source"] if self.form is not None and self.form.source else [])]
        self._only = order[(order.index(self._only) + 1) % len(order)]
        self.redraw()

    def action_complete(self) -> None:
        """Complete the path that is typed; the help shows the candidates."""
        self.run_worker(complete(self._input, self._show_names), group="complete", exclusive=True)

    def action_cancel(self) -> None:
        """Close the input and take back what was typed in it; without one, show every key again."""
        field, before = self._editing, self._before
        self._close(refocus=True, keep=False)
        if field is None or self.form is None:
            self._only = ""
            self.filter("")
            self.move_to(self._came_from or self.cursor_key)
            self._came_from = ""
        elif (self.form.text(field.key) if self.form.differs(field.key) else None) != before:
            if before is None:
                self.form.reset(field.key)
            else:
                self.form.set(field.key, before)
            self._changed(field.key)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Leave ``escape`` to the screen while nothing can be cancelled, and letters to the input while it is open."""
        if action == "complete":
            return self._editing is not None and self._editing.name in PATH_KEYS
        if action == "cancel":
            return self.editing or bool(self._filter or self._only)
        return action not in _ON_ROWS or not self.editing

    # -- inside ---------------------------------------------------------------------------------------------------

    def _field(self) -> FormField | None:
        return self.form.fields.get(self.cursor_key) if self.form is not None else None

    def _changed(self, key: str) -> None:
        self._last_edited = key
        self.redraw()
        if self.form is not None:
            self.post_message(self.Changed(self.form))

    def _open(self, text: str, placeholder: str) -> None:
        with self.prevent(Input.Changed):
            self._input.value = text
        self._input.placeholder = placeholder
        self._input.cursor_position = len(text)
        self._follow()
        self._turns.enter()

    def _take(self, text: str) -> None:
        """Take the input's text as the filter, or as the value of the key that is edited."""
        if self._filtering:
            if text != self._filter:
                self.filter(text)
                self._to_first()
        elif self.form is not None and self._editing is not None:
            key = self._editing.key
            if text.strip() != one_line(self.form.text(key)):
                self.form.set(key, text)
                self._changed(key)

    def _close(self, refocus: bool = False, keep: bool = True) -> None:
        if not self.editing:
            return
        if keep:
            self._take(self._input.value)  # its last keystrokes may not have been reported yet
        was_filtering = self._filtering
        self._editing, self._before, self._filtering = None, None, False
        if refocus:
            self._turns.leave()
        else:
            self._input.display = False
        if was_filtering:
            self.redraw()

    def _to_first(self) -> None:
        """Put the cursor on the first key that is shown, in sight of the filter above it."""
        self.redraw()
        self._list.move(-len(self._list.rows))
        self._list.scroll_to(y=0, animate=False)

    def _follow(self) -> None:
        """Move the help and the input to the cursor's row."""
        if self._filtering:
            self._place(2, 0)
        elif self._editing is not None:
            line = self._list.cursor_line
            if self.cursor_key != self._editing.key or not 0 <= line < self._list.size.height:
                self._close(refocus=True)
            else:
                self._place(self._list.value_column, line)
        self._help.update(self._help_text())
        if self.cursor_key != self._highlighted:
            self._highlighted = self.cursor_key
            self.post_message(self.Highlighted(self.cursor_key))

    def _show_names(self, names: str) -> None:
        self._names = (self._input.value, names)
        self._help.update(self._help_text())

    def _place(self, column: int, line: int) -> None:
        self._input.styles.offset = (column, line)
        self._input.styles.width = max(4, self._list.row_width - column)

    def _help_text(self) -> Content:
        field = self._field()
        if field is None or self.form is None:
            return Content("")
        completed, names = self._names
        if names and self._editing is not None and completed == self._input.value:
            return Content("\n".join(wrap(names, self._help.size.width, max(1, self._help.size.height))))
        default = one_line(self.form.default_text(field.key)) or "empty"
        said = "default by stage" if field.by_stage else f"default {default}"
        if field.required:
            said = "no default" if self.form.differs(field.key) else "needed"
        if setting := self.form.unused().get(field.key):
            said = f"no effect with {setting}"
        width, height = self._help.size.width, max(1, self._help.size.height)
        bounds = field.bounds_text + (", tab completes a path" if field.name in PATH_KEYS and self.editing else "")
        title = f"{field.key}  {said} · {bounds}"
        if not bounds or len(title) > width:
            title = cut(f"{field.key}  {said}", width)
        else:  # a line more for the help
            bounds = ""
        lines = [cut(bounds, width)] if bounds else []
        lines += wrap(field.help, width, max(1, height - 1 - len(lines)))
        named = Content.styled(title[: len(field.key)], "bold") + Content(title[len(field.key) :])
        return Content("\n").join([named, *map(Content, lines)])

    def _notes(self, shown: int) -> list[Row]:
        if self.form is None or not (self._filter or self._only or self._filtering):
            return []
        which = {"": "keys", "defaults": "keys that differ", "source": "keys that differ from the source"}[self._only]
        summary = f"{shown} of {len(self.form.fields)} {which}"
        return [Row("note", f"/ {self._filter}  {summary}" if self._filter or self._filtering else summary)]
