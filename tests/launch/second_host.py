"""A second machine on the same home: its own mounts, processes, host name and boot, and a lock file that is not shared.

Made of namespaces of one kernel, so it needs root.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stackllama_engine.contract.child_environment import source_path
from stackllama_engine.contract.run_dir import Home, RunDir

_ENTER = """
set -e
mount --make-rprivate /
hostname "$1"
mount --bind "$2" /proc/sys/kernel/random/boot_id
shift 2
while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done
shift
exec "$@"
"""


class SecondHost:
    """Runs commands as another machine would.

    Args:
        folder: for what it needs; emptied by nobody.
        name: its host name.
    """

    def __init__(self, folder: Path, name: str = "other-host") -> None:
        self.name = name
        self.folder = folder
        self.mounts: list[str] = []
        (folder / "boot_id").write_text(f"{name}-00000000-boot\n")
        tried = self.start("true")
        if tried.wait(30):
            pytest.skip(f"no second host here: {tried.communicate()[1].strip()[:200]}")

    def own_lock(self, run: RunDir) -> None:
        """Give it a lock file of its own, as on a file system whose flock works within one node only."""
        (run.path / "lock").touch(mode=0o600)
        own = self.folder / f"lock-{run.id}"
        own.touch(mode=0o600)
        self.mounts += [str(own), str(run.path / "lock")]

    def start(self, *argv: str, stdin: int | None = None) -> subprocess.Popen[str]:
        """Start a process there; everything that it starts ends with it."""
        inside = ["sh", "-c", _ENTER, "sh", self.name, str(self.folder / "boot_id"), *self.mounts, "--", *argv]
        return subprocess.Popen(
            ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc", *inside],
            env=os.environ | source_path(os.environ.get("PYTHONPATH", "")),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def command(self, home: Home, *words: str) -> tuple[int, str, str]:
        """Run the console's command there; return exit code, stdout, stderr."""
        process = self.start(sys.executable, "-m", "stackllama_console", *words, "--home", str(home.path))
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err


def needs_root() -> pytest.MarkDecorator:
    """Namespaces of mounts, processes and host names."""
    return pytest.mark.skipif(os.getuid() != 0, reason="a second host is made of namespaces, which needs root")


__all__ = ["SecondHost", "needs_root"]
