"""Weight files without a tensor: what a model directory needs where nothing loads it."""

from pathlib import Path

EMPTY = (2).to_bytes(8, "little") + b"{}"


def write_weights(folder: Path, name: str = "model.safetensors") -> None:
    """Write one."""
    (folder / name).write_bytes(EMPTY)
