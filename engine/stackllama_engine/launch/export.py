"""Export of a run's result: a folder that transformers and PEFT load, without what only this project reads.

Of an adapter's directory the critic is left out, and PEFT's blank model card. What is written anew:

``adapter_config.json``       names the base as its files record it, with the hub revision
``chat_template.jinja``       the template that it was trained with
``generation_config.json``    every token that ends a response, and how PPO sampled
"""

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import Struct

from ..contract.base import BASE_FILE, BASE_KEY, CONFIG_FILE
from ..contract.children import CHILDREN, child_id, known_parents
from ..contract.disk_space import free, is_full, mib
from ..contract.errors import DamagedError, RefusedError, StackllamaError, UsageError
from ..contract.prompt_format import PROMPT_FORMAT_FILE, PromptFormat, is_older, read_prompt_format
from ..contract.recipe import PPORecipe
from ..contract.recipe_io import load_recipe
from ..contract.run_dir import Home, RunDir
from ..contract.stages import Stage
from ..contract.user_files import any_object

GENERATION_FILE = "generation_config.json"
_TEMPLATE_FILE = "chat_template.jinja"
_TOKENIZER_FILE = "tokenizer_config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_MOST_ANCESTORS = 30


class Result(Struct, frozen=True, kw_only=True):
    """What a run left to be exported."""

    run: RunDir
    """The run that holds it; of a pipeline, one of its stages."""
    trained: RunDir | None
    """The run that trained it; None: a merge of an adapter from elsewhere."""
    stage: Stage
    """The stage that trained it; a merge if nobody knows."""
    folder: Path
    is_adapter: bool
    is_reward: bool

    @property
    def prompt_format(self) -> PromptFormat | None:
        """The format that it was trained with; None if nothing says so.

        Raises:
            StageError: its file cannot be read.
        """
        return read_prompt_format(self.folder)


class Base(Struct, frozen=True, kw_only=True):
    """The base of an adapter, and the model that the whole line of runs began with."""

    name: str
    """Hub id, or a path on this machine."""
    revision: str | None = None
    origin: str | None = None
    """Hub id; None: it began with a local model, or nobody knows."""
    run: str | None = None
    """The merge run whose result the base is."""

    @property
    def is_local(self) -> bool:
        """Whether other machines cannot load it by this name."""
        return not is_hub_id(self.name)


def is_hub_id(name: str) -> bool:
    """Return whether a recorded base is a hub id; local ones are recorded as absolute paths."""
    return _HUB_ID.fullmatch(name) is not None


def find_result(home: Home, run: RunDir, *, merged: bool) -> Result:
    """Find what is to be exported.

    Args:
        home: holds the run and what was made from it.
        run: of any stage; a pipeline stands for its PPO stage.
        merged: the merged model rather than the adapter.

    Raises:
        RefusedError: there is no result yet, or it has not been merged; names the command to run.
        DamagedError: the state of the run cannot be read.
    """
    stage = run.read_state().stage
    if stage is Stage.PIPELINE:
        child = home.runs_dir / child_id(run.id, CHILDREN[-1 if merged else -2].suffix)
        if not (child / "state.json").is_file():
            raise RefusedError(f"`{run.id}` has no run `{child.name}` yet: export it when the pipeline has finished.")
        return find_result(home, RunDir(child), merged=merged)
    if run.adapter.is_dir() and not merged:
        return _result(run, run, run.adapter)
    if run.merged.is_dir():
        return _result(run, _trained(home, run) if stage is Stage.MERGE else run, run.merged)
    if run.adapter.is_dir():
        merges = [one for one in home.runs() if one.merged.is_dir() and run.id in known_parents(one)[:1]]
        if not merges:
            raise RefusedError(
                f"`{run.id}` is an adapter that was not merged yet: `stackllama-console merge {run.id}`, then export "
                "with --merged."
            )
        return _result(merges[-1], run, merges[-1].merged)
    raise RefusedError(f"`{run.id}` is {run.read_state().phase} and has no result yet; export it when it has finished.")


