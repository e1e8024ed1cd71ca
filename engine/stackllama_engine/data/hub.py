"""Rows of a hub data set, through ``datasets``, which is imported only here and only when needed.

``lvwerra/stack-exchange-paired`` stores its four splits as directories ``data/<split>``, each with the one split
``train``; other data sets use their own split names.
"""

from collections.abc import Iterator
from typing import Any

from ..contract.errors import DataError, how_to_install
from ..contract.stages import Split
from .kinds import PAIRED


def read_hub(
    name: str, split: str, *, config: str | None, revision: str | None, streaming: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number from 1, row) of one split.

    Raises:
        DataError: ``datasets`` is not installed, the hub cannot be reached, or the data set or split does not exist.
    """
    options: dict[str, Any] = {"split": split}
    if name == PAIRED:
        if split not in list(Split):
            raise DataError(f"{PAIRED} has no split {split!r}; choose one of {', '.join(Split)}.")
        options = {"split": "train", "data_dir": f"data/{split}"}
    try:
        import datasets
    except ImportError:
        raise DataError(f"{name}: reading a hub data set needs `datasets`: {how_to_install('train')}.") from None
    number = 0
    try:
        rows = datasets.load_dataset(name, config, revision=revision, streaming=streaming, **options)
        for number, row in enumerate(rows, 1):
            yield number, dict(row)
    except Exception as error:  # the loader raises any kind of error: hub, network, files, formats
        at = f" after row {number}" if number else ""
        raise DataError(
            f"Hub data set {name!r}, split {split!r}, cannot be read{at}: {_one_line(error)} "
            "Check the name, the split and the network, or use a local file."
        ) from error


def _one_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text[:400] if text.endswith(".") else f"{text[:400]}."
