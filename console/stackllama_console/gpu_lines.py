"""GPUs as lines of text, the same for the command and the screens: blocks of two lines, rows, or a heat strip.

Neither Textual nor Rich: a line is a list of (text, style), the style one of :data:`STYLES`.
"""

import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Sequence

from msgspec import Struct

from stackllama_engine.launch.gpu_watch import XIDS
from stackllama_engine.launch.nvml import ORDINARY, GpuReading

from .readers.gpu_processes import GpuProcess
from .units import cut, size

Line = list[tuple[str, str]]
STYLES = ("", "dim", "bold", "busy", "ours", "others", "warning", "error")

_BLOCKS, _ROWS = 2, 8
"""GPUs that have a block of two lines each, and those that have a row each."""
_NAME = 26
_COOL, _HOT = 30, 90  # °C at the ends of the heat strip
_FIXED = 52  # cells of a row besides its two bars, and its clocks and errors
_STATE = 14  # cells for clocks and errors that a row has at least
_TAIL, _CLOCK = 35, 20  # cells of a block's first line behind its bar, without the clock, and what that takes
_DECIMAL = re.compile(r"(?<=\d\d)\.\d\b")
"""A decimal that is left out first."""
_WORDS = 54  # cells of a block's second line behind its bar


class Glyphs(Struct, frozen=True):
    """Characters of bars and heat strips."""

    ours: str = "█"
    others: str = "▒"
    free: str = "░"
    heat: str = "▁▂▃▄▅▆▇█"
    unknown: str = "·"


UNICODE = Glyphs()
ASCII = Glyphs("#", "+", ".", "0123456789", "?")


class GpuView(Struct, frozen=True, kw_only=True):
    """What is shown of the GPUs.

    Attributes:
        gpus: their readings; names are sanitised.
        pids: the processes whose memory is told from that of others.
        whose: what they are called, as in ``this run``.
        xids: GPU → its newest Xid error.
    """

    gpus: tuple[GpuReading, ...] = ()
    pids: frozenset[int] = frozenset()
    whose: str = "this run"
    xids: dict[int, int] = {}


def gpu_lines(view: GpuView, width: int, most: int | None = None, glyphs: Glyphs = UNICODE) -> list[Line]:
    """Return the fullest way to show the GPUs in so many lines; none where there is no room for the shortest.

    Args:
        view: of the GPUs.
        width: cells; longer lines are for the caller to cut.
        most: lines there is room for; None: as many as it takes, with a row for each GPU.
        glyphs: of bars and strips.
    """
    if not view.gpus:
        return []
    ways = _ways(view, width, most, glyphs)
    if most is None:
        rows = _rows(view, width, glyphs)
        return ways[0]() if len(view.gpus) <= _ROWS else [*_strip(view, width, glyphs), [], *rows]
    for way in ways:
        if len(lines := way()) <= most:
            return lines
    return []


def _ways(view: GpuView, width: int, most: int | None, glyphs: Glyphs) -> list[Callable[[], list[Line]]]:
    """Return the ways to show so many GPUs, the fullest first."""
    blocks = [lambda: _blocks(view, width, glyphs)]
    rows = [lambda: [_names(view), *_rows(view, width, glyphs)], lambda: _rows(view, width, glyphs)]
    strips = [lambda: _strip(view, width, glyphs), lambda: _short_strip(view, width, most, glyphs)]
    count = len(view.gpus)
    if count <= _BLOCKS:
        return [*blocks, *rows, *strips[1:]]
    return [*rows, *strips] if count <= _ROWS else strips


def problems(gpu: GpuReading, xid: int | None = None) -> list[tuple[str, str]]:
    """Return what is wrong with a GPU, each with its style, the most serious first; a power cap is not wrong."""
    return [problem for _, problem in _ranked(gpu, xid)]


def _ranked(gpu: GpuReading, xid: int | None) -> list[tuple[int, tuple[str, str]]]:
    """Return (rank, problem): an Xid, ECC errors, row remapping, heat."""
    faults = gpu.faults
    found: list[tuple[int, tuple[str, str]]] = []
    if xid is not None:
        found.append((0, (f"Xid {xid}" + (f", {XIDS[xid]}" if xid in XIDS else ""), "error")))
    if faults.uncorrected:
        text = f"{faults.uncorrected} uncorrectable ECC error{'s' * (faults.uncorrected > 1)}"
        found.append((1, (text, "error")))
    if faults.remap_failed:
        found.append((2, ("row remapping failed (the GPU must be replaced)", "error")))
    if faults.remap_pending:
        found.append((3, ("row remapping pending (needs a GPU reset)", "error")))
    return [*found, *((4, (reason, "warning")) for reason in gpu.slowed if reason not in ORDINARY)]


