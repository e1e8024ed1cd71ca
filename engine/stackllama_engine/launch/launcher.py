"""Launch and resume: check everything, create one run directory, start one detached supervisor.

:func:`plan` settles a launch, :func:`launch` carries out exactly that plan. ``launch`` and ``resume`` return at once;
the supervisor lives on without the terminal, the console or this process.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from ..contract import requests
from ..contract.atomic_files import make_private_dir, open_private, write_whole
from ..contract.checkpoints import sealed, step_of
from ..contract.child_environment import inherited_environment, source_path
from ..contract.children import CHILDREN, child_id
from ..contract.env_settings import check_settings
from ..contract.errors import RefusedError, StackllamaError, UsageError
from ..contract.host import this_host
from ..contract.recipe import AnyRecipe, PipelineRecipe, PPORecipe, TrainRecipe
from ..contract.recipe_io import dump_recipe
from ..contract.redact import redactor, secret_names
from ..contract.requests import SETTABLE, Change, forget_all
from ..contract.resuming import changes, check_resume
from ..contract.run_dir import ForkedFrom, FunctionFile, Home, Launch, RunDir, State, check_free, check_run_id
from ..contract.stages import Stage
from .argv import Command, build_command
from .auto_batch import batch_notices, refuse_open_batch, resolve_batch
from .auto_precision import refuse_auto, resolve_auto
from .data_check import data_notices
from .function_hash import check_functions, reward_functions
from .gpus import visible_gpus
from .hub_check import check_hub
from .inputs import resolve_inputs
from .leftovers import delete_marked
from .machine_check import git_commit, package_versions, resolve_machine
from .on_end import person_command
from .ownership import check_home, check_run
from .preflight import check_names, preflight, training_stages
from .process_marks import marks
from .processes import run_processes
from .recipe_changes import keep_recipe, load_own_recipe, recipe_hash, refuse_changed
from .reconcile import ensure_ended
from .resubmit import resubmission
from .reward_model_check import audit_notices
from .supervisor_log import SUPERVISOR_LOG
from .uninterrupted import uninterrupted
from .unused_keys import unused_notices

_ANY_RUN = "RUN_ID"


class Plan(Struct, frozen=True, kw_only=True):
    """One launch, settled: what a person confirms is what :func:`launch` carries out.

    Attributes:
        home: where the run will live.
        name: the run id; None: one is made of stage, date and time.
        request: the recipe as it was given, its inputs by name.
        recipe: the same, resolved: what will run.
        recipe_yaml: ``recipe``, as it is written.
        run_dir: the directory that ``command`` names; ``RUN_ID`` is the last part unless a name was given.
        command: how the stage is started.
        gpus: the GPUs that the command was built for.
        parents: runs that inputs are taken from, and those that were given.
        functions: the code of ``reward_funcs``.
        notices: how the data will be read, and the warnings of :mod:`.preflight`; sentences.
        allow: findings that are to be warnings.
        after: the run whose end it waits for, and then for room on its GPUs; None: it starts at once.
    """

    home: Home
    name: str | None
    request: AnyRecipe
    recipe: AnyRecipe
    recipe_yaml: str
    run_dir: Path
    command: Command
    gpus: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    functions: tuple[FunctionFile, ...] = ()
    notices: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    after: str | None = None

    @property
    def stage(self) -> Stage:
        """The recipe's stage."""
        return self.recipe.stage


class Record(Struct, frozen=True, kw_only=True):
    """What every attempt of a run writes into ``launch.json`` as the one before it did.

    Attributes:
        parents: runs that it was made from.
        after: the run that it still waits for.
        forked_from: the checkpoint that it continued from.
        allow: findings that its launch allowed.
    """

    parents: list[str] = []
    after: str | None = None
    forked_from: ForkedFrom | None = None
    allow: list[str] = []


