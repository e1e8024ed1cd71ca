"""Mutations of a run directory: changed bytes, changed values, or another kind of file in a file's place."""

import json
import os
import random
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stackllama_engine.contract.run_dir import RunDir

ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    256,
    2**31,
    2**53 + 1,
    2**63,
    2**64,
    10**30,
    -(10**30),
    0.5,
    -0.5,
    1e308,
    -1e308,
    5e-324,
    "",
    "x",
    "0",
    "12",
    "1e999",
    "NaN",
    "sft",
    "../../etc",
    "\x1b[2J\u202e\x07",
    "a\nb\x00c",
    "é" * 3000,
    [],
    {},
    [None],
    ["x"] * 3,
    {"x": None},
    {"": {"": {}}},
    [[[[[[]]]]]],
    {"exit_code": "0"},
    {"message": 5},
    "/dev/zero",
    "~",
    "\ud7ff",
]
WHOLE: list[bytes] = [
    b"",
    b"\n",
    b"\n\n\n",
    b"null",
    b"[]",
    b"{}",
    b'""',
    b"0",
    b"-",
    b"NaN",
    b"Infinity",
    b"1e999",
    b'{"a": 1e999}',
    b"\xff\xfe\x00",
    b"\x00" * 300,
    b"\xef\xbb\xbf{}",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"a":' * 3_000 + b"1" + b"}" * 3_000,
    b"9" * 5_000,
    b"- " * 3_000,
    b"{" * 3_000,
    b"x" * 3_000_000,
    b'{"seq":0,"time":1e308,"kind":"end","data":{}}\n' * 3,
    b"%YAML 9.9\n---\n",
    b"&a [*a]\n",
    b"a: &a [x,x]\nb: &b [*a,*a]\n",
    b"? [1]\n: 2\n",
    b"2024-99-99",
    b"!!python/object:os.system x",
]

Mutation = Callable[[random.Random, Path], str]


def mutate(rng: random.Random, run: RunDir) -> str:
    """Change one thing and describe it, so that the trial can be repeated."""
    if rng.random() < 0.12:
        return _intrude(rng, run)
    paths = sorted(path for path in run.path.rglob("*") if not path.is_symlink())
    read = [path for path in paths if path.is_file() and (path.parent == run.path or "attempts" in path.parts)]
    path = rng.choice(read if rng.random() < 0.8 else paths)  # those that commands and screens read, more often
    what = _replace if path.is_dir() else rng.choice(_OF_FILES)
    return f"{path.relative_to(run.path)}: {what(rng, path)}"


def _flip(rng: random.Random, path: Path) -> str:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 4, 40])):
        if data:
            index = rng.randrange(len(data))
            others = (rng.randrange(256), data[index] ^ (1 << rng.randrange(8)), 0xFF, 0, 0x22, 0x7B, 0x0A)
            data[index] = rng.choice(others)
    path.write_bytes(data)
    return "bytes flipped"


def _bad_text(rng: random.Random, path: Path) -> str:
    """Write a byte that is not UTF-8 into a text."""
    data = bytearray(path.read_bytes())
    letters = [index for index, byte in enumerate(data) if chr(byte).isalpha()]
    if letters:
        data[rng.choice(letters)] = rng.choice([0xFF, 0x80, 0xC3, 0xED])
    path.write_bytes(data)
    return "a byte that is not UTF-8"


def _truncate(rng: random.Random, path: Path) -> str:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data) + 1)])
    return "truncated"


def _insert(rng: random.Random, path: Path) -> str:
    data = path.read_bytes()
    index = rng.randrange(len(data) + 1)
    path.write_bytes(data[:index] + rng.choice(WHOLE)[:5000] + data[index:])
    return "bytes inserted"


def _rewrite(rng: random.Random, path: Path) -> str:
    data = rng.choice(WHOLE)
    path.write_bytes(data)
    return f"now {data[:30]!r}, {len(data)} bytes"


