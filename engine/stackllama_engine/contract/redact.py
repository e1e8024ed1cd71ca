"""Redaction of secrets in everything that is written; their values are read from where they are stored.

A secret is given in the environment or in the files that the libraries themselves read (huggingface_hub's token file,
``netrc`` for wandb), and is passed to the worker there and nowhere else. A library may still print one, so every text
that this project writes goes through a :class:`Redactor`, and the output of a process through a
:class:`RedactedStream`; bytes that bypass both are masked in the log (``launch/scrub.py``).
"""

import contextlib
import io
import json
import netrc
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from .stdout import surviving
from .user_files import MIB, open_regular, read_text

T = TypeVar("T")

SHORTEST = 8
"""Minimum length of a secret in characters; a shorter value could be any word of a text."""

_NAME = re.compile(
    r"TOKEN(?!IZER)|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY|(^|_)KEY$|_PAT$"
)
_REFERENCE = re.compile(r"_(PATH|FILE|DIR)$")
_IN_URL = re.compile(r"://[^/@\s:]*:([^/@\s]+)@")


def secret_names(environment: Iterable[str] = os.environ) -> list[str]:
    """List the names of variables that look like secrets; their values are passed on and never written."""
    return sorted(name for name in environment if _NAME.search(name.upper()) and not _REFERENCE.search(name.upper()))


def secret_values(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Map each secret to the name that replaces it in texts.

    Values of variables that look like secrets, passwords inside URLs, huggingface_hub's token file, passwords of
    ``netrc``. The path of an existing file is a reference and no secret.
    """
    names: dict[str, str] = {}
    for name in secret_names(environment):
        if not _is_path(environment[name]):
            names.update(dict.fromkeys(_parts(environment[name]), name))
    for name, value in environment.items():
        names.update(dict.fromkeys((part for url in _IN_URL.findall(value) for part in _parts(url)), name))
    for name, value in _read_files(environment):
        names.update(dict.fromkeys(_parts(value), name))
    return names


class Redactor:
    """Replacement of secrets in a text before it is written.

    Args:
        secrets: value → name, as from :func:`secret_values`.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._names = dict(secrets)
        for value, name in secrets.items():  # as JSON and repr() spell it, where that differs
            self._names.setdefault(json.dumps(value, ensure_ascii=False)[1:-1], name)
            self._names.setdefault(repr(value)[1:-1], name)
        ordered = sorted(self._names, key=len, reverse=True)  # of two that overlap, the longer one
        self._longest = max((len(value.encode(errors="surrogateescape")) for value in ordered), default=0)
        self._text = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        self._bytes = re.compile(self._text.pattern.encode(errors="surrogateescape")) if self._text else None

    @property
    def longest(self) -> int:
        """Bytes of the longest secret; 0 if there is none."""
        return self._longest

    def text(self, text: str) -> str:
        """Return the text with each secret replaced by ``<NAME>``."""
        return self._text.sub(lambda match: f"<{self._names[match[0]]}>", text) if self._text else text

    def value(self, value: T) -> T:
        """Replace secrets in every string of a structure of dicts, lists and scalars."""
        return cast("T", self._inside(value)) if self._text else value

    def found_in(self, text: str) -> str | None:
        """Return the name of the first secret in a text; None if there is none."""
        match = self._text.search(text) if self._text else None
        return self._names[match[0]] if match else None

    def spans(self, data: bytes) -> list[tuple[int, int]]:
        """Return the position of each secret as (start, end)."""
        return [match.span() for match in self._bytes.finditer(data)] if self._bytes else []

    def _inside(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            mapping = cast("Mapping[Any, Any]", value)
            return {self._inside(key): self._inside(inner) for key, inner in mapping.items()}
        if isinstance(value, list | tuple):
            return [self._inside(inner) for inner in cast("list[Any]", value)]
        return value


class RedactedStream(io.TextIOWrapper):
    """Text stream that redacts secrets in each piece that is written."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._redactor = redactor()

    def write(self, text: str, /) -> int:
        """Write the redacted text; return the number of characters given."""
        super().write(self._redactor.text(text))
        return len(text)


def redactor() -> Redactor:
    """Return a redactor of the current secrets."""
    return Redactor(secret_values())


def redact_output() -> None:
    """Make this process's output redact secrets, and survive a full disk.

    Call it before anything keeps a reference to the streams.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        setattr(
            sys,
            name,
            RedactedStream(
                surviving(stream.detach()), encoding="utf-8", errors="backslashreplace", line_buffering=True
            ),
        )


def _parts(value: str) -> Iterator[str]:
    """Yield the value, and each line of it if it has several, because a log shows them one by one."""
    for part in (value, *value.splitlines()):
        if len(part.strip()) >= SHORTEST:
            yield part.strip()


def _is_path(value: str) -> bool:
    try:
        return value.startswith(("/", "~/")) and Path(value).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long, no home, a NUL: no path
        return False


def _read_files(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of the secrets in the libraries' own files."""
    home = environment.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - raises where no home is known
    cache = environment.get("XDG_CACHE_HOME") or f"{home}/.cache"
    hub = Path(environment.get("HF_HOME") or f"{cache}/huggingface")
    token = Path(os.path.expanduser(environment.get("HF_TOKEN_PATH") or hub / "token"))  # noqa: PTH111
    with contextlib.suppress(OSError, UnicodeDecodeError):  # none, or an unreadable one
        yield "HF_TOKEN", read_text(token, MIB)
    with contextlib.suppress(OSError, UnicodeDecodeError, netrc.NetrcParseError):
        file = Path(environment.get("NETRC") or f"{home}/.netrc")
        os.close(open_regular(file))  # netrc would block on a pipe
        entries = netrc.netrc(file).hosts
        for host, (_login, _account, password) in entries.items():
            yield f"netrc:{host}", password