def plan(
    home: Home,
    recipe: AnyRecipe,
    name: str | None = None,
    *,
    parents: Iterable[str] = (),
    canary: bool | None = None,
    after: str | None = None,
    allow: Iterable[str] = (),
    ask_hub: bool = True,
) -> Plan:
    """Check everything that a launch needs and settle what it will run. Touches nothing.

    Args:
        home: where runs live.
        recipe: checked by :mod:`..contract.recipe_io`; inputs are resolved here.
        name: the run id; otherwise one is made.
        parents: runs to record as parents besides those the inputs come from.
        canary: PPO: the worst case once before the run proper; None: where it is on a GPU.
        after: a run to wait for; it starts when that has ended and its GPUs have room.
        allow: names of findings that are to be warnings (:mod:`.preflight`).
        ask_hub: ask the hub for what would be downloaded; takes seconds.

    Raises:
        UsageError: an input or the name is wrong (:class:`RecipeError` when it is the recipe).
        RefusedError: this machine cannot run it, or an input is not ready or cannot be downloaded.
    """
    if canary and recipe.stage is not Stage.PPO:
        raise UsageError(f"`--canary` dry-runs PPO's worst step; a {recipe.stage} run has none.")
    check_settings()
    if after is not None:
        home.run(after)
    person_command()  # which is wrong now rather than at the run's end
    gpus = _gpus(recipe)
    request = recipe
    allow = tuple(allow)
    prepared = prepare(home, request, name, allow)
    recipe = prepared.recipe
    if ask_hub:
        check_hub(recipe)
    recipe = _for_machine(recipe, gpus)
    if isinstance(recipe, PipelineRecipe):  # what a later stage would refuse
        for stage in training_stages(recipe):
            _for_machine(stage, gpus)
    run_dir = home.runs_dir / (name or _ANY_RUN)
    return Plan(
        home=home,
        name=name,
        request=request,
        recipe=recipe,
        recipe_yaml=dump_recipe(recipe),
        run_dir=run_dir,
        command=_command(recipe, run_dir, gpus, canary),
        gpus=tuple(gpus),
        parents=(*prepared.parents, *parents),
        functions=tuple(reward_functions(recipe)),
        notices=(
            *data_notices(recipe),
            *batch_notices(request, recipe),
            *unused_notices(recipe),
            *prepared.warnings,
            *audit_notices(recipe),
        ),
        allow=allow,
        after=after,
    )


class Prepared(Struct, frozen=True):
    """A launch that is checked as far as the machine does not matter."""

    recipe: AnyRecipe
    """With its inputs explicit."""
    parents: list[str]
    """The runs that they come from."""
    warnings: list[str]


def prepare(home: Home, recipe: AnyRecipe, name: str | None, allow: Collection[str] = ()) -> Prepared:
    """Check what is checked wherever the run will be: recipe, name and inputs. Touches nothing.

    Raises:
        UsageError, RefusedError: as :func:`plan`.
    """
    check_home(home)
    _check_name(home, recipe.stage, name)
    check_names(allow)
    recipe, parents = resolve_inputs(home, recipe)
    warnings = preflight(recipe, allow)
    if secret := redactor().found_in(dump_recipe(recipe)):
        raise UsageError(
            f"The recipe holds the value of `{secret}`. A secret stays in the environment, where the stage finds it; "
            "a recipe is written to disk and shown."
        )
    return Prepared(recipe, parents, warnings)


def launch(
    planned: Plan,
    *,
    fill: Callable[[RunDir], None] = lambda _: None,
    forked_from: ForkedFrom | None = None,
) -> RunDir:
    """Create the planned run and start it; of two launches of one name exactly one succeeds.

    Args:
        planned: as :func:`plan` settled it.
        fill: put into the new run's directory what it starts from.
        forked_from: where that comes from.

    Raises:
        UsageError, RefusedError: as :func:`plan`, before anything was created; what was planned no longer holds; or
            the name is taken.
        StackllamaError: the supervisor could not be started; the run says why.
    """
    _check_still_holds(planned)
    with uninterrupted():
        run = planned.home.create(planned.stage, planned.recipe_yaml, planned.name)
        with gone_unless_written(run):
            fill(run)
            lock = run.acquire_lock()
            try:
                command = planned.command.in_directory(planned.run_dir, run.path)
                record = Record(
                    parents=[*planned.parents], after=planned.after, forked_from=forked_from, allow=[*planned.allow]
                )
                settings = settings_of(run, planned.recipe, forked_from)
                start_supervisor(run, lock, command, record, planned.functions, settings=settings)
            finally:
                run.release_lock(lock)
    return run


