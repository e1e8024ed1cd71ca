"""Comparison of several runs, of a home or of other trainers: readers, shared metrics, recipes and results."""

import contextlib
import os.path
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import Struct

from stackllama_engine.contract.errors import RecipeError, UsageError
from stackllama_engine.contract.metrics import headline_names, metrics_of
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home, State
from stackllama_engine.contract.stages import Stage

from ..readings import is_metric, read_launch, read_result, recipe_differences
from ..sanitise import one_line
from .foreign import ForeignReader, open_foreign
from .form_text import write
from .gpu_series import without_each
from .run_reader import RunReader

_SAMPLES = "samples"


class Facts(Struct, frozen=True, kw_only=True):
    """Recipe, versions and results of one run; texts sanitised.

    Attributes:
        values: recipe keys, ``git commit`` and ``version: NAME`` → value as a person would write it.
        defaults: the keys among them whose value is the recipe's default.
        results: numbers of ``result.json``, nested ones as ``before.kl``.
        errors: what could not be read, in sentences.
    """

    values: dict[str, str] = {}
    defaults: frozenset[str] = frozenset()
    results: dict[str, float] = {}
    errors: tuple[str, ...] = ()


class Side:
    """One of the compared runs: of the home, or in another trainer's directory.

    Args:
        home: of the console's own runs.
        run_id: a run id; with a ``/`` in it, a directory.

    Attributes:
        id: its id, of a directory its name, sanitised.
        reader: its metrics; None where there is no such run.
        facts: recipe, launch and results, read again when the run's state changes.
    """

    def __init__(self, home: Home, run_id: str) -> None:
        self.folder = Path(run_id) if "/" in run_id else None
        self.id = one_line(self.folder.name if self.folder else run_id)
        self.reader: RunReader | ForeignReader | None = None
        self.facts = Facts()
        self._home = home
        self._run_id = run_id
        self._read_at: tuple[int, str] | None = None

    @property
    def stage(self) -> Stage | None:
        """The run's stage; None until it is known."""
        return self.reader.stage if self.reader else None

    @property
    def state(self) -> State | None:
        """The run's state; None for another trainer's, and until it is known."""
        return self.reader.state if isinstance(self.reader, RunReader) else None

    @property
    def errors(self) -> list[str]:
        """Sentences on what cannot be read now."""
        reader = [self.reader.error] if self.reader and self.reader.error else []
        folder = f"{one_line(str(self._home.runs_dir))}/{self.id}/"  # said by the id
        return [f"{self.id}: {error.replace(folder, '')}" for error in (*reader, *self.facts.errors)]

    def poll(self) -> bool:
        """Read what is new; return whether anything changed."""
        if self.reader is None:
            try:
                self.reader = open_foreign(self.folder) if self.folder else RunReader(self._home.run(self._run_id))
            except UsageError as error:
                facts = Facts(errors=(one_line(str(error)),))
                changed, self.facts = facts != self.facts, facts
                return changed
        changed = self.reader.poll()
        state = self.state
        if isinstance(self.reader, RunReader) and state is not None and self._read_at != (state.attempt, state.phase):
            self._read_at = state.attempt, state.phase
            self.facts = read_facts(self.reader, state.stage)
            changed = True
        return changed


class Comparison:
    """The compared runs, in the order in which they were chosen; the same id twice is one run."""

    def __init__(self, home: Home, run_ids: Iterable[str]) -> None:
        self.home = home
        self.sides = [Side(home, run_id) for run_id in dict.fromkeys(run_ids)]
        self._name_whole()

    def add(self, folder: Path) -> None:
        """Compare another trainer's run as well; one that is compared already is not added."""
        if not any(side.folder == folder for side in self.sides):
            self.sides = [*self.sides, Side(self.home, str(folder))]
            self._name_whole()

    def _name_whole(self) -> None:
        self.names = [side.id for side in self.sides]
        self._are_whole = True

    def poll(self) -> bool:
        """Read what is new in all runs; return whether anything changed."""
        if self._are_whole:  # here, because a directory is read for it
            self._are_whole = False
            with contextlib.suppress(OSError):  # not to be read: any shorter name may be another run's
                self.names = short_names(self.names, {run.id for run in self.home.unsorted_runs()})
        return any([side.poll() for side in self.sides])

    @property
    def errors(self) -> list[str]:
        """Sentences on what cannot be read now."""
        return [error for side in self.sides for error in side.errors]

    def metrics(self) -> list[str]:
        """Return the metrics that at least two of the runs have: their stages' own first, the rest by name."""
        counts: dict[str, int] = {}
        for side in self.sides:
            for name in side.reader.series if side.reader else ():
                counts[name] = counts.get(name, 0) + 1
        stages = {side.stage: None for side in self.sides}
        telling = [name for stage in stages for name in headline_names(stage)]
        telling += [metric.name for stage in stages for metric in metrics_of(stage)]
        rank = {name: place for place, name in reversed(list(enumerate(telling)))}
        shared = without_each(name for name, count in counts.items() if count >= min(2, len(self.sides)))
        return sorted(shared, key=lambda name: (rank.get(name, len(telling)), name.startswith(("time/", "gpu/")), name))


def read_facts(reader: RunReader, stage: Stage) -> Facts:
    """Read recipe, launch and result of a run; what is missing or damaged becomes a sentence."""
    values: dict[str, str] = {}
    defaults: frozenset[str] = frozenset()
    results: dict[str, float] = {}
    errors: list[str] = []
    run = reader.run
    try:
        recipe = _flat(msgspec.to_builtins(load_recipe(stage, run.recipe_file)))
        changed = recipe_differences(run, stage)
        values |= {one_line(key): one_line(write(value)) or "—" for key, value in recipe.items()}
        defaults = frozenset(one_line(key) for key in recipe if key not in changed)
    except RecipeError as unreadable:
        errors.append(one_line(str(unreadable)))
    launch, error = read_launch(run)
    if launch is not None:  # a queued run has none yet
        values["git commit"] = one_line(launch.git_commit or "—")[:12]
        values |= {f"version: {one_line(name)}": one_line(text) for name, text in launch.versions.items()}
    result, result_error = read_result(run)
    results = {one_line(key): value for key, value in _numbers(result.items(), "") if not key.startswith(_SAMPLES)}
    errors += [one_line(each) for each in (error, result_error) if each]
    return Facts(values=values, defaults=defaults, results=results, errors=tuple(errors))


def short_names(ids: Sequence[str], others: Collection[str] = ()) -> list[str]:
    """Shorten ids by the words at their beginning that all have in common.

    Args:
        ids: of the compared runs.
        others: ids of other runs; where one of them would result, the ids stay whole, as where nothing would be left.
    """
    if len(ids) < 2:
        return list(ids)
    shared = re.sub(r"[^-_.]*$", "", os.path.commonprefix(list(ids)))  # noqa: RUF071 - cut at a separator here
    shortened = [text[len(shared) :] for text in ids]
    return shortened if all(shortened) and not set(shortened) & {*ids, *others} else list(ids)


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Flatten a pipeline's sections to ``section.key``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": item for inner, item in cast("dict[str, Any]", value).items()}
        else:
            flat[key] = value
    return flat


def _numbers(items: Iterable[tuple[str, Any]], prefix: str) -> Iterable[tuple[str, float]]:
    for key, value in items:
        if isinstance(value, dict):
            yield from _numbers(cast("dict[str, Any]", value).items(), f"{prefix}{key}.")
        elif value is not None and is_metric(value):
            yield f"{prefix}{key}", float(value)
