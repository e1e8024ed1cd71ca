"""Identity of an adapter's base model: recorded as ``base.json`` beside it, and used to find the base again.

The recorded path is where the base was when the adapter was trained. Its weights identify it: a fingerprint of the
files. An adapter from elsewhere has no ``base.json``, and only ``base_model_name_or_path`` in its
``adapter_config.json``: a path that may be relative to the directory it was trained in, a hub id, or nothing.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import stackllama_engine

from .errors import StageError
from .user_files import MOST_HEADER, decode_json, open_file, read_json

BASE_FILE = "base.json"
"""File beside an adapter and in a checkpoint: the base it was trained on (see :func:`base_identity`)."""
CONFIG_FILE = "adapter_config.json"
BASE_KEY = "base_model_name_or_path"
"""PEFT's key for the base, in its file and in the merge recipe."""

DEMO_BASE = Path(stackllama_engine.__file__).resolve().parent / "demo_base"
"""The embedded model of the demo."""
DEMO_RECIPE = DEMO_BASE / "demo.yaml"
"""The demo's pipeline recipe."""

_SHOWN = 12  # characters of a fingerprint in messages


class Base(NamedTuple):
    """Location of an adapter's base."""

    name: str
    revision: str | None
    notice: str | None = None
    """Notice for the user: it is elsewhere than recorded, or nothing confirms that it is the right one."""


def base_identity(name: str, revision: str | None) -> dict[str, str | None]:
    """Return the identity of a base: name, revision, and for local weights a fingerprint of the files.

    The fingerprint hashes each safetensors file's name, size, header and the first KiB of every tensor, so that
    training any of them changes it. Until 0.1 it also covered every ``*.bin``, among them the Trainer's
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
    """Return whether two identities are the same weights, wherever they are (hub: the same name and revision)."""
    prints, others = _fingerprints(one), _fingerprints(other)
    if prints or others:
        return bool(prints & others)
    return (one.get("name"), one.get("revision")) == (other.get("name"), other.get("revision"))


def read_identity(adapter: Path) -> dict[str, Any]:
    """Read which base an adapter was trained on; a relative path is looked up beside the adapter and above it.

    Raises:
        StageError: its files name no base.
    """
    identity = _recorded(adapter)
    if identity is None:
        raise StageError(
            f"{adapter / CONFIG_FILE} names no base (`{BASE_KEY}: null`): write the base's path or hub id there, or "
            f"give it with `{BASE_KEY}=PATH` when you merge."
        )
    return identity


def find_base(adapter: Path, named: str | None = None, elsewhere: Iterable[Path] = ()) -> Base:
    """Find the base of an adapter.

    Args:
        adapter: its directory.
        named: where the user says it is; None: where the adapter says, then each of ``elsewhere``.
        elsewhere: candidates, compared by fingerprint alone.

    Raises:
        StageError: it is missing, its weights have changed, or nothing says which base it is; names both paths.
    """
    recorded = _recorded(adapter) if named else read_identity(adapter)
    if named:
        return _check_named(adapter, recorded, named)
    assert recorded is not None
    name, revision = str(recorded["name"]), recorded.get("revision")
    if same_base(recorded, base_identity(name, revision)):
        if Path(name).is_absolute() and not Path(name).exists():
            raise StageError(
                f"{adapter} names {name} as its base, which does not exist: give its path with `{BASE_KEY}=PATH`."
            )
        return Base(name, revision)
    for path in elsewhere:
        if path.exists() and same_base(recorded, base_identity(str(path), None)):
            return Base(str(path), None, f"the adapter's base, recorded as {name}, is now {path} (same weights)")
    why = "has other weights now" if Path(name).exists() else "does not exist any more"
    raise StageError(f"{name}, which {adapter} was trained on, {why}: give its base with `{BASE_KEY}=PATH`.")


def _check_named(adapter: Path, recorded: dict[str, Any] | None, named: str) -> Base:
    identity = base_identity(named, None)
    if recorded is None:
        return Base(named, None, f"{adapter} names no base; using {named}, as given by `{BASE_KEY}`")
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
    return Base(
        named, None, f"{adapter} was trained on {name}; using {named} instead, without a fingerprint to confirm it"
    )


def _recorded(adapter: Path) -> dict[str, Any] | None:
    """Return the base that the adapter's files record; None if they name no base.

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
    """Resolve a relative path from the directory the adapter was trained in, most often one above it."""
    if Path(name).is_absolute() or Path(name).exists():
        return name
    for folder in adapter.absolute().parents:
        path = folder / name
        if path.is_file() or (path / "config.json").is_file():
            return str(path)
    return name


def _read(file: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if there is no such file.

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
        raise StageError(f"{file} cannot be read: not a JSON object.")
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
    """Yield a safetensors file's header and the beginning of each tensor; of another file all bytes.

    The format is 8 bytes length, JSON, data.

    Raises:
        StageError: the file or its header cannot be read.
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