def _for_machine(recipe: AnyRecipe, gpus: list[str]) -> AnyRecipe:
    """Return a recipe with what this machine decides: precision, checkpointing, processes and the batch that fits."""
    return resolve_batch(resolve_machine(resolve_auto(recipe, gpus), gpus), gpus)


def _check_still_holds(planned: Plan) -> None:
    """Refuse a plan that the machine has overtaken: minutes may lie between it and its launch.

    Raises:
        UsageError, RefusedError: as :func:`plan`; or GPUs, inputs or the code of ``reward_funcs`` have changed.
    """
    gpus = _gpus(planned.request)
    if tuple(gpus) != planned.gpus:
        raise RefusedError("The visible GPUs have changed since this launch was planned. Launch it again.")
    recipe = prepare(planned.home, planned.request, planned.name, planned.allow).recipe
    if _for_machine(recipe, gpus) != planned.recipe:
        raise RefusedError("What the recipe's inputs name has changed since this launch was planned. Launch it again.")
    for function in reward_functions(planned.recipe):
        if function not in planned.functions:
            raise RefusedError(
                f"`reward_funcs: {function.reference}`: {function.file} has changed since this launch was planned. "
                "Launch it again."
            )


@contextlib.contextmanager
def gone_unless_written(run: RunDir) -> Generator[None]:
    """Remove a new run where its files cannot be written: on a full disk half a run would keep the name.

    Raises:
        RefusedError: something could not be written, and the run was removed.
    """
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            delete_marked(run.path)
        where = f"{error.filename} cannot be written" if error.filename else "It could not be started"
        message = f"{where}: {error.strerror}. Nothing was started, and `{run.id}` is free again."
        raise RefusedError(message) from error


def resume(
    home: Home,
    run_id: str,
    *,
    host_gone: str | None = None,
    recipe_changed: bool = False,
    function_changed: bool = False,
) -> RunDir:
    """Start a new attempt of a run that stopped, failed or was lost, from its newest checkpoint.

    One that was stopped in its queue goes back into it.

    Args:
        home: where runs live.
        run_id: the run.
        host_gone: name of another machine that is gone for good, with whatever of the run was there.
        recipe_changed: whether somebody knows that its recipe is not the one of its last attempt.
        function_changed: whether somebody knows that the code of ``reward_funcs`` is not what it was at launch.

    Raises:
        UsageError: no such run, its recipe cannot be read, or it is on another machine than the one that is gone.
        RefusedError: it has finished, something of it is alive, it is a Slurm job's, or somebody else's.
        UnconfirmedError: its recipe or the code of ``reward_funcs`` has changed, and nobody says so.
        StackllamaError: the supervisor could not be started; the run says why.
    """
    run = home.run(run_id)
    check_home(home)
    check_run(run)
    check_settings()
    ensure_ended(run, "resume", host_gone)
    state = run.read_state()
    if not recipe_changed and state.phase != "finished":
        refuse_changed(run, state.stage)
    if state.phase != "finished" and (command := resubmission(run)):
        _record_confirmed(run, state.stage, function_changed=function_changed)
        raise RefusedError(
            f"Run `{run.id}` is a Slurm run, and would train on {socket.gethostname()} if it was resumed like this. "
            f"Submit it again: {command}"
        )
    begin(run, canary=_had_canary(run), holder_gone=host_gone is not None, function_changed=function_changed)
    return run


def _decided(run: RunDir, recipe: AnyRecipe, gpus: list[str]) -> AnyRecipe:
    """Decide every `auto` of a run that has nothing to resume yet, such as a Slurm job's, and write its recipe again.

    Raises:
        RecipeError: it has, so that nothing can be decided any more.
        RefusedError: as :func:`.auto_precision.resolve_auto`.
    """
    if sealed(run.checkpoints) or (isinstance(recipe, PipelineRecipe) and run.read_state().attempt):
        refuse_auto(recipe)
        return recipe
    decided = resolve_auto(recipe, gpus)
    if decided != recipe:
        write_whole(run.recipe_file, dump_recipe(decided).encode())
        if (run.path / "launch.json").is_file():
            run.write_launch(msgspec.structs.replace(run.read_launch(), recipe_sha256=recipe_hash(run)))
    return decided


