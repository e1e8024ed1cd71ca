"""Imports of planning and supervision, which load neither training nor UI libraries."""

import os
import subprocess
import sys

import pytest

from stackllama_engine.contract.child_environment import source_path

HEAVY = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "textual", "rich", "numpy")
ENTRIES = [
    "contract.recipe_io",
    "contract.run_dir",
    "contract.history",
    "launch.launcher",
    "launch.supervisor",
    "launch.pipeline",
    "launch.reconcile",
    "data.sources",
    "data.preview",
    "data.prepare",
    "data.demo_data",
    "contract.chat_messages",
    "contract.chat_target",
    "launch.chat_process",
    "budget.fit",
    "budget.tracing",
]


@pytest.mark.parametrize("entry", ENTRIES)
def test_light_entries(entry: str) -> None:
    code = f"import sys, stackllama_engine.{entry}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | source_path(""), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_the_check_can_fail() -> None:
    code = f"import sys, numpy; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["numpy"]
