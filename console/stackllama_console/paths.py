"""Paths of the console's own files.

By the XDG Base Directory specification (https://specifications.freedesktop.org/basedir-spec/latest/). Runs are
elsewhere: ``contract.run_dir.Home``.
"""

from pathlib import Path

from stackllama_engine.contract.user_dirs import user_dir
from stackllama_engine.launch.hub_cache import hub_cache

_NAME = "stackllama"


def config_dir() -> Path:
    """Return the folder of a person's own files, ``keymap.yaml`` and ``themes/``: ``$XDG_CONFIG_HOME/stackllama``."""
    return _base("XDG_CONFIG_HOME", ".config")


def state_dir() -> Path:
    """Return the folder of settings, copied texts and crash traces: ``$XDG_STATE_HOME/stackllama``."""
    return _base("XDG_STATE_HOME", ".local/state")


def keymap_file() -> Path:
    """Return the file that rebinds keys: binding id → keys."""
    return config_dir() / "keymap.yaml"


def themes_dir() -> Path:
    """Return the folder of a person's own themes."""
    return config_dir() / "themes"


def settings_file() -> Path:
    """Return the file of the last model, stage and theme."""
    return state_dir() / "settings.json"


def copy_file() -> Path:
    """Return the file of the newest copied text, for terminals that refuse OSC 52."""
    return state_dir() / "copied.txt"


def screenshots_dir() -> Path:
    """Return the folder of screens saved as SVG."""
    return state_dir() / "screenshots"


def exports_dir() -> Path:
    """Return the folder of charts saved as CSV and SVG."""
    return state_dir() / "exports"


def model_cache() -> Path:
    """Return the Hugging Face cache (``HF_HUB_CACHE``, ``HF_HOME``; huggingface_hub's own defaults)."""
    return hub_cache()


def _base(variable: str, default: str) -> Path:
    return user_dir(variable, default) / _NAME
