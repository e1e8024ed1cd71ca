"""The run directory: the only interface between console and engine.

::

    <home>/runs/<run-id>/            0700; files 0600
      recipe.yaml                    the resolved recipe, with every default written out
      launch.json                    argv as run, versions, commit, host, parents
      state.json                     replaced atomically
      lock                           flock held by the supervisor while it lives (see :mod:`.run_lock`)
      control/                       requests (see :mod:`.requests`); one file each, removed when served
      attempts/001/                  recipe.yaml  log.txt  events.jsonl; if needed, health.jsonl  gpus.jsonl  stacks.txt
      samples.jsonl                  prompts, responses, rewards, KL
      checkpoints/step-000100/       atomic, with a manifest
      adapter/  merged/  result.json  lineage.json
      labels.json                    a person's title, tags and note (see :mod:`.labels`); no run reads it

A held lock means alive. A free lock and an unfinished state mean lost, on the machine of the run: ``State.host``.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from . import run_lock
from .atomic_files import keep_spare, make_private_dir, open_private, write_into_spare, write_whole
from .creation import create_whole
from .disk_space import is_full
from .errors import DamagedError, RefusedError, UsageError
from .host import Host, this_host
from .process_id import ProcessId
from .redact import redactor
from .run_files import UNDECODABLE, decode_file, why_unreadable
from .stages import Stage
from .times import UnixTime
from .user_dirs import expanded, user_dir

Phase = Literal["queued", "starting", "running", "stalled", "stopping", "finished", "failed", "stopped", "lost"]
ENDED: frozenset[str] = frozenset({"finished", "failed", "stopped", "lost"})
HEALTH_FILE = "health.jsonl"
"""File of an attempt: what the supervisor noticed, as events of the kind ``health``."""
_ATTEMPT = re.compile(r"[0-9]{3,6}")
RUN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

Request = Literal["stop", "save", "sample", "pause", "continue"]

T = TypeVar("T")

_SPARE = ".state.spare"
_SPARE_BYTES = 64 << 10  # more than a state with its last lines takes


class State(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``state.json``. Times are Unix seconds."""

    stage: Stage
    phase: Phase
    attempt: Annotated[int, Meta(ge=0, lt=1_000_000)] = 0
    created: UnixTime = 0.0
    started: UnixTime | None = None
    ended: UnixTime | None = None
    host: Host | None = None
    """Machine and time of its creation, or of the start of its newest attempt; None in runs from before 0.2."""
    supervisor: ProcessId | None = None
    worker: ProcessId | None = None
    exit_code: Annotated[int, Meta(ge=0, le=255)] | None = None
    cause: str | None = None
    """Reason for the failure, in a sentence that a user can act on."""
    last_lines: list[str] = []
    waiting: str | None = None
    """What a queued run waits for, in words; None: it does not wait."""
    findings: dict[str, str] = {}
    """Health rules that have found something and not cleared (:class:`.health.Finding`) → what they say."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing of this run is expected to be alive."""
        return self.phase in ENDED


class FunctionFile(Struct, frozen=True, kw_only=True):
    """Code of one of a recipe's ``reward_funcs``, as the stage imports it."""

    reference: str
    """``package.module:function``."""
    file: str
    sha256: str


class ForkedFrom(Struct, frozen=True, kw_only=True):
    """The checkpoint that a run continued from: of another run."""

    run: str
    step: Annotated[int, Meta(ge=0)]


class Launch(Struct, frozen=True, kw_only=True):
    """``launch.json``: how the newest attempt was started."""

    argv: list[str]
    cwd: str
    host: str
    created: UnixTime
    versions: dict[str, str] = {}
    git_commit: str | None = None
    parents: list[str] = []
    recipe_sha256: str | None = None
    """Hash of ``recipe.yaml`` when the attempt began; ``attempts/NNN/recipe.yaml`` is a copy. None in older runs."""
    environment: dict[str, str] = {}
    """Variables that the launcher added to the environment; never a secret."""
    secrets: list[str] = []
    """Names of the secrets that were present, never their values."""
    forked_from: ForkedFrom | None = None
    """None: the run began at its first step."""
    after: str | None = None
    """The run whose end this attempt waits for before it starts; None: it starts at once."""
    allow: list[str] = []
    """Findings of the checks at launch that the user allowed by name."""
    reward_funcs: list[FunctionFile] | msgspec.UnsetType = msgspec.UNSET
    """Unset: written by a version that did not record it, or in the next field."""
    reward_fn: FunctionFile | msgspec.UnsetType | None = msgspec.UNSET
    """Of a version whose recipe had one function at most. None: it had none."""


