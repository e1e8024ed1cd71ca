"""Lock files with hashes, resolved from the ranges of pyproject.toml; nothing is downloaded but metadata.

    python scripts/lock.py             # keeps the pins that still fit; `make lock`
    python scripts/lock.py --upgrade   # takes the newest versions that fit
    python scripts/lock.py --tiny      # only checks the four files against pyproject.toml and each other

Files written, each for `pip install --no-deps`:

- ``requirements.lock``: the console, training and what builds the editable install, without torch and its CUDA
  libraries; hashed.
- ``requirements-torch.lock``: torch's version alone, without a hash. A CPU build (``2.13.0+cpu``, from PyTorch's own
  index or a wheel on disk) is another file than PyPI's, is what pip prefers where it finds both, and would be refused.
- ``requirements-cuda.lock``: ``requirements.lock`` with PyPI's torch and its CUDA libraries; hashed.
- ``requirements-dev.lock``: tests, checks, documentation and releases, over the other files; hashed.

Needs ``uv`` on the path unless ``--tiny``.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ("hatchling", "editables")
"""What ``pip install --no-build-isolation --editable .`` imports."""
PYTHON = "3.11.5"
"""The oldest Python that every locked package allows (soupsieve wants 3.11.5)."""
RUNTIME, TORCH, CUDA, DEV = (ROOT / f"requirements{part}.lock" for part in ("", "-torch", "-cuda", "-dev"))
_COMMENTS = {
    RUNTIME: "Everything that runs, but torch: its CPU builds have other hashes than PyPI's (scripts/lock.py).",
    TORCH: "Without a hash: a CPU build is another file than PyPI's, and both are to be allowed (scripts/lock.py).",
    CUDA: "Everything that runs, with PyPI's torch and its CUDA libraries: `make run LOCK=requirements-cuda.lock`.",
    DEV: "Tests, checks, documentation and releases, over requirements.lock: never installed by `make run`.",
}
_MACHINES = " or ".join(f"(platform_machine == '{name}' and sys_platform == 'linux')" for name in ("aarch64", "x86_64"))
_MARKERS = {f" ; python_full_version < '3.14' and ({_MACHINES})": "", f" and ({_MACHINES})": ""}
"""What uv writes behind every pin, because of ``tool.uv.environments``."""
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the lock files, or check them; 1 when a check fails."""
    parser = argparse.ArgumentParser(description="Write the lock files from the ranges of pyproject.toml.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    parser.add_argument("--tiny", action="store_true", help="check the files, resolve nothing")
    options = parser.parse_args(arguments)
    if not options.tiny:
        write(upgrade=options.upgrade)
    mistakes = errors()
    counts = ", ".join(f"{lock.name} {len(pins(lock))}" for lock in (RUNTIME, CUDA, DEV))
    sys.stdout.write("".join(f"{mistake}\n" for mistake in mistakes) or f"packages pinned: {counts}\n")
    return int(bool(mistakes))


def write(*, upgrade: bool) -> None:
    """Resolve the CUDA lock, cut the others from it, and resolve development tools over it."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    _compile(CUDA, BUILD, upgrade=upgrade)
    blocks = _blocks(CUDA.read_text(encoding="utf-8"))
    rest = "".join(block for name, block in blocks if not of_torch(name))
    RUNTIME.write_text(_heading(RUNTIME) + rest, encoding="utf-8")
    TORCH.write_text(_heading(TORCH) + f"torch=={pins(CUDA)['torch']}\n", encoding="utf-8")
    _compile(DEV, [*extras["dev"], *extras["docs"]], upgrade=upgrade)


def _compile(lock: Path, more: Sequence[str], *, upgrade: bool) -> None:
    """Resolve the project with its ``train`` extra and ``more``; the development lock holds what is in no other."""
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", PYTHON, "--generate-hashes"]
    command += ["--no-annotate", "--no-header", "--extra", "train", *(["--upgrade"] if upgrade else [])]
    if lock == DEV:
        command += ["--constraint", str(CUDA), *(f"--no-emit-package={name}" for name in ("pip", *pins(CUDA)))]
    with tempfile.TemporaryDirectory() as folder:
        wanted, resolved = Path(folder, "wanted.in"), Path(folder, lock.name)
        wanted.write_text("".join(f"{requirement}\n" for requirement in more), encoding="utf-8")
        if lock.exists():
            resolved.write_bytes(lock.read_bytes())  # the pins that are preferred
        command += ["--output-file", str(resolved), "pyproject.toml", str(wanted)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        blocks = _blocks(resolved.read_text(encoding="utf-8"))
    lock.write_text(_heading(lock) + "".join(block for _, block in blocks), encoding="utf-8")


def _blocks(text: str) -> list[tuple[str, str]]:
    """Return each package and its lines: the pin and its hashes, without the marker that every pin has."""
    text = re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE)
    for marker, rest in _MARKERS.items():
        text = text.replace(marker, rest)
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)
    return [(match[1], block) for block in blocks if (match := _PIN.match(block))]


def _heading(lock: Path) -> str:
    return f"# Written by `make lock`. {_COMMENTS[lock]}\n"


def pins(lock: Path) -> dict[str, str]:
    """Return the versions of a lock file by package."""
    return dict(_PIN.findall(lock.read_text(encoding="utf-8")))


def of_torch(name: str) -> bool:
    """Return whether a package is torch, or is installed for PyPI's CUDA build of it alone."""
    return name in ("torch", "triton") or (name.startswith(("nvidia-", "cuda-")) and name != "nvidia-ml-py")


def errors() -> list[str]:
    """Return what is wrong with the lock files, one sentence per mistake."""
    runtime, torch, cuda, dev = map(pins, (RUNTIME, TORCH, CUDA, DEV))
    mistakes = [
        f"{lock.name}: {name} has no hash"
        for lock in (RUNTIME, CUDA, DEV)
        for name in _without_hash(lock.read_text(encoding="utf-8"))
    ]
    if {name: version for name, version in cuda.items() if not of_torch(name)} != runtime:
        mistakes.append("requirements.lock and requirements-cuda.lock differ in more than torch")
    if torch != {"torch": cuda.get("torch")}:
        mistakes.append("requirements-torch.lock and requirements-cuda.lock pin different versions of torch")
    mistakes += [f"requirements-dev.lock: {name} is also in requirements-cuda.lock" for name in dev if name in cuda]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    tools = [name for name in _names(extras["dev"]) if name in cuda and name not in BUILD]
    mistakes += [f"requirements.lock: {name} is a development tool" for name in tools]
    for wanted, locked in (
        ([*project["dependencies"], *extras["train"]], cuda),
        ([*extras["dev"], *extras["docs"]], cuda | dev),
    ):
        mistakes += [
            f"{name} is in pyproject.toml and in no lock file" for name in _names(wanted) if name not in locked
        ]
    return mistakes


def _names(requirements: Sequence[str]) -> list[str]:
    return [re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-") for requirement in requirements]


def _without_hash(text: str) -> list[str]:
    return [name for name, block in _blocks(text) if "--hash=sha256:" not in block]


if __name__ == "__main__":
    sys.exit(main())
