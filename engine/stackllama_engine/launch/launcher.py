"""Starting a run: everything is checked first, then one directory is created and one supervisor is let go.

``launch`` and ``resume`` return at once; the supervisor lives on without the terminal, the console or this process.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from ..contract.errors import RefusedError, StackllamaError, UsageError
from ..contract.files import make_private_dir, open_private, write_whole
from ..contract.recipe import AnyRecipe, PPORecipe
from ..contract.recipe_io import dump_recipe, load_recipe
from ..contract.redact import redactor, secret_names
from ..contract.requests import forget_all
from ..contract.resuming import check_resume
from ..contract.run_dir import Home, Launch, RunDir, check_run_id
from ..contract.stages import Stage
from .argv import Command, build_command, inherited_environment, source_path
from .children import CHILDREN, child_id, parents_of
from .data_check import data_notices
from .gpus import visible_gpus
from .inputs import resolve_inputs
from .machine import git_commit, package_versions, resolve_machine
from .preflight import preflight
from .processes import run_processes
from .reconcile import reconcile
from .settings import check_settings
from .supervisor import SUPERVISOR_LOG

_ANY_RUN = "RUN_ID"


class Plan(Struct, frozen=True, kw_only=True):
    """What a launch would do.

    Attributes:
        stage: the stage.
        recipe: the resolved recipe.
        recipe_yaml: the same, as it would be written.
        argv: the command; ``RUN_ID`` stands in the run directory's place unless a name was given.
        environment: what would be added to the environment.
        parents: runs that inputs are taken from.
        secrets: names of the secrets that would be passed on.
        notices: what a person should know about how the data will be read.
    """

    stage: Stage
    recipe: AnyRecipe
    recipe_yaml: str
    argv: list[str]
    environment: dict[str, str]
    parents: list[str]
    secrets: list[str]
    notices: list[str] = []


def plan(home: Home, stage: Stage, recipe: AnyRecipe, name: str | None = None, *, canary: bool | None = None) -> Plan:
    """Check everything a launch would check, and say what it would run. Touches nothing.

    ``canary``: as for :func:`launch`.

    Raises:
        UsageError: an input or the name is wrong (:class:`RecipeError` when it is the recipe).
        RefusedError: this machine cannot run it, or an input is not ready.
    """
    if canary and stage is not Stage.PPO:
        raise UsageError(f"A canary rehearses PPO's worst step; a {stage} run has none.")
    check_settings()
    gpus = visible_gpus()
    recipe, parents = prepare(home, stage, recipe, name)
    recipe = resolve_machine(recipe, gpus)
    recipe_yaml = dump_recipe(recipe)
    command = _command(recipe, home.runs_dir / (name or _ANY_RUN), canary)
    return Plan(
        stage=stage, recipe=recipe, recipe_yaml=recipe_yaml, argv=command.argv,
        environment=command.environment, parents=parents, secrets=secret_names(),
        notices=data_notices(recipe),
    )  # fmt: skip


def prepare(home: Home, stage: Stage, recipe: AnyRecipe, name: str | None) -> tuple[AnyRecipe, list[str]]:
    """What is checked wherever the run will be: recipe, name and inputs. Touches nothing.

    Returns:
        the recipe with its inputs explicit, and the runs they come from.

    Raises:
        UsageError, RefusedError: as :func:`plan`.
    """
    if recipe.stage is not stage:
        raise UsageError(f"This is a {recipe.stage} recipe, not a {stage} recipe.")
    _check_name(home, stage, name)
    recipe, parents = resolve_inputs(home, recipe)
    preflight(recipe)
    if secret := redactor().found_in(dump_recipe(recipe)):
        raise UsageError(
            f"The recipe holds the value of `{secret}`. A secret stays in the environment, where the stage finds it; "
            "a recipe is written to disk and shown."
        )
    return recipe, parents


def launch(
    home: Home,
    stage: Stage,
    recipe: AnyRecipe,
    name: str | None = None,
    *,
    parents: Iterable[str] = (),
    canary: bool | None = None,
) -> RunDir:
    """Create a run and start it; of two launches of one name exactly one succeeds.

    Args:
        home: where runs live.
        stage: which stage.
        recipe: checked by :mod:`..contract.recipe_io`; inputs are resolved here.
        name: the run id; otherwise one is made.
        parents: runs to record as parents besides those the inputs come from.
        canary: PPO: the worst case once before the run proper; None: where it is on a GPU.

    Raises:
        UsageError, RefusedError: as :func:`plan`, before anything was created; or the name is taken.
        StackllamaError: the supervisor could not be started; the run says why.
    """
    planned = plan(home, stage, recipe, name, canary=canary)
    run = home.create(stage, planned.recipe_yaml, name)
    lock = run.acquire_lock()
    try:
        _start(run, lock, planned.recipe, [*planned.parents, *parents], canary)
    finally:
        os.close(lock)
    return run


def resume(home: Home, run_id: str) -> RunDir:
    """Start a new attempt of a run that stopped, failed or was lost; it goes on from its newest checkpoint.

    Raises:
        UsageError: no such run.
        RefusedError: it has finished, or something of it is alive.
        StackllamaError: the supervisor could not be started; the run says why.
    """
    run = home.run(run_id)
    check_settings()
    state = reconcile(run)
    if not state.has_ended:
        raise RefusedError(f"Run `{run.id}` is alive; stop it first: `stackllama-console runs stop {run.id}`.")
    begin(run, canary=_had_canary(run))
    return run


def begin(run: RunDir, *, canary: bool | None) -> None:
    """Start a new attempt of a run that nobody holds, on this machine.

    Raises:
        RefusedError, StackllamaError: as :func:`resume`.
    """
    lock = run.acquire_lock()
    try:
        if run.read_state().phase == "finished":
            raise RefusedError(f"Run `{run.id}` has finished; there is nothing to resume.")
        if left := run_processes(run.path):
            pids = ", ".join(str(process.pid) for process in left)
            raise RefusedError(f"Processes of run `{run.id}` are still alive ({pids}); try again in a moment.")
        recipe = resolve_machine(load_recipe(run.read_state().stage, run.recipe_file), visible_gpus())
        check_resume(run, recipe)
        _start(run, lock, recipe, parents_of(run), canary)
    finally:
        os.close(lock)


def start_supervisor(run: RunDir, lock: int, command: Command, parents: list[str]) -> None:
    """Begin the next attempt with the lock held: its folder, ``launch.json``, state, and a detached supervisor.

    Raises:
        StackllamaError: the supervisor did not come up; state says ``failed``.
    """
    attempt = _next_attempt(run)
    folder = run.attempt_dir(attempt)
    make_private_dir(folder)
    forget_all(run)
    for name, text in command.files.items():
        write_whole(run.path / name, text.encode())
    environment = command.environment | {"STACKLLAMA_ATTEMPT": str(attempt)}
    run.write_launch(
        Launch(
            argv=command.argv, cwd=str(run.path), host=socket.gethostname(), created=time.time(),
            versions=package_versions(), git_commit=git_commit(), parents=parents,
            environment=environment, secrets=secret_names(),
        )
    )  # fmt: skip
    state = msgspec.structs.replace(
        run.read_state(), phase="starting", attempt=attempt, started=time.time(), ended=None, supervisor=None,
        worker=None, exit_code=None, cause=None, last_lines=[],
    )  # fmt: skip
    run.write_state(state)
    if _spawn(run.path, attempt, lock, folder / SUPERVISOR_LOG) != 0:
        cause = f"The supervisor could not be started; see {folder / SUPERVISOR_LOG}."
        run.write_state(
            msgspec.structs.replace(state, phase="failed", exit_code=1, cause=cause, ended=time.time())
        )  # fmt: skip
        raise StackllamaError(f"Run `{run.id}`: {cause}")


def _command(recipe: AnyRecipe, run_dir: Path, canary: bool | None) -> Command:
    gpus = visible_gpus()
    command = build_command(recipe, run_dir, gpus)
    if canary is None:
        canary = isinstance(recipe, PPORecipe) and bool(gpus) and not recipe.use_cpu
    if not canary:
        return command
    return msgspec.structs.replace(command, environment=command.environment | {"STACKLLAMA_CANARY": "1"})


def _had_canary(run: RunDir) -> bool | None:
    """Of the attempt before; one that begins at a checkpoint needs none, and leaves it out itself."""
    return "STACKLLAMA_CANARY" in run.read_launch().environment if (run.path / "launch.json").is_file() else None


def _start(run: RunDir, lock: int, recipe: AnyRecipe, parents: list[str], canary: bool | None) -> None:
    try:
        start_supervisor(run, lock, _command(recipe, run.path, canary), parents)
    except OSError as error:
        raise StackllamaError(f"Run `{run.id}` could not be started: {error}.") from error


def _spawn(run_path: Path, attempt: int, lock: int, log: Path) -> int:
    """Start the supervisor in a session of its own; its first process ends as soon as it has detached itself."""
    environment = inherited_environment()
    environment |= source_path(environment.get("PYTHONPATH", ""))
    argv = [sys.executable, "-P", "-m", "stackllama_engine.launch.supervisor", str(run_path), str(attempt), str(lock)]
    output = open_private(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=run_path, env=environment,
            pass_fds=[lock], start_new_session=True, check=False,
        ).returncode  # fmt: skip
    finally:
        os.close(output)


def _next_attempt(run: RunDir) -> int:
    folders = [int(path.name) for path in run.attempt_dirs()]
    return max([run.read_state().attempt, *folders]) + 1


def _check_name(home: Home, stage: Stage, name: str | None) -> None:
    if name is None:
        return
    check_run_id(name)
    wanted = [name, *(child_id(name, child.suffix) for child in CHILDREN)] if stage is Stage.PIPELINE else [name]
    for run_id in wanted:
        check_run_id(run_id)
        if (home.runs_dir / run_id).exists():
            raise RefusedError(f"A run `{run_id}` exists already; choose another --name.")
