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
    """Sizes of the model in a directory or a ``.gguf`` file.

    Raises:
        UsageError: no model there, unreadable, torn, or holding sizes that no model has.
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
    raise UsageError(f"{path}: a model is a directory with {_CONFIG}, or a .gguf file.")


def read_config(path: Path) -> dict[str, Any]:
    """``config.json``, at most 4 MiB of it.

    Raises:
        UsageError: missing, too large, or no JSON object.
    """
    file = path / _CONFIG
    try:
        return any_object(file)
    except FileNotFoundError:
        raise UsageError(f"{path}: it is not a model; it has no {_CONFIG}.") from None
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
        said = f"its weights are quantised already ({method})"
        changes["unknown"] = "; ".join(filter(None, (shape.unknown, said)))
    else:
        promised = files.promised or files.promised_bytes // shape.checkpoint_bytes
        changes |= _counted(shape, promised if files.missing or not files.parameters else files.parameters)
    return msgspec.structs.replace(shape, **changes, rough="; ".join(notes) or None)


def _counted(shape: Architecture, held: int) -> dict[str, Any]:
    """What the number of elements in a model's files changes: where it is another than its sizes make, something is
    not counted, and the larger number is believed."""
    if not held:
        return {}
    if shape.unknown or abs(held - shape.parameters) > _TOLERANCE * shape.parameters:
        why = f"its files hold {held:,} parameters, its sizes make {shape.parameters:,}"
        return {"parameters": max(held, shape.parameters), "unknown": shape.unknown or why}
    return {"parameters": held}


def _quantised_by(config: dict[str, Any]) -> str:
    """The method of a checkpoint that is quantised already."""
    return str(config["quantization_config"].get("quant_method", "by what is not said"))[:40]


def _read_gguf(path: Path) -> Architecture:
    header = gguf.read_header(path)
    shape = architecture_of(gguf.as_config(header, path), path.stem, str(path), header.modules)
    changes = _counted(shape, header.parameters)
    # transformers dequantises a .gguf file to float32 and casts from there
    return msgspec.structs.replace(shape, **changes, bytes_on_disk=path.stat().st_size, dtypes=("float32",))
