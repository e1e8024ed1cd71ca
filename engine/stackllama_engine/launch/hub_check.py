"""Question to the Hugging Face hub before a launch: can this person download what the recipe names there, now?

Models and data sets that are in the cache are not asked about. Of a model the hub is asked for the files that
transformers will ask for: ``config.json`` and weights, which a licence that was not accepted withholds as well. The
answer is waited for in a thread of its own and for a limited time (``STACKLLAMA_HUB_DEADLINE``).

https://huggingface.co/docs/huggingface_hub/package_reference/utilities#errors
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from msgspec import Struct

from ..budget import safetensors
from ..contract.atomic_files import existing
from ..contract.env_settings import HUB_DEADLINE, setting
from ..contract.errors import RefusedError, UsageError
from ..contract.recipe import AnyRecipe, MergeRecipe, PPORecipe
from ..contract.user_dirs import expanded, user_dir
from ..data.kinds import kind_of
from .hub_cache import cached_model, hub_cache
from .preflight import training_stages
from .sections import PLACEHOLDER
from .timeouts import Asker, UnansweredError
from .weights import has_weights

DEADLINE = 8.0
"""Seconds to wait for the hub's answers; 0 asks nothing."""
CONFIGS = ("config.json",)
CONFIGS_OF_REWARD_MODEL = ("config.json", "adapter_config.json")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
WEIGHTS_OF_REWARD_MODEL = (*WEIGHTS, "adapter_model.safetensors", "adapter_model.bin")
_LOGIN = "run `hf auth login`, or set HF_TOKEN"
_HUB = Asker("the hub")


class Wanted(Struct, frozen=True, kw_only=True):
    """One thing that would be downloaded."""

    key: str
    """The recipe key that names it."""
    name: str
    kind: Literal["model", "dataset"]
    revision: str | None = None
    files: tuple[tuple[str, ...], ...] = ()
    """Of each tuple one file has to be there."""

    @property
    def label(self) -> str:
        """The key and its value, as in a recipe."""
        return f"`{self.key}: {self.name}`"

    @property
    def noun(self) -> str:
        """Its kind, in words."""
        return "data set" if self.kind == "dataset" else "model"


class _UnreachedError(Exception):
    """There was no answer of a hub; the message says why."""


def wanted_from_hub(recipe: AnyRecipe) -> list[Wanted]:
    """Return what a launch would download, each thing once.

    Args:
        recipe: with its inputs resolved (:mod:`.inputs`).
    """
    return list({(one.kind, one.name, one.revision): one for one in _wanted(recipe)}.values())


def check_hub(recipe: AnyRecipe) -> None:
    """Ask the hub for everything that a launch would download; all problems together.

    Args:
        recipe: with its inputs resolved.

    Raises:
        RefusedError: something cannot be downloaded: not there, gated, no login, offline, or no answer in time.
    """
    wanted = wanted_from_hub(recipe)
    given = setting(HUB_DEADLINE)
    seconds = DEADLINE if given is None else given
    if not wanted or not seconds:
        return
    try:
        problems = _HUB.answer(lambda: list(filter(None, map(_problem, wanted))), seconds)
    except (_UnreachedError, UnansweredError) as error:
        names = ", ".join(one.label for one in wanted)
        problems = [
            f"{names}: would be downloaded, and the hub at {_host()} cannot be reached ({error}). Check the network "
            "(proxy, HF_ENDPOINT), or give a local path."
        ]
    if problems:
        raise RefusedError(" ".join(problems))


def _wanted(recipe: AnyRecipe) -> Iterator[Wanted]:
    if isinstance(recipe, MergeRecipe):
        if recipe.base_model_name_or_path:
            yield from _model("base_model_name_or_path", recipe.base_model_name_or_path, None)
        return
    for one in training_stages(recipe):
        yield from _model("model_name_or_path", one.model_name_or_path, one.model_revision)
        if kind_of(one.dataset_name) == "hub" and (one.dataset_streaming or not _has_data(one.dataset_name)):
            yield Wanted(key="dataset_name", name=one.dataset_name, kind="dataset")
        if isinstance(one, PPORecipe) and one.reward_model_path:
            files = (CONFIGS_OF_REWARD_MODEL, WEIGHTS_OF_REWARD_MODEL)
            yield from _model("reward_model_path", one.reward_model_path, None, files)


