"""Layout of a memory budget for a width and a height: what matters most stays when there is little room.

Blocks have variants, from the smallest to the fullest. All start small; :data:`_GROWTH` says which grows next.
"""

from rich.cells import cell_len
from rich.style import Style
from textual.strip import Strip

from ...readers.budget_view import BudgetView, Offer, Precision, billions, gib, gib_range
from ...sanitise import one_line
from .budget_bar import (
    COLOURS,
    Glyphs,
    StyleOf,
    bar,
    bracket,
    groups,
    letter,
    memory_label,
    pattern,
    scale_of,
)
from .cells import Piece, cut, fit, strip_of, wrap

Line = list[Piece]
Block = list[Line]

_VERDICTS = {"yes": "fits", "tight": "tight", "no": "does not fit", "unknown": "unknown"}
_ORDER = ("head", "verdict", "caveat", "devices", "marks", "legend", "totals", "precisions", "offers")
_GROWTH = (
    ("head", 1),
    ("verdict", 1),
    ("devices", 1),
    ("marks", 1),
    ("marks", 2),
    ("offers", 1),
    ("devices", 2),
    ("offers", 2),
    ("legend", 1),
    ("verdict", 2),
    ("caveat", 1),
    ("totals", 1),
    ("legend", 2),
    ("offers", 3),
    ("precisions", 1),
    ("devices", 3),
    ("marks", 3),
    ("caveat", 2),
    ("offers", 4),
    ("totals", 2),
    ("precisions", 2),
)
_LONGEST_TITLE = 44
_LEAST_MODEL = 12  # cells of a model's name that the longer way of saying its size leaves
OFFERS = 9
"""As many as have a key."""


def budget_lines(view: BudgetView, width: int, height: int, style: StyleOf, glyphs: Glyphs) -> list[Strip]:
    """Lay out a budget in at most ``height`` lines of exactly ``width`` cells.

    Args:
        view: what is shown; its texts are sanitised.
        width: cells.
        height: lines.
        style: the style of a part by its name.
        glyphs: what bars are drawn with.
    """
    blocks = {
        "head": _head(view, width, style),
        "verdict": _verdict(view, width, style, glyphs),
        "caveat": _caveat(view, width, style),
        "devices": _devices(view, width, style, glyphs),
        "marks": _marks(view, width, style, glyphs),
        "legend": _legend(view, width, style, glyphs),
        "totals": _totals(view, width, style),
        "precisions": _precisions(view, width, style, glyphs),
        "offers": _offers(view, width, style, glyphs),
    }
    chosen: dict[str, Block] = {name: [] for name in _ORDER}
    for name, size in _GROWTH:
        variants = blocks[name]
        if not variants:
            continue
        grown = variants[min(size, len(variants)) - 1]
        used = sum(len(block) for other, block in chosen.items() if other != name)
        if used + len(grown) <= height and len(grown) > len(chosen[name]):
            chosen[name] = grown
    shown = [chosen[name] for name in _ORDER if chosen[name]]
    gaps = height - sum(map(len, shown)) >= len(shown) - 1
    lines: Block = []
    for index, block in enumerate(shown):
        if gaps and index > 1:  # the head and the verdict belong together
            lines.append([])
        lines += block
    return [strip_of(line, width, style("text")) for line in lines]


def _head(view: BudgetView, width: int, style: StyleOf) -> list[Block]:
    name = one_line(view.model) or "no model"
    sizes: list[str] = []
    if view.parameters:
        count = billions(view.parameters)
        sizes = [f"at least {count} parameters", f"≥ {count}"] if view.least else [f"{count} parameters"]
        if view.guessed:  # that it is a guess is said in any case
            sizes = [f"≈ {count} parameters, from its name", f"≈ {count}, from its name"]
    size = next((size for size in sizes if width - len(size) - 2 >= min(cell_len(name), _LEAST_MODEL)), "")
    size = size or next((size for size in sizes[::-1] if width - len(size) - 2 >= 6), "")
    room = width - len(size) - 2
    if size:
        return [[[(cut(name, room, keep_end="/" in name) + "  ", style("title")), (size, style("dim"))]]]
    return [[[(cut(name, width, keep_end="/" in name), style("title"))]]]


