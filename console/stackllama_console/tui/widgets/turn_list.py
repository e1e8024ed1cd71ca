"""A conversation: questions with the answers of one or two sides, beside each other where there is room."""

from collections.abc import Sequence
from typing import ClassVar

from msgspec import Struct
from rich.cells import cell_len, chop_cells
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from stackllama_engine.contract.chat_messages import Delta, Done, Failure, Side

from ...units import number
from .cells import fit, strip_of

_BESIDE = 100  # cells from which the two sides stand beside each other
_KEPT = 500
_GAP = " │ "
_TITLES: dict[Side, str] = {"base": "base", "tuned": "tuned"}

Pieces = list[tuple[str, str]]


class Answer(Struct):
    """The answer of one side so far."""

    text: str = ""
    info: str = ""
    """How it ended; empty while it is being generated."""


class Turn(Struct):
    """A question and its answers; with neither sides nor error a notice. Texts are sanitised."""

    id: int
    prompt: str
    answers: dict[Side, Answer]
    error: str = ""
    settings: str = ""
    """What it was sampled with."""

    @property
    def open(self) -> bool:
        """Whether more may come."""
        return not self.error and any(not answer.info for answer in self.answers.values())

    def take(self, event: Delta | Done | Failure, *, alone: bool = False) -> None:
        """Take in a piece, an end or a failure of this question.

        Args:
            event: of this question.
            alone: whether a reward is the reward model's, though reward functions score the run as well.
        """
        if isinstance(event, Failure):
            self.error = event.error
            return
        answer = self.answers.setdefault(event.which, Answer())
        if isinstance(event, Delta):
            answer.text += event.text
            return
        how = "cancelled" if event.cancelled else "" if event.ended else "cut off at the limit"
        reward = "" if event.reward is None else f"reward {number(event.reward)}"  # first: a narrow side cuts the end
        reward += " (reward model alone)" if reward and alone else ""
        length = f"{event.tokens:,} token{'s' * (event.tokens != 1)}"
        answer.info = " · ".join(filter(None, (reward, length, f"{event.seconds:.1f} s", how)))


class TurnList(ScrollView, can_focus=True, inherit_bindings=False):
    """Scrolls through turns; stays at the end while it is there. Only lines that changed are painted again."""

    DEFAULT_CSS = """
    TurnList {
        width: 1fr; height: 1fr; padding: 0 1; overflow-x: hidden; overflow-y: auto;
        scrollbar-size: 0 1; scrollbar-gutter: stable;
        & > .turns--prompt { color: $primary; text-style: bold; }
        & > .turns--side { color: $accent; text-style: bold; }
        & > .turns--plain { color: $text; }
        & > .turns--dim { color: $text-muted; }
        & > .turns--error { color: $error; text-style: bold; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {f"turns--{name}" for name in ("prompt", "side", "plain", "dim", "error")}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "scroll(1)", "down", id="turns.down", show=False),
        Binding("k,up", "scroll(-1)", "up", id="turns.up", show=False),
        Binding("pagedown,ctrl+d", "page(1)", "page down", id="turns.page_down", show=False),
        Binding("pageup,ctrl+u", "page(-1)", "page up", id="turns.page_up", show=False),
        Binding("g,home", "end(False)", "first question", id="turns.first", show=False),
        Binding("G,end", "end(True)", "newest answer", id="turns.last", show=False),
    ]

    def __init__(self, *, id: str | None = None) -> None:  # Textual's name
        super().__init__(id=id)
        self.turns: list[Turn] = []
        self._lines: list[Pieces] = []
        self._starts: list[int] = []
        self._laid_out_for = -1
        self._at_end = True

    def add(self, turn: Turn) -> None:
        """Add a new question at the end."""
        self.turns.append(turn)
        if len(self.turns) > _KEPT:
            del self.turns[0]
            self._laid_out_for = -1
        self.changed(len(self.turns) - 1)
        self.scroll_end(animate=False, force=True, immediate=True)

    def turn(self, question: int) -> tuple[int, Turn] | None:
        """Return index and turn of a question; the newest are tried first."""
        for index in range(len(self.turns) - 1, -1, -1):
            if self.turns[index].id == question:
                return index, self.turns[index]
        return None

    def changed(self, index: int) -> None:
        """Lay out again from a turn on; none before it has changed."""
        at_end = self.scroll_offset.y >= self.max_scroll_y
        before, count = self._lines, len(self._lines)
        width = self._width
        if width != self._laid_out_for or index >= len(self._starts):
            index = min(index, len(self._starts)) if width == self._laid_out_for else 0
        start = self._starts[index] if index < len(self._starts) else count
        lines, starts = before[: start if index else 0], self._starts[:index]
        for turn in self.turns[index:]:
            starts.append(len(lines))
            lines += _turn_lines(turn, width)
        self._lines, self._starts, self._laid_out_for = lines, starts, width
        for y, line in enumerate(lines[start:], start):
            if y >= count or line != before[y]:
                self.refresh(Region(0, y - self.scroll_offset.y, self.size.width, 1))
        if len(lines) != count:
            self.virtual_size = Size(0, len(lines))
            if len(lines) < count:
                self.refresh()
            if at_end:
                self.scroll_end(animate=False, force=True, immediate=True)

    @property
    def lines(self) -> list[str]:
        """All lines as text."""
        return ["".join(text for text, _ in line) for line in self._lines]

    def render_line(self, y: int) -> Strip:
        """Render one line."""
        index = y + self.scroll_offset.y
        pieces = self._lines[index] if index < len(self._lines) else []
        rest = self._style("plain")
        return strip_of([(text, self._style(name)) for text, name in pieces], self._width, rest)

    def on_resize(self) -> None:
        """Wrap the lines for the new width."""
        if self.turns and self._width != self._laid_out_for:
            self.changed(0)
            self.refresh()
        if self._at_end:  # the rows above or below it have become more
            self.scroll_end(animate=False, force=True, immediate=True)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Note whether the newest line is in sight."""
        super().watch_scroll_y(old_value, new_value)
        self._at_end = round(new_value) >= self.max_scroll_y

    def action_scroll(self, lines: int) -> None:
        """Scroll by lines."""
        self.scroll_relative(y=lines, animate=False)

    def action_page(self, direction: int) -> None:
        """Scroll by a page."""
        self.scroll_relative(y=direction * max(1, self.size.height - 1), animate=False)

    def action_end(self, last: bool) -> None:
        """Scroll to an end."""
        self.scroll_to(y=self.max_scroll_y if last else 0, animate=False)

    @property
    def _width(self) -> int:
        return self.scrollable_content_region.width

    def _style(self, name: str) -> Style:
        return self.get_component_rich_style(f"turns--{name}")


