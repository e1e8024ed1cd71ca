"""The console's settings between sessions. Losing them loses comfort, never a run."""

from pathlib import Path

import msgspec
from msgspec import Struct

from stackllama_engine.contract.atomic_files import make_private_dir, write_whole
from stackllama_engine.contract.user_files import read_json

from .paths import settings_file

_RECENT = 12
_CHARTS = 200
"""Metrics whose look is remembered."""


class ChartSettings(Struct, frozen=True, omit_defaults=True):
    """How one metric is drawn; None: as all are."""

    log: bool | None = None
    smoothing: float | None = None


class Settings(Struct, kw_only=True, omit_defaults=True):
    """``settings.json``. Unknown keys of a newer version are ignored."""

    theme: str = "dusk"
    stage: str = "sft"
    model: str = ""
    recent_models: list[str] = []
    """Newest first."""
    runs_columns: list[str] = []
    """Columns of the list of runs; none: by the terminal's width."""
    runs_sort: str = ""
    """Column that it is sorted by, ``-`` before it for the highest first; empty: newest first."""
    runs_group: str = ""
    """Group of its rows: ``pipeline`` (also where empty), ``stage``, ``model`` or ``none``."""
    smoothing: float = 0.0
    """Weight of the charts' moving average."""
    announce: bool = True
    """Ring the bell and notify the desktop when a run ends or stalls."""

    foreign_runs: list[str] = []
    """Directories of other trainers' runs that were opened, newest first."""

    def remember_foreign(self, path: Path) -> None:
        """Put another trainer's run at the head of those that are listed, unless its name could not be written."""
        name = str(path)
        if name.isprintable():
            self.foreign_runs = [name, *(other for other in self.foreign_runs if other != name)][:_RECENT]

    def forget_foreign(self, name: str) -> None:
        """Remove another trainer's run from the list; its files stay."""
        self.foreign_runs = [other for other in self.foreign_runs if other != name]

    log_axes: bool = False
    """Whether charts have a logarithmic value axis."""
    charts: dict[str, ChartSettings] = {}
    """Metrics that are drawn another way, those chosen last at the end."""
    pinned: list[str] = []
    """Metrics whose charts stay in sight."""

    def remember_model(self, name: str) -> None:
        """Put a model at the head of the recent ones."""
        self.model = name
        self.recent_models = [name, *(other for other in self.recent_models if other != name)][:_RECENT]

    def remember_charts(self, charts: dict[str, ChartSettings]) -> None:
        """Replace the metrics that are drawn another way; of very many the newest are kept."""
        self.charts = dict(list(charts.items())[-_CHARTS:])


def load_settings(file: Path | None = None) -> tuple[Settings, str | None]:
    """Return the settings, and an error where the file could not be used (the defaults are returned then)."""
    file = file or settings_file()
    try:
        return read_json(file, Settings), None
    except FileNotFoundError:
        return Settings(), None
    except (OSError, ValueError) as error:
        return Settings(), f"{file} cannot be read ({error}); starting with the defaults."


def save_settings(settings: Settings, file: Path | None = None) -> str | None:
    """Write the settings whole; return an error where that failed."""
    file = file or settings_file()
    try:
        if not file.parent.is_dir():
            make_private_dir(file.parent)
        write_whole(file, msgspec.json.format(msgspec.json.encode(settings), indent=2) + b"\n")
    except FileExistsError:  # made by another console in the same moment
        return save_settings(settings, file)
    except OSError as error:
        return f"{file} cannot be written: {error.strerror}."
    return None
