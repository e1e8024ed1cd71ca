"""Rendering of a run's state: a glyph, a word and a colour, so that none has to be told by colour alone."""

from rich.text import Text

from ..sanitise import one_line

_STATES: dict[str, tuple[str, str]] = {
    "queued": ("◌", "text-muted"),
    "starting": ("◔", "primary"),
    "running": ("●", "primary"),
    "stalled": ("◍", "warning"),
    "stopping": ("◑", "warning"),
    "stopped": ("■", "warning"),
    "finished": ("✓", "success"),
    "failed": ("✗", "error"),
    "lost": ("?", "error"),
    "damaged": ("!", "error"),
    "silent": ("○", "text-muted"),
    "unknown": ("·", "text-muted"),
}


def state_text(phase: str, variables: dict[str, str], word: str = "") -> Text:
    """Return glyph and word in the theme's colour; ``variables`` are the app's theme variables, ``word`` the phase."""
    glyph, colour = _STATES.get(phase, _STATES["unknown"])
    return Text(f"{glyph} {one_line(word or phase)}", style=rich_colour(variables, colour))


def findings_text(count: int, variables: dict[str, str]) -> Text:
    """Return how many health rules have found something, to follow the state; empty for none."""
    return Text(f" !{count}" if count else "", style=rich_colour(variables, "warning"))


def rich_colour(variables: dict[str, str], name: str) -> str:
    """Return a theme variable as Rich writes colours; empty (the terminal's own) where it has none."""
    value = variables.get(name, "")
    if value.startswith("#"):
        return value[:7]
    if value.startswith("ansi_"):
        plain = value.partition(" ")[0].removeprefix("ansi_")
        return "" if plain == "default" else plain
    return ""
