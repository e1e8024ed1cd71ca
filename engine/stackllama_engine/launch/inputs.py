"""Resolution of a recipe's inputs: a run, a path, a hub id, or ``demo``; each made explicit before launch.

Looked up in this order: ``demo``, a run of this home, an existing local path, and where one makes sense a hub id.
"""

import difflib
import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..contract.atomic_files import existing, existing_files
from ..contract.base import DEMO_BASE
from ..contract.errors import RefusedError, UsageError
from ..contract.recipe import (
    AnyRecipe,
    MergeRecipe,
    PipelineRecipe,
    PPORecipe,
    PreferenceRecipe,
    RewardRecipe,
    SFTRecipe,
    TrainedRecipe,
)
from ..contract.run_dir import RUN_ID, Home, RunDir
from ..contract.stages import PIPELINE_STAGES, TRAINING_STAGES, Split, Stage
from ..data.columns import Columns
from ..data.kinds import DEMO, FILE_SUFFIXES, kind_of
from ..data.local import ALL
from .data_check import check_data, function_arguments
from .functions import check_options, find_function, parameters_of
from .prompt_format_check import check_one_kind, check_prompt_format, prompt_format_kind
from .reward_model_check import check_reward_model
from .sections import PLACEHOLDER, map_sections, stage_recipe
from .weights import check_weights

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
_LONGEST_HUB_ID = 96  # huggingface_hub.utils.validate_repo_id
_ADAPTER_STAGES = TRAINING_STAGES


def resolve_inputs(home: Home, recipe: AnyRecipe) -> tuple[AnyRecipe, list[str]]:
    """Return the recipe with its inputs explicit, and the ids of the runs it takes them from.

    Raises:
        UsageError: an input is none of the things it may be; the text says which those are.
        RefusedError: it is a run of the wrong stage, or one that has not finished.
    """
    parents: list[str] = []

    def resolved(key: str, value: str, resolve: Callable[[Home, str, str, list[str]], str]) -> str:
        return value if value == PLACEHOLDER else resolve(home, key, value, parents)

    match recipe:
        case PipelineRecipe():
            pipeline = map_sections(recipe, lambda section: _collect(home, section, parents), PIPELINE_STAGES)
            check_one_kind([stage_recipe(pipeline, stage) for stage in PIPELINE_STAGES])
            return pipeline, _unique(parents)
        case MergeRecipe():
            path = resolved("adapter_path", recipe.adapter_path, _adapter)
            named = recipe.base_model_name_or_path
            base = resolved("base_model_name_or_path", named, _model) if named else None
            return (
                msgspec.structs.replace(recipe, adapter_path=path, base_model_name_or_path=base),
                _unique(parents),
            )
        case SFTRecipe() | RewardRecipe() | PreferenceRecipe() | PPORecipe():
            _check_splits(recipe)
            changed: dict[str, str] = {
                "model_name_or_path": resolved("model_name_or_path", recipe.model_name_or_path, _model),
                "dataset_name": resolved("dataset_name", recipe.dataset_name, _dataset),
            }
            columns = check_data(msgspec.structs.replace(recipe, **changed))
            if isinstance(recipe, PPORecipe):
                if recipe.reward_model_path:
                    path = resolved("reward_model_path", recipe.reward_model_path, _reward_model)
                    changed["reward_model_path"] = path
                if recipe.policy_adapter_path:
                    path = resolved("policy_adapter_path", recipe.policy_adapter_path, _adapter)
                    changed["policy_adapter_path"] = path
            check_prompt_format(msgspec.structs.replace(recipe, **changed), columns)
            if isinstance(recipe, PPORecipe):
                filled = msgspec.structs.replace(recipe, **changed)
                check_reward_model(filled, prompt_format_kind(filled, columns))
                paths = _function_paths(filled, columns)
                return msgspec.structs.replace(filled, reward_func_paths=paths), _unique(parents)
            return msgspec.structs.replace(recipe, **changed), _unique(parents)


