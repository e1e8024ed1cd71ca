"""Lines of the launch screen: stages, model, what is wrong, the command. Pure; foreign text is sanitised here."""

from collections.abc import Mapping

from rich.text import Text

from stackllama_engine.contract.stages import Stage

from ...readers.budget_inputs import Shapes
from ...readers.budget_view import BudgetView
from ...readers.choices import model_facts
from ...readers.draft import Draft
from ...sanitise import one_line
from ..state_style import rich_colour
from ..widgets.budget_lines import not_enough
from ..widgets.cells import cut, wrap

_TITLES = {Stage.SFT: "SFT", Stage.REWARD: "reward", Stage.PREFERENCE: "DPO", Stage.PPO: "PPO"}
_WHAT = {
    Stage.SFT: "train on good responses",
    Stage.REWARD: "train on preferences",
    Stage.PREFERENCE: "train on pairs directly",
    Stage.PPO: "train against a reward",
    Stage.MERGE: "merge adapter into base",
    Stage.PIPELINE: "run all stages in order",
}


def stage_line(stage: Stage, width: int, variables: Mapping[str, str]) -> Text:
    """Render the stages, the current one in brackets, and what it does where there is room."""
    text = Text("stage  ", style="", no_wrap=True)
    colour = rich_colour(dict(variables), "primary")
    for one in Stage:
        title = _TITLES.get(one, str(one))
        if one is stage:
            text.append(f"[{title}]", style=f"bold {colour}".strip())
        else:
            text.append(f" {title} ", style="dim")
        text.append(" ")
    said = f"  {_WHAT[stage]}"
    if text.cell_len + len(said) <= width:
        text.append(said, style="dim")
    return text


def model_line(draft: Draft, shapes: Shapes | None, width: int) -> Text:
    """Render the model (of a merge, the adapter) and what its files say."""
    label = "adapter" if draft.stage is Stage.MERGE else "model"
    text = Text(f"{label}  ", no_wrap=True)
    if not draft.model:
        text.append("none yet", style="bold")
        text.append("  m to choose", style="dim")
        return text
    entry = shapes.entry if shapes else None
    facts = model_facts(entry) if entry else []
    if entry and draft.stage is Stage.MERGE:
        facts = [f"on {entry.title}", *facts]
    said = "  ".join(["", " · ".join(facts)]) if facts else ""
    text.append(cut(one_line(draft.model), max(12, width - text.cell_len - len(said)), keep_end=True), style="bold")
    text.append(said, style="dim")
    if shapes and not facts and shapes.error:
        text.append(f"  {shapes.error}", style="dim")
    return text


def verdict_parts(
    draft: Draft, variables: Mapping[str, str], *, waits_for: str = "", planning: bool = False
) -> list[str | Text]:
    """Return parts of the heading: whether it can be launched, the run's name, where the values came from.

    Args:
        draft: the launch.
        variables: of the theme.
        waits_for: names that the hub is asked about.
        planning: a launch is being planned.
    """
    errors = draft.form.errors()
    wrong = [key for key in errors if key]
    if planning:
        verdict = Text("… planning the launch", style="dim")
    elif errors:
        named = ", ".join(wrong[:3]) + (" …" if len(wrong) > 3 else "")
        verdict = Text("✗ fix ", style=rich_colour(dict(variables), "error"))
        verdict.append(one_line(named) or "the recipe")
    elif not draft.form.looked_up:
        verdict = Text(f"… asking the hub for {one_line(waits_for)}" if waits_for else "… checking inputs", style="dim")
    else:
        verdict = Text("✓ ready", style=rich_colour(dict(variables), "success"))
    changes = len(draft.form.changes()) if draft.origin else 0
    origin = f"{draft.origin}, {changes} changed" if changes else draft.origin
    named = [f"as {draft.name}" if draft.name else "", f"after {draft.after}" if draft.after else ""]
    return [verdict, *named, origin]


def budget_title(view: BudgetView, width: int) -> str:
    """Return the title over a short budget: the first change that it offers, which has no line of its own there."""
    if not view.offers:
        return "memory"
    best = view.offers[0]
    end = " · b all" if len(view.offers) > 1 else ""
    if short := not_enough(view):  # `these` are not in sight there
        return cut(f"memory · {short.replace('None of these', 'no change')}", width - len(end)) + end
    said = f"memory · 1 {best.title}{', then it fits' if best.fits == 'yes' else ''}"
    return cut(said, width - len(end)).replace("[", "(") + end  # a title is read as markup


def error_lines(message: str, width: int, variables: Mapping[str, str]) -> list[Text]:
    """Render an error of no single field, or a launch's refusal, in full."""
    if not message:
        return []
    style = rich_colour(dict(variables), "error")
    lines = wrap(one_line(message), max(8, width - 3), 99)
    return [Text(("! " if not index else "  ") + line, style=style) for index, line in enumerate(lines)]


def command_lines(command: str, width: int, height: int) -> list[Text]:
    """Render the command that launches this, as far as there is room."""
    lines = wrap(one_line(command), max(8, width - 2), height)
    return [Text(("$ " if not index else "  ") + line, style="dim") for index, line in enumerate(lines)]
