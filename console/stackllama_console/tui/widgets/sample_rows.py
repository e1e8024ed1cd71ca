"""Samples as rows of a list and as texts beside it. Pure: samples in, styled text out; all of it sanitised before."""

from rich.text import Text

from stackllama_engine.contract.metrics import label_of
from stackllama_engine.contract.stages import Stage

from ...readers.samples import Pair, Sample
from ...readers.samples_browser import Listing
from ...sanitise import one_line
from ...units import fixed
from .cells import cut, fit
from .row_list import Pieces

_ROOMY = 62  # cells from which a row shows KL and length as well
_UTILITY = label_of(Stage.PPO, "true_utility")
_NONE = "·"
_FOLLOW = 8
_COLUMN = 500  # characters shown of a column


def heading(listing: Listing, width: int) -> str:
    """Return the titles of the columns of a listing."""
    match listing.wanted.mode:
        case "pairs":
            return f"{'before':>8} {'after':>8} {'reward':>9}  {_UTILITY:<13} prompt"
        case "prompt":
            extra = f" {'KL':>8} {'':>{_FOLLOW}} {'length':>6} end" if width >= _ROOMY + 16 else ""
            return f"{'step':>7} {'reward':>8} {'':>{_FOLLOW}}{extra}  response"
        case _:
            extra = f" {'KL':>8} {'length':>6} end" if width >= _ROOMY else ""
            return f"{'step':>7} {'reward':>8}{extra}  prompt → response"


def sample_row(sample: Sample | None, width: int) -> Pieces:
    """Return one row of all; blank until its text has been read."""
    if sample is None:
        return [(f"{'…':>7}", "dim")]
    pieces: Pieces = [(f"{_when(sample):>7}", "dim"), (f" {figure(sample.reward):>8}", "plain")]
    if width >= _ROOMY:
        pieces += [(f" {figure(sample.kl):>8}", "plain"), (f" {_length(sample):>6} {_ended(sample)}  ", "dim")]
    else:
        pieces.append(("  ", "plain"))
    room = width - sum(len(text) for text, _ in pieces)
    prompt = cut(one_line(sample.question), max(8, room * 2 // 5))
    return [*pieces, (f"{prompt} → ", "dim"), (cut(one_line(sample.response), max(0, room - len(prompt) - 3)), "plain")]


def prompt_row(sample: Sample | None, before: Sample | None, width: int) -> Pieces:
    """Return one row of a prompt that is followed, with what changed since the row before."""
    if sample is None:
        return [(f"{'…':>7}", "dim")]
    pieces: Pieces = [(f"{_when(sample):>7}", "dim"), (f" {figure(sample.reward):>8} ", "plain")]
    pieces.append(change(before.reward if before else None, sample.reward, _FOLLOW))
    if width >= _ROOMY + 16:
        pieces.append((f" {figure(sample.kl):>8} ", "plain"))
        text, _ = change(before.kl if before else None, sample.kl, _FOLLOW)
        pieces += [(text, "dim"), (f" {_length(sample):>6} {_ended(sample)}", "dim")]
    return [*pieces, (f"  {one_line(sample.response)}", "plain")]


def pair_row(pair: Pair, width: int) -> Pieces:
    """Return one held-out prompt, before and after."""
    before, after = pair.before, pair.after
    rewards = before.reward if before else None, after.reward if after else None
    utilities = before.utility if before else None, after.utility if after else None
    has_utility = utilities != (None, None)
    utility = f"{figure(utilities[0], 2)} → {figure(utilities[1], 2)}" if has_utility else ""
    pieces: Pieces = [(f"{figure(rewards[0]):>8} {figure(rewards[1]):>8} ", "plain"), change(*rewards, 9)]
    pieces.append((f"  {utility:<13} ", "dim"))
    return [*pieces, (cut(one_line(pair.question), max(0, width - 42)), "plain")]


def change(before: float | None, after: float | None, width: int) -> tuple[str, str]:
    """Return the difference with a sign and an arrow, and the style of its direction."""
    if before is None or after is None:
        return " " * width, "dim"
    difference = after - before
    if f"{difference:+.2f}" in ("+0.00", "-0.00"):
        return fit("=".rjust(width), width), "dim"
    sign, style = ("▲", "up") if difference > 0 else ("▼", "down")
    return f"{sign}{difference:+.2f}".rjust(width), style


def figure(value: float | None, places: int = 3) -> str:
    """Return a value with a fixed number of places, so that columns stand under each other."""
    if value is None:
        return _NONE
    return fixed(value, places)


def facts(sample: Sample) -> Text:
    """Return everything known about a sample but its texts, in one line."""
    parts = [_when_in_words(sample), _reward(sample)]
    if sample.kl is not None:
        parts.append(f"KL {figure(sample.kl)}")
    if sample.length is not None:
        parts.append(f"{sample.length:,} tokens")
    if sample.ended is not None:
        parts.append("ended" if sample.ended else "truncated at the length limit")
    if sample.utility is not None:
        parts.append(f"{_UTILITY} {figure(sample.utility)}")
    return Text(" · ".join(part for part in parts if part), style="bold")


def _reward(sample: Sample) -> str:
    """Return the reward, and its components where there is more than one; empty where there is none."""
    parts = [f"{name.replace('_', ' ')} {figure(value)}" for name, value in sample.rewards.items()]
    known = ["reward"] if sample.reward is None else ["reward", figure(sample.reward)]
    known += [f"({', '.join(parts)})"] if len(parts) > 1 else []
    return " ".join(known) if len(known) > 1 else ""


def sample_text(sample: Sample) -> Text:
    """Return a sample in full."""
    text = facts(sample)
    for title, body in (("prompt", sample.question), ("response", sample.response)):
        text.append(f"\n\n{title}  " if title == "response" else f"\n{title}  ", style="not bold italic dim")
        text.append(body or "(empty)", style="not bold")
    for name, value in sample.columns.items():
        text.append(f"\n\n{name}  ", style="not bold italic dim")
        text.append(cut(str(value), _COLUMN), style="not bold")
    return text


def side_text(title: str, sample: Sample | None) -> Text:
    """Return one side of a pair in full."""
    text = Text(f"{title}\n", style="bold")
    if sample is None:
        return text.append("no response yet", style="not bold dim")
    values = [f"reward {figure(sample.reward)}"] if sample.reward is not None else []
    if sample.utility is not None:
        values.append(f"{_UTILITY} {figure(sample.utility)}")
    if sample.kl is not None:
        values.append(f"KL {figure(sample.kl)}")
    text.append(" · ".join(values), style="not bold dim")
    return text.append(f"\n\n{sample.response or '(empty)'}", style="not bold")


def prompt_text(pair: Pair) -> Text:
    """Return the prompt that both sides respond to."""
    return Text.assemble(("prompt  ", "italic dim"), pair.question, "\n")


def _when(sample: Sample) -> str:
    return cut(sample.when, 7) if sample.when else f"{sample.step:,}"


def _when_in_words(sample: Sample) -> str:
    if sample.when in ("before", "after"):
        return f"{sample.when} PPO, held-out prompt"
    return f"step {sample.step:,}" if sample.row >= 0 else ""


def _length(sample: Sample) -> str:
    return _NONE if sample.length is None else f"{sample.length:,}"


def _ended(sample: Sample) -> str:
    return {None: f" {_NONE} ", True: " ✓ ", False: " … "}[sample.ended]
