"""Headers of safetensors files: 8 bytes length, a JSON object of name → dtype, shape, place; then the data.

https://huggingface.co/docs/safetensors/index#format. Only headers are read, and no more than a bounded part of them.
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
    """What a directory's weight files say."""

    parameters: int = 0
    """Elements in safetensors files; 0 where there are none."""
    bytes_on_disk: int = 0
    """Of safetensors, or of pickled weights where there is nothing else."""
    dtypes: tuple[str, ...] = ()
    """Most elements first."""
    modules: frozenset[str] = frozenset()
    """Names of tensors of the first layer and outside layers, to tell biases and ties by."""
    missing: int = 0
    expected: int = 0
    names: tuple[str, ...] = ()
    """Of the files that there should be."""
    promised: int = 0
    """Elements that the index says there are; 0: it does not."""
    promised_bytes: int = 0
    """Bytes of tensors, likewise."""


def read_files(path: Path) -> Files:
    """Headers of every safetensors file of a model directory.

    Raises:
        UsageError: a header or the index is torn or hostile.
        OSError: unreadable.
    """
    index = path / INDEX
    said: dict[str, int] = {}
    if index.is_file():
        names, said = _read_index(index)
    else:
        names = sorted(file.name for file in path.glob("*.safetensors") if not file.name.startswith("."))
        names = ["model.safetensors"] if "model.safetensors" in names else names
        names = [name for name in names if not name.startswith(("adapter_", "value_head"))]
    if not names:
        return Files(bytes_on_disk=sum(file.stat().st_size for file in path.glob(_PICKLES)))
    if len(names) > _MOST_FILES:
        raise UsageError(f"{path}: more than {_MOST_FILES} weight files.")
    present = [path / name for name in names if (path / name).is_file()]
    kinds: Counter[str] = Counter()
    seen: set[str] = set()
    budget = _MOST_HEADER
    for file in present:
        tensors, used = read_header(file, budget)
        budget -= used
        for name, tensor in tensors.items():
            kinds[_DTYPES.get(tensor.dtype, tensor.dtype)] += tensor.elements
            seen.add(name)
    return Files(
        parameters=sum(kinds.values()),
        bytes_on_disk=sum(file.stat().st_size for file in present),
        dtypes=tuple(name for name, _ in kinds.most_common() if name in _DTYPES.values()),
        modules=frozenset(seen),
        missing=len(names) - len(present),
        expected=len(names),
        names=tuple(names),
        promised=said.get("total_parameters", 0),
        promised_bytes=said.get("total_size", 0),
    )


def read_header(file: Path, most: int = _MOST_HEADER) -> tuple[dict[str, Tensor], int]:
    """The tensors of one file, and the bytes its header takes.

    Raises:
        UsageError: torn, not safetensors, or a header larger than ``most``.
    """
    with open_file(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > size - 8:
            raise UsageError(f"{file}: torn, or not a safetensors file: it ends inside its header.")
        if length > most:
            raise UsageError(f"{file}: its header of {length} bytes is larger than any model's; it is not read.")
        data = opened.read(length)
    try:
        entries = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        tensors = {name: msgspec.json.decode(raw, type=Tensor) for name, raw in entries.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UsageError(f"{file}: torn, or not a safetensors file: its header is not what the format says.") from None
    for name, tensor in tensors.items():
        begin, end = tensor.data_offsets
        if min(tensor.shape, default=0) < 0 or not 0 <= begin <= end:
            raise UsageError(f"{file}: tensor {name[:80]!r} has an impossible shape or place.")
        if end > size - 8 - length:
            raise UsageError(f"{file}: torn: it has {size} bytes and its header promises {8 + length + end}.")
        if tensor.elements > 8 * (end - begin) + 8:
            raise UsageError(f"{file}: tensor {name[:80]!r} has an impossible shape or place.")
    return tensors, length


def _read_index(index: Path) -> tuple[list[str], dict[str, int]]:
    """The files that an index names, and the sizes that it gives of them together."""
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
    told = cast("dict[str, Any]", metadata) if isinstance(metadata, dict) else {}
    # total_size is a float in some files of older writers
    sizes = {name: int(value) for name, value in told.items() if type(value) in (int, float) and 0 < value < _MOST_SIZE}
    return sorted(names), sizes
