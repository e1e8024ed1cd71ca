r"""HTML of a post to Markdown, by markdownify, as ``lvwerra/stack-exchange-paired`` was made.

Compared with html-to-markdown 3.21 on the 1,904 questions and answers of a mathematics site: that library is eleven
times faster (0.04 ms a post against 0.4 ms), but it doubles the backslash before punctuation, which breaks formulas
(``\{``, ``\;``, ``\\``): 4.5 % of the 3,301 inline formulas came out changed. markdownify with escaping off changed
0.3 %, by joined spaces only. Escaping stays off: ``x\_1`` inside ``$…$`` is another formula, and nobody renders this.

Code blocks keep their text exactly, but for one newline at either end.

Markdown has no raised or lowered text, and without it 10<sup>5</sup> would read 105. It is written as in TeX, which the
same sites use for formulas: ``x^2``, ``H_2O``, with braces around more than one character: ``10^{-5}``. That holds for
what is attached to a word; ``<sup>`` and ``<sub>`` that stand alone are small print, whose text is kept. Struck-out
text is ``~~struck~~`` whichever of its three elements says so.
"""

from typing import Any

from bs4 import BeautifulSoup
from markdownify import ATX, STRIP_ONE, MarkdownConverter


class _Converter(MarkdownConverter):
    """markdownify's, with raised, lowered and struck-out text."""

    def convert_sup(self, el: Any, text: str, parent_tags: set[str]) -> str:
        """``x<sup>2</sup>``, in code as well."""
        return _attached("^", el, text)

    def convert_sub(self, el: Any, text: str, parent_tags: set[str]) -> str:
        """``H<sub>2</sub>O``, in code as well."""
        return _attached("_", el, text)

    def convert_strike(self, el: Any, text: str, parent_tags: set[str]) -> str:
        """The old name of ``<s>`` and ``<del>``, which markdownify knows."""
        return self.convert_del(el, text, parent_tags)  # type: ignore[attr-defined] - made by a factory


def _attached(sign: str, el: Any, text: str) -> str:
    """Raised or lowered text after its sign; plain where it follows a space or nothing."""
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
    """Markdown of a post's body, stripped; empty when nothing is left.

    Raises:
        ValueError: elements nested too deeply to convert.
    """
    try:
        # The wrapping keeps Beautiful Soup from taking a body that is one bare link for a file name or an address.
        return _CONVERTER.convert_soup(BeautifulSoup(f"<div>{html}</div>", "html.parser")).strip()
    except RecursionError:
        raise ValueError("elements nested too deeply") from None
