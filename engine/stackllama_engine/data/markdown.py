r"""Conversion of a post's HTML to Markdown, by markdownify, as in ``lvwerra/stack-exchange-paired``.

Compared with html-to-markdown 3.21 on the 1,904 questions and answers of a mathematics site: that library is eleven
times faster (0.04 ms per post against 0.4 ms), but it doubles the backslash before punctuation, which breaks formulas
(``\{``, ``\;``, ``\\``): 4.5 % of the 3,301 inline formulas were changed. markdownify with escaping off changed
0.3 %, by joined spaces only. Escaping stays off: ``x\_1`` inside ``$…$`` is another formula, and this is not rendered.

Code blocks keep their text exactly, except for one newline at either end.

Markdown has no superscripts or subscripts, and without them 10<sup>5</sup> would read 105. They are written as in TeX,
which the same sites use for formulas: ``x^2``, ``H_2O``, with braces around more than one character: ``10^{-5}``. That
applies to those attached to a word; ``<sup>`` and ``<sub>`` on their own are small print, whose text is kept.
Struck-out text is ``~~struck~~`` for each of its three elements.
"""

from typing import Any

from bs4 import BeautifulSoup
from markdownify import ATX, STRIP_ONE, MarkdownConverter


class _Converter(MarkdownConverter):
    """markdownify's converter, with superscripts, subscripts and struck-out text."""

    def convert_sup(self, el: Any, text: str, parent_tags: set[str]) -> str:
        """Convert ``x<sup>2</sup>``, in code as well."""
        return _attached("^", el, text)

    def convert_sub(self, el: Any, text: str, parent_tags: set[str]) -> str:
        """Convert ``H<sub>2</sub>O``, in code as well."""
        return _attached("_", el, text)

    def convert_strike(self, el: Any, text: str, parent_tags: set[str]) -> str:
        """Convert ``<strike>`` as ``<del>``, which markdownify supports."""
        return self.convert_del(el, text, parent_tags)  # type: ignore[attr-defined] - made by a factory


def _attached(sign: str, el: Any, text: str) -> str:
    """Return the text after its sign; plain if it follows a space or nothing."""
    before = el.previous_sibling
    word = before.get_text() if before is not None else ""
    if not text.strip() or not word or word[-1].isspace():
        return text
    text = text.strip()
    return sign + (text if len(text) == 1 else f"{{{text}}}")


_CONVERTER = _Converter(
    heading_style=ATX, escape_asterisks=False, escape_underscores=False, escape_misc=False, strip_pre=STRIP_ONE
)


def to_markdown(html: str) -> str:
    """Convert a post's body to Markdown, stripped; empty if nothing is left.

    Raises:
        ValueError: elements nested too deeply to convert.
    """
    try:
        # The <div> keeps Beautiful Soup from reading a body that is one bare link as a file name or an address.
        return _CONVERTER.convert_soup(BeautifulSoup(f"<div>{html}</div>", "html.parser")).strip()
    except RecursionError:
        raise ValueError("elements nested too deeply") from None
