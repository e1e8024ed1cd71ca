"""The exit code of a launcher of one process is the worker's; a signal's is 128 more, as in a shell."""

import subprocess
from collections.abc import Callable

import pytest

from stackllama_engine.train import accelerate_cli


def ending_with(code: int) -> Callable[[], None]:
    """accelerate without `--quiet`: what it raises when its process ended with anything but 0."""

    def main() -> None:
        raise subprocess.CalledProcessError(returncode=code, cmd=["python"])

    return main


@pytest.mark.parametrize(("worker", "launcher"), [(-9, 137), (-11, 139), (1, 1), (3, 3), (75, 75)])
def test_exit_code_is_the_workers(worker: int, launcher: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerate_cli, "main", ending_with(worker))
    with pytest.raises(SystemExit) as ended:
        accelerate_cli.run()
    assert ended.value.code == launcher


def test_success_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerate_cli, "main", lambda: None)
    accelerate_cli.run()
