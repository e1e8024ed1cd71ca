"""Reports of a stage: events, samples, results. Rank 0 writes, the other ranks are silent."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ..contract.atomic_files import write_whole
from ..contract.disk_space import append_whole
from ..contract.events import EventWriter
from ..contract.health import Finding, as_data
from ..contract.recipe import TrainRecipe
from ..contract.redact import redactor
from ..contract.requests import WAITING_FOR_ROOM, Change
from ..contract.run_dir import RunDir
from .memory import Peaks
from .pending_writes import PendingWrites


class Reporter:
    """The one writer of an attempt's events.

    Args:
        run: the run directory.
        attempt: number of the attempt, from 1.
        is_main: whether this process is rank 0; elsewhere every method does nothing.
    """

    def __init__(self, run: RunDir, attempt: int, is_main: bool) -> None:
        self.run = run
        self.is_main = is_main
        self.current_phase = "start"
        self.recipe: TrainRecipe | None = None
        """The recipe that is stored with each checkpoint."""
        self.stop_cause: str | None = None
        """Cause of a stop that nobody asked for."""
        self._secrets = redactor()
        self._measured: tuple[int, dict[str, float]] = (-1, {})
        self._peaks = Peaks()
        self._writer = EventWriter(run.attempt_dir(attempt) / "events.jsonl") if is_main else None
        self.disk = PendingWrites(run, self._writer)

    def phase(self, name: str, reason: str | None = None) -> None:
        """Enter a phase (load, train, rollout, score, update, evaluate, save, merge).

        The previous phase's memory peak is reported when it is a new maximum.

        Args:
            name: of the phase.
            reason: why the run waits, where the phase is waiting for room; it is written on a full disk as well.
        """
        if self._writer and name != self.current_phase:
            if self.current_phase != WAITING_FOR_ROOM and self._peaks.end(self.current_phase):
                self.memory()
            self._peaks.begin()
        self.current_phase = name
        if self._writer:
            self._writer.write("phase", phase=name, data={"reason": reason} if reason else None, urgent=bool(reason))

    def activity(self, doing: str, share: float | None = None) -> None:
        """Record what is done before the first step, and how much of it (0 to 1) where that is known."""
        if self._writer:
            self._writer.write("activity", data={"doing": doing} | ({} if share is None else {"share": share}))

    def progress(self, step: int, total_steps: int) -> None:
        """Record that ``step`` of ``total_steps`` optimizer or PPO steps are done."""
        if self._writer:
            self._writer.write("progress", step=step, total_steps=total_steps)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics under TRL's names; a NaN stays visible as a named null."""
        before, earlier = self._measured
        self._measured = (step, {**(earlier if step == before else {}), **metrics})
        if self._writer:
            self._writer.write("metrics", step=step, metrics={k: float(v) for k, v in metrics.items()})

    def metrics_at(self, step: int) -> dict[str, float]:
        """Return the metrics reported of a step; empty when it is not the newest reported step."""
        return dict(self._measured[1]) if step == self._measured[0] else {}

    def memory(self) -> None:
        """Record memory peaks so far, in bytes: of the whole attempt, and (``data.phase``) of its current phase."""
        if self._writer:
            peaks, of_phase = self._peaks.so_far(self.current_phase)
            self._writer.write("memory", phase=self.current_phase, metrics=peaks, data={"phase": of_phase})

    def health(self, message: str, *, urgent: bool = False) -> None:
        """Record a notice for people, in one sentence; an urgent one is written on a full disk as well."""
        if self._writer:
            self._writer.write("health", data={"message": message}, urgent=urgent)
            print(message, flush=True)  # noqa: T201 - the log is a person's first place to look

    def finding(self, finding: Finding) -> None:
        """Record what a health rule found, or that it finds nothing any longer."""
        if self._writer:
            self._writer.write("health", step=finding.step, data=as_data(finding))
            print(finding.message, flush=True)  # noqa: T201 - as a notice

    def request(self, what: str, step: int, change: Change | None = None) -> None:
        """Record that a request was served."""
        if self._writer:
            setting = {"key": change.key, "value": change.value} if change else {}
            self._writer.write("request", step=step, data={"request": what, **setting})

    def checkpoint(self, step: int, path: str) -> None:
        """Record that a checkpoint is complete and sealed."""
        if self._writer:
            self._writer.write("checkpoint", step=step, data={"path": path})
            self._writer.sync()

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to ``samples.jsonl`` and record it."""
        if not self._writer or not rows:
            return
        lines = b"".join(msgspec.json.encode(self._secrets.value({"step": step, **row})) + b"\n" for row in rows)
        if not self.disk.write("samples", lambda: append_whole(self.run.samples_file, lines), len(lines)):
            self.health(f"the disk is full: samples of step {step} will be written when there is room")
        self._writer.write("samples", step=step, data={"count": len(rows)})

    def forget_samples_after(self, step: int) -> None:
        """Drop samples past the checkpoint that a run is resumed from; their steps are about to be made again.

        Samples after training go as well, also those of the checkpoint's own step: they are made after any checkpoint.
        """
        if not self._writer or not self.run.samples_file.exists():
            return
        self.disk.write("samples", lambda: self._forget_samples_after(step))

    def _forget_samples_after(self, step: int) -> None:
        kept: list[bytes] = []
        for line in self.run.samples_file.read_bytes().splitlines(keepends=True):
            try:
                row = msgspec.json.decode(line)
                if row["step"] <= step and row.get("when") != "after":
                    kept.append(line)
            except (msgspec.DecodeError, AttributeError, KeyError, TypeError):
                self.health("dropped a truncated line of samples.jsonl")
        write_whole(self.run.samples_file, b"".join(kept))

    def result(self, facts: Mapping[str, Any]) -> None:
        """Write ``result.json``: the facts of a finished stage."""
        if self._writer:
            self.run.write_json("result.json", dict(facts))

    def end(self, exit_code: int, cause: str | None = None) -> None:
        """Write the last record of the attempt."""
        if self._writer:
            self.disk.release()
            if self._peaks.end(self.current_phase):
                self.memory()
            self._writer.write("end", data={"exit_code": exit_code, "cause": cause})
            self._writer.close()
            self._writer = None