def settings_of(run: RunDir, recipe: AnyRecipe, origin: ForkedFrom | None) -> list[Change]:
    """Return what a fork has to set at its first step boundary: changed values that a resume keeps from the checkpoint.

    Nothing once it has a checkpoint of its own, in which they are.
    """
    newest = next(reversed(sealed(run.checkpoints)), None)
    if origin is None or newest is None or step_of(newest) != origin.step or not isinstance(recipe, TrainRecipe):
        return []
    kept = changes(newest, recipe, check_base=False).kept
    return [Change(each.key, float(each.now)) for each in kept if each.key in SETTABLE[recipe.stage]]


def _record_of(run: RunDir) -> Record:
    """Return what a run's next attempt records again; a run that has had a worker has had its turn.

    Raises:
        DamagedError: ``launch.json`` cannot be read.
    """
    if not os.path.lexists(run.path / "launch.json"):
        return Record()
    before = run.read_launch()
    had_its_turn = any((folder / "log.txt").exists() for folder in run.attempt_dirs())
    return Record(
        parents=before.parents,
        after=None if had_its_turn else before.after,
        forked_from=before.forked_from,
        allow=before.allow,
    )


def allowed_in(run: RunDir) -> list[str]:
    """Return the findings that a run's launch allowed."""
    return run.read_launch().allow if (run.path / "launch.json").is_file() else []


def _record_confirmed(run: RunDir, stage: Stage, *, function_changed: bool) -> None:
    """Write down the recipe and the code that a person has confirmed, for a job that begins where nobody is asked."""
    if not (run.path / "launch.json").is_file():
        return
    functions = check_functions(run, load_own_recipe(run, stage), accepted=function_changed)
    run.write_launch(msgspec.structs.replace(run.read_launch(), recipe_sha256=recipe_hash(run), reward_funcs=functions))


def begin(run: RunDir, *, canary: bool | None, holder_gone: bool = False, function_changed: bool = False) -> None:
    """Start a new attempt of a run that nobody holds, on this machine.

    ``holder_gone``: whoever may hold it on another machine is known to be gone.

    Raises:
        RefusedError, StackllamaError: as :func:`resume`.
    """
    check_run(run)
    lock = run.acquire_lock(holder_gone=holder_gone)
    try:
        if run.read_state().phase == "finished":
            raise RefusedError(f"Run `{run.id}` has finished; there is nothing to resume.")
        if left := run_processes(run.path):
            pids = ", ".join(str(process.pid) for process in left)
            raise RefusedError(f"Processes of run `{run.id}` are still alive ({pids}); try again in a moment.")
        recipe = load_own_recipe(run, run.read_state().stage)
        refuse_open_batch(recipe, "it is resolved once, at launch, and a run keeps its numbers")
        gpus = _gpus(recipe)
        recipe = _decided(run, recipe, gpus)
        recipe = resolve_machine(recipe, gpus)
        check_resume(run, recipe)
        functions = check_functions(run, recipe, accepted=function_changed)
        command = _command(recipe, run.path, gpus, canary)
        with uninterrupted():
            record = _record_of(run)
            settings = settings_of(run, recipe, record.forked_from)
            start_supervisor(run, lock, command, record, functions, settings=settings)
    except OSError as error:
        raise StackllamaError(f"Run `{run.id}` could not be started: {error}.") from error
    finally:
        run.release_lock(lock)


def start_supervisor(
    run: RunDir,
    lock: int,
    command: Command,
    record: Record,
    functions: Sequence[FunctionFile] = (),
    *,
    settings: Sequence[Change] = (),
) -> None:
    """Begin the next attempt with the lock held: its folder, ``launch.json``, state, and a detached supervisor.

    Args:
        run: whose lock is held.
        lock: its descriptor, which the supervisor inherits.
        command: how the stage is started.
        record: what is written down besides.
        functions: the code of ``reward_funcs``.
        settings: values to set at the first step boundary.

    Raises:
        StackllamaError: the supervisor did not come up; state says ``failed``.
        OSError: something cannot be written; there is no new attempt.
    """
    attempt = _next_attempt(run)
    folder = run.attempt_dir(attempt)
    make_private_dir(folder)
    try:
        state = _prepare_attempt(run, attempt, command, record, functions)
        for change in settings:
            requests.write(run, "set", change)
    except OSError:  # whoever tries again and again on a full disk would leave a folder each time
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if _spawn(run.path, attempt, lock, folder / SUPERVISOR_LOG) != 0:
        cause = f"The supervisor could not be started; see {folder / SUPERVISOR_LOG}."
        ended = msgspec.structs.replace(
            state, phase="failed", exit_code=1, cause=cause, ended=time.time(), waiting=None
        )
        run.write_state(ended)
        raise StackllamaError(f"Run `{run.id}`: {cause}")


