"""The shape of a model, read from its files without loading it.

:func:`read_architecture` takes a directory (``config.json`` and, where they are, the headers of its safetensors
files) or a ``.gguf`` file. Weights are never read. Whatever a file says is checked before it is believed: it may be
torn, or made to harm.
"""

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ..contract.errors import UsageError
from ..contract.user_files import UnsuitableFileError, any_object
from . import gguf, safetensors

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
_CONFIG = "config.json"
_SAME = 0.02
"""Share by which a model's files may hold more or less than its sizes make, as with rows of padding."""


class Linear(Struct, frozen=True):
    """One kind of matrix in every layer; bitsandbytes quantises it, LoRA may adapt it."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False
    count: int = 1
    """Experts that each hold one."""
    source: str = ""
    """Which tensor it reads, so that matrices that share one are known: ``attn``, ``out``, ``mlp``, ``down``."""


class Architecture(Struct, frozen=True, kw_only=True):
    """A model's sizes. Counts are of elements, ``bytes_on_disk`` of bytes."""

    name: str
    model_type: str
    parameters: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    """Embedding and language-model head are one matrix."""
    biases: bool
    """Any linear has one."""
    experts: int | None = None
    experts_used: int = 1
    """Experts that one token visits."""
    dtypes: tuple[str, ...] = ()
    """Of the checkpoint, as ``config.json`` or the files name them; the most frequent first."""
    bytes_on_disk: int = 0
    rough: str | None = None
    """Why the numbers are rough: what was missing. None: nothing was."""
    unknown: str | None = None
    """Why `parameters` is but the least that there are: something of the model is not counted. None: all of it is."""
    packed: float | None = None
    """Of a checkpoint that is quantised already: least bytes of an element. None: it is not."""
    linears: tuple[Linear, ...] = ()
    norms: int = 0
    """Elements of the norms of one layer."""
    extra: int = 0
    """Elements outside layers, embedding and head: learned positions, final norm, biases of the head."""
    family: str = "llama"
    """How a layer computes: ``llama``, ``gemma``, ``phi``, ``neox``, ``gpt2``."""
    qk_norm: bool = False
    gated: bool = True
    activation: str = "silu"
    default_targets: tuple[str, ...] | None = None
    """LoRA targets when the recipe names none; None: PEFT knows none for this model."""

    @property
    def q(self) -> int:
        """Width of the queries of all heads."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of the keys, or the values, of all heads."""
        return self.kv_heads * self.head_dim

    @property
    def embedding(self) -> int:
        """Elements of the embedding."""
        return self.vocab * self.hidden

    @property
    def layer_linear(self) -> int:
        """Elements of one layer's matrices."""
        return sum(linear.inputs * linear.outputs * linear.count for linear in self.linears)

    @property
    def adaptable(self) -> tuple[Linear, ...]:
        """The matrices that are modules of their own: LoRA may adapt and bitsandbytes quantise them. The experts of a
        mixture are one parameter of three dimensions in transformers 5, which both leave alone."""
        return tuple(linear for linear in self.linears if linear.count == 1)

    @property
    def layer_rows(self) -> int:
        """Output rows of one layer's matrices that are quantised: int8 has a scale for each."""
        return sum(linear.outputs for linear in self.adaptable)

    @property
    def expert(self) -> int:
        """Elements of the experts of all layers."""
        return self.layers * sum(one.inputs * one.outputs * one.count for one in self.linears if one.count > 1)

    @property
    def linear(self) -> int:
        """Elements of all matrices inside layers."""
        return self.layers * self.layer_linear

    @property
    def other(self) -> int:
        """Elements of everything that is never quantised: embedding, head, norms, biases. Tied ones count once."""
        return max(0, self.parameters - self.linear)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of one element with ``dtype: auto``; float32 where the files do not say, as transformers has it."""
        known = [DTYPE_BYTES[name] for name in self.dtypes if name in DTYPE_BYTES]
        return known[0] if known else 4


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
    from .shapes import architecture_of  # both ways round: shapes makes the Struct of this module

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
    if shape.unknown or abs(held - shape.parameters) > _SAME * shape.parameters:
        why = f"its files hold {held:,} parameters, its sizes make {shape.parameters:,}"
        return {"parameters": max(held, shape.parameters), "unknown": shape.unknown or why}
    return {"parameters": held}


def _quantised_by(config: dict[str, Any]) -> str:
    """The method of a checkpoint that is quantised already."""
    return str(config["quantization_config"].get("quant_method", "by what is not said"))[:40]


def _read_gguf(path: Path) -> Architecture:
    from .shapes import architecture_of

    header = gguf.read_header(path)
    shape = architecture_of(gguf.as_config(header, path), path.stem, str(path), header.modules)
    changes = _counted(shape, header.parameters)
    # transformers dequantises a .gguf file to float32 and casts from there
    return msgspec.structs.replace(shape, **changes, bytes_on_disk=path.stat().st_size, dtypes=("float32",))
