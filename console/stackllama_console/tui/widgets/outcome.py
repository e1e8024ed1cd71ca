"""How a run ended that did not finish: the cause, whole, and what to press next. On the monitor it comes first."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical

from stackllama_engine.contract.chat_target import checkpoint_names
from stackllama_engine.contract.run_dir import RunDir, State
from stackllama_engine.contract.stages import Stage

from ...pipelines import newest
from ...sanitise import log_line, one_line
from ..run_keys import is_mistaken, resume_in_words
from ..state_style import rich_colour
from .scroll_lines import ScrollLines

if TYPE_CHECKING:
    from ...readers.advice import Fix

_LAST_LINES = 6
_LABEL = 7  # cells before what a line says
_GPU_ERROR = re.compile(r"a gpu error was logged|\bxid \d|\becc error")
"""A defective GPU; tried before memory, as Xid 31 is a GPU memory page fault."""
_OUT_OF_MEMORY = re.compile(r"out[ -]of[ -](?:gpu )?memory(?! killer was not)|outofmemory|for its memory use")

_KILLED_BY_OTHERS = "out-of-memory killer was not active"


class OutcomePanel(Vertical):
    """The cause, scrolled where it is long, with the advice always in sight below it."""

    DEFAULT_CSS = """
    OutcomePanel {
        height: auto; padding: 0 0 0 1; display: none;
        #cause { max-height: 8; }
        &.-shown { display: block; }
    }
    """

    def compose(self) -> ComposeResult:
        """Compose cause and advice."""
        yield ScrollLines(hang=_LABEL, id="cause")
        yield ScrollLines(hang=_LABEL, id="advice")

    def show(self, cause: Sequence[Text], advice: Sequence[Text]) -> None:
        """Replace both; without any the panel is hidden."""
        self.set_class(bool(cause or advice), "-shown")
        self.query_one("#cause", ScrollLines).show(cause)
        self.query_one("#advice", ScrollLines).show(advice)


def last_lines(state: State) -> list[Text]:
    """Return the last lines of the log as the state quotes them, for where there is no log."""
    return [Text(f"  │ {log_line(line)}", style="dim") for line in state.last_lines[-_LAST_LINES:]]


def cause_line(state: State, variables: Mapping[str, str]) -> Text:
    """Return why a run did not finish, whole; empty where nothing is known."""
    if not state.cause:
        return Text("")
    cause = Text("cause  ", style=rich_colour(dict(variables), "error") if state.phase != "stopped" else "")
    cause.append(one_line(state.cause), style="bold")
    return cause


def advice_lines(run: RunDir, state: State, fix: "Fix | None" = None) -> list[Text]:
    """Return what to press next, then how it ended."""
    lines: list[Text] = []
    if fix is not None:
        line = Text("fix    f: edit a copy" if fix.changes else "fix    f: open a copy")
        line.append(f" of {one_line(fix.run_id)}" if fix.run_id != run.id else "")
        line.append(" with " if fix.changes else " at ")
        line.append(one_line(fix.words) if fix.changes else f"`{fix.key}`", style="bold")
        lines.append(line)
    lines.append(Text(f"{'or ' if fix else 'try'}    {advice(run, state)}"))
    if state.exit_code is not None:
        lines.append(Text(f"ended  {exit_text(state.exit_code)}"))
    return lines


def outcome_lines(
    run: RunDir | None, state: State | None, variables: Mapping[str, str], fix: "Fix | None" = None
) -> list[Text]:
    """Return how a run that did not finish well ended: cause, what to press next, code or signal."""
    if run is None or state is None or not state.has_ended or state.phase == "finished":
        return []
    cause = cause_line(state, variables)
    return [*([cause] if cause else []), *advice_lines(run, state, fix)]


def exit_text(code: int) -> str:
    """Return an exit code in words."""
    import signal

    if code > 128:
        try:
            return f"signal {signal.Signals(code - 128).name} (exit code {code})"
        except ValueError:
            return f"signal {code - 128} (exit code {code})"
    meaning = {1: "failed", 2: "invalid recipe or input", 3: "refused before start", 75: "stopped after saving"}
    return f"exit code {code}" + (f", {meaning[code]}" if code in meaning else "")


def advice(run: RunDir, state: State) -> str:
    """Return what to press next, by what went wrong."""
    cause = (state.cause or "").lower()
    saved = bool(checkpoint_names(run))
    again = resume_in_words(state.stage, saved, began=state.started is not None or state.phase != "stopped")
    if is_mistaken(state.phase, state.exit_code):
        return "e: fix the recipe in the form and relaunch"
    if _GPU_ERROR.search(cause):
        return f"see the log and `dmesg` for the GPU error, then r: {again}"
    if _OUT_OF_MEMORY.search(cause):
        smaller = "e: smaller batch, shorter sequences or 4-bit weights; the form's budget shows what fits"
        return f"{smaller}; r: {again}" if saved else smaller
    if _KILLED_BY_OTHERS in cause:
        return f"r: {again if saved else 'try the same again'}; e: edit a copy of the recipe"
    if "nan" in cause or "infinity" in cause or "became" in cause:
        return f"e: lower learning_rate, or use bf16 instead of fp16; r: {again}"
    if "no space" in cause or "disk" in cause:
        return f"free disk space, then r: {again}"
    if state.phase == "stopped":
        return f"r: {again}"
    if state.stage is Stage.PIPELINE:
        child = newest(run, state)
        where = f" (see its stage {child.id.removeprefix(run.id + '-')}: , and .)" if child else ""
        return f"r: resume from the stage that failed{where}"
    return f"see the log (/: search); r: {again}; e: edit a copy of the recipe"
