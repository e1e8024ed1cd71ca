"""Reader of a model's sizes from its files, without loading it.

:func:`read_architecture` takes a directory (``config.json`` and, where they are, the headers of its safetensors
files) or a ``.gguf`` file. Weights are never read. Whatever a file says is checked before it is used: it may be
truncated or malicious.
"""

from pathlib import Path
from typing import Any

import msgspec

from ..contract.errors import UsageError
from ..contract.user_files import UnsuitableFileError, any_object
from . import gguf, safetensors
from .architecture import Architecture
from .shapes import architecture_of

_CONFIG = "config.json"
_TOLERANCE = 0.02
"""Relative difference between the elements in a model's files and those of its sizes, as padded rows make."""


def read_architecture(path: Path) -> Architecture:
    """Read the sizes of the model in a directory or a ``.gguf`` file.

    Raises:
        UsageError: not a model, unreadable, truncated, or with impossible sizes.
    """
    try:
        if path.is_dir():
            return _read_directory(path)
        if path.suffix == ".gguf":
            return _read_gguf(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}.") from None
    if not path.exists():
        raise UsageError(f"{path}: no such directory or file.")
    raise UsageError(f"{path} is not a model: expected a directory with {_CONFIG}, or a .gguf file.")


def read_config(path: Path) -> dict[str, Any]:
    """Read ``config.json``, of at most 4 MiB.

    Raises:
        UsageError: missing, too large, or not a JSON object.
    """
    file = path / _CONFIG
    try:
        return any_object(file)
    except FileNotFoundError:
        raise UsageError(f"{path} is not a model: it has no {_CONFIG}.") from None
    except UnsuitableFileError as error:
        raise UsageError(f"{file}: cannot be read: {error}.") from None
    except ValueError as error:
        raise UsageError(f"{file}: not a JSON object: {error}.") from None


def _read_directory(path: Path) -> Architecture:
    config = read_config(path)
    files = safetensors.read_files(path)
    shape = architecture_of(config, path.name, str(path / _CONFIG), files.modules)
    changes: dict[str, Any] = {"bytes_on_disk": files.bytes_on_disk}
    if not shape.dtypes and files.dtypes:
        changes["dtypes"] = files.dtypes
    notes = [shape.rough] if shape.rough else []
    if files.missing:
        notes.append(f"{files.missing} of {files.expected} weight files are missing")
    if shape.packed:
        method = _quantised_by(config)
        reason = f"its weights are already quantised ({method})"
        changes["unknown"] = "; ".join(filter(None, (shape.unknown, reason)))
    else:
        declared = files.declared or files.declared_bytes // shape.checkpoint_bytes
        changes |= _counted(shape, declared if files.missing or not files.parameters else files.parameters)
    return msgspec.structs.replace(shape, **changes, rough="; ".join(notes) or None)


def _counted(shape: Architecture, held: int) -> dict[str, Any]:
    """Return the changes from the number of elements in a model's files.

    If it differs from that of the model's sizes, something is not counted, and the larger number is used.
    """
    if not held:
        return {}
    if shape.unknown or abs(held - shape.parameters) > _TOLERANCE * shape.parameters:
        why = f"its files have {held:,} parameters, its configuration {shape.parameters:,}"
        return {"parameters": max(held, shape.parameters), "unknown": shape.unknown or why}
    return {"parameters": held}


def _quantised_by(config: dict[str, Any]) -> str:
    """Return the method of a checkpoint that is already quantised."""
    return str(config["quantization_config"].get("quant_method", "unknown method"))[:40]


def _read_gguf(path: Path) -> Architecture:
    header = gguf.read_header(path)
    shape = architecture_of(gguf.as_config(header, path), path.stem, str(path), header.modules)
    changes = _counted(shape, header.parameters)
    # transformers dequantises a .gguf file to float32 and casts from there
    return msgspec.structs.replace(shape, **changes, bytes_on_disk=path.stat().st_size, dtypes=("float32",))
