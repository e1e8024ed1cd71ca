"""The steps a chart shows: all of them or a window, following the newest or fixed; and its cursor."""

import math
from collections.abc import Iterable

from ...readers.series import Series
from .axis import step_range

Span = tuple[float, float]
_LEAST_WIDTH = 4.0


class View:
    """The state that zooming, panning and the cursor keys change."""

    def __init__(self) -> None:
        self.width: float | None = None
        """Steps in the window; None shows all."""
        self.stop: float | None = None
        """The end of a fixed window; None follows the newest step."""
        self.cursor: float | None = None
        """The cursor's step; None while it is off."""

    def window(self, span: Span) -> Span:
        """Return the first and last step to show. A following window moves on by quarters, not with each point."""
        start, stop = step_range(*span)
        if self.width is None:
            return start, stop
        if self.stop is not None:
            return self.stop - self.width, self.stop
        quarter = self.width / 4
        stop = math.ceil(span[1] / quarter) * quarter
        return stop - self.width, stop

    @property
    def following(self) -> bool:
        """Whether the newest step stays in sight."""
        return self.stop is None

    def reset(self) -> None:
        """Show all steps, following; the cursor stays as it is."""
        self.width = self.stop = None

    def zoom(self, factor: float, span: Span) -> None:
        """Make the window ``factor`` times as wide, around the cursor, else around what it follows or its middle."""
        start, stop = self.window(span)
        full = step_range(*span)
        width = max(_LEAST_WIDTH, (stop - start) * factor)
        if width >= full[1] - full[0]:
            self.reset()
            return
        self.width = width
        if self.cursor is not None:
            self._stand(self.cursor + width / 2, full)
        elif self.stop is not None:
            self._stand((start + stop + width) / 2, full)

    def pan(self, quarters: float, span: Span) -> None:
        """Move the window; at the newest step it follows again. Infinite: all the way."""
        if self.width is None:
            return
        full = step_range(*span)
        stop = self.window(span)[1] + quarters * self.width / 4
        if quarters > 0 and stop >= span[1]:
            self.stop = None
        else:
            self._stand(stop, full)

    def _stand(self, stop: float, full: Span) -> None:
        width = self.width or 0.0
        self.stop = min(full[1], max(full[0] + width, stop))

    def move_cursor(self, direction: float, reach: float, span: Span, curves: Iterable[Series]) -> None:
        """Move to the point about ``reach`` steps on in a direction (−1 or 1; infinite: to the end), in any curve."""
        here = self.cursor
        if here is None:
            return
        if math.isinf(direction):
            target = span[1] if direction > 0 else span[0]
            steps = [point[0] for series in curves if (point := series.nearest(target))]
        else:
            target = here + direction * reach
            steps = [point for series in curves for point in _beyond(series, here, target, direction)]
        if steps:
            self.cursor = min(steps, key=lambda step: abs(step - target))
            self._show_cursor(span)

    def place_cursor(self, span: Span, curves: Iterable[Series]) -> None:
        """Switch the cursor on at the newest point in sight."""
        start, stop = self.window(span)
        steps = [point[0] for series in curves if (point := series.before(stop))]
        self.cursor = max(steps, default=None)
        if self.cursor is not None and self.cursor < start:
            self._show_cursor(span)

    def _show_cursor(self, span: Span) -> None:
        start, stop = self.window(span)
        if self.cursor is not None and self.width is not None and not start <= self.cursor <= stop:
            self._stand(self.cursor + self.width / 2, step_range(*span))


def _beyond(series: Series, here: float, target: float, direction: float) -> Iterable[float]:
    """Yield the point nearest to the target if it lies beyond here, else the next one in that direction."""
    near = series.nearest(target)
    if near is not None and (near[0] - here) * direction > 0:
        yield near[0]
        return
    step = series.after(here) if direction > 0 else series.before(math.nextafter(here, -math.inf))
    if step is not None:
        yield step[0]
