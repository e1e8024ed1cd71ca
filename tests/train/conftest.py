"""A toy base and, made once, what several tests look at."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stackllama_engine.contract.run_dir import Home

from .toy import make_base, make_reward_model


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread here and in every stage: several would wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("toy") / "base")


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def reward_model(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """Make the adapter of a reward model."""
    return make_reward_model(base, tmp_path_factory.mktemp("reward_model") / "adapter")
