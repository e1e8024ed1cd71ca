"""Tests on a real GPU (`make gpu`); elsewhere they are skipped, and say why.

``STACKLLAMA_GPU_TESTS=cpu`` runs on the CPU what a CPU can: whether the tests themselves still work.
"""

import os
from pathlib import Path

import pytest
from tests.train.toy import make_base, make_reward_model

from stackllama_engine.contract.run_dir import Home
from stackllama_engine.launch.gpus import first_card

REHEARSAL = "STACKLLAMA_GPU_TESTS"


@pytest.fixture(scope="session", autouse=True)
def device() -> str:
    """Name the device, or skip everything here."""
    if os.environ.get(REHEARSAL) == "cpu":
        return "cpu"
    if first_card() is None:
        pytest.skip(f"no NVIDIA GPU may be used here; {REHEARSAL}=cpu runs on the CPU what a CPU can")
    import torch

    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} cannot use the GPU")
    return "cuda"


@pytest.fixture
def only_gpu(device: str) -> None:
    """Skip what a CPU cannot even rehearse."""
    if device == "cpu":
        pytest.skip("needs the GPU itself")


@pytest.fixture(scope="session")
def on_device(device: str) -> tuple[str, ...]:
    """Recipe keys of the device."""
    return (f"use_cpu={str(device == 'cpu').lower()}",)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def base(device: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("toy") / "base")


@pytest.fixture(scope="session")
def reward_model(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return make_reward_model(base, tmp_path_factory.mktemp("reward_model") / "adapter")