def _verdict(view: BudgetView, width: int, style: StyleOf, glyphs: Glyphs) -> list[Block]:
    word = f"{glyphs.verdicts[list(_VERDICTS).index(view.verdict)]} {_VERDICTS[view.verdict]}"
    look = style(view.verdict)
    reason = one_line(view.reason)
    short: Line = [(cut(word, width) + "  ", look), (cut(reason, max(0, width - len(word) - 2)), style("text"))]
    first, *rest = wrap(f"{word.replace(' ', chr(0xA0))}  {reason}", width, 4) or [""]
    long: Block = [[(word + "  ", look), (first[len(word) :].strip(), style("text"))]]
    long += [[(line, style("text"))] for line in rest]
    return [[short], long]


def _caveat(view: BudgetView, width: int, style: StyleOf) -> list[Block]:
    texts = [one_line(text) for text in (view.note, view.caveat) if text]
    if not texts:
        return []
    return [
        [[(cut(text, width), style("dim"))] for text in texts],
        [[(line, style("dim"))] for text in texts for line in wrap(text, width, 3)],
    ]


def _devices(view: BudgetView, width: int, style: StyleOf, glyphs: Glyphs) -> list[Block]:
    if not view.memories:
        return [[bar(view, None, width, style, glyphs)]] if view.parts else []
    blocks: list[Block] = []
    for group in groups(view.memories):
        least = min(group, key=lambda one: one.free)
        blocks.append([[(memory_label(group, width), style("dim"))], bar(view, least, width, style, glyphs)])
    return [[blocks[0][1]], blocks[0], [line for lines in blocks for line in lines]]


def _marks(view: BudgetView, width: int, style: StyleOf, glyphs: Glyphs) -> list[Block]:
    """Draw our interval, and the published rules on the same scale, each by its name."""
    scale = scale_of(view)
    lines: Block = []
    if view.device[1]:
        lines.append(bracket(view.device, "this run", scale, width, style("mark"), glyphs))
    lines += [
        bracket((rule.low, rule.high), one_line(rule.name), scale, width, style("rule"), glyphs) for rule in view.rules
    ]
    return [lines[:1], lines[:2], lines] if lines else []


def _legend(view: BudgetView, width: int, style: StyleOf, glyphs: Glyphs) -> list[Block]:
    if not view.parts:
        return []
    flow: Block = [[]]
    used = 0
    for index, part in enumerate(view.parts):
        name, amount = one_line(part.name), f" {gib(part.bytes)}  "
        size = 2 + cell_len(name) + len(amount)
        if used and used + size - 2 > width:
            flow.append([])
            used = 0
        flow[-1] += [(f"{letter(index)} ", _part_style(index, style)), (name + amount, style("text"))]
        used += size
    names = max(cell_len(one_line(part.name)) for part in view.parts)
    names = min(names, max(4, width - 22))
    full: Block = [
        [
            (f"{letter(index)} ", _part_style(index, style)),
            (pattern(index, glyphs) * 2 + " ", style(f"part-{index % COLOURS + 1}")),
            (f"{fit(one_line(part.name), names)} ", style("text")),
            (f"{gib(part.bytes):>10} ", style("text")),
            (f"{part.bytes / max(1, view.allocated):4.0%}", style("dim")),
        ]
        for index, part in enumerate(view.parts)
    ]
    over = (max(0, view.device[0] - view.allocated), max(0, view.device[1] - view.allocated))
    name = cut("fragments, context", max(0, width - 6 - len(gib_range(over))))
    full.append(
        [(f"  {glyphs.overhead * 2} ", style("mark")), (f"{name} ", style("text")), (gib_range(over), style("text"))]
    )
    return [flow, full]


def _part_style(index: int, style: StyleOf) -> Style:
    return style(f"part-{index % COLOURS + 1}") + Style(bold=True)


