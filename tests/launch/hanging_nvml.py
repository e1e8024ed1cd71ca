"""A stand-in for NVML in processes that a test starts: it answers a number of calls, and the next one hangs.

Without such a number it answers all; :data:`GPUS` says how many GPUs there are.

The folder that :func:`install` makes goes into ``PYTHONPATH``; its ``sitecustomize`` is imported by every Python.
"""

import os
from pathlib import Path

CALLS = "STACKLLAMA_TEST_NVML_CALLS"
"""Variable: how many calls are answered."""
GPUS = "STACKLLAMA_TEST_NVML_GPUS"
"""Variable: how many GPUs there are; one without it."""
PID = "STACKLLAMA_TEST_NVML_PID"
"""Variable: the process that holds memory on each of them; 1 without it."""
REACHED = "STACKLLAMA_TEST_NVML_REACHED"
"""Variable: a file that the hanging call touches, with the pid of its process."""

_CODE = """
import importlib.util, os, sys, time
import pynvml

spec = importlib.util.spec_from_file_location("fake_nvml", {fake!r})
fake_nvml = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake_nvml)
fake, calls = fake_nvml.FakeNvml(), [int(os.environ.get({calls!r}, "1000000000"))]
fake.pid = int(os.environ.get({pid!r}, "1"))
fake.count = int(os.environ.get({gpus!r}, "1"))


def hanging(function):
    def call(*arguments):
        calls[0] -= 1
        if calls[0] < 0:
            with open(os.environ[{reached!r}], "a") as file:
                file.write(str(os.getpid()) + chr(10))
            while True:
                time.sleep(3600)
        return function(*arguments)
    return call


for name in dir(fake):
    if name.startswith("nvml") and callable(getattr(fake, name)):
        setattr(pynvml, name, hanging(getattr(fake, name)))
pynvml.NVMLError = fake_nvml.NVMLError
"""


def install(folder: Path) -> dict[str, str]:
    """Write it; return the environment of processes that use it, without `CALLS`."""
    folder.mkdir(parents=True, exist_ok=True)
    fake = Path(__file__).with_name("fake_nvml.py")
    reached = folder / "reached"
    code = _CODE.format(fake=str(fake), calls=CALLS, reached=REACHED, gpus=GPUS, pid=PID)
    (folder / "sitecustomize.py").write_text(code)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, REACHED: str(reached)}
