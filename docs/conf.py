"""The documentation as a site: `make docs` builds it, offline, into build/docs; a warning is an error.

Pages are the Markdown files beside this one, written to be read without the site as well. What a page cannot say twice
is put in when it is read: the reference from the code (``<!-- reference: NAME -->``), files of the repository's root
(``<!-- file: NAME -->``), and the table of contents from the lists in index.md.
"""

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "console"), str(ROOT / "engine")]

from scripts.reference_pages import PAGES  # noqa: E402 - found on the path that was just set

from stackllama_engine import __version__  # noqa: E402

project = "stackllama-console"
release = version = __version__
copyright = f"the {project} authors"
extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = project
html_show_sourcelink = False
smartquotes_action = "q"  # quotation marks alone: `--out` in a help text keeps its two dashes

_REFERENCE = re.compile(r"<!-- reference: (\w+) -->")
_FILE = re.compile(r"<!-- file: (\S+) -->")
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")  # to a file, not to an address
_SECTION = re.compile(r"^## (.+)\n\n((?:- .*\n(?:  .*\n)*)+)", re.MULTILINE)
_PAGES = {
    ROOT / file: f"project/{name}.md"
    for name, file in {
        "changelog": "CHANGELOG.md",
        "contributing": "CONTRIBUTING.md",
        "security": "SECURITY.md",
        "themes": "themes/README.md",
    }.items()
}
"""Files outside of docs/ that have a page of their own."""


def fill_in(_app: Any, page: str, source: list[str]) -> None:
    """Complete a page before it is parsed; see the module."""
    text = source[0]
    folder = (ROOT / "docs" / page).parent
    if included := _FILE.search(text):
        file = ROOT / included[1]
        text = file.read_text(encoding="utf-8")
        text = _LINK.sub(lambda link: _relinked(link, file.parent, page), text)
    text = _REFERENCE.sub(lambda match: PAGES[match[1]](), text)
    text = _LINK.sub(lambda link: _relinked(link, folder, page), text) if not included else text
    if page == "index":
        text += "".join(_contents(*section.groups()) for section in _SECTION.finditer(text))
    elif page == "adr/README":
        text += _toctree("", ["0*"])
    elif page == "performance":
        text += _toctree("", ["measurements/gpu-*"])  # tables that the benchmarks of a GPU write
    source[0] = text


def _relinked(link: re.Match[str], folder: Path, page: str) -> str:
    """Write a link of a text in ``folder`` as ``page`` needs it; only its text where the site has no such page."""
    text, path, anchor = link.groups()
    target = (folder / path).resolve()
    up = "../" * page.count("/")
    if target in _PAGES:
        return f"[{text}]({up}{_PAGES[target]}{anchor or ''})"
    if not target.is_relative_to(ROOT / "docs"):
        return text  # a file of the repository that is no page
    return f"[{text}]({up}{target.relative_to(ROOT / 'docs')}{anchor or ''})"


def _contents(caption: str, items: str) -> str:
    return _toctree(f":caption: {caption}\n", [link[2] for link in _LINK.finditer(items)])


def _toctree(options: str, pages: list[str]) -> str:
    return "\n```{toctree}\n:hidden:\n:glob:\n" + options + "\n" + "\n".join(pages) + "\n```\n"


def setup(app: Any) -> dict[str, bool]:
    """Register what is done to each page before it is parsed."""
    app.connect("source-read", fill_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