def wrap_text(text: str, width: int) -> list[str]:
    """Return lines of at most ``width`` cells; line ends stay, long words are broken."""
    lines: list[str] = []
    for paragraph in text.expandtabs(4).split("\n"):
        line, *words = paragraph.split(" ")
        for word in words:
            if cell_len(longer := f"{line} {word}") <= width:
                line = longer
                continue
            lines += chop_cells(line, max(2, width))
            line = word
        lines += chop_cells(line, max(2, width)) or [""]
    return lines


def _turn_lines(turn: Turn, width: int) -> list[Pieces]:
    if not turn.answers and not turn.error:
        return [[(line, "dim")] for line in wrap_text(turn.prompt, width)] + [[]]
    lines: list[Pieces] = []
    for index, line in enumerate(wrap_text(turn.prompt, width - 2)):
        lines.append([("› " if index == 0 else "  ", "dim"), (line, "prompt")])
    if turn.settings and sum(cell_len(text) for text, _ in lines[-1]) + 2 + cell_len(turn.settings) <= width:
        lines[-1].append((f"  {turn.settings}", "dim"))
    elif turn.settings:
        lines.append([("  ", "dim"), (turn.settings, "dim")])
    sides = list(turn.answers.items())
    if len(sides) == 2 and width >= _BESIDE:
        lines += _beside(turn, sides, (width - len(_GAP)) // 2)
    else:
        for side, answer in sides:
            title, info, body = _side_parts(turn, side, answer, width)
            lines.append([(title, "side"), (info, "dim")])
            lines += [[(line, "plain")] for line in body]
    if turn.error:
        lines += [[(line, "error")] for line in wrap_text(f"✗ not answered: {turn.error}", width)]
    return [*lines, []]


def _beside(turn: Turn, sides: Sequence[tuple[Side, Answer]], width: int) -> list[Pieces]:
    columns = [_side_parts(turn, side, answer, width) for side, answer in sides]
    head: Pieces = []
    for index, (title, info, _) in enumerate(columns):
        head += [(_GAP, "dim")] if index else []
        head += [(title, "side"), (fit(info, width - cell_len(title)), "dim")]
    lines = [head]
    for row in range(max(len(body) for _, _, body in columns)):
        left, right = (body[row] if row < len(body) else "" for _, _, body in columns)
        lines.append([(fit(left, width), "plain"), (_GAP, "dim"), (right, "plain")])
    return lines


def _side_parts(turn: Turn, side: Side, answer: Answer, width: int) -> tuple[str, str, list[str]]:
    """Return title, what is known beside it, and the wrapped text."""
    waiting = not answer.info and not turn.error
    info = answer.info or ("…" if waiting else "")
    return _TITLES[side], f"  {info}", wrap_text(answer.text.strip("\n"), width) if answer.text else []
