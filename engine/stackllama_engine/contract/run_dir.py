"""The run directory: the only interface between console and engine.

::

    <home>/runs/<run-id>/            0700; files 0600
      recipe.yaml                    everything resolved, every default written out
      launch.json                    the argv really run, versions, commit, host, parents
      state.json                     replaced whole
      lock                           flock held by the supervisor for as long as it lives
      control/                       requests (see :mod:`.requests`); one file each, removed when served
      attempts/001/                  log.txt  events.jsonl; where there was reason to, health.jsonl  stacks.txt
      samples.jsonl                  questions, responses, rewards, KL
      checkpoints/step-000100/       atomic, with a manifest
      adapter/  merged/  result.json  lineage.json

Held lock = alive. Free lock and not finished = lost.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from .errors import RefusedError, UsageError
from .files import keep_spare, make_private_dir, open_private, write_into_spare, write_whole
from .redact import redactor
from .room import is_full
from .stages import Stage
from .streams import above_standard
from .user_dirs import expanded, user_dir

Phase = Literal[
    "queued", "starting", "running", "stalled", "stopping", "finished", "failed", "stopped", "lost"
]  # fmt: skip
ENDED: frozenset[str] = frozenset({"finished", "failed", "stopped", "lost"})
HEALTH_FILE = "health.jsonl"
"""In an attempt's folder: what the supervisor noticed, as events of the kind ``health``."""
RUN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

Request = Literal["stop", "save", "sample", "pause", "continue"]

T = TypeVar("T")

_SPARE = ".state.spare"
_SPARE_BYTES = 64 << 10  # more than a state with its last lines takes

_LOCK_PATIENCE = 2.0  # seconds; a reader that looks whether the lock is held holds it for microseconds


class ProcessId(Struct, frozen=True):
    """A process that cannot be mistaken for a later one with the same pid."""

    boot_id: str
    pid: int
    start_time: int
    """Clock ticks since boot, field 22 of ``/proc/<pid>/stat``."""


class State(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``state.json``. Times are Unix seconds."""

    stage: Stage
    phase: Phase
    attempt: int = 0
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    supervisor: ProcessId | None = None
    worker: ProcessId | None = None
    exit_code: int | None = None
    cause: str | None = None
    """Why it failed, in a sentence a person can act on."""
    last_lines: list[str] = []

    @property
    def has_ended(self) -> bool:
        """Whether nothing of this run is expected to be alive."""
        return self.phase in ENDED


class Launch(Struct, frozen=True, kw_only=True):
    """``launch.json``: how the newest attempt was started."""

    argv: list[str]
    cwd: str
    host: str
    created: float
    versions: dict[str, str] = {}
    git_commit: str | None = None
    parents: list[str] = []
    environment: dict[str, str] = {}
    """What the launcher added to the environment. Never a secret."""
    secrets: list[str] = []
    """Names of the secrets that were present, never their values."""


class Home:
    """Where runs live: ``--home``, else ``STACKLLAMA_HOME``, else ``$XDG_DATA_HOME/stackllama``."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises UsageError where neither names a place and no home directory is known."""
        self.path = expanded(path or _default_home()).absolute()

    @property
    def runs_dir(self) -> Path:
        """The parent of all run directories."""
        return self.path / "runs"

    def run(self, run_id: str) -> "RunDir":
        """An existing run.

        Raises:
            UsageError: not a run id, or no such run.
        """
        check_run_id(run_id)
        path = self.runs_dir / run_id
        if path.is_symlink() or not (path / "state.json").is_file():
            raise UsageError(f"No run `{run_id}` under {self.runs_dir}. `stackllama-console runs ls` lists them.")
        return RunDir(path)

    def runs(self) -> list["RunDir"]:
        """All runs, oldest first by creation. Directories that are not runs are left out."""
        if not self.runs_dir.is_dir():
            return []
        found = [
            RunDir(path)
            for path in self.runs_dir.iterdir()
            if RUN_ID.fullmatch(path.name) and not path.is_symlink() and (path / "state.json").is_file()
        ]
        return sorted(found, key=lambda run: (_created(run), run.id))

    def create(self, stage: Stage, recipe_yaml: str, name: str | None = None) -> "RunDir":
        """A new run directory with its recipe and a ``queued`` state; of two callers with one name one succeeds.

        Raises:
            UsageError: ``name`` is not a run id.
            RefusedError: the name is taken, or the home cannot be written.
        """
        run_id = check_run_id(name) if name else _new_id(stage)
        path = self.runs_dir / run_id
        try:
            make_private_dir(path)
        except FileExistsError:
            raise RefusedError(f"A run `{run_id}` exists already; choose another --name.") from None
        except OSError as error:
            raise RefusedError(f"{self.runs_dir} cannot be written: {error.strerror}. Choose another --home.") from None
        run = RunDir(path)
        try:
            for directory in (run.control, run.attempts, run.checkpoints):
                make_private_dir(directory)
            write_whole(run.recipe_file, recipe_yaml.encode())
            run.write_state(State(stage=stage, phase="queued", created=time.time()))
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)  # half a run would keep the name from the next attempt
            where = error.filename or path
            raise RefusedError(f"{where} cannot be written: {error.strerror}. Choose another --home.") from None
        return run


