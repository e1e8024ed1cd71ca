"""Weight files that a model or adapter directory has to hold; they are looked for and not read."""

from pathlib import Path

from ..contract.errors import UsageError

INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
_NOT_A_MODEL = ("adapter_", "value_head", ".")


def has_weights(folder: Path) -> bool:
    """Return whether a directory holds weights of a model in safetensors, the one format that is read."""
    files = [*folder.glob("*.safetensors"), *folder.glob(INDEX)]
    return any(not file.name.startswith(_NOT_A_MODEL) for file in files)


def check_weights(key: str, folder: Path) -> None:
    """Check that a directory holds the weights of what its configuration describes, a model or an adapter.

    Raises:
        UsageError: it holds no weights that are read; the text names key and path.
    """
    is_adapter = (folder / "adapter_config.json").is_file()
    if (is_adapter and (folder / ADAPTER).is_file()) or has_weights(folder):
        return
    wanted = ADAPTER if is_adapter else "*.safetensors"
    raise UsageError(
        f"`{key}: {folder}` has no weights: there is a configuration, but no {wanted} (other formats hold pickles and "
        "are not read); copy or download the rest."
    )
