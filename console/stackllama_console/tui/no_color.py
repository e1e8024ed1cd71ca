"""`NO_COLOR` (https://no-color.org): no colour is sent at all, greys included; what colours set apart is reversed.

Textual would send greys. Without any a cursor bar would vanish, so whatever has a background that stands out from its
surroundings is shown in reverse, which every terminal knows.
"""

from functools import lru_cache

from rich.color import Color as RichColor
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter

_FAR = 0.25
"""Difference in brightness (0 to 1) from which on a background is there to be seen."""


class Colourless(LineFilter):
    """Takes every colour out of what is drawn."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Return the segments without colours; ``background`` is what surrounds them."""
        return [
            Segment(text, style if style is None else colourless(style, background), control)
            for text, style, control in segments
        ]


@lru_cache(2048)
def colourless(style: Style, background: Color) -> Style:
    """Return a style without its colours, in reverse where its background stands out from the surroundings."""
    plain = style.without_color
    if style.bgcolor is None or style.bgcolor.is_default or not _stands_out(style.bgcolor, background):
        return plain
    return plain + Style(reverse=not style.reverse)


def _stands_out(colour: RichColor, background: Color) -> bool:
    if colour.is_system_defined:  # one of the terminal's own sixteen: how bright it is, only the terminal knows
        return colour.number != background.ansi
    return abs(Color.from_rich_color(colour).brightness - background.brightness) >= _FAR