# a block of two lines for each


def _blocks(view: GpuView, width: int, glyphs: Glyphs) -> list[Line]:
    lines: list[Line] = []
    names = min(_NAME, max(len(gpu.name) for gpu in view.gpus))
    before = ""
    for gpu in view.gpus:
        label = f"GPU {gpu.index:<2} "
        name = "" if gpu.name == before else cut(gpu.name, names)
        before = gpu.name
        head: Line = [(label, "bold"), (f"{name:{names}}  {_percent(gpu):>5} ", "")]
        room = width - _cells(head) - _TAIL
        clock = _clock(gpu) if room >= _CLOCK + 12 else ""
        bar = max(4, min(24, room - (_CLOCK if clock else 0)))
        tail = "  ".join(filter(None, (_celsius(gpu), _watts(gpu), clock, _cap(gpu))))
        lines.append([*head, *_bar(gpu.utilisation, 100, bar, glyphs), (f"  {tail}", "")])
        bar = max(4, min(48, width - len(label) - _WORDS))
        lines.append(
            [(" " * len(label), ""), *_memory_bar(view, gpu, bar, glyphs), ("  ", ""), *_memory(view, [gpu], glyphs)]
        )
    return lines + _attention(view, width)


def _memory(view: GpuView, gpus: Sequence[GpuReading], glyphs: Glyphs | None = None) -> Line:
    """Return the memory of GPUs in words: what the processes hold, what others do, what there is.

    Args:
        view: of all GPUs.
        gpus: those that are meant.
        glyphs: of the bar that this is the legend of.
    """
    known = [gpu.memory_used for gpu in gpus if gpu.memory_used is not None]
    total = sum(gpu.memory_total or 0 for gpu in gpus)
    of = f" of {size(total)}" if total else ""
    if not known:
        return [("memory unknown", "dim")]
    ours = sum(gpu.held_by(view.pids) for gpu in gpus)
    own, rest = (f"{glyphs.ours} ", f"{glyphs.others} ") if glyphs else ("", "")
    if not _is_ours_known(view):
        return [(f"{rest}used {size(sum(known))}", "others"), (of, "")]
    mine: Line = [(f"{own}{view.whose} {size(ours)}", "ours"), (" + ", "")] if ours else []
    return [*mine, (f"{rest}others {size(max(0, sum(known) - ours))}", "others"), (of, "")]


def _is_ours_known(view: GpuView) -> bool:
    """Return whether any of the processes was seen: in a container NVML may show none, or others' pids."""
    return any(gpu.held_by(view.pids) for gpu in view.gpus)


# a row for each


def _names(view: GpuView) -> Line:
    """Return how many there are of which kind, with their memory."""
    kinds: dict[tuple[str, int | None], list[int]] = {}
    for gpu in view.gpus:
        kinds.setdefault((gpu.name, gpu.memory_total), []).append(gpu.index)
    parts: list[str] = []
    for (name, total), indices in kinds.items():
        count = f"{len(indices)} × " if len(indices) > 1 else ""
        which = f" (GPU {ranges(indices)})" if len(kinds) > 1 else ""
        parts.append(f"{count}{name}{f', {size(total)}' if total else ''}{which}")
    return [("; ".join(parts), "bold")]


