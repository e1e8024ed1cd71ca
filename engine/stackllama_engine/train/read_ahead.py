"""Reading of weights into the page cache while libraries are imported, which takes seconds and reads other files."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 64 << 20
"""Bytes that the kernel is asked for at a time."""
_MEMINFO = Path("/proc/meminfo")


def read_ahead(recipe: Any) -> threading.Thread | None:
    """Ask the kernel to read a recipe's local weights, in a thread; None where nothing is to be read.

    One process per machine does. It asks for no more than half of what is free, since pages that are dropped again
    would be read twice. Errors are the loader's to report.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return None
    files = list(weight_files(recipe))
    if not files:
        return None
    thread = threading.Thread(target=_advise, args=(files, _free() // 2), name="read-ahead", daemon=True)
    thread.start()
    return thread


def weight_files(recipe: Any) -> Iterator[Path]:
    """Yield the files of a recipe's models and adapters that are on this machine: the base's first."""
    keys = ("model_name_or_path", "base_model_name_or_path", "reward_model_path", "policy_adapter_path", "adapter_path")
    for name in filter(None, (getattr(recipe, key, None) for key in keys)):
        path = Path(name)
        with contextlib.suppress(OSError):
            yield from [path] if path.suffix == ".gguf" and path.is_file() else sorted(path.glob("*.safetensors"))


def _advise(files: list[Path], most: int) -> None:
    """Ask for the files' blocks in order, up to so many bytes in all."""
    for file in files:
        with contextlib.suppress(OSError):
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                for start in range(0, min(os.fstat(descriptor).st_size, most), _BLOCK):
                    os.posix_fadvise(descriptor, start, _BLOCK, os.POSIX_FADV_WILLNEED)
                    most -= _BLOCK
                    if most <= 0:
                        return
            finally:
                os.close(descriptor)


def _free() -> int:
    """Return the bytes of main memory that are free or can be freed; 0 where nothing says so."""
    with contextlib.suppress(OSError, ValueError):
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return int(rest.split()[0]) << 10
    return 0
