"""Which base an adapter belongs to: written as ``base.json`` beside it, and found again wherever the base lies now.

A path is where the base was when the adapter was trained. What identifies it are its weights: a fingerprint of the
files. An adapter from elsewhere has no ``base.json``, and says no more than ``base_model_name_or_path`` in its
``adapter_config.json``: a path that may be relative to the directory it was trained in, a hub id, or nothing.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from .errors import StageError
from .user_files import MOST_HEADER, decode_json, open_file, read_json

BASE_FILE = "base.json"
"""Beside an adapter and in a checkpoint: which base it was trained on (see :func:`base_identity`)."""
CONFIG_FILE = "adapter_config.json"
BASE_KEY = "base_model_name_or_path"
"""PEFT's name for the base, in its file and in the merge recipe."""

_SHOWN = 12  # characters of a fingerprint that a person compares


class Base(NamedTuple):
    """Where an adapter's base is now."""

    name: str
    revision: str | None
    notice: str | None = None
    """What a person should know: it is elsewhere than recorded, or nothing says that it is the right one."""


def base_identity(name: str, revision: str | None) -> dict[str, str | None]:
    """Which base an adapter belongs to: name, revision, and for local weights a fingerprint of the files.

    The fingerprint hashes each safetensors file's name, size, header and the first KiB of every tensor, so that
    training any of them shows. Until 0.1 it covered every ``*.bin`` as well, among them the Trainer's
    ``training_args.bin``, which holds no weights; ``fingerprint_with_bin`` is that one, for adapters that recorded it.
    """
    path = Path(name)
    if not path.exists():
        return {"name": name, "revision": revision, "fingerprint": None}
    weights = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    identity: dict[str, str | None] = {
        "name": str(path.resolve()),
        "revision": None,
        "fingerprint": _fingerprint(weights) if weights else None,
    }
    if path.is_dir() and (others := list(path.glob("*.bin"))):
        identity["fingerprint_with_bin"] = _fingerprint(sorted([*weights, *others]))
    return identity


