"""The plots of an audit as one SVG page: rules, lengths, confidence, reliability, spoilt responses."""

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from stackllama_engine.contract.audit import Audit, Interval

from .sanitise import one_line

_WIDTH, _ROW, _LEFT, _PLOT = 760, 22, 250, 440
_INK, _FAINT, _BAR, _RULE = "#222222", "#999999", "#0072b2", "#d55e00"  # Okabe and Ito's blue and vermilion


def audit_page(name: str, audit: Audit) -> str:
    """Return the page.

    Args:
        name: the run's.
        audit: of its reward model.
    """
    parts: list[str] = []
    height = 40
    own = [("reward model", audit.accuracy, _BAR)]
    sections: list[tuple[str, Sequence[tuple[str, Interval, str]]]] = [
        ("right in so many pairs", own + [(one.name, one.accuracy, _RULE) for one in audit.baselines]),
        ("accuracy by length difference", [(one.label, one.accuracy, _BAR) for one in audit.by_length]),
        ("accuracy by score difference", [(one.label, one.accuracy, _BAR) for one in audit.by_margin]),
        ("spoilt responses that score higher", [(one.name, one.wins, _RULE) for one in audit.probes]),
    ]
    for title, rows in sections:
        if rows:
            parts += _bars(title, rows, height)
            height += _ROW * (len(rows) + 2) + 14
    if audit.calibration:
        parts += _reliability(audit, height)
        height += 270
    heading = f"{one_line(name)}: {audit.verdict}, {audit.pairs:,} pairs of {audit.questions:,} questions"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif" '
            'font-size="13">',
            f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
            _text(12, 24, heading, weight="bold"),
            *parts,
            "</svg>\n",
        ]
    )


def _bars(title: str, rows: Sequence[tuple[str, Interval, str]], top: int) -> Iterator[str]:
    """Draw a bar from 0 to 100 % per row, its interval as a line across its end, and a mark at 50 %."""
    yield _text(12, top + 14, title, weight="bold")
    bottom = top + _ROW * (len(rows) + 1)
    for share in (0.0, 0.5, 1.0):
        x = _LEFT + share * _PLOT
        yield f'<line x1="{x:g}" x2="{x:g}" y1="{top + 20}" y2="{bottom}" stroke="{_FAINT}" stroke-dasharray="2 3"/>'
        yield _text(x, bottom + 14, f"{100 * share:.0f} %", colour=_FAINT, anchor="middle")
    for index, (label, interval, colour) in enumerate(rows):
        y = top + 24 + index * _ROW
        yield _text(_LEFT - 8, y + 12, label, anchor="end")
        yield f'<rect x="{_LEFT}" y="{y}" width="{interval.value * _PLOT:.1f}" height="14" fill="{colour}"/>'
        low, high = (_LEFT + end * _PLOT for end in (interval.low, interval.high))
        yield f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 7}" y2="{y + 7}" stroke="{_INK}" stroke-width="2"/>'
        yield _text(_LEFT + _PLOT + 8, y + 12, f"{100 * interval.value:.0f} %")


def _reliability(audit: Audit, top: int) -> Iterator[str]:
    """Draw observed over predicted accuracy, 50 to 100 % on both axes; the area of a point is its number of pairs."""
    side, left = 200, _LEFT
    title = f"reliability (calibration error {100 * audit.calibration_error:.1f} points)"
    yield _text(12, top + 14, title, weight="bold")
    yield f'<rect x="{left}" y="{top + 24}" width="{side}" height="{side}" fill="none" stroke="{_FAINT}"/>'
    yield (
        f'<line x1="{left}" y1="{top + 24 + side}" x2="{left + side}" y2="{top + 24}" stroke="{_FAINT}" '
        'stroke-dasharray="2 3"/>'
    )
    most = max(one.pairs for one in audit.calibration)
    for one in audit.calibration:
        x = left + (one.predicted - 0.5) * 2 * side
        y = top + 24 + side - max(0.0, (one.observed - 0.5) * 2) * side  # below one half: on the axis
        radius = 3 + 9 * (one.pairs / most) ** 0.5
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{_BAR}" opacity="0.7"/>'
    yield _text(left, top + side + 40, "50 %", colour=_FAINT)
    yield _text(left + side, top + side + 40, "100 % predicted", colour=_FAINT, anchor="end")
    yield _text(left - 8, top + 36, "100 % observed", colour=_FAINT, anchor="end")


def _text(x: float, y: float, text: str, *, colour: str = _INK, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
    )