def find_base(home: Home, folder: Path) -> Base | None:
    """Return the base that an adapter's files record; None if they name none, or if it is a whole model."""
    identity = _object(folder / BASE_FILE)
    name, revision = identity.get("name"), identity.get("revision")
    if not isinstance(name, str) or not name:
        config = _object(folder / CONFIG_FILE)
        name, revision = config.get(BASE_KEY), config.get("revision")
    if not isinstance(name, str) or not name:
        return None
    merge = _merge_run(home, name)
    return Base(
        name=name,
        revision=revision if isinstance(revision, str) else None,
        origin=origin(home, name),
        run=merge.id if merge else None,
    )


def origin(home: Home, name: str) -> str | None:
    """Follow a base through the merges of this home to the model that it began with; None unless that is a hub id."""
    for _ in range(_MOST_ANCESTORS):
        if is_hub_id(name):
            return name
        merge = _merge_run(home, name)
        adapter = _trained(home, merge) if merge else None
        recorded = _object(adapter.adapter / BASE_FILE).get("name") if adapter else None
        if not isinstance(recorded, str):
            return None
        name = recorded
    return None


def rewritten(result: Result, base: Base | None) -> dict[str, bytes]:
    """Return the files that are not copied as they are: name → content.

    Raises:
        StackllamaError: a file of the result cannot be read.
    """
    files: dict[str, bytes] = {}
    if result.is_adapter:
        config = _object(result.folder / CONFIG_FILE)
        if base is not None:
            config |= {BASE_KEY: base.name, "revision": base.revision}
        files[CONFIG_FILE] = _json(config)
    prompt_format = result.prompt_format
    if prompt_format is not None:
        files[PROMPT_FORMAT_FILE] = _json(prompt_format)
        has_it = (result.folder / _TEMPLATE_FILE).is_file() and not is_older(result.folder)
        if not has_it and (template := prompt_format.served_template(begins=False)):
            # the file has precedence over the key, which transformers wrote before version 5
            files[_TEMPLATE_FILE] = template.encode()
            tokenizer = _object(result.folder / _TOKENIZER_FILE)
            tokenizer.pop("chat_template", None)
            files[_TOKENIZER_FILE] = _json(tokenizer)
    if not result.is_reward:
        files[GENERATION_FILE] = _json(_generation(result))
    return files


def write_folder(result: Result, files: Mapping[str, bytes], to: Path, home: Home) -> dict[str, int]:
    """Write the folder, whole or not at all; return its files and their sizes.

    Args:
        result: what is copied.
        files: written in place of those of the same name, and in addition.
        to: as :func:`check_free` takes it.
        home: holds the run.

    Raises:
        UsageError: there is something already, or it cannot be written there.
        StackllamaError: the disk is full; nothing is left behind.
    """
    check_free(to, home)
    to = to.resolve()  # of a link to an empty folder, the folder
    copied = [path for path in sorted(result.folder.iterdir()) if path.is_file() and _belongs(path.name)]
    copied = [path for path in copied if path.name not in files]
    size = sum(path.stat().st_size for path in copied) + sum(map(len, files.values()))
    parent = to.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if not free(parent).holds(size, len(copied) + len(files) + 2):
            raise _no_room(to, size)
        with tempfile.TemporaryDirectory(prefix=f".{to.name}.", dir=parent) as temporary:
            staging = Path(temporary) / "export"  # the temporary folder itself is private
            staging.mkdir()
            if to.exists():
                shutil.copymode(to, staging)
            for path in copied:
                shutil.copyfile(path, staging / path.name)
            for name, content in files.items():
                (staging / name).write_bytes(content)
            sizes = {path.name: path.stat().st_size for path in sorted(staging.iterdir())}
            staging.replace(to)
    except OSError as error:
        if is_full(error):
            raise _no_room(to, size) from None
        raise UsageError(f"{to} cannot be written: {error.strerror or error}.") from None
    return sizes


