"""Headers of safetensors files: 8 bytes length, a JSON object of name → dtype, shape, offsets; then the data.

https://huggingface.co/docs/safetensors/index#format. Only headers are read, up to a limit.
"""

import math
import os
from collections import Counter
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import Struct

from ..contract.errors import UsageError
from ..contract.user_files import UnsuitableFileError, any_object, open_file

INDEX = "model.safetensors.index.json"
_MOST_HEADER = 32 << 20
_MOST_FILES = 2000
_MOST_SIZE = 1 << 50
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
_PICKLES = "*.bin"


class Tensor(Struct, frozen=True):
    """One entry of a header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    @property
    def elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)


class Files(Struct, frozen=True, kw_only=True):
    """Facts from the weight files of a directory."""

    parameters: int = 0
    """Elements in safetensors files; 0 if there are none."""
    bytes_on_disk: int = 0
    """Size of the safetensors files, or of pickled weights if there are no others."""
    dtypes: tuple[str, ...] = ()
    """Dtypes, that of most elements first."""
    modules: frozenset[str] = frozenset()
    """Names of the tensors, from which biases and tied weights are found."""
    missing: int = 0
    expected: int = 0
    names: tuple[str, ...] = ()
    """Names of the expected files."""
    declared: int = 0
    """Number of elements according to the index; 0 if it does not say."""
    declared_bytes: int = 0
    """Bytes of tensors according to the index; 0 if it does not say."""


def read_files(path: Path) -> Files:
    """Read the headers of every safetensors file of a model directory.

    Raises:
        UsageError: a header or the index is truncated or malicious.
        OSError: unreadable.
    """
    index = path / INDEX
    totals: dict[str, int] = {}
    if index.is_file():
        names, totals = _read_index(index)
    else:
        names = sorted(file.name for file in path.glob("*.safetensors") if not file.name.startswith("."))
        names = ["model.safetensors"] if "model.safetensors" in names else names
        names = [name for name in names if not name.startswith(("adapter_", "value_head"))]
    if not names:
        return Files(bytes_on_disk=sum(file.stat().st_size for file in path.glob(_PICKLES)))
    if len(names) > _MOST_FILES:
        raise UsageError(f"{path}: has more than {_MOST_FILES} weight files.")
    present = [path / name for name in names if (path / name).is_file()]
    kinds: Counter[str] = Counter()
    modules: set[str] = set()
    budget = _MOST_HEADER
    for file in present:
        tensors, used = read_header(file, budget)
        budget -= used
        for name, tensor in tensors.items():
            kinds[_DTYPES.get(tensor.dtype, tensor.dtype)] += tensor.elements
            modules.add(name)
    return Files(
        parameters=sum(kinds.values()),
        bytes_on_disk=sum(file.stat().st_size for file in present),
        dtypes=tuple(name for name, _ in kinds.most_common() if name in _DTYPES.values()),
        modules=frozenset(modules),
        missing=len(names) - len(present),
        expected=len(names),
        names=tuple(names),
        declared=totals.get("total_parameters", 0),
        declared_bytes=totals.get("total_size", 0),
    )


def read_header(file: Path, most: int = _MOST_HEADER) -> tuple[dict[str, Tensor], int]:
    """Read the tensors of one file, and the size of its header in bytes.

    Raises:
        UsageError: truncated, not safetensors, or a header larger than ``most``.
    """
    with open_file(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > size - 8:
            raise UsageError(f"{file}: truncated or not a safetensors file: it ends inside its header.")
        if length > most:
            raise UsageError(f"{file}: refused, because its header of {length} bytes is larger than any model's.")
        data = opened.read(length)
    try:
        entries = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        tensors = {name: msgspec.json.decode(raw, type=Tensor) for name, raw in entries.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UsageError(f"{file}: truncated or not a safetensors file: its header is not valid.") from None
    for name, tensor in tensors.items():
        begin, end = tensor.data_offsets
        if min(tensor.shape, default=0) < 0 or not 0 <= begin <= end:
            raise UsageError(f"{file}: tensor {name[:80]!r} has an impossible shape or offset.")
        if end > size - 8 - length:
            raise UsageError(
                f"{file}: truncated: it has {size} bytes, its header declares {8 + length + end}; copy or download "
                "it again."
            )
        if tensor.elements > 8 * (end - begin) + 8:
            raise UsageError(f"{file}: tensor {name[:80]!r} has an impossible shape or offset.")
    return tensors, length


def _read_index(index: Path) -> tuple[list[str], dict[str, int]]:
    """Read the names of the files in an index, and its totals over all of them."""
    try:
        content = any_object(index, _MOST_HEADER)
        names = set(msgspec.convert(content.get("weight_map"), dict[str, str]).values())
    except UnsuitableFileError as error:
        raise UsageError(f"{index}: cannot be read: {error}.") from None
    except ValueError as error:
        raise UsageError(f"{index}: not an index of weight files: {error}.") from None
    if bad := sorted(name for name in names if "/" in name or "\0" in name or not name.endswith(".safetensors")):
        raise UsageError(f"{index}: names a weight file outside its directory: {bad[0][:80]!r}.")
    metadata = content.get("metadata")
    entries = cast("dict[str, Any]", metadata) if isinstance(metadata, dict) else {}
    totals = {
        name: int(value)
        for name, value in entries.items()
        if type(value) in (int, float) and 0 < value < _MOST_SIZE  # older writers store total_size as a float
    }
    return sorted(names), totals