class RunDir:
    """One run: paths, state, lock and requests."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    @property
    def id(self) -> str:
        """The run id."""
        return self.path.name

    @property
    def recipe_file(self) -> Path:
        """``recipe.yaml``."""
        return self.path / "recipe.yaml"

    @property
    def control(self) -> Path:
        """``control/``."""
        return self.path / "control"

    @property
    def attempts(self) -> Path:
        """``attempts/``."""
        return self.path / "attempts"

    @property
    def checkpoints(self) -> Path:
        """``checkpoints/``."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """``adapter/``: the trained adapter (and score head) of a finished training run."""
        return self.path / "adapter"

    @property
    def merged(self) -> Path:
        """``merged/``: the model of a finished merge run."""
        return self.path / "merged"

    @property
    def samples_file(self) -> Path:
        """``samples.jsonl``."""
        return self.path / "samples.jsonl"

    def attempt_dir(self, attempt: int) -> Path:
        """``attempts/NNN``."""
        return self.attempts / f"{attempt:03d}"

    def attempt_dirs(self) -> list[Path]:
        """Every attempt's folder, first to last."""
        return sorted(path for path in self.attempts.iterdir() if path.name.isdigit()) if self.attempts.is_dir() else []

    def events_files(self) -> list[Path]:
        """Every attempt's ``events.jsonl``, first to last."""
        return [path / "events.jsonl" for path in self.attempt_dirs()]

    def health_files(self) -> list[Path]:
        """Every attempt's ``health.jsonl``, first to last; most attempts have none."""
        return [path / HEALTH_FILE for path in self.attempt_dirs()]

    # state

    def read_state(self) -> State:
        """The state as last written.

        Raises:
            UsageError: ``state.json`` is missing or unreadable.
        """
        return self._read("state.json", State)

    def write_state(self, state: State) -> None:
        """Replace ``state.json``; on a full disk into the spare file, where one is kept. Only the lock's holder writes.

        Raises:
            OSError: it cannot be written; the old one stays.
        """
        secrets = redactor()  # both quote what a library said
        cause = secrets.text(state.cause) if state.cause else state.cause
        state = msgspec.structs.replace(state, cause=cause, last_lines=secrets.value(state.last_lines))
        try:
            self._write("state.json", state)
        except OSError as error:
            if not is_full(error) or not (self.path / _SPARE).exists():
                raise
            write_into_spare(self.path / _SPARE, self.path / "state.json", _encoded(state))

    def keep_spare_state(self) -> None:
        """Have room at hand for one more state on a full disk; the spare file is one that an ended run has not.

        Raises:
            OSError: there is no room for it.
        """
        keep_spare(self.path / _SPARE, _SPARE_BYTES)

    def drop_spare_state(self) -> None:
        """Give it back."""
        (self.path / _SPARE).unlink(missing_ok=True)

    def read_launch(self) -> Launch:
        """How the newest attempt was started.

        Raises:
            UsageError: ``launch.json`` is missing or unreadable.
        """
        return self._read("launch.json", Launch)

    def write_launch(self, launch: Launch) -> None:
        """Replace ``launch.json``."""
        self._write("launch.json", launch)

    def read_json(self, name: str) -> dict[str, Any]:
        """``result.json`` or ``lineage.json``; empty when there is none yet.

        Raises:
            UsageError: the file is unreadable.
        """
        return self._read(name, dict[str, Any]) if (self.path / name).is_file() else {}

    def write_json(self, name: str, value: Any) -> None:
        """Replace ``result.json``, ``lineage.json``, without the secrets of this moment."""
        self._write(name, redactor().value(value))

    def _read(self, name: str, kind: type[T]) -> T:
        path = self.path / name
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except (OSError, msgspec.DecodeError) as error:
            raise UsageError(f"{path} cannot be read: {error}.") from None

    def _write(self, name: str, value: Any) -> None:
        write_whole(self.path / name, _encoded(value))

    # lock

    def acquire_lock(self) -> int:
        """Take the run's lock; it is held until the returned descriptor, and every inherited copy, is closed.

        Raises:
            RefusedError: somebody else holds it: the run is alive.
        """
        # Above 2: it is handed on by number, beside standard streams of the child's own.
        descriptor = above_standard(open_private(self.path / "lock", os.O_RDWR | os.O_CREAT))
        deadline = time.monotonic() + _LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(descriptor)
                    raise RefusedError(f"Run `{self.id}` is alive; stop it first: runs stop {self.id}") from None
                time.sleep(0.02)

    def lock_is_held(self) -> bool:
        """Whether a supervisor (or a launcher on its way) is alive."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(descriptor)

    # requests

    def request(self, what: Request) -> None:
        """Ask the run for something; served at the next step boundary."""
        os.close(open_private(self.control / what, os.O_WRONLY | os.O_CREAT))

    def requests(self) -> Iterator[str]:
        """The requests that wait."""
        with contextlib.suppress(FileNotFoundError):
            yield from sorted(path.name for path in self.control.iterdir())

    def served(self, what: Request) -> None:
        """Remove a request."""
        (self.control / what).unlink(missing_ok=True)


def _encoded(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def check_run_id(text: str) -> str:
    """The text itself when it is a run id.

    Raises:
        UsageError: it is not.
    """
    if not RUN_ID.fullmatch(text):
        raise UsageError(f"{text!r} is not a run name: use 1-64 of a-z 0-9 . _ - and begin with a letter or digit.")
    return text


def _default_home() -> Path:
    if named := os.environ.get("STACKLLAMA_HOME"):
        return Path(named)
    return user_dir("XDG_DATA_HOME", ".local/share") / "stackllama"


def _new_id(stage: Stage) -> str:
    return f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _created(run: RunDir) -> float:
    try:
        return run.read_state().created
    except UsageError:
        return 0.0
