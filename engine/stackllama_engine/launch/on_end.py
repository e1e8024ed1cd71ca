"""A person's command at the end of a run, when it stalls, and when a health rule finds something: ``on_end``.

It stands in ``$XDG_CONFIG_HOME/stackllama/settings.yaml`` (``on_end: COMMAND``) for all runs, or is in the environment
of one attempt's supervisor (``--on-end COMMAND`` of its launch or resume), which goes first. Never in a recipe or a
run's directory: both are passed on, and would run other people's commands. The supervisor runs it through ``/bin/sh``
with ``STACKLLAMA_RUN_ID``, ``_STAGE``, ``_STATE``, ``_CAUSE``, ``_EXIT_CODE`` and ``_PATH``; what it prints goes into
the supervisor's log. Whatever it does, the run's state stays. A stage of a pipeline that stalls is told of by id and
path of its pipeline. Of a finding ``_STATE`` is ``finding``, and ``_CAUSE`` is what it says.
"""

import os
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, cast

from ..contract.atomic_files import open_private
from ..contract.child_environment import inherited_environment
from ..contract.children import is_child, pipeline_of
from ..contract.errors import UsageError
from ..contract.redact import redactor
from ..contract.run_dir import RunDir, State
from ..contract.user_dirs import user_dir
from ..contract.user_files import read_text
from .supervisor_log import SUPERVISOR_LOG

VARIABLE = "STACKLLAMA_ON_END"
"""Environment variable of a supervisor with the command of its run."""
FINDING = "finding"
"""The state that the command is told of a finding, while the run continues."""
SECONDS = 60.0
"""After which a command is killed."""
_MOST_BYTES = 64 * 1024
_KEPT_BYTES = 8 * 1024  # of what it prints

LOCK = threading.Lock()
"""Held while a command is started; whoever reaps or signals every child of the process holds it too."""
_waited_for: set[int] = set()
_groups: set[int] = set()
_threads: list[threading.Thread] = []


def person_file() -> Path:
    """Return the file of a person's own settings, which nothing but the person writes.

    Raises:
        UsageError: no home directory is known.
    """
    return user_dir("XDG_CONFIG_HOME", ".config") / "stackllama" / "settings.yaml"


def person_command() -> str | None:
    """Return the command of the person's settings; None without one.

    Raises:
        UsageError: the file cannot be read, or says something else than `on_end: COMMAND`.
    """
    file = person_file()
    try:
        text = read_text(file, _MOST_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {error}.") from None
    from ..contract.user_yaml import YamlError, load_yaml

    try:
        raw = load_yaml(text)
    except YamlError as error:
        raise UsageError(f"{file} is not YAML: {error}.") from None
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise UsageError(f"{file}: expected `on_end: COMMAND`.")
    settings = cast("dict[Any, Any]", raw)
    if unknown := [str(key) for key in settings if key != "on_end"]:
        raise UsageError(f"{file}: unknown key `{unknown[0]}`; the only one is `on_end`.")
    command = settings.get("on_end")
    if command is not None and not isinstance(command, str):
        raise UsageError(f"{file}: `on_end` must be a command, as text.")
    return command or None


def command_of(run: RunDir, state: State) -> str | None:
    """Return the command of a run: the environment's, else the person's. A pipeline ends for its runs, which may stall.

    Raises:
        UsageError: as :func:`person_command`.
    """
    return None if state.has_ended and is_child(run) else os.environ.get(VARIABLE) or person_command()


def is_waited_for(pid: int) -> bool:
    """Return whether this child of the process is a command whose exit code its own thread takes."""
    return pid in _waited_for


def is_of_command(pid: int) -> bool:
    """Return whether a process is a command's, which outlives the attempt."""
    try:
        return os.getpgid(pid) in _groups
    except ProcessLookupError:
        return False


def run_command(
    run: RunDir, folder: Path, state: State, finding: str | None = None, *, seconds: float = SECONDS
) -> None:
    """Run the command of a run, if it has one, and wait for it; nothing that goes wrong is raised.

    Args:
        run: the run.
        folder: of its attempt, where the supervisor's log is.
        state: of this moment.
        finding: what a health rule found, if that is what it is run for.
        seconds: after which it is killed with all its processes.
    """
    try:
        if command := command_of(run, state):
            _log(folder, _run(pipeline_of(run) or run, command, state, finding, seconds))
    except (UsageError, OSError) as error:
        _log(folder, f"on_end: {error}")


def run_beside(run: RunDir, folder: Path, state: State, finding: str | None = None) -> None:
    """Do :func:`run_command` in a thread: the run continues."""
    thread = threading.Thread(target=run_command, args=(run, folder, state, finding), name="on-end", daemon=True)
    _threads.append(thread)
    thread.start()


def wait_beside() -> None:
    """Wait for the commands of :func:`run_beside`, each as long as it may take."""
    for thread in _threads:
        thread.join(SECONDS + 1)


def _run(run: RunDir, command: str, state: State, finding: str | None, seconds: float) -> str:
    """Return what is to be logged of a command."""
    environment = inherited_environment() | _variables(run, state)
    if finding is not None:
        environment |= {"STACKLLAMA_RUN_STATE": FINDING, "STACKLLAMA_RUN_CAUSE": finding.replace("\0", "")}
    environment.pop(VARIABLE, None)  # a run that the command launches is not followed by the same command for ever
    with tempfile.TemporaryFile() as output:
        with LOCK:
            process = subprocess.Popen(
                ["/bin/sh", "-c", command],
                cwd=run.path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            _waited_for.add(process.pid)
            _groups.add(process.pid)
        try:
            ended = f"exit code {process.wait(seconds)}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            ended = f"killed after {seconds:.0f} s"
        finally:
            _waited_for.discard(process.pid)
        output.seek(max(0, output.seek(0, os.SEEK_END) - _KEPT_BYTES))
        printed = output.read().decode("utf-8", "replace").strip()
    return "\n".join(filter(None, (f"on_end ({state.phase if finding is None else FINDING}): {ended}", printed)))


def _variables(run: RunDir, state: State) -> dict[str, str]:
    return {
        "STACKLLAMA_RUN_ID": run.id,
        "STACKLLAMA_RUN_STAGE": str(state.stage),
        "STACKLLAMA_RUN_STATE": state.phase,
        "STACKLLAMA_RUN_CAUSE": (state.cause or "").replace("\0", ""),
        "STACKLLAMA_RUN_EXIT_CODE": "" if state.exit_code is None else str(state.exit_code),
        "STACKLLAMA_RUN_PATH": str(run.path),
    }


def _log(folder: Path, text: str) -> None:
    """Append to the supervisor's log; a full disk loses the line and nothing else."""
    line = redactor().text(f"{time.strftime('%F %T')} {text}\n").encode("utf-8", "replace")
    try:
        descriptor = open_private(folder / SUPERVISOR_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    except OSError:
        return
    try:
        os.write(descriptor, line)
    except OSError:
        pass
    finally:
        os.close(descriptor)
