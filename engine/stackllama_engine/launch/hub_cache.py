"""Files of hub models that were downloaded before, found without a network.

Layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

import os
import re
from pathlib import Path

from ..contract.user_dirs import expanded, user_dir
from ..contract.user_files import read_bytes

_MOST_REFERENCE = 4096
_COMMIT = re.compile(r"[0-9a-f]{6,64}")
_REVISION = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)
_REPOSITORY = re.compile(r"models--[\w.-]+", re.ASCII)


def hub_cache() -> Path:
    """Return the Hugging Face cache (``HF_HUB_CACHE``, ``HF_HOME``; huggingface_hub's own defaults)."""
    if named := os.environ.get("HF_HUB_CACHE"):
        return expanded(named)
    home = os.environ.get("HF_HOME")
    return (expanded(home) if home else user_dir("XDG_CACHE_HOME", ".cache") / "huggingface") / "hub"


def cached_model(name: str, cache: Path | None = None, *, revision: str | None = None) -> Path | None:
    """Return the files of a hub id; None where they are not here.

    Args:
        name: ``organisation/model``.
        cache: None: where the environment variables say.
        revision: branch, tag or commit; None: the main one.
    """
    folder = "models--" + name.replace("/", "--")
    if not _REPOSITORY.fullmatch(folder) or len(folder) > 200:
        return None
    return snapshot((cache or hub_cache()) / folder, revision or "main")


def snapshot(repository: Path, revision: str = "main") -> Path | None:
    """Return the files of one revision of a cached repository."""
    if not _REVISION.fullmatch(revision) or ".." in revision:
        return None
    if (repository / "snapshots" / revision).is_dir():  # a commit
        return repository / "snapshots" / revision
    try:
        commit = read_bytes(repository / "refs" / revision, _MOST_REFERENCE).decode("ascii", "replace").strip()
    except OSError:  # never downloaded whole, or another revision only
        return None
    folder = repository / "snapshots" / commit
    return folder if _COMMIT.fullmatch(commit) and folder.is_dir() else None
