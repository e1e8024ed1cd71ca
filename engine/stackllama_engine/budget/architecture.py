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
from . import gguf, safetensors

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
_MOST_CONFIG = 4 << 20
_CONFIG = "config.json"


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
    """Why the numbers are rough: what was missing or unknown. None: nothing was."""
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
    def layer_rows(self) -> int:
        """Output rows of one layer's matrices: int8 has a scale for each."""
        return sum(linear.outputs * linear.count for linear in self.linears)

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
        with file.open("rb") as opened:
            data = opened.read(_MOST_CONFIG + 1)
    except FileNotFoundError:
        raise UsageError(f"{path}: it is not a model; it has no {_CONFIG}.") from None
    if len(data) > _MOST_CONFIG:
        raise UsageError(f"{file}: larger than any {_CONFIG}; it is not read.")
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{file}: not a JSON object: {error}.") from None


def _read_directory(path: Path) -> Architecture:
    from .shapes import architecture_of  # both ways round: shapes makes the Struct of this module

    config = read_config(path)
    files = safetensors.read_files(path)
    shape = architecture_of(config, path.name, str(path / _CONFIG), files.modules)
    changes: dict[str, Any] = {"bytes_on_disk": files.bytes_on_disk}
    notes = [shape.rough] if shape.rough else []
    if not shape.dtypes and files.dtypes:
        changes["dtypes"] = files.dtypes
    if files.missing:
        notes.append(f"{files.missing} of {files.expected} weight files are missing")
    elif files.parameters:
        packed = isinstance(config.get("quantization_config"), dict)
        if packed:
            notes.append("the checkpoint is quantised already, so its files do not tell the number of parameters")
        else:
            changes["parameters"] = files.parameters
            if abs(files.parameters - shape.parameters) > 0.02 * shape.parameters:
                notes.append(f"its files hold {files.parameters:,} parameters, its sizes make {shape.parameters:,}")
    return msgspec.structs.replace(shape, **changes, rough="; ".join(notes) or None)


def _read_gguf(path: Path) -> Architecture:
    from .shapes import architecture_of

    header = gguf.read_header(path)
    shape = architecture_of(gguf.as_config(header, path), path.stem, str(path), header.modules)
    # transformers dequantises a .gguf file to float32 and casts from there
    return msgspec.structs.replace(
        shape, parameters=header.parameters, bytes_on_disk=path.stat().st_size, dtypes=("float32",)
    )