class Home:
    """Directory of all runs: ``--home``, else ``STACKLLAMA_HOME``, else ``$XDG_DATA_HOME/stackllama``.

    Raises:
        UsageError: no home directory is known and none was given, or a link leads to itself.
    """

    def __init__(self, path: Path | None = None) -> None:
        given = expanded(path or _default_home())
        self.given = given.absolute()
        """The path as given, links unresolved."""
        try:
            self.path = given.resolve()  # one name per home, whichever path leads to it
        except RuntimeError:
            raise UsageError(
                f"{str(given)!r} cannot be the home of runs: the link leads to itself; choose another --home."
            ) from None

    @property
    def runs_dir(self) -> Path:
        """The parent of all run directories."""
        return self.path / "runs"

    def run(self, run_id: str) -> "RunDir":
        """Open an existing run.

        Raises:
            UsageError: not a run id, or no such run.
        """
        check_run_id(run_id)
        path = self.runs_dir / run_id
        match kind_of(path):
            case "run":
                return RunDir(path)
            case "leftover":
                raise UsageError(
                    f"`{run_id}` is not a run: it was left by an interrupted launch; "
                    f"`stackllama-console runs rm {run_id}` removes it."
                )
            case _:
                raise UsageError(f"No run `{run_id}` under {self.runs_dir}. `stackllama-console runs ls` lists them.")

    def runs(self) -> list["RunDir"]:
        """List all runs by creation, oldest first, including damaged ones; other entries are left out."""
        return sorted(self.unsorted_runs(), key=lambda run: (_created(run), run.id))

    def unsorted_runs(self) -> list["RunDir"]:
        """List all runs without reading their states.

        Raises:
            OSError: the directory of runs cannot be read.
        """
        if not self.runs_dir.is_dir():
            return []
        return [RunDir(path) for path in self.runs_dir.iterdir() if kind_of(path) == "run"]

    def create(self, stage: Stage, recipe_yaml: str, name: str | None = None) -> "RunDir":
        """Create a run directory with its recipe and a ``queued`` state; of two callers with one name one succeeds.

        It appears whole: everything is written in a hidden directory, which is then renamed (:mod:`.creation`).

        Raises:
            UsageError: ``name`` is not a run id.
            RefusedError: the name is taken, or the home cannot be written.
        """
        path = self.runs_dir / (check_run_id(name) if name else _new_id(stage))
        check_free(path)
        state = State(stage=stage, phase="queued", created=time.time(), host=this_host())
        try:
            create_whole(path, recipe_yaml.encode(), encode_json(state))
        except FileExistsError:
            raise _taken(path) from None
        return RunDir(path)


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
        """Return the path ``attempts/NNN``."""
        return self.attempts / f"{attempt:03d}"

    def attempt_dirs(self) -> list[Path]:
        """List the directory of every attempt, first to last; other entries are left out.

        Raises:
            OSError: ``attempts/`` cannot be read.
        """
        if not self.attempts.is_dir():
            return []
        named = (path for path in self.attempts.iterdir() if _ATTEMPT.fullmatch(path.name))
        return sorted((path for path in named if path.is_dir() and not path.is_symlink()), key=lambda it: int(it.name))

    def events_files(self) -> list[Path]:
        """List every attempt's ``events.jsonl``, first to last."""
        return [path / "events.jsonl" for path in self.attempt_dirs()]

    def health_files(self) -> list[Path]:
        """List every attempt's ``health.jsonl``, first to last; most attempts have none."""
        return [path / HEALTH_FILE for path in self.attempt_dirs()]

    def touched(self) -> float:
        """Return the recipe's modification time, which stands in for a lost creation time; 0 if there is none."""
        try:
            return os.lstat(self.recipe_file).st_mtime
        except OSError:
            return 0.0

    # state

    def read_state(self) -> State:
        """Read the state as last written.

        Raises:
            DamagedError: ``state.json`` is missing or unreadable.
        """
        return self._read("state.json", State)

    def write_state(self, state: State) -> None:
        """Replace ``state.json``, on a full disk from the spare file if one is kept. Only the lock's holder writes.

        Raises:
            OSError: it cannot be written; the old one stays.
        """
        secrets = redactor()  # both may quote a library's message
        cause = secrets.text(state.cause) if state.cause else state.cause
        state = msgspec.structs.replace(state, cause=cause, last_lines=secrets.value(state.last_lines))
        try:
            self._write("state.json", state)
        except OSError as error:
            if not is_full(error) or not (self.path / _SPARE).exists():
                raise
            write_into_spare(self.path / _SPARE, self.path / "state.json", encode_json(state))

    def keep_spare_state(self) -> None:
        """Reserve room for one more state on a full disk; a run that ended has no spare file.

        Raises:
            OSError: there is no room for it.
        """
        keep_spare(self.path / _SPARE, _SPARE_BYTES)

    def drop_spare_state(self) -> None:
        """Remove the spare file."""
        (self.path / _SPARE).unlink(missing_ok=True)

    def read_launch(self) -> Launch:
        """Read how the newest attempt was started.

        Raises:
            DamagedError: ``launch.json`` is missing or unreadable.
        """
        return self._read("launch.json", Launch)

    def write_launch(self, launch: Launch) -> None:
        """Replace ``launch.json``."""
        self._write("launch.json", launch)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read ``result.json`` or ``lineage.json``; empty if there is none yet.

        Raises:
            DamagedError: the file is unreadable.
        """
        return self._read(name, dict[str, Any]) if os.path.lexists(self.path / name) else {}

    def write_json(self, name: str, value: Any) -> None:
        """Replace ``result.json`` or ``lineage.json``, with secrets redacted."""
        self._write(name, redactor().value(value))

    def _read(self, name: str, kind: type[T]) -> T:
        path = self.path / name
        try:
            return decode_file(path, kind)
        except (OSError, *UNDECODABLE) as error:
            raise self.damaged(name, why_unreadable(error)) from None

    def damaged(self, name: str, why: str) -> DamagedError:
        """Return the error that a file of the run cannot be read, with the fix."""
        return DamagedError(
            f"{self.path / name} cannot be read: {why}. "
            f"`stackllama-console runs repair {self.id}` rebuilds as much as possible."
        )

    def _write(self, name: str, value: Any) -> None:
        write_whole(self.path / name, encode_json(value))

    # lock

    def acquire_lock(self, *, holder_gone: bool = False) -> int:
        """Take the run's lock; it is held until the returned descriptor, and every inherited copy, is closed.

        Args:
            holder_gone: a holder on another machine is known to be gone.

        Raises:
            RefusedError: another process holds it: the run is alive.
        """
        try:
            return run_lock.acquire(self.path, holder_gone=holder_gone)
        except BlockingIOError:
            hosts = run_lock.hosts_out_of_sight(self.path)
            where = f" on {hosts[0]}, as far as can be told from here (or add --host-gone {hosts[0]})" if hosts else ""
            raise RefusedError(
                f"Run `{self.id}` is alive{where}; stop it first: stackllama-console runs stop {self.id}"
            ) from None

    def release_lock(self, descriptor: int) -> None:
        """Release the lock of `acquire_lock`; it stays held as long as an inherited copy is open."""
        run_lock.release(descriptor)

    def lock_is_held(self) -> bool:
        """Return whether a supervisor (or a launcher that starts one) is alive."""
        return run_lock.is_held(self.path)

    # requests

    def request(self, what: Request) -> None:
        """Write a request, which the run serves at the next step boundary.

        Raises:
            OSError: ``control/`` cannot be written.
        """
        self.make_control()
        os.close(open_private(self.control / what, os.O_WRONLY | os.O_CREAT))

    def make_control(self) -> None:
        """Create ``control/`` if it is missing.

        Raises:
            OSError: it cannot be created.
        """
        with contextlib.suppress(FileExistsError):
            make_private_dir(self.control)

    def requests(self) -> Iterator[str]:
        """Yield the pending requests; none from other entries than files, or from an unreadable directory."""
        with contextlib.suppress(OSError), os.scandir(self.control) as entries:
            yield from sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))

    def asked_to_stop(self) -> bool:
        """Return whether ``stop`` is pending; cheaper than listing all requests."""
        return os.path.exists(self.control / "stop")  # noqa: PTH110 - Path.exists raises where it is not permitted

    def served(self, what: Request) -> None:
        """Remove a served request."""
        (self.control / what).unlink(missing_ok=True)


def kind_of(path: Path) -> Literal["run", "leftover"] | None:
    """Classify an entry of ``runs/``: a run, what an interrupted launch left under a run's name, or neither.

    A directory without ``state.json`` is a damaged run if anything shows that it was ever started.
    """
    if not RUN_ID.fullmatch(path.name) or path.is_symlink():
        return None
    if os.path.lexists(path / "state.json"):
        return "run"
    if not path.is_dir():
        return None
    started = any(os.path.lexists(path / name) for name in ("launch.json", "result.json", "samples.jsonl"))
    return "run" if started or any(map(_holds_something, (path / "attempts", path / "checkpoints"))) else "leftover"


def check_free(path: Path) -> None:
    """Check that no entry of ``runs/`` has this path yet.

    Raises:
        RefusedError: one has.
    """
    if os.path.lexists(path):
        raise _taken(path)


def _taken(path: Path) -> RefusedError:
    if kind_of(path) == "leftover":
        return RefusedError(
            f"`{path.name}` was left by an interrupted launch; `stackllama-console runs rm {path.name}` "
            "frees the name, or choose another --name."
        )
    return RefusedError(f"A run `{path.name}` exists already; choose another --name.")


def encode_json(value: Any) -> bytes:
    """Encode a value as the files of a run directory hold it: indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def check_run_id(text: str) -> str:
    """Return the text itself if it is a run id.

    Raises:
        UsageError: it is not.
    """
    if not RUN_ID.fullmatch(text):
        raise UsageError(
            f"{text!r} is not a run name: use 1 to 64 characters of a-z 0-9 . _ - and begin with a letter or digit."
        )
    return text


def _default_home() -> Path:
    if named := os.environ.get("STACKLLAMA_HOME"):
        return Path(named)
    return user_dir("XDG_DATA_HOME", ".local/share") / "stackllama"


def _new_id(stage: Stage) -> str:
    return f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"


def _holds_something(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _created(run: RunDir) -> float:
    try:
        return run.read_state().created
    except DamagedError:
        return run.touched()