def _prepare_attempt(
    run: RunDir,
    attempt: int,
    command: Command,
    record: Record,
    functions: Sequence[FunctionFile],
) -> State:
    """Write what is on disk before the supervisor starts; returns the state, which is written last."""
    forget_all(run)
    for name, text in command.files.items():
        write_whole(run.path / name, text.encode())
    environment = command.environment | marks(run.path) | {"STACKLLAMA_ATTEMPT": str(attempt)}
    run.write_launch(
        Launch(
            argv=command.argv,
            cwd=str(run.path),
            host=socket.gethostname(),
            created=time.time(),
            versions=package_versions(),
            git_commit=git_commit(),
            parents=record.parents,
            environment=environment,
            secrets=secret_names(),
            recipe_sha256=keep_recipe(run, attempt),
            reward_funcs=[*functions],
            after=record.after,
            forked_from=record.forked_from,
            allow=record.allow,
        )
    )
    state = msgspec.structs.replace(
        run.read_state(),
        phase="starting" if record.after is None else "queued",
        waiting=None if record.after is None else f"waiting for {record.after} to end",
        attempt=attempt,
        started=time.time() if record.after is None else None,
        ended=None,
        host=this_host(),
        supervisor=None,
        worker=None,
        exit_code=None,
        cause=None,
        last_lines=[],
    )
    run.write_state(state)
    return state


def _command(recipe: AnyRecipe, run_dir: Path, gpus: list[str], canary: bool | None) -> Command:
    command = build_command(recipe, run_dir, gpus)
    if canary is None:
        canary = isinstance(recipe, PPORecipe) and bool(gpus) and not recipe.use_cpu
    if not canary:
        return command
    return msgspec.structs.replace(command, environment=command.environment | {"STACKLLAMA_CANARY": "1"})


def _gpus(recipe: AnyRecipe) -> list[str]:
    """Return the GPUs that a run may see.

    Raises:
        RefusedError: their driver does not answer, and the run is not for the CPU.
    """
    try:
        return visible_gpus()
    except RefusedError:
        if not isinstance(recipe, PipelineRecipe) and recipe.use_cpu:
            return []
        raise


def _had_canary(run: RunDir) -> bool | None:
    """Return whether the attempt before had a canary; one that begins at a checkpoint skips it by itself."""
    return "STACKLLAMA_CANARY" in run.read_launch().environment if (run.path / "launch.json").is_file() else None


def _spawn(run_path: Path, attempt: int, lock: int, log: Path) -> int:
    """Start the supervisor in a session of its own; its first process ends as soon as it has detached itself."""
    environment = inherited_environment()
    environment |= source_path(environment.get("PYTHONPATH", ""))
    argv = [sys.executable, "-P", "-m", "stackllama_engine.launch.supervisor", str(run_path), str(attempt), str(lock)]
    output = open_private(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=run_path,
            env=environment,
            pass_fds=[lock],
            start_new_session=True,
            check=False,
        ).returncode
    finally:
        os.close(output)


def _next_attempt(run: RunDir) -> int:
    folders = [int(path.name) for path in run.attempt_dirs()]
    number = max([run.read_state().attempt, *folders]) + 1
    while os.path.lexists(run.attempt_dir(number)):  # something else than a folder has the name
        number += 1
    return number


def _check_name(home: Home, stage: Stage, name: str | None) -> None:
    if name is None:
        return
    check_run_id(name)
    wanted = [name, *(child_id(name, child.suffix) for child in CHILDREN)] if stage is Stage.PIPELINE else [name]
    for run_id in wanted:
        check_run_id(run_id)
        check_free(home.runs_dir / run_id)