def _value(rng: random.Random, path: Path) -> str:
    """Replace one value of a JSON file, or of one of its lines, by an odd one."""
    text = path.read_text(errors="replace")
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    if not lines:
        return _rewrite(rng, path)
    number = rng.randrange(len(lines))
    try:
        document = json.loads(lines[number])
    except ValueError:
        return _yaml_value(rng, path, text)
    slots = list(_slots(document))
    holder, key = rng.choice(slots) if slots else (None, None)
    odd = rng.choice(ODD)
    if holder is None:
        document = odd
    else:
        holder[key] = odd
    lines[number] = json.dumps(document)
    path.write_text("\n".join(lines) + "\n")
    return f"{key} = {odd!r:.60}"


def _yaml_value(rng: random.Random, path: Path, text: str) -> str:
    lines = text.splitlines()
    number = rng.randrange(len(lines)) if lines else 0
    odd = rng.choice(ODD)
    if lines:
        lines[number] = f"{lines[number].partition(':')[0]}: {json.dumps(odd)}"
    path.write_text("\n".join(lines) + "\n")
    return f"line {number} = {odd!r:.60}"


def _slots(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _slots(inner)


def _replace(rng: random.Random, path: Path) -> str:
    """Put something of another kind, or nothing, in its place."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return rng.choice([_nothing, _folder, _full_folder, _pipe, _socket, _loop, _to_zero, _sparse, _file])(path)


def _forbid(rng: random.Random, path: Path) -> str:
    path.chmod(0)  # root reads it all the same
    return "mode 000"


def _nothing(path: Path) -> str:
    return "removed"


def _file(path: Path) -> str:
    path.write_bytes(b"a file\n")
    return "a file"


def _folder(path: Path) -> str:
    path.mkdir()
    return "a folder"


def _full_folder(path: Path) -> str:
    path.mkdir()
    (path / "x").write_bytes(b"x")
    return "a folder with a file"


def _pipe(path: Path) -> str:
    os.mkfifo(path)
    return "a pipe"


def _socket(path: Path) -> str:
    here = os.getcwd()  # noqa: PTH109
    os.chdir(path.parent)  # a socket's path is short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)
    return "a socket"


def _loop(path: Path) -> str:
    path.symlink_to(path.name)
    return "a link to itself"


def _to_zero(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "a link to /dev/zero"


def _sparse(path: Path) -> str:
    with path.open("wb") as file:
        file.truncate(80 << 20)
    return "80 MiB of nothing"


def _intrude(rng: random.Random, run: RunDir) -> str:
    """Add an entry that no code expects there."""
    name = rng.choice(
        [
            "attempts/²",
            "attempts/٣٣٣",
            "attempts/003",
            "attempts/000",
            "attempts/999999",
            "attempts/9999999999",
            "attempts/-01",
            "attempts/x",
            "lock.d/000001",
            "control/stop",
            "control/set-",
            "control/set-x",
            "control/\x1b[2J",
            "control/pause",
            "checkpoints/step-000099",
            "checkpoints/step-٣٣٣٣٣٣",
            "checkpoints/step-999999999999999999999",
            "checkpoints/.tmp-000004",
            "checkpoints/step-000002/new",
            "state.json.damaged-1",
            "restart.json",
            "../.new-x-0123",
            "../.deleted-x-0123",
            "../half",
            "../é",
            "../half/recipe.yaml",
            "adapter/x",
            "\u202e",
        ]
    )
    path = run.path / name
    path.parent.mkdir(exist_ok=True)
    if os.path.lexists(path):
        path.unlink() if not path.is_dir() or path.is_symlink() else shutil.rmtree(path)
    return f"{name}: {rng.choice([_file, _folder, _full_folder, _pipe, _loop, _to_zero])(path)}"


_OF_FILES: list[Mutation] = [
    _flip,
    _bad_text,
    _bad_text,
    _replace,
    _truncate,
    _insert,
    _rewrite,
    _rewrite,
    _value,
    _value,
    _value,
    _replace,
    _forbid,
]


def make_removable(folder: Path) -> None:
    """Restore permissions, so that a user who is not root can remove it."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0:
            path.chmod(0o700)
