"""Problems and notes found while reading a recipe."""

from typing import Any

from msgspec import Struct

from .errors import RecipeError
from .wording import echo

COMMAND_LINE = "command line"
"""The source of what was given as ``key=value`` words."""


class Entry(Struct, frozen=True, kw_only=True):
    """One key of a recipe as given, and as this engine reads it.

    Attributes:
        source: the file, or the command line.
        key: the key as typed.
        typed: the value as typed.
        value: the value for this engine's key.
    """

    source: str
    key: str
    typed: Any
    value: Any

    @property
    def echo(self) -> str:
        """``key=value`` for messages."""
        return echo(self.key, self.typed)


class Findings(Struct, kw_only=True):
    """Problems and notes, each once, in the order in which they were found.

    Attributes:
        problems: pairs of source and sentence.
        notes: sentences.
        texts: the values of ``key=value`` words as they were typed, by key with its section.
    """

    problems: dict[tuple[str, str], None] = {}
    notes: dict[str, None] = {}
    texts: dict[str, str] = {}

    def typed(self, source: str, key: str, value: Any) -> Any:
        """Return a value as it was typed: the text of a word on the command line, else the value itself."""
        return self.texts.get(key, value) if source == COMMAND_LINE else value

    def wrong(self, source: str, text: str) -> None:
        """Add a problem; a full stop is added if the text has none."""
        self.problems[source, text if text[-1] in ".?" else f"{text}."] = None

    def note(self, text: str) -> None:
        """Add a note."""
        self.notes[text] = None

    def check(self) -> None:
        """Raise all problems as one error.

        Raises:
            RecipeError: there are problems: a single one on one line, several under a heading, one per line.
        """
        if not self.problems:
            return
        sources = {source for source, _ in self.problems}
        if len(self.problems) == 1:
            raise RecipeError("".join(f"{source}: {text}" for source, text in self.problems))
        if len(sources) == 1:
            lines = [f"{source}: {len(self.problems)} mistakes:" for source in sources]
            lines += [text for _, text in self.problems]
        else:
            lines = [f"{len(self.problems)} mistakes in the recipe:"]
            lines += [f"{source}: {text}" for source, text in self.problems]
        raise RecipeError("\n  ".join(" ".join(line.split()) for line in lines))
