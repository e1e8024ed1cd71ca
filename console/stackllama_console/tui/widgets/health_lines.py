"""What health rules have found in a run, as lines of the monitor."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.text import Text

from stackllama_engine.contract.history import History

from ...sanitise import one_line
from ..state_style import rich_colour

if TYPE_CHECKING:
    from ...readers.advice import Fix


def finding_lines(history: History, variables: Mapping[str, str], fix: "Fix | None") -> list[Text]:
    """Return a line per finding, the newest first and whole; the others without what they usually mean.

    Args:
        history: of the run that is shown.
        variables: the theme's.
        fix: the change that ``f`` makes.
    """
    lines: list[Text] = []
    for finding in reversed(history.findings.values()):
        line = Text(f"! {one_line(finding.rule)}", style=rich_colour(dict(variables), "warning"))
        line.append(f"  step {finding.step}: {one_line(finding.seen)}", style="default")
        if not lines:
            line.append(f". {one_line(finding.means)} {one_line(finding.link)}", style="default")
            if fix is not None and fix.changes in finding.tries:
                line.append(f"  f: edit a copy with {one_line(fix.words)}", style="bold default")
        lines.append(line)
    return lines
