"""Models of this machine: the demo, merged runs, recent ones, the Hugging Face cache, folders.

Everything is read from files, nothing is asked of a network. :func:`find_models` is a generator, so that a thread can
hand over each model as it is found; a cache of thousands of repositories is cut at a bound. Layout of the cache:
https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

import itertools
import re
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from msgspec import Struct

from stackllama_engine.budget.architecture import Architecture
from stackllama_engine.budget.model_files import read_architecture, read_config
from stackllama_engine.contract.base import DEMO_BASE
from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.run_dir import RUN_ID, Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.data.kinds import DEMO
from stackllama_engine.launch.hub_cache import snapshot

from ..paths import model_cache
from ..sanitise import one_line

Kind = Literal["demo", "run", "recent", "cache", "folder"]

MOST = 500
"""Models of each kind."""
_MOST_SEEN = 5000
"""Entries of one directory that are looked at."""
_REPOSITORY = re.compile(r"models--([\w.-]+?)(?:--([\w.-]+))?", re.ASCII)
_WRITES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_AWAY = "not on this machine: it would be downloaded"


class ModelEntry(Struct, frozen=True, kw_only=True):
    """One model that may be chosen."""

    name: str
    """The text for ``model_name_or_path``, as it is; show :attr:`title` instead."""
    kind: Kind
    architecture: Architecture | None = None
    """None: its files are not here, or not readable."""
    warning: str | None = None
    """Why it may not be usable as it is, in one sanitised sentence."""

    @property
    def title(self) -> str:
        """The name, safe to show."""
        return one_line(self.name)

    @property
    def parameters(self) -> int | None:
        """The number of parameters, where it is known."""
        return self.architecture.parameters if self.architecture else None

    @property
    def bytes_on_disk(self) -> int | None:
        """Size of its weight files, where they are here."""
        return self.architecture.bytes_on_disk if self.architecture else None


def find_models(
    home: Home, recent: Iterable[str] = (), folders: Iterable[Path] = (), cache: Path | None = None
) -> Iterator[ModelEntry]:
    """Yield every model of this machine, each name once: demo, merged runs (newest first), recent, cache, folders.

    Args:
        home: whose finished merge runs.
        recent: names used before, newest first.
        folders: each a model itself, or a directory of models.
        cache: of Hugging Face; None: where its environment variables say.
    """
    cache = cache or model_cache()
    names: set[str] = set()
    entries = itertools.chain(
        [_entry(DEMO, "demo", DEMO_BASE)],
        _runs(home),
        _recent(home, itertools.islice(recent, MOST), cache),
        itertools.islice(_cached(cache), MOST),
        itertools.islice(_in_folders(folders), MOST),
    )
    for entry in entries:
        if entry.name not in names:
            names.add(entry.name)
            yield entry


def describe(home: Home, name: str, cache: Path | None = None) -> ModelEntry:
    """Describe the model that a typed name refers to."""
    where = locate(home, name, cache)
    if where is None:
        return ModelEntry(name=name, kind="recent", warning=_AWAY)
    return _entry(name, "recent", where)


def locate(home: Home, name: str, cache: Path | None = None) -> Path | None:
    """Locate the files of ``model_name_or_path`` as a launch does; None: not on this machine.

    Args:
        home: whose runs.
        name: ``demo``, a merge run's id, a path, or a hub id.
        cache: of Hugging Face; None: where its environment variables say.
    """
    if name == DEMO:
        return DEMO_BASE
    if run := _run(home, name):
        return run.merged
    try:
        path = Path(name).expanduser()
        if path.exists():
            return path.resolve()
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a NUL byte: no path of ours
        return None
    organisation, _, rest = name.rpartition("/")
    folder = "models--" + (f"{organisation}--{rest}" if organisation else rest)
    if not _REPOSITORY.fullmatch(folder):
        return None
    return snapshot((cache or model_cache()) / folder)


def _entry(name: str, kind: Kind, path: Path, note: str | None = None) -> ModelEntry:
    """Describe the model of these files; what is wrong with them becomes its warning."""
    try:
        architecture = read_architecture(path)
        note = note or _not_a_writer(path) or architecture.unknown or architecture.rough
    except (UsageError, OSError) as error:
        return ModelEntry(name=name, kind=kind, warning=one_line(str(error)))
    if name.startswith("-") or not name.isprintable():
        note = "its name is refused at launch: it starts with `-` or contains control characters"
    return ModelEntry(name=name, kind=kind, architecture=architecture, warning=one_line(note) if note else None)


def _not_a_writer(path: Path) -> str | None:
    classes = _classes(path)
    if not classes or any(name.endswith(_WRITES) for name in classes):
        return None
    if any("SequenceClassification" in name for name in classes):
        return "a reward model: it scores responses and generates none"
    return f"a {classes[0]}: it generates no text"


def _classes(path: Path) -> list[str]:
    """Return ``architectures`` of a directory's configuration."""
    if not path.is_dir():
        return []
    classes = read_config(path).get("architectures")
    if not isinstance(classes, list):
        return []
    return [name for name in typing.cast("list[object]", classes) if isinstance(name, str)]


def _runs(home: Home) -> Iterator[ModelEntry]:
    for run in itertools.islice(reversed(list(home.runs())), MOST):
        if merged := _run(home, run.id):
            yield _entry(run.id, "run", merged.merged)


def _run(home: Home, name: str) -> RunDir | None:
    """Return the finished merge run of this name."""
    if not RUN_ID.fullmatch(name):
        return None
    try:
        run = home.run(name)
        state = run.read_state()
    except UsageError:  # no such run, or a damaged one, which `runs ls` reports
        return None
    return run if state.stage is Stage.MERGE and state.phase == "finished" and run.merged.is_dir() else None


def _recent(home: Home, names: Iterable[str], cache: Path) -> Iterator[ModelEntry]:
    for name in names:
        yield describe(home, name, cache)


def _cached(cache: Path) -> Iterator[ModelEntry]:
    """Yield language models of the hub's cache, by name."""
    for repository in sorted(_entries(cache)):
        match = _REPOSITORY.fullmatch(repository.name)
        if not match:
            continue
        name = "/".join(part for part in match.groups() if part)
        if files := snapshot(repository):
            entry = _entry(name, "cache", files)
            if entry.architecture is None and not (files / "config.json").exists():
                yield from (_entry(str(file), "cache", file) for file in _ggufs(files))
            elif not (entry.warning or "").endswith("generates no text"):
                yield entry


def _in_folders(folders: Iterable[Path]) -> Iterator[ModelEntry]:
    for folder in folders:
        if (folder / "config.json").is_file() or folder.suffix == ".gguf":
            yield _entry(str(folder), "folder", folder)
            continue
        for path in sorted(_entries(folder)):
            if path.suffix == ".gguf" or (path / "config.json").is_file():
                yield _entry(str(path), "folder", path)


def _ggufs(folder: Path) -> list[Path]:
    return sorted(path for path in _entries(folder) if path.suffix == ".gguf")


def _entries(folder: Path) -> list[Path]:
    """List a directory, up to a bound; empty where it cannot be read."""
    try:
        return list(itertools.islice(folder.iterdir(), _MOST_SEEN))
    except OSError:  # most machines lack one of the places that are looked at
        return []
