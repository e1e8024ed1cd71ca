"""How a metric is drawn: value axis, smoothing, window and cursor. It belongs to the metric, wherever that is drawn."""

from ...settings import ChartSettings, Settings
from .chart_view import View

SMOOTHING = (0.0, 0.6, 0.9, 0.97)


class Look:
    """How one metric is drawn."""

    def __init__(self, weight: float = SMOOTHING[0], *, log: bool = False) -> None:
        self.weight = weight if weight in SMOOTHING else SMOOTHING[0]
        self.log = log
        self.view = View()

    def smooth(self) -> None:
        """Choose the next weight of the moving average."""
        self.weight = SMOOTHING[(SMOOTHING.index(self.weight) + 1) % len(SMOOTHING)]


class Looks:
    """The looks of a screen's metrics: as they were left, also in an earlier session."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._by_metric: dict[str, Look] = {}

    def of(self, metric: str) -> Look:
        """Return a metric's look, always the same one."""
        if metric not in self._by_metric:
            chosen = self._settings.charts.get(metric, ChartSettings())
            weight = self._settings.smoothing if chosen.smoothing is None else chosen.smoothing
            log = self._settings.log_axes if chosen.log is None else chosen.log
            self._by_metric[metric] = Look(weight, log=log)
        return self._by_metric[metric]

    def smooth_all(self, like: Look) -> None:
        """Give all metrics, also those not seen yet, the weight that follows the one of ``like``."""
        like.smooth()
        self._settings.smoothing = like.weight
        for look in self._by_metric.values():
            look.weight = like.weight
        self._settings.charts = {
            metric: ChartSettings(log=chosen.log)
            for metric, chosen in self._settings.charts.items()
            if chosen.log is not None
        }

    def log_all(self, like: Look) -> None:
        """Give all metrics, also those not seen yet, the axis that ``like`` has not."""
        log = not like.log
        self._settings.log_axes = log
        for look in self._by_metric.values():
            look.log = log
        self._settings.charts = {
            metric: ChartSettings(smoothing=chosen.smoothing)
            for metric, chosen in self._settings.charts.items()
            if chosen.smoothing is not None
        }

    def reset_views(self) -> None:
        """Forget windows and cursors: they are places on an x axis that is no longer drawn."""
        for look in self._by_metric.values():
            look.view = View()

    def store(self) -> bool:
        """Write what differs from the settings for all into the settings; return whether they changed."""
        settings, before = self._settings, self._settings.charts
        charts = before.copy()
        for metric, look in self._by_metric.items():
            weight = None if look.weight == settings.smoothing else look.weight
            chosen = ChartSettings(log=None if look.log == settings.log_axes else look.log, smoothing=weight)
            charts.pop(metric, None)
            if chosen != ChartSettings():
                charts[metric] = chosen
        settings.remember_charts(charts)
        return settings.charts != before