def check_input(home: Home, key: str, value: str) -> None:
    """Check one input by itself, as a launch would look it up; for forms, while it is typed.

    Args:
        home: whose runs it may name.
        key: one of :data:`INPUTS`.
        value: what was given.

    Raises:
        StackllamaError: a launch would refuse it; the text names key and value.
    """
    INPUTS[key](home, key, value, [])


def _collect(home: Home, recipe: AnyRecipe, parents: list[str]) -> AnyRecipe:
    recipe, more = resolve_inputs(home, recipe)
    parents.extend(more)
    return recipe


def _model(home: Home, key: str, value: str, parents: list[str]) -> str:
    _refuse_hostile(key, value)
    if value == DEMO:
        return _demo_base()
    if run := _find_run(home, value):
        if run.read_state().stage is not Stage.MERGE:
            raise RefusedError(
                f"`{key}: {value}`: that run trained an adapter, not a whole model; "
                f"merge it first: `stackllama-console merge {value}`."
            )
        return _output(run, run.merged, key, parents)
    path = _path_or_hub(home, key, value, "the id of a finished merge run, a hub id, a local path, or `demo`")
    if Path(path).is_dir():
        _needs(key, Path(path), "config.json", why="it is not a model")
        check_weights(key, Path(path))
    elif Path(path).is_file() and not path.endswith(".gguf"):
        raise UsageError(f"`{key}: {path}` is a file; a model is a directory with config.json, or a .gguf file.")
    return path


def _function_paths(recipe: PPORecipe, columns: Columns | None) -> list[str | None]:
    """Return the directory of each reward function; None: it is installed."""
    if not recipe.reward_funcs:
        check_options([], recipe.reward_kwargs)
        return []
    given = function_arguments(recipe, columns)
    paths = [find_function(function.reference, function.directory, given) for function in recipe.functions]
    check_options(list(map(parameters_of, recipe.reward_funcs, paths)), recipe.reward_kwargs)
    return paths


def _dataset(home: Home, key: str, value: str, parents: list[str]) -> str:
    _refuse_hostile(key, value)
    if value == DEMO:
        return value
    if (found := existing_files(value)) and (path := str(found)):
        kind_of(path)  # a directory or file that is no data source is refused here, not in the middle of a run
        return path
    return _path_or_hub(
        home, key, value, "a hub id, a directory of `data prepare`, a file or a folder of files, or `demo`"
    )


def _adapter(home: Home, key: str, value: str, parents: list[str]) -> str:
    _refuse_hostile(key, value)
    if run := _find_run(home, value):
        if run.read_state().stage not in _ADAPTER_STAGES:
            raise RefusedError(
                f"`{key}: {value}`: that run trained no adapter; name a finished sft, reward, preference or ppo run."
            )
        return _output(run, _trained(run), key, parents)
    if path := _existing(value):
        _needs(key, Path(path), "adapter_config.json", "config.json", why="it is neither an adapter nor a model")
        check_weights(key, Path(path))
        return path
    raise _unknown(home, key, value, "the id of a finished sft, reward, preference or ppo run, or an adapter directory")


def _reward_model(home: Home, key: str, value: str, parents: list[str]) -> str:
    _refuse_hostile(key, value)
    if run := _find_run(home, value):
        if run.read_state().stage is Stage.REWARD:
            return _output(run, _trained(run), key, parents)
        if _merged_stage(home, run) is not Stage.REWARD:
            raise RefusedError(f"`{key}: {value}`: that run made no reward model; name a finished reward run.")
        return _output(run, run.merged, key, parents)
    allowed = "the id of a finished reward run, an adapter directory, or a sequence-classification model"
    if value == DEMO:
        raise UsageError(f"`{key}: {DEMO}`: the embedded demo holds no reward model; give {allowed}.")
    path = _path_or_hub(home, key, value, allowed)
    if Path(path).exists():
        _needs(key, Path(path), "adapter_config.json", "config.json", why="it is neither an adapter nor a model")
        check_weights(key, Path(path))
    return path


