"""The documentation as a site: `make docs` builds it, offline, into build/docs; a warning is an error.

Pages are the Markdown files beside this one, which read well without the site as well. Only the reference is not there
as text: ``<!-- reference: NAME -->`` stands for what `scripts/reference_pages.py` reads off the code.
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
exclude_patterns = ["measurements/*.json"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = project
html_show_sourcelink = False
pygments_style = "default"

_REFERENCE = re.compile(r"<!-- reference: (\w+) -->")
_OUTSIDE = re.compile(r"\]\((?:\.\./)+(SECURITY|CHANGELOG)\.md\)")
"""Links to files above docs/ that have a page in the site."""


def fill_in(_app: Any, page: str, source: list[str]) -> None:
    """Put the reference where a page asks for it, and let links out of docs/ lead to the site's own pages."""
    up = "../" * page.count("/")
    source[0] = _OUTSIDE.sub(lambda match: f"]({up}project/{match[1].lower()}.md)", source[0])
    source[0] = _REFERENCE.sub(lambda match: PAGES[match[1]](), source[0])


def setup(app: Any) -> dict[str, bool]:
    """Register what is done to each page before it is parsed."""
    app.connect("source-read", fill_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
