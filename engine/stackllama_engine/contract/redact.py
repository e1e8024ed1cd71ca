"""Secrets stay out of everything that is written: their values are known from where they are kept, and blanked.

A secret is given in the environment or in the files that the libraries themselves read (huggingface_hub's token file,
``netrc`` for wandb). It is passed on to the worker there and nowhere else. A library may still print one, so every
text that this project writes goes through a :class:`Redactor`, and what a process prints through a
:class:`RedactedStream`; bytes that get around both are masked in the log (``launch/scrub.py``).
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
"""Characters; a shorter value may be any word of a text and is not looked for."""

_NAME = re.compile(
    r"TOKEN(?!IZER)|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY|(^|_)KEY$|_PAT$"
)
_REFERENCE = re.compile(r"_(PATH|FILE|DIR)$")
_IN_URL = re.compile(r"://[^/@\s:]*:([^/@\s]+)@")


def secret_names(environment: Iterable[str] = os.environ) -> list[str]:
    """Names of variables that look like secrets; their values are passed on and written nowhere."""
    return sorted(name for name in environment if _NAME.search(name.upper()) and not _REFERENCE.search(name.upper()))


def secret_values(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What must never be written, and the name that stands in its place.

    Values of variables that look like secrets, passwords inside URLs, huggingface_hub's token file, passwords of
    ``netrc``. The path of a file that exists is a reference and no secret.
    """
    found: dict[str, str] = {}
    for name in secret_names(environment):
        if not _is_path(environment[name]):
            found.update(dict.fromkeys(_parts(environment[name]), name))
    for name, value in environment.items():
        found.update(dict.fromkeys((part for url in _IN_URL.findall(value) for part in _parts(url)), name))
    for name, value in _kept_in_files(environment):
        found.update(dict.fromkeys(_parts(value), name))
    return found


class Redactor:
    """Replaces secrets in what is about to be written.

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
        """Bytes of the longest secret; 0: there is none."""
        return self._longest

    def text(self, text: str) -> str:
        """The text with ``<NAME>`` for each secret."""
        return self._text.sub(lambda match: f"<{self._names[match[0]]}>", text) if self._text else text

    def value(self, value: T) -> T:
        """The same for every string in a structure of dicts, lists and scalars."""
        return cast("T", self._inside(value)) if self._text else value

    def found_in(self, text: str) -> str | None:
        """Name of the first secret in a text."""
        match = self._text.search(text) if self._text else None
        return self._names[match[0]] if match else None

    def spans(self, data: bytes) -> list[tuple[int, int]]:
        """Where secrets are, as (start, end)."""
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
    """A text stream that blanks secrets in each piece that is written."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._redactor = redactor()

    def write(self, text: str, /) -> int:
        """Write; returns the number of characters that were given."""
        super().write(self._redactor.text(text))
        return len(text)


def redactor() -> Redactor:
    """For the secrets of this moment."""
    return Redactor(secret_values())


def redact_output() -> None:
    """From here on, what this process prints holds no secret, and a full disk costs it no more than its text.

    To be called before anything keeps a reference to the streams.
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
    """The value, and the lines of one that has several: a log shows them one by one."""
    for part in (value, *value.splitlines()):
        if len(part.strip()) >= SHORTEST:
            yield part.strip()


def _is_path(value: str) -> bool:
    try:
        return value.startswith(("/", "~/")) and Path(value).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long, no home, a NUL: no path
        return False


def _kept_in_files(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(name, value) of what the libraries read from files of their own."""
    home = environment.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - raises where no home is known
    cache = environment.get("XDG_CACHE_HOME") or f"{home}/.cache"
    hub = Path(environment.get("HF_HOME") or f"{cache}/huggingface")
    token = Path(os.path.expanduser(environment.get("HF_TOKEN_PATH") or hub / "token"))  # noqa: PTH111
    with contextlib.suppress(OSError, UnicodeDecodeError):  # none there, or one that nobody here can use
        yield "HF_TOKEN", read_text(token, MIB)
    with contextlib.suppress(OSError, UnicodeDecodeError, netrc.NetrcParseError):
        file = Path(environment.get("NETRC") or f"{home}/.netrc")
        os.close(open_regular(file))  # netrc would wait for whoever writes into a pipe
        entries = netrc.netrc(file).hosts
        for host, (_login, _account, password) in entries.items():
            yield f"netrc:{host}", password
