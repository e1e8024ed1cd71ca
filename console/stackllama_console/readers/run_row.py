"""One run as lists of runs show it, whoever trained it."""

from pathlib import Path

from msgspec import Struct

from stackllama_engine.contract.requests import WAITING_FOR_ROOM
from stackllama_engine.contract.run_dir import ENDED
from stackllama_engine.contract.stages import Stage


class Row(Struct, frozen=True, kw_only=True):
    """One run. Texts are sanitised, times are Unix seconds. A damaged run has little but ``id`` and ``error``."""

    id: str
    """Of another trainer's run its directory's path, as it is."""
    path: Path
    depth: int = 0
    """1 for a child beneath its pipeline, or a fork beneath the run that it continued from."""
    pipeline: str | None = None
    """Id of the pipeline, or of the first run, that it is beneath."""
    stage: Stage | None = None
    phase: str = "unknown"
    """``damaged``: its state cannot be read, and ``error`` says why."""
    step: int = 0
    total_steps: int | None = None
    model: str = ""
    """The base model; its run's id where a run made it; for a merge, the run whose adapter it merges."""
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    metric: tuple[str, float | None] | None = None
    """Name and value of the one number in lists; None as value: NaN or infinite."""
    elsewhere: str = ""
    """The other machine that it is on, in words."""
    at: str = ""
    """An unfinished run's phase; of a pipeline, its active child."""
    loading: str = ""
    """What it does before its first step, and for how long."""
    values: dict[str, float | None] = {}
    """Newest value of each metric, by its name in events; None: NaN or infinite."""
    seconds_left: float | None = None
    """At the newest event of a run that is running."""
    trend: tuple[float, ...] = ()
    """Recent values of the one number in lists."""
    title: str = ""
    tags: tuple[str, ...] = ()
    note: str = ""
    attempt: int = 0
    exit_code: int | None = None
    saved: bool = True
    """Whether it has a checkpoint, as far as that was looked for."""
    cause: str | None = None
    findings: int = 0
    """Number of health rules that have found something and not cleared."""
    error: str | None = None

    @property
    def name(self) -> str:
        """Its title; its id without one."""
        return self.title or self.id

    @property
    def is_foreign(self) -> bool:
        """Whether it is another trainer's, which is only read."""
        return "/" in self.id

    @property
    def waits(self) -> bool:
        """Whether it waits for its turn, or for room on the disk, which is then shown before all else."""
        if self.phase == "queued":
            return bool(self.at)
        return self.at.startswith(WAITING_FOR_ROOM) and self.phase not in ENDED

    def age(self, now: float) -> float:
        """Return the seconds since it was created."""
        return max(0.0, now - self.created)