def _rows(view: GpuView, width: int, glyphs: Glyphs) -> list[Line]:
    bar = max(4, min(20, (width - _FIXED - _STATE) // 2))
    whose, others = (view.whose, "others") if _is_ours_known(view) else ("", "used")
    whose, others = whose and f"{glyphs.ours}{whose}", f"{glyphs.others}{others}"
    head: Line = [(f"GPU  {'util':{bar + 6}}  {'memory':{bar}} ", "dim"), (f"{whose:>9}", "ours")]
    head += [(f" {others:>9}", "others"), (f"  {'temp':>5} {'power':>9}  clocks, errors", "dim")]
    lines: list[Line] = [head]
    is_cut = False
    for gpu in view.gpus:
        ours = gpu.held_by(view.pids)
        line: Line = [(f"{gpu.index:>3}  ", "bold"), (f"{_percent(gpu):>5} ", "")]
        line += [*_bar(gpu.utilisation, 100, bar, glyphs), ("  ", "")]
        line += [*_memory_bar(view, gpu, bar, glyphs), (f" {size(ours) if ours else '':>9} ", "ours")]
        rest = "" if gpu.memory_used is None else size(max(0, gpu.memory_used - ours))
        line += [(f"{rest:>9}", "others"), (f"  {_celsius(gpu):>5} {_watts(gpu, short=True):>9}  ", "")]
        room = width - _cells(line)
        found = problems(gpu, view.xids.get(gpu.index))
        text = "; ".join(text for text, _ in found)
        is_cut |= len(text) > room
        line.append((cut(text or _cap(gpu), max(0, room)), _worst(found) if found else "dim"))
        lines.append(line)
    return lines + (_attention(view, width) if is_cut else [])


# a strip with a cell for each


def _strip(view: GpuView, width: int, glyphs: Glyphs) -> list[Line]:
    wide = 2 if width >= 44 + 2 * len(view.gpus) + 36 else 1
    ruler = "".join(f"{gpu.index:<{wide * 4}}" for gpu in view.gpus[::4])[: wide * len(view.gpus)]
    lines = [_names(view), [(f"{'GPU':12}{ruler}", "dim")]]
    for title, shares, words in _quantities(view):
        line: Line = [(f"{title:12}", ""), (_heat(shares, wide, glyphs), "busy"), ("  ", "")]
        lines.append(line + (_memory_within(view, width - _cells(line)) if title == "memory" else words))
    return lines + _attention(view, width)


def _short_strip(view: GpuView, width: int, most: int | None, glyphs: Glyphs) -> list[Line]:
    """Return two lines, how busy, hot and at what power, and how full; then what is wrong, in the lines left."""
    (_, busy, rate), (_, full, _), (_, _, heat), (_, _, power) = _quantities(view)
    count = f"{len(view.gpus)} GPUs"
    first: Line = [(f"{count:8}util ", ""), (_heat(busy, 1, glyphs), "busy")]
    for words in ([("  ", ""), *rate], [("  ", ""), *heat], [("  ", ""), power[0]], power[1:]):
        if _cells(first + words) > width:
            break
        first += words
    second: Line = [(f"{'':8}mem  ", ""), (_heat(full, 1, glyphs), "busy"), ("  ", "")]
    second += _memory_within(view, width - _cells(second))
    wrong, room = _wrong(view), None if most is None else most - 2
    return [_cut(first, width), _cut(second, width), *_most_serious(wrong, width, room)]


def _most_serious(wrong: list[tuple[str, str]], width: int, room: int | None) -> list[Line]:
    """Return a line for each of the first things that are wrong, the last one with how many more there are."""
    shown = wrong if room is None else wrong[: max(1, room)]
    lines: list[Line] = [[(cut(text, width), style)] for text, style in shown]
    if lines and (more := len(wrong) - len(shown)):
        text, style = shown[-1]
        lines[-1] = [(cut(text, width - len(also := f", and {more} more")) + also, style)]
    return lines


def _memory_within(view: GpuView, room: int) -> Line:
    """Return the memory of all GPUs in words, as precise as there is room for."""
    words = _memory(view, view.gpus)
    if _cells(words) <= room:
        return words
    words = [(_DECIMAL.sub("", text), style) for text, style in words]
    if _cells(words) <= room:
        return words
    used = sum(gpu.memory_used or 0 for gpu in view.gpus)
    return [
        (cut(f"used {size(used)} of {size(sum(gpu.memory_total or 0 for gpu in view.gpus))}", max(0, room)), "others")
    ]


def _quantities(view: GpuView) -> list[tuple[str, list[float | None], Line]]:
    """Return utilization, memory, temperature and power: the share of each GPU, and all of them in words."""
    gpus = view.gpus
    rates = [gpu.utilisation for gpu in gpus if gpu.utilisation is not None]
    degrees = [gpu.temperature for gpu in gpus if gpu.temperature is not None]
    watts = sum(gpu.power or 0 for gpu in gpus)
    limit = sum(gpu.power_limit or 0 for gpu in gpus)
    capped = sum(any(text in ORDINARY for text in gpu.slowed) for gpu in gpus)
    power = f"{watts:,.0f} of {limit:,.0f} W" if limit else f"{watts:,.0f} W" if watts else ""
    return [
        ("utilization", [_share(gpu.utilisation, 100) for gpu in gpus], [(_span(rates, "%"), "")]),
        ("memory", [_share(gpu.memory_used, gpu.memory_total) for gpu in gpus], _memory(view, gpus)),
        (
            "temperature",
            [_share(None if (t := gpu.temperature) is None else t - _COOL, _HOT - _COOL) for gpu in gpus],
            [(_span(degrees, "°C"), "")],
        ),
        (
            "power",
            [_share(gpu.power, gpu.power_limit) for gpu in gpus],
            [(power, ""), (f", {capped} at the cap" if capped else "", "dim")],
        ),
    ]


def _heat(shares: Iterable[float | None], wide: int, glyphs: Glyphs) -> str:
    levels = len(glyphs.heat)
    return "".join(
        (glyphs.unknown if share is None else glyphs.heat[min(levels - 1, int(share * levels))]) * wide
        for share in shares
    )


def _span(values: Sequence[int], unit: str) -> str:
    if not values:
        return ""
    low, high = min(values), max(values)
    return f"{low} {unit}" if low == high else f"{low}–{high} {unit}"


# parts


def _attention(view: GpuView, width: int) -> list[Line]:
    """Return what is wrong, each on lines of its own."""
    return [
        [(line, style)]
        for text, style in _wrong(view)
        for line in textwrap.wrap(text, max(20, width), subsequent_indent="  ")
    ]


def _wrong(view: GpuView) -> list[tuple[str, str]]:
    """Return (text, style) of each thing that is wrong, with the GPUs that have it, the most serious first."""
    having: dict[tuple[int, tuple[str, str]], list[int]] = {}
    for gpu in view.gpus:
        for problem in _ranked(gpu, view.xids.get(gpu.index)):
            having.setdefault(problem, []).append(gpu.index)
    found = sorted(having.items(), key=lambda item: item[0][0])
    return [(f"! GPU {ranges(indices)}: {text}", style) for (_, (text, style)), indices in found]


def ranges(indices: Iterable[int]) -> str:
    """Return ascending numbers as ``0-3, 7``."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)


def _worst(found: list[tuple[str, str]]) -> str:
    return "error" if any(style == "error" for _, style in found) else "warning"


def _bar(value: float | None, of: float, width: int, glyphs: Glyphs) -> Line:
    if value is None:
        return [(glyphs.unknown * width, "dim")]
    filled = round((_share(value, of) or 0.0) * width)
    return [(glyphs.ours * filled, "busy"), (glyphs.free * (width - filled), "dim")]


def _memory_bar(view: GpuView, gpu: GpuReading, width: int, glyphs: Glyphs) -> Line:
    """Return the memory of a GPU: what the processes hold, what others do, what is free."""
    if gpu.memory_used is None or not gpu.memory_total:
        return [(glyphs.unknown * width, "dim")]
    used = round(min(1.0, gpu.memory_used / gpu.memory_total) * width)
    ours = min(used, round(gpu.held_by(view.pids) / gpu.memory_total * width))
    parts = [(glyphs.ours * ours, "ours"), (glyphs.others * (used - ours), "others")]
    return [*parts, (glyphs.free * (width - used), "dim")]


def _share(value: float | None, of: float | None) -> float | None:
    return None if value is None or not of else max(0.0, min(1.0, value / of))


def _percent(gpu: GpuReading) -> str:
    return "? %" if gpu.utilisation is None else f"{gpu.utilisation} %"


def _celsius(gpu: GpuReading) -> str:
    return "" if gpu.temperature is None else f"{gpu.temperature} °C"


def _watts(gpu: GpuReading, *, short: bool = False) -> str:
    if gpu.power is None:
        return ""
    between = "/" if short else " of "
    return f"{gpu.power:.0f}" + (f"{between}{gpu.power_limit:.0f}" if gpu.power_limit is not None else "") + " W"


def _clock(gpu: GpuReading) -> str:
    if gpu.clock is None:
        return ""
    return f"{gpu.clock:,}" + (f" of {gpu.clock_max:,}" if gpu.clock_max is not None else "") + " MHz"


def _cap(gpu: GpuReading) -> str:
    return "; ".join(text for text in gpu.slowed if text in ORDINARY)


def _cut(line: Line, width: int) -> Line:
    """Cut a line at so many cells."""
    pieces: Line = []
    for text, style in line:
        pieces.append((cut(text, max(0, width - _cells(pieces))), style))
    return pieces


def _cells(line: Line) -> int:
    return sum(len(text) for text, _ in line)


# the processes


def process_lines(processes: Sequence[GpuProcess], ours: Collection[int] | None = None) -> list[Line]:
    """Return a line for each process that holds GPU memory, below a heading; none without one.

    Args:
        processes: in their order.
        ours: pids of those that are told from the others; None: those of any run.
    """
    if not processes:
        return []
    lines: list[Line] = [[(f"{'GPU':>3}  {'pid':>8}  {'memory':>9}  run or program", "dim")]]
    for one in processes:
        memory = "" if one.memory is None else size(one.memory)
        who = f"{one.program} ({one.user})" if one.program else "not seen from here"
        lines.append(
            [
                (f"{one.gpu:>3}  ", "bold"),
                (f"{one.pid:>8}  {memory:>9}  ", ""),
                (one.run or who, "ours" if (one.run if ours is None else one.pid in ours) else "others"),
            ]
        )
    return lines
