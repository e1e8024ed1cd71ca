"""Where the console keeps things of its own, by the XDG Base Directory specification
(https://specifications.freedesktop.org/basedir-spec/latest/). Runs are elsewhere: ``contract.run_dir.Home``.
"""

from pathlib import Path

from stackllama_engine.contract.user_dirs import user_dir
from stackllama_engine.launch.hub_cache import hub_cache

_NAME = "stackllama"


def config_dir() -> Path:
    """What a person writes: ``keymap.yaml``, ``themes/*.yaml``. ``$XDG_CONFIG_HOME/stackllama``."""
    return _base("XDG_CONFIG_HOME", ".config")


def state_dir() -> Path:
    """What we remember and what crashes leave behind. ``$XDG_STATE_HOME/stackllama``."""
    return _base("XDG_STATE_HOME", ".local/state")


def keymap_file() -> Path:
    """Keys of a person's own choice: binding id → keys."""
    return config_dir() / "keymap.yaml"


def themes_dir() -> Path:
    """Themes of a person's own."""
    return config_dir() / "themes"


def settings_file() -> Path:
    """Last model, stage, theme."""
    return state_dir() / "settings.json"


def copy_file() -> Path:
    """The newest text that was copied: terminals that refuse OSC 52 leave it here."""
    return state_dir() / "copied.txt"


def screenshots_dir() -> Path:
    """Screens saved as SVG."""
    return state_dir() / "screenshots"


def model_cache() -> Path:
    """The Hugging Face cache (``HF_HUB_CACHE``, ``HF_HOME``; huggingface_hub's own defaults)."""
    return hub_cache()


def _base(variable: str, default: str) -> Path:
    return user_dir(variable, default) / _NAME
