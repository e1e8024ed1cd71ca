"""``doctor``: this machine's hardware and packages, what is missing, how to get it. ``info``: paths in use."""

import argparse
import importlib.util
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from stackllama_engine import __version__
from stackllama_engine.contract.errors import ExitCode, how_to_install
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.launch.main_memory import main_memory
from stackllama_engine.launch.nvml import NVML, Gpu, find_gpus
from stackllama_engine.launch.on_end import person_file

from .. import paths as places
from ..units import size
from .output import paint, show, show_fields, show_json

TRAINING = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
OPTIONAL = {"bitsandbytes": "bases in 8 and 4 bits", "gguf": "base models in .gguf files"}
CONSOLE = (
    "msgspec",
    "PyYAML",
    "psutil",
    "nvidia-ml-py",
    "huggingface_hub",
    "rich",
    "textual",
    "beautifulsoup4",
    "markdownify",
)
LEAST_DISK = 2 * 1024**3
"""Bytes; a checkpoint of a 7B model's adapters is a few hundred megabytes, a merged model 14 GB."""


class Report(Struct, kw_only=True):
    """Facts about the machine. ``problems`` prevent training, ``advice`` does not."""

    version: str
    python: str
    platform: str
    packages: dict[str, str | None]
    gpus: list[Gpu]
    driver: str | None
    cpus: int
    memory: int
    memory_available: int
    memory_limit: str | None
    """The limit below the machine's own memory, in words; None without one."""
    home: str
    disk_free: int
    problems: list[str] = []
    advice: list[str] = []


def doctor(arguments: argparse.Namespace) -> int:
    """Print the report; return 0 when training is possible here, else 1."""
    report = examine(Home(arguments.home))
    if arguments.json:
        show_json(msgspec.to_builtins(report) | {"can_train": not report.problems})
    else:
        _print(report)
    return ExitCode.FAILED if report.problems else ExitCode.DONE


def examine(home: Home) -> Report:
    """Examine the machine without importing torch or anything else that trains."""
    memory = main_memory()
    gpus, driver, driver_error = find_gpus()
    there = nearest_existing(home.path)
    report = Report(
        version=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        packages={name: _version(name) for name in (*TRAINING, *OPTIONAL, *CONSOLE)},
        gpus=gpus,
        driver=driver,
        cpus=len(os.sched_getaffinity(0)),
        memory=memory.total,
        memory_available=memory.available,
        memory_limit=str(memory.limit) if memory.limit else None,
        home=str(home.path),
        disk_free=shutil.disk_usage(there).free,
    )
    _find_problems(report, there, driver_error)
    return report


def nearest_existing(path: Path) -> Path:
    """Return the path itself or its nearest parent that exists."""
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _find_problems(report: Report, there: Path, driver_error: str | None) -> None:
    missing = [name for name in TRAINING if report.packages[name] is None]
    if missing:
        report.problems.append(f"{', '.join(missing)} missing: {how_to_install('train')}")
    if not sys.platform.startswith("linux"):
        report.problems.append("runs need Linux (/proc and flock); this is not Linux")
    if not os.access(there, os.W_OK | os.X_OK):
        report.problems.append(f"{there} cannot be written: choose another --home or set STACKLLAMA_HOME")
    if report.disk_free < LEAST_DISK:
        text = f"only {size(report.disk_free)} free at {there}: free some, or choose another --home"
        report.problems.append(text) if report.disk_free < LEAST_DISK // 20 else report.advice.append(text)
    report.advice += [
        f"{name} missing ({what}): {how_to_install('train')}"
        for name, what in OPTIONAL.items()
        if report.packages[name] is None
    ]
    if not report.gpus and NVML.hangs:
        report.problems.append(f"{driver_error}: the GPU driver hangs, as does any process that uses a GPU; reboot")
    elif not report.gpus:
        report.advice.append(f"no GPU ({driver_error or 'NVML finds none'}); training runs on the CPU, but slowly")
    elif (torch := report.packages["torch"]) and torch.endswith("+cpu"):
        report.advice.append(f"torch {torch} has no CUDA: https://pytorch.org/get-started names the build for your GPU")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _print(report: Report) -> None:
    gpus = [f"{gpu.index}: {gpu.name}, {size(gpu.free)} of {size(gpu.memory)} free" for gpu in report.gpus]
    limited = f", limited by {report.memory_limit}" if report.memory_limit else ""
    show_fields(
        [
            ("stackllama-console", report.version),
            ("Python", f"{report.python}, {report.platform}"),
            ("GPUs", "\n".join(gpus) + f"\ndriver {report.driver}" if gpus else "none"),
            ("CPUs", str(report.cpus)),
            ("memory", f"{size(report.memory_available)} of {size(report.memory)} available{limited}"),
            ("home", f"{report.home}, {size(report.disk_free)} free"),
            ("training", _packages(report, (*TRAINING, *OPTIONAL))),
            ("console", _packages(report, CONSOLE)),
        ]
    )
    show()
    for text in report.problems:
        sys.stdout.write(f"{paint('problem', 'red', sys.stdout)}: ")
        show(text)
    for text in report.advice:
        sys.stdout.write(f"{paint('note', 'yellow', sys.stdout)}: ")
        show(text)
    show(
        "Training is not possible on this machine yet." if report.problems else "Training is possible on this machine."
    )


def _packages(report: Report, names: tuple[str, ...]) -> str:
    import textwrap

    texts = [f"{name} {report.packages[name] or '(missing)'}".replace(" ", "\xa0") for name in names]
    return "\n".join(textwrap.wrap(", ".join(texts), 58, break_on_hyphens=False)).replace("\xa0", " ")


def info(arguments: argparse.Namespace) -> int:
    """Print the paths in use."""
    home = Home(arguments.home)
    spec = importlib.util.find_spec("stackllama_engine")
    paths: dict[str, Any] = {
        "version": __version__,
        "home": str(home.path),
        "runs": str(home.runs_dir),
        "settings": str(places.settings_file()),
        "on_end": str(person_file()),
        "keymap": str(places.keymap_file()),
        "themes": str(places.themes_dir()),
        "copied": str(places.copy_file()),
        "screenshots": str(places.screenshots_dir()),
        "crashes": str(places.state_dir()),
        "package": str(Path(spec.origin).parent) if spec and spec.origin else None,
        "python": sys.executable,
        "model_cache": str(places.model_cache()),
    }
    if arguments.json:
        show_json(paths)
    else:
        show_fields([(name.replace("_", " "), str(value)) for name, value in paths.items()])
    return ExitCode.DONE