def same_base(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two identities are the same weights, wherever they lie (hub: the same name and revision)."""
    prints, others = _fingerprints(one), _fingerprints(other)
    if prints or others:
        return bool(prints & others)
    return (one.get("name"), one.get("revision")) == (other.get("name"), other.get("revision"))


def read_identity(adapter: Path) -> dict[str, Any]:
    """Which base an adapter was trained on; a relative path is looked up beside the adapter and above it.

    Raises:
        StageError: the directory does not say.
    """
    identity = _recorded(adapter)
    if identity is None:
        raise StageError(
            f"{adapter / CONFIG_FILE} names no base (`{BASE_KEY}: null`): write the base's path or hub id there, or "
            f"name it with `{BASE_KEY}=PATH` when you merge."
        )
    return identity


def find_base(adapter: Path, named: str | None = None, elsewhere: Iterable[Path] = ()) -> Base:
    """Where the base of an adapter is now.

    Args:
        adapter: its directory.
        named: where a person says it is; otherwise where the adapter says, then each of ``elsewhere``.
        elsewhere: models that may be it, known by fingerprint alone.

    Raises:
        StageError: it is not there, its weights are others now, or nothing says which base it is; names both paths.
    """
    recorded = _recorded(adapter) if named else read_identity(adapter)
    if named:
        return _check_named(adapter, recorded, named)
    assert recorded is not None
    name, revision = str(recorded["name"]), recorded.get("revision")
    if same_base(recorded, base_identity(name, revision)):
        if Path(name).is_absolute() and not Path(name).exists():
            raise StageError(
                f"{adapter} names {name} as its base, which is not there: say where it is with `{BASE_KEY}=PATH`."
            )
        return Base(name, revision)
    for path in elsewhere:
        if path.exists() and same_base(recorded, base_identity(str(path), None)):
            return Base(str(path), None, f"the adapter's base, recorded as {name}, is now {path} (same weights)")
    why = "has other weights now" if Path(name).exists() else "is not there any more"
    raise StageError(f"{name}, which {adapter} was trained on, {why}: say where its base is with `{BASE_KEY}=PATH`.")


def _check_named(adapter: Path, recorded: dict[str, Any] | None, named: str) -> Base:
    identity = base_identity(named, None)
    if recorded is None:
        return Base(named, None, f"{adapter} names no base; {named} is taken for it, as given by `{BASE_KEY}`")
    name = recorded["name"]
    if same_base(recorded, identity):
        moved = None if str(identity["name"]) == name else f"the adapter's base, recorded as {name}, is now {named}"
        return Base(named, None, moved)
    prints, others = _fingerprints(recorded), _fingerprints(identity)
    if prints and others:
        raise StageError(
            f"`{BASE_KEY}: {named}` is not the base of {adapter}, which was trained on {name}: their weights differ "
            f"(fingerprints {min(others)[:_SHOWN]} and {min(prints)[:_SHOWN]})."
        )
    return Base(named, None, f"{adapter} was trained on {name}; {named} is taken for it, which nothing confirms")


def _recorded(adapter: Path) -> dict[str, Any] | None:
    """What the adapter's files say; None when they name no base.

    Raises:
        StageError: it is not an adapter.
    """
    own = _read(adapter / BASE_FILE)
    if own is not None and own.get("name"):
        return own
    config = _read(adapter / CONFIG_FILE)
    if config is None:
        raise StageError(f"{adapter} is not an adapter: it has neither {BASE_FILE} nor {CONFIG_FILE}.")
    name = config.get(BASE_KEY)
    if not isinstance(name, str) or not name:
        return None
    revision = config.get("revision")
    return base_identity(_beside(adapter, name), revision if isinstance(revision, str) else None)


def _beside(adapter: Path, name: str) -> str:
    """A relative path, taken from the directory the adapter was trained in: most often one above it."""
    if Path(name).is_absolute() or Path(name).exists():
        return name
    for folder in adapter.absolute().parents:
        path = folder / name
        if path.is_file() or (path / "config.json").is_file():
            return str(path)
    return name


def _read(file: Path) -> dict[str, Any] | None:
    """A JSON object; None when there is no such file.

    Raises:
        StageError: it cannot be read.
    """
    try:
        content = read_json(file, object)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StageError(f"{file} cannot be read: {error}.") from None
    if not isinstance(content, dict):
        raise StageError(f"{file} cannot be read: it is not a JSON object.")
    return cast("dict[str, Any]", content)


def _fingerprints(identity: dict[str, Any]) -> set[str]:
    return {value for key in ("fingerprint", "fingerprint_with_bin") if (value := identity.get(key))}


def _fingerprint(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}:{file.stat().st_size}".encode())
        for part in _samples(file):
            digest.update(part)
    return digest.hexdigest()


def _samples(file: Path) -> Iterator[bytes]:
    """A safetensors file's header and the beginning of each tensor (the format: 8 bytes length, JSON, data).

    Raises:
        StageError: it cannot be read, or its header.
    """
    try:
        with open_file(file) as opened:
            if file.suffix == ".safetensors":
                yield from _safetensors_samples(opened)
                return
            while block := opened.read(1 << 20):
                yield block
    except OSError as error:
        raise StageError(f"{file} cannot be read: {error.strerror or error}.") from None
    except (ValueError, TypeError):
        raise StageError(f"{file} is truncated or not a safetensors file.") from None


def _safetensors_samples(opened: BinaryIO) -> Iterator[bytes]:
    length = int.from_bytes(opened.read(8), "little")
    header = opened.read(min(length, MOST_HEADER))
    yield header
    for _, tensor in sorted(decode_json(header, dict[str, Any]).items()):
        if "data_offsets" in tensor:
            begin, end = tensor["data_offsets"]
            opened.seek(8 + length + begin)
            yield opened.read(max(0, min(1024, end - begin)))
