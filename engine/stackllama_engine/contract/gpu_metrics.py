"""Names of what the supervisor records of a run's GPUs: ``gpu/3/power`` is the power of GPU 3.

Their definitions are in :data:`.metrics.METRICS`, under ``gpu/*/power``.
"""

import re

GPU_FILE = "gpus.jsonl"
"""File of an attempt: utilization, power, temperature and memory of its GPUs, as events of the kind ``metrics``.

``data.position`` is the step with the part of the next one that had passed, ``data.seconds`` the time that the values
are of, ``data.processes`` GPU → pid of the run → bytes."""

_NAME = re.compile(r"gpu/(\d{1,4})/([a-z_]+)")


def gpu_metric(index: int | str, quantity: str) -> str:
    """Return the name of a quantity of one GPU; of index ``*`` that of its definition."""
    return f"gpu/{index}/{quantity}"


def gpu_of(name: str) -> tuple[int, str] | None:
    """Return GPU and quantity of a metric's name; None where it is another one."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), match[2]) if match else None