def check_free(to: Path, home: Home) -> None:
    """Refuse a path that holds something, or is among the runs, where what is no run is removed as a leftover.

    Args:
        to: a path that does not exist, or an empty folder.
        home: holds the runs.

    Raises:
        UsageError: a file, a folder that is not empty, or in the directory of the runs.
    """
    try:
        if to.resolve().is_relative_to(home.runs_dir.resolve()):
            raise UsageError(f"{to} is in {home.runs_dir}, which is for runs alone; name a folder elsewhere with --to.")
        if os.path.lexists(to) and (not to.is_dir() or any(to.iterdir())):
            raise UsageError(f"{to} exists already and is not an empty folder; name another one with --to.")
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise UsageError(f"{to} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _no_room(to: Path, size: int) -> StackllamaError:
    return StackllamaError(
        f"The disk is full: the export takes {mib(size)} under {to.absolute().parent}, where there are "
        f"{free(to.absolute().parent)}. Nothing was written; make room, or name another folder with --to."
    )


def _result(run: RunDir, trained: RunDir | None, folder: Path) -> Result:
    is_adapter = (folder / CONFIG_FILE).is_file()
    config = _object(folder / (CONFIG_FILE if is_adapter else "config.json"))
    is_reward = config.get("task_type") == "SEQ_CLS" or "SequenceClassification" in str(config.get("architectures"))
    return Result(
        run=run,
        trained=trained,
        stage=trained.read_state().stage if trained else Stage.MERGE,
        folder=folder,
        is_adapter=is_adapter,
        is_reward=is_reward,
    )


def _trained(home: Home, merge: RunDir) -> RunDir | None:
    """Return the run whose adapter a merge run merged; None: one from elsewhere, or it was deleted."""
    for parent in known_parents(merge)[:1]:
        run = RunDir(home.runs_dir / parent)
        if run.adapter.is_dir() or run.merged.is_dir():
            return run
    return None


def _merge_run(home: Home, name: str) -> RunDir | None:
    """Return the run of this home whose merged model a path is."""
    path = Path(name)
    return RunDir(path.parent) if path.name == "merged" and path.parent.parent == home.runs_dir else None


def _generation(result: Result) -> dict[str, Any]:
    """Return the generation configuration: transformers' keys."""
    recorded = _object(result.folder / GENERATION_FILE)
    tokenizer = _object(result.folder / _TOKENIZER_FILE)
    tokens = {name: value for name, value in recorded.items() if name.endswith("_token_id")}
    if "eos_token_id" not in tokens and (end := _token_id(result.folder, tokenizer, "eos_token")) is not None:
        tokens["eos_token_id"] = [end]
    recipe = load_recipe(result.stage, result.trained.recipe_file) if result.trained else None
    if not isinstance(recipe, PPORecipe):
        return recorded | tokens
    # PPO samples from the whole distribution; transformers' own default cuts it (top_k 50)
    return tokens | {"do_sample": True, "temperature": recipe.temperature, "top_k": 0, "top_p": 1.0}


def _token_id(folder: Path, tokenizer: Mapping[str, Any], key: str) -> int | None:
    """Return the id of a special token by the tokenizer's files."""
    token: Any = tokenizer.get(key)
    text: Any = cast("dict[str, Any]", token).get("content") if isinstance(token, dict) else token
    decoder: Any = tokenizer.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        for index, added in cast("dict[str, Any]", decoder).items():
            if isinstance(added, dict) and cast("dict[str, Any]", added).get("content") == text:
                return int(index)
    whole: Any = _object(folder / "tokenizer.json", most=256 << 20).get("added_tokens")
    for added in cast("list[Any]", whole) if isinstance(whole, list) else []:
        if isinstance(added, dict) and cast("dict[str, Any]", added).get("content") == text:
            return int(cast("dict[str, Any]", added)["id"])
    return None


def _belongs(name: str) -> bool:
    """Return whether a file of the result's directory is part of what others load."""
    ours = name == "README.md" or (name.endswith(".safetensors") and not name.startswith(("adapter_model", "model")))
    return not ours and not name.startswith(".")


def _object(file: Path, most: int = 4 << 20) -> dict[str, Any]:
    """Read a JSON object; empty if there is no such file.

    Raises:
        DamagedError: it cannot be read.
    """
    try:
        return any_object(file, most)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DamagedError(f"{file} cannot be read: {error}.") from None


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
