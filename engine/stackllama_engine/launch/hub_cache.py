"""Files of hub models that were downloaded before, found without asking a network.

Layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

import os
import re
from pathlib import Path

_COMMIT = re.compile(r"[0-9a-f]{6,64}")
_REPOSITORY = re.compile(r"models--[\w.-]+", re.ASCII)


def hub_cache() -> Path:
    """The Hugging Face cache (``HF_HUB_CACHE``, ``HF_HOME``; huggingface_hub's own defaults)."""
    if named := os.environ.get("HF_HUB_CACHE"):
        return Path(named)
    home = os.environ.get("HF_HOME")
    cache = os.environ.get("XDG_CACHE_HOME")
    root = Path(home) if home else (Path(cache) if cache else Path.home() / ".cache") / "huggingface"
    return root / "hub"


def cached_model(name: str, cache: Path | None = None) -> Path | None:
    """The files of a hub id's main revision; None where they are not here.

    Args:
        name: ``organisation/model``.
        cache: None: where the environment variables say.
    """
    folder = "models--" + name.replace("/", "--")
    if not _REPOSITORY.fullmatch(folder) or len(folder) > 200:
        return None
    return snapshot((cache or hub_cache()) / folder)


def snapshot(repository: Path) -> Path | None:
    """The files of a cached repository's main revision."""
    try:
        commit = (repository / "refs" / "main").read_bytes()[:128].decode("ascii", "replace").strip()
    except OSError:  # never downloaded whole, or another revision only
        return None
    found = repository / "snapshots" / commit
    return found if _COMMIT.fullmatch(commit) and found.is_dir() else None