INPUTS: dict[str, Callable[[Home, str, str, list[str]], str]] = {
    "model_name_or_path": _model,
    "dataset_name": _dataset,
    "adapter_path": _adapter,
    "reward_model_path": _reward_model,
    "policy_adapter_path": _adapter,
    "base_model_name_or_path": _model,
}
"""The recipe keys that are inputs, and how each is looked up."""


def _merged_stage(home: Home, run: RunDir) -> Stage | None:
    """Return the stage whose adapter a merge run merged; None when it is no merge, or its adapter is from elsewhere."""
    if run.read_state().stage is not Stage.MERGE:
        return None
    for parent in run.read_launch().parents:
        if (parent_run := _find_run(home, parent)) and parent_run.read_state().stage in _ADAPTER_STAGES:
            return parent_run.read_state().stage
    return None


def _trained(run: RunDir) -> Path:
    """Return what a training run left: an adapter, or a whole model when it trained every weight."""
    return run.merged if run.merged.is_dir() and not run.adapter.is_dir() else run.adapter


def _output(run: RunDir, path: Path, key: str, parents: list[str]) -> str:
    phase = run.read_state().phase
    if phase != "finished":
        raise RefusedError(f"`{key}: {run.id}`: that run is {phase}, not finished; see `runs show {run.id}`.")
    if not path.is_dir():
        raise RefusedError(f"`{key}: {run.id}`: that run finished without {path}; it trained or merged something else.")
    parents.append(run.id)
    return str(path)


def _path_or_hub(home: Home, key: str, value: str, allowed: str) -> str:
    if path := _existing(value):
        return path
    if (
        len(value) <= _LONGEST_HUB_ID
        and _HUB_ID.fullmatch(value)
        and ".." not in value
        and not value.endswith((".gguf", *FILE_SUFFIXES))
    ):
        return value
    raise _unknown(home, key, value, allowed)


def _needs(key: str, path: Path, *names: str, why: str) -> None:
    """Refuse a path that lacks every one of the files that would make it what it should be."""
    if not any((path / name).is_file() for name in names):
        raise UsageError(f"`{key}: {path}`: {why}; it has no {' or '.join(names)}.")


def _check_splits(recipe: TrainedRecipe) -> None:
    """Check the splits of local data; a hub data set's are not known before launch."""
    name = recipe.dataset_name
    _refuse_hostile("dataset_name", name)
    if name != DEMO and not existing_files(name):
        return
    splits = [split.value for split in Split] + ([ALL] if kind_of(name) in ("file", "files") else [])
    for key in ("dataset_train_split", "dataset_test_split"):
        split: str = getattr(recipe, key)
        if split not in splits:
            near = difflib.get_close_matches(split, splits, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise UsageError(f"`{key}: {split}`: {name} has the splits {', '.join(splits)}.{hint}")


def _existing(value: str) -> str | None:
    path = existing(value)
    return str(path) if path else None


def _find_run(home: Home, value: str) -> RunDir | None:
    if not RUN_ID.fullmatch(value):
        return None
    try:
        return home.run(value)
    except UsageError:  # a well-formed name without a run: it may still be a path or a hub id
        return None


def _demo_base() -> str:
    if not DEMO_BASE.is_dir():
        raise UsageError(f"The embedded demo model is missing: {DEMO_BASE} does not exist; reinstall the package.")
    return str(DEMO_BASE)


def _refuse_hostile(key: str, value: str) -> None:
    if value.startswith("-") or not value.isprintable():
        raise UsageError(f"`{key}: {value!r}` is refused: names must not start with `-` or contain control characters.")


def _unknown(home: Home, key: str, value: str, allowed: str) -> UsageError:
    return UsageError(
        f"`{key}: {value}` is not found here: give {allowed}. "
        f"`stackllama-console runs ls` lists the runs of {home.path}."
    )


def _unique(parents: list[str]) -> list[str]:
    return list(dict.fromkeys(parents))