def _model(
    key: str, name: str, revision: str | None, files: tuple[tuple[str, ...], ...] = (CONFIGS, WEIGHTS)
) -> Iterator[Wanted]:
    if name == PLACEHOLDER or existing(name) is not None:
        return
    here = cached_model(name, revision=revision)
    if here is None or not _is_whole(here):
        yield Wanted(key=key, name=name, kind="model", revision=revision, files=files)


def _is_whole(snapshot: Path) -> bool:
    """Return whether the weights of a cached model are all there; an interrupted download is continued."""
    try:
        return has_weights(snapshot) and not safetensors.read_files(snapshot).missing
    except (UsageError, OSError):  # damaged: preflight says so
        return True


def _has_data(name: str) -> bool:
    """Return whether a data set was downloaded before; the library falls back to it where the hub is not reached."""
    home = os.environ.get("HF_HOME")
    datasets = os.environ.get("HF_DATASETS_CACHE")
    root = expanded(home) if home else user_dir("XDG_CACHE_HOME", ".cache") / "huggingface"
    prepared = (expanded(datasets) if datasets else root / "datasets") / name.replace("/", "___").lower()
    snapshots = hub_cache() / ("datasets--" + name.replace("/", "--")) / "snapshots"
    return prepared.is_dir() or (snapshots.is_dir() and any(snapshots.iterdir()))


def _problem(one: Wanted) -> str | None:
    """Ask for one thing; return what is wrong, in one sentence with the way out.

    Raises:
        _UnreachedError: nothing answered.
    """
    from huggingface_hub import errors

    http_error: Any = errors.HfHubHTTPError.__bases__[0]  # of the hub's HTTP library, which changes with its version
    try:
        return _missing_files(one) if one.kind == "model" else _ask_for_data(one)
    except errors.OfflineModeIsEnabled:
        why = f"HF_HUB_OFFLINE is set, and the {one.noun} is not in the cache, or not whole"
        return f"{one.label}: {why}: unset it, or give a local path."
    except errors.LocalTokenNotFoundError:
        return f"{one.label}: nobody is logged in to the hub: {_LOGIN}."
    except errors.HFValidationError as error:
        return f"{one.label}: {str(error).splitlines()[0]}"
    except errors.HfHubHTTPError as error:
        return f"{one.label}: {_refusal(one, error)}"
    except (http_error, OSError, ValueError) as error:
        raise _UnreachedError(" ".join(str(error).split())[:120] or type(error).__name__) from error


def _refusal(one: Wanted, error: Any) -> str:
    """Return what an answer of the hub other than success means."""
    from huggingface_hub import errors, get_token

    page = f"{endpoint()}/{'datasets/' if one.kind == 'dataset' else ''}{one.name}"
    status: int = error.response.status_code
    if isinstance(error, errors.DisabledRepoError):
        return f"the hub has disabled this {one.noun}; choose another one."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has the {one.noun}, but not `model_revision: {one.revision}`; see {page}."
    if isinstance(error, errors.GatedRepoError):
        if get_token() is None:
            return f"a gated {one.noun}, and nobody is logged in: accept its licence at {page}, then {_LOGIN}."
        way_out = f"accept its licence at {page}; some owners grant access only later."
        return f"a gated {one.noun}, to which this account has no access: {way_out}"
    if isinstance(error, errors.RepositoryNotFoundError):
        login = "" if get_token() else f", and nobody is logged in ({_LOGIN})"
        return f"the hub has no such {one.noun}, or it is private{login}; check the name, or give a local path."
    if status in (401, 403):
        return f"the hub refuses this login ({status}): {_LOGIN}."
    return f"the hub at {_host()} answered with status {status}; try again later."


def _missing_files(one: Wanted) -> str | None:
    from huggingface_hub import file_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    ask: Callable[[str], object] = file_download.get_hf_file_metadata  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    for names in one.files:
        for name in names:
            try:
                ask(hf_hub_url(one.name, name, revision=one.revision, endpoint=endpoint()))
                break
            except EntryNotFoundError:
                continue
        else:
            return f"{one.label}: not a model that can be loaded: the hub's has no {' or '.join(names)}."
    return None


def _ask_for_data(one: Wanted) -> None:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint())
    if api.dataset_info(one.name).gated:
        api.auth_check(one.name, repo_type="dataset")


def endpoint() -> str:
    """Return the hub's address (``HF_ENDPOINT``)."""
    from huggingface_hub import constants

    return constants.ENDPOINT.rstrip("/")


def _host() -> str:
    """Return the hub's host without a login that its address may hold."""
    return urlsplit(endpoint()).netloc.rpartition("@")[2]
