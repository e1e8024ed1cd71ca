"""Fixtures: the stocked home, and the folder of its copies."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.damage.mutations import make_removable
from tests.damage.stock import Stock, stock
from tests.tui.conftest import soon_idle

from stackllama_engine.contract.run_dir import Home


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    home = Home(tmp_path_factory.mktemp("stock") / "home")
    stock(home)
    return Stock(home.path)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Make a folder, in memory if possible: a trial writes some hundred files and syncs some of them."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else tmp_path))
    yield made
    make_removable(made)
    shutil.rmtree(made)


__all__ = ["soon_idle"]
