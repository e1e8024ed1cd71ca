"""Choices for a recipe's path keys: models of this machine and finished runs. No Textual."""

from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import TRAINING_STAGES, Stage
from stackllama_engine.contract.user_dirs import home_dir

from ..readings import read_run
from ..sanitise import one_line
from ..units import number, size, span
from .budget_view import billions
from .input_check import MODEL, refusal
from .model_catalog import ModelEntry, describe, find_models

RUN_KEYS: dict[str, tuple[Stage, ...]] = {
    "adapter_path": TRAINING_STAGES,
    "reward_model_path": (Stage.REWARD,),
    "policy_adapter_path": (Stage.SFT, Stage.PREFERENCE, Stage.PPO),
}
"""Keys that name a finished run → of which stages."""
_WHERE = {"demo": "embedded", "run": "merged run", "recent": "recent", "cache": "HF cache", "folder": "folder"}


class Choice(Struct, frozen=True, kw_only=True):
    """One line. Everything but ``value`` is sanitised."""

    value: str
    """The text that goes into the form, as it is."""
    title: str
    facts: str = ""
    warning: str = ""
    """Why it may not be usable."""


def model_choice(entry: ModelEntry, where: str = "") -> Choice:
    """Describe a model: architecture, parameters, size on disk, where it is."""
    return Choice(
        value=entry.name,
        title=entry.title,
        facts=" · ".join([*model_facts(entry), where or _WHERE[entry.kind]]),
        warning=entry.warning or "",
    )


def model_facts(entry: ModelEntry) -> list[str]:
    """Return architecture, parameters and size on disk, as far as they are known."""
    shape = entry.architecture
    if shape is None:
        return []
    facts = [one_line(shape.model_type), ("≥ " if shape.unknown else "") + billions(shape.parameters)]
    return [*facts, size(shape.bytes_on_disk)] if shape.bytes_on_disk else facts


def model_folders(recent: Iterable[str]) -> list[Path]:
    """Return directories that may hold one's own models: here, ``~/models``, and those of the recent ones."""
    beside = [Path(name).parent for name in recent if name.startswith("/")]
    try:
        here = [Path.cwd()]
    except FileNotFoundError:  # deleted meanwhile
        here = []
    return list(dict.fromkeys([*here, home_dir() / "models", *beside]))


def typed_models(home: Home, text: str) -> list[Choice]:
    """Return the model that a typed text names, or the models of a directory. For a thread."""
    folder = _folder(text)
    entries = [entry for entry in find_models(home, folders=[folder]) if entry.kind == "folder"] if folder else []
    inside = [model_choice(entry) for entry in entries if folder and Path(entry.name).parent == folder]
    if inside:
        return inside
    entry = describe(home, text)
    refused = "" if entry.architecture else refusal(home, MODEL, text)
    return [model_choice(msgspec.structs.replace(entry, warning=refused or entry.warning), "as typed")]


def run_choices(home: Home, stages: Iterable[Stage]) -> list[Choice]:
    """Return finished runs of these stages, the newest first. For a thread."""
    wanted = tuple(stages)
    choices: list[Choice] = []
    for run in reversed(home.runs()):
        try:
            state = run.read_state()
            if state.stage not in wanted or state.phase != "finished":
                continue
            reading = read_run(run, state)
        except (UsageError, OSError):  # damaged, or removed meanwhile: `runs ls` names it, and it can serve nobody
            continue
        metric = reading.last_metric
        facts = [
            str(state.stage),
            f"{span(reading.age)} ago",
            *([f"{metric[0]} {number(metric[1])}"] if metric else []),
        ]
        choices.append(Choice(value=run.id, title=one_line(run.id), facts=" · ".join(facts)))
    return choices


def _folder(text: str) -> Path | None:
    """Return the directory that a text names, where that is no model itself."""
    try:
        path = Path(text).expanduser().absolute()
        return path if path.is_dir() and not (path / "config.json").exists() else None
    except (OSError, RuntimeError, ValueError):  # no path of ours
        return None


def matching(choices: Iterable[Choice], text: str) -> list[Choice]:
    """Return the choices whose line holds every word; those whose name does come first."""
    words = text.lower().split()
    matches = [one for one in choices if all(word in f"{one.title} {one.facts}".lower() for word in words)]
    return sorted(matches, key=lambda one: not all(word in one.title.lower() for word in words))
