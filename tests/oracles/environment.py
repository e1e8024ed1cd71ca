"""Environments of the oracles, one each, under ``build/oracles``: ``python tests/oracles/environment.py`` builds them.

Each is a virtual environment that holds its own pinned packages and, behind them, looks into the environment that
built it, so that torch is not installed once more: formulas do not depend on its version, and packages whose version
matters are pinned. Standard library only: it runs before there is anything to test.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1] / "build" / "oracles"
NAMES = ("torchrl", "trl", "liger")


def wanted(name: str) -> str:
    """Return what an environment is made of; one whose mark differs is out of date."""
    return f"{requirements(name).read_text(encoding='utf-8')}{sys.version}\n{sysconfig.get_path('purelib')}\n"


def requirements(name: str) -> Path:
    """Return the file of an environment's pinned packages."""
    return HERE / f"requirements-{name}.txt"


def python_of(name: str) -> Path | None:
    """Return the interpreter of an environment; None where it was not built, or is out of date."""
    mark = ROOT / name / "installed"
    return (
        ROOT / name / "bin" / "python" if mark.is_file() and mark.read_text(encoding="utf-8") == wanted(name) else None
    )


def build(name: str) -> None:
    """Build an environment anew.

    Raises:
        subprocess.CalledProcessError: a package cannot be installed; pip printed why.
    """
    home = ROOT / name
    venv.create(home, clear=True, with_pip=False)
    pip = (sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "--quiet", "--no-deps")
    subprocess.run([*pip, "--requirement", str(requirements(name))], check=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    # behind the environment's own packages, so that these win
    (packages / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    (home / "installed").write_text(wanted(name), encoding="utf-8")


if __name__ == "__main__":
    for each in NAMES:
        if python_of(each) is None:
            build(each)
        print(f"{each}: {python_of(each)}")
