"""Answers of the oracles, each asked in its own environment."""

import json
import os
import subprocess
from typing import Any

import pytest

from .environment import HERE, python_of


def results_of(name: str, cases: dict[str, Any]) -> dict[str, Any]:
    """Return an oracle's results; skip the test where its environment was not built."""
    python = python_of(name)
    if python is None:
        pytest.skip(f"the environment of {name} was not built; `make oracles` builds it")
    # isolated: neither this checkout nor PYTHONPATH may stand before the environment's own packages
    done = subprocess.run(
        [python, "-I", HERE / f"oracle_{name}.py"],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