def _totals(view: BudgetView, width: int, style: StyleOf) -> list[Block]:
    if not view.allocated:
        return []
    peak = f" at its peak: {one_line(view.peak)}" if view.peak else ""
    short = f"allocated {gib(view.allocated)}{peak}"
    more = f"reserved {gib_range(view.reserved)}, on the device {gib_range(view.device)}"
    lines: Block = [[(line, style("dim"))] for text in (short, more) for line in wrap(text, width, 2)]
    return [[[(cut(short, width), style("dim"))]], lines]


def _precisions(view: BudgetView, width: int, style: StyleOf, glyphs: Glyphs) -> list[Block]:
    """List what each precision of the base costs; with more room where the speeds were measured."""
    if not view.precisions:
        return []
    lines: Block = [[(cut("Base precision", width), style("title"))]]
    lines += [_precision(one, width, style, glyphs) for one in view.precisions]
    source: Block = [[(line, style("dim"))] for line in wrap(f"Speed: {one_line(view.measured)}.", width, 5)]
    return [lines, [*lines, *source]]


def _precision(one: Precision, width: int, style: StyleOf, glyphs: Glyphs) -> Line:
    sign = glyphs.verdicts[list(_VERDICTS).index(one.fits)]
    words = f"{gib_range(one.device)}{', checkpointing' if one.checkpointing else ''}; {one.speed}"
    return [
        (f" {'*' if one.chosen else ' '} {one.name:5}", style("mark" if one.chosen else "text")),
        (f" {sign} ", style(one.fits)),
        (cut(words, max(0, width - 11)), style("text")),
    ]


def _offers(view: BudgetView, width: int, style: StyleOf, glyphs: Glyphs) -> list[Block]:
    offers = view.offers[:OFFERS]
    if not offers:
        return []
    lines = [_offer(number, offer, width, style, glyphs) for number, offer in enumerate(offers, start=1)]
    short = not_enough(view)
    warned: Block = [[(line, style("no"))] for line in wrap(short, width, 2)] if short else []
    heading = "Press to save memory" + ("" if short else f"  {glyphs.verdicts[0]} then it fits")
    full: Block = [[(cut(heading, width), style("title"))], *warned]
    for line, offer in zip(lines, offers, strict=True):
        room = _title_room(offer, width, glyphs)
        title = wrap(one_line(offer.title), room, 4)
        first: Line = [*line[:2], (fit(title[0], room) + " ", style("text")), line[3]]
        full += [first, *([(" " * 6 + text, style("text"))] for text in title[1:])]
        full += [[(" " * 6 + text, style("dim"))] for text in wrap(one_line(offer.price), width - 6, 3)]
    return [lines[:1], [*warned, *lines[:3]], [*warned, *lines], full]


def not_enough(view: BudgetView) -> str:
    """Say that no change offered makes it fit, and what all together would do; empty where one does."""
    if not view.offers or any(offer.fits == "yes" for offer in view.offers):
        return ""
    together = {"yes": "all together are", "tight": "all together may be", "no": "nor all together"}.get(view.together)
    return "None of these is enough alone" + (f", {together}" if together and len(view.offers) > 1 else "")


def _offer(number: int, offer: Offer, width: int, style: StyleOf, glyphs: Glyphs) -> Line:
    sign = glyphs.verdicts[list(_VERDICTS).index(offer.fits)]
    return [
        (f" {number} ", style("key")),
        (f" {sign} ", style(offer.fits)),
        (fit(one_line(offer.title), _title_room(offer, width, glyphs)) + " ", style("text")),
        (cut(_saving(offer, glyphs), max(0, width - 7)), style("mark")),
    ]


def _title_room(offer: Offer, width: int, glyphs: Glyphs) -> int:
    return max(0, min(_LONGEST_TITLE, width - len(_saving(offer, glyphs)) - 7))


def _saving(offer: Offer, glyphs: Glyphs) -> str:
    return f"{glyphs.minus}{gib(offer.saving)}"
