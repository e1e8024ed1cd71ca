"""``/proc`` and ``/sys/fs/cgroup`` as processes in control groups see them, made of a few files."""

from pathlib import Path

GIB = 1 << 30
MIB = 1 << 20


class Tree:
    """``/proc`` and ``/sys/fs/cgroup`` under a directory of a test, for one process.

    Args:
        root: takes the place of ``/``.
        memory: of the machine, in bytes.
    """

    def __init__(self, root: Path, memory: int = 64 * GIB) -> None:
        self.root = root
        self._write("proc/meminfo", f"MemTotal:  {memory >> 10} kB\nMemFree: 1 kB\nMemAvailable: {memory >> 11} kB\n")
        self.killed(0)

    def version_2(self, path: str, *, shown: str = "/") -> None:
        """Put the process into this cgroup; ``shown`` is the part of the tree that is mounted."""
        self._write("proc/self/cgroup", f"0::{path}\n")
        self._write(
            "proc/self/mountinfo",
            "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
            f"30 22 0:26 {shown} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
        )

    def version_1(self, path: str, *, shown: str = "/", cpu: str = "/elsewhere") -> None:
        """Put the process into cgroups of version 1, with version 2 mounted beside it for systemd alone."""
        self._write("proc/self/cgroup", f"9:name=systemd:/x\n4:memory:{path}\n1:cpu,cpuacct:{cpu}\n0::/x\n")
        self._write(
            "proc/self/mountinfo",
            "31 22 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
            f"32 22 0:28 {shown} /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
            "33 22 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        )

    def put(self, folder: str, **files: object) -> None:
        """Write files of a cgroup; ``memory_max`` is written as ``memory.max``, ``cpu_max`` as ``cpu.max``."""
        for name, value in files.items():
            controller, _, rest = name.partition("_")
            self._write(f"sys/fs/cgroup/{folder}/{controller}.{rest.replace('__', '.')}", f"{value}\n")

    def killed(self, count: int) -> None:
        """Set how many processes the machine's out-of-memory killer has killed so far."""
        self._write("proc/vmstat", f"nr_free_pages 1\noom_kill {count}\npgfault 2\n")

    def _write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
