"""The model that a recipe starts from, without parsing the whole YAML: a listing reads it for every run."""

import os
import re
from pathlib import Path

from stackllama_engine.contract.base import DEMO_BASE
from stackllama_engine.contract.run_files import open_file

_DEMO = "/".join(DEMO_BASE.parts[-2:])
_HEAD = 64 * 1024
_FOLDED = r"(?:\n {2,}[^\s:][^:\n]*(?=\n|\Z))*"  # PyYAML continues on the next line where a long value has a blank
_KEYS = re.compile(rf"^ *(?:model_name_or_path|adapter_path): *(.*{_FOLDED})", re.MULTILINE)


def model_label(model: str) -> str:
    """Return a base model for a cell: `demo`, a hub id, or the end of a path."""
    if not model.startswith("/"):
        return model
    end = "/".join(model.rstrip("/").split("/")[-2:])
    return "demo" if end == _DEMO else end  # of whatever installation it is


def recipe_model(path: Path) -> str:
    """Return ``model_name_or_path``, a merge's ``adapter_path``, or that of a pipeline's first stage.

    Returns:
        the value as written, empty when there is none.

    Raises:
        OSError: the file cannot be read.
    """
    with os.fdopen(open_file(path), "rb") as file:
        text = file.read(_HEAD).decode("utf-8", "replace")
    match = _KEYS.search(text)
    if match is None:
        return ""
    value = match[1].strip()
    if "\n" not in value and not value.startswith(("'", '"', "|", ">")):
        return "" if value in ("null", "~") else value
    # quoted or folded: rare, and not worth 20 ms otherwise
    from stackllama_engine.contract.user_yaml import YamlError, load_yaml

    try:
        return str(load_yaml(value))
    except YamlError:
        return value
