"""A toy base and, built once, the runs that several tests look at."""

from pathlib import Path

import pytest

from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage

from .toy import REWARD, make_base, run_stage


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("toy") / "base")


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def reward_run(shared_home: Home, base: Path) -> RunDir:
    return run_stage(shared_home, Stage.REWARD, f"model_name_or_path={base}", *REWARD)
