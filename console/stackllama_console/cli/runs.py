"""``runs``: show, logs, watch, stop, resume, rm, repair. Each reconciles the run's state first.

``ls`` is in :mod:`.listing`, requests to a running run are in :mod:`.requests`.
"""

import argparse
import difflib
import sys
import time
from collections.abc import Iterator

from stackllama_engine.contract.children import CHILDREN, child_id
from stackllama_engine.contract.disk_space import is_full
from stackllama_engine.contract.errors import DamagedError, ExitCode, RefusedError, UnconfirmedError, UsageError
from stackllama_engine.contract.resuming import check_resume
from stackllama_engine.contract.run_dir import Home, RunDir, State, check_run_id, kind_of
from stackllama_engine.contract.run_files import why_unreadable
from stackllama_engine.launch.function_hash import unrecorded_notice
from stackllama_engine.launch.ownership import check_run
from stackllama_engine.launch.reconcile import reconcile
from stackllama_engine.launch.run_location import Silence, elsewhere, elsewhere_of_damaged, gone_command

from ..pipelines import newest, still_running
from ..readers.line_follower import LineFollower
from ..readings import last_log_lines
from ..remote_runs import elsewhere_text, in_words
from ..request_texts import ASKED_TO_STOP, NOTHING_DAMAGED, already_ended, asked_to_stop, delete_question, dependents
from ..run_facts import facts
from ..sanitise import log_line, one_line
from .finish import finish
from .output import PROGRAM, say, show, show_json
from .run_status import say_next


def find(home: Home, run_id: str | None) -> RunDir:
    """Return the run of that id, or the newest one; a pipeline rather than its children.

    Raises:
        UsageError: no such run; names the nearest one.
    """
    if run_id is not None:
        check_run_id(run_id)
        try:
            return home.run(run_id)
        except UsageError as error:
            near = difflib.get_close_matches(run_id, [run.id for run in home.runs()], n=1)
            raise UsageError(f"{error} Did you mean `{near[0]}`?" if near else str(error)) from None
    runs = home.runs()
    if not runs:
        raise UsageError(f"No runs under {home.runs_dir}. `{PROGRAM} demo` makes some.")
    ids = {run.id for run in runs}
    children = {child_id(parent, child.suffix) for parent in ids for child in CHILDREN}
    return next(run for run in reversed(runs) if run.id not in children)


def show_run(arguments: argparse.Namespace) -> int:
    """Run ``runs show``."""
    from .show import show_damaged, show_one

    home = Home(arguments.home)
    run = find(home, arguments.run)
    try:
        state = reconcile(run)
    except DamagedError as error:
        return show_damaged(run, str(error), as_json=arguments.json)
    return show_one(home, run, state, as_json=arguments.json)


def logs(arguments: argparse.Namespace) -> int:
    """Run ``runs logs``: print the last lines of an attempt's log, and with ``-f`` what comes after them."""
    run = find(Home(arguments.home), arguments.run)
    attempts = [int(path.name) for path in run.attempt_dirs()]
    attempt = arguments.attempt or (attempts[-1] if attempts else None)
    if arguments.attempt and arguments.attempt not in attempts:
        there = ", ".join(map(str, attempts)) or "none"
        raise UsageError(f"{run.id} has no attempt {arguments.attempt}; there are: {there}.")
    if arguments.follow:
        _name_stage_log(run)
        return _follow_log(run, arguments.lines, attempt)
    try:
        lines = last_log_lines(run, arguments.lines, attempt)
    except OSError as error:
        raise DamagedError(f"the log of {run.id} cannot be read: {why_unreadable(error)}.") from None
    for line in lines:
        show(log_line(line.decode("utf-8", "replace")))
    if not lines:
        say(f"{run.id} has printed nothing{'' if _has_ended(run) else ' yet'}.")
        _name_stage_log(run)
    return ExitCode.DONE


def _has_ended(run: RunDir) -> bool:
    """Return whether a run has ended; where its state cannot be read, whether nobody holds its lock."""
    try:
        return reconcile(run).has_ended
    except DamagedError:
        return not run.lock_is_held()


def _name_stage_log(run: RunDir) -> None:
    try:
        child = newest(run, reconcile(run))
    except DamagedError as error:  # the log can be read all the same
        return say(one_line(str(error)))
    if child:
        say(f"Its stages have logs of their own: {PROGRAM} runs logs {child.id}")


def _follow_log(run: RunDir, count: int, attempt: int | None) -> int:
    log: LineFollower | None = None
    while True:
        ended = _has_ended(run)  # first, so that the last lines are there when it has
        if log is None and (attempts := run.attempt_dirs()):
            log = LineFollower((run.attempt_dir(attempt) if attempt else attempts[-1]) / "log.txt")
        try:
            for line in _new_lines(log, count, final=ended) if log else ():
                show(log_line(line.decode("utf-8", "replace")))
        except OSError as error:
            raise DamagedError(f"the log of {run.id} cannot be read: {why_unreadable(error)}.") from None
        sys.stdout.flush()
        if ended:
            return ExitCode.DONE
        time.sleep(0.2)


def _new_lines(log: LineFollower, count: int, *, final: bool) -> Iterator[bytes]:
    """Yield the last ``count`` lines at the first call, later all new ones, at the end also an unterminated one."""
    if not log.opened:
        there = [line for lines in log.read() for line in lines]
        complete = count - bool(log.rest)
        yield from there[-complete:] if complete else ()
    for lines in log.read():
        yield from lines
    if final and (last := log.finish()) is not None:
        yield last


def watch(arguments: argparse.Namespace) -> int:
    """Run ``runs watch``: follow a run until it ends; return its exit code."""
    from .follow import follow

    home = Home(arguments.home)
    run = find(home, arguments.run)
    return finish(home, run, follow(home, run, plain=arguments.plain), as_json=arguments.json)


def stop(arguments: argparse.Namespace) -> int:
    """Run ``runs stop``: request to save and stop; wait until the run has ended, unless ``--no-wait``."""
    from stackllama_engine.launch.run_requests import stop as stop_run

    run = find(Home(arguments.home), arguments.run)
    check_run(run)
    try:
        before = reconcile(run)
    except DamagedError as error:
        return _stop_damaged(run, error, wait=arguments.wait)
    child = still_running(run, before)
    active = child or run
    if before.has_ended and child is None:
        say(f"{already_ended(run.id, before)}.")
    elif arguments.wait:
        there = elsewhere_text(active, reconcile(active))
        where = f" It is {there} and stops once that machine sees the request." if there else ""
        say(f"{active.id}: {asked_to_stop(queued=before.phase == 'queued')}; waiting until it has ended.{where}")
    try:
        state = stop_run(run, wait=arguments.wait)
    except KeyboardInterrupt:
        say(f"\nDetached. {active.id} is still stopping.")
        raise
    if arguments.json:
        show_json(facts(run, state))
    if child is not None:
        was = "stopped" if arguments.wait else ASKED_TO_STOP
        say(f"{run.id}: {state.phase}; its stage `{child.id}` was still running and was {was}.")
        say_next(run, state)
        return ExitCode.DONE
    return _stopped(run, state, waited=arguments.wait)


def _stop_damaged(run: RunDir, error: DamagedError, *, wait: bool) -> int:
    """Stop a run whose state cannot be read: its supervisor has the state in memory, and writes it anew."""
    there = elsewhere_of_damaged(run)
    if there is None and not run.lock_is_held():
        raise RefusedError(f"nothing of {run.id} is running on this machine. {error}")
    try:
        run.request("stop")
    except OSError as full:
        if not is_full(full):
            raise
        raise RefusedError(
            f"the disk is full: the request to stop {run.id} could not be written. Make room under {run.path}."
        ) from None
    where = f" It may be {in_words(there)} and stops once that machine sees the request." if there else ""
    say(f"{run.id}: {ASKED_TO_STOP}{'; waiting until it has ended' if wait else ''}.{where}")
    silence = Silence()
    while wait and (run.lock_is_held() or elsewhere_of_damaged(run)):
        if silence.too_long(run, None):
            say("  No file of the run has changed for minutes. Check that machine; if it is gone for good:")
            say(f"  {PROGRAM} runs repair {run.id} says what can be done.")
            return ExitCode.FAILED
        time.sleep(0.2)
    return ExitCode.DONE


def _stopped(run: RunDir, state: State, *, waited: bool) -> int:
    if not state.has_ended:
        say(f"{run.id}: {'still ' + state.phase if waited else asked_to_stop(queued=state.phase == 'queued')}.")
        if waited and (there := elsewhere(run, state)):
            say(f"  {one_line(there.host)} has not answered: no file of the run has changed for minutes. Check it;")
            say(f"  if that machine is gone for good: {one_line(gone_command(run, there, 'resume'))}")
        say_next(run, state)
        return ExitCode.FAILED if waited else ExitCode.DONE
    code = f", exit code {state.exit_code}" if state.exit_code is not None else ""
    say(f"{run.id}: {state.phase}{code}{f': {one_line(state.cause)}' if state.cause else ''}")
    say_next(run, state)
    return ExitCode.DONE if state.phase in ("stopped", "finished") else ExitCode.FAILED


def rm(arguments: argparse.Namespace) -> int:
    """Run ``runs rm``: delete after a question on a terminal; elsewhere ``--yes`` is required."""
    from stackllama_engine.launch.remove import remove, users_of

    home = Home(arguments.home)
    if arguments.leftovers:
        return _rm_leftovers(home, arguments)
    if arguments.run is None:
        raise UsageError("name a run, or use --leftovers.")
    if kind_of(home.runs_dir / check_run_id(arguments.run)) == "leftover":
        return _say_removed(arguments, remove(home, arguments.run))
    run = find(home, arguments.run)
    if not arguments.yes:
        users = users_of(home, run.id)
        if users:
            say(dependents(users))
        if not sys.stdin.isatty():
            raise UsageError(f"deleting {run.id} cannot be undone: add --yes.")
        say(f"{delete_question(run.id)} [y/N]")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise RefusedError(f"{run.id} was not deleted.")
    return _say_removed(arguments, remove(home, run.id, host_gone=arguments.host_gone))


def _confirm(run: RunDir, error: UnconfirmedError) -> None:
    """Ask on a terminal; elsewhere the flag is required.

    Raises:
        UnconfirmedError: there is no terminal to ask on.
        RefusedError: the answer was no.
    """
    if not sys.stdin.isatty():
        raise error
    for text in error.reasons:
        say(one_line(text))
    say(f"{error.question} [y/N]")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RefusedError(f"{run.id} was not resumed.")


def _rm_leftovers(home: Home, arguments: argparse.Namespace) -> int:
    from stackllama_engine.launch.leftovers import remove_leftovers

    if arguments.run is not None:
        raise UsageError("--leftovers takes no run id.")
    removed, busy = remove_leftovers(home)
    for name in busy:
        say(f"skipped: {one_line(name)} is being written, or may be.")
    return _say_removed(arguments, removed)


def _say_removed(arguments: argparse.Namespace, removed: list[str]) -> int:
    if arguments.json:
        show_json({"deleted": removed})
    say(f"deleted: {', '.join(map(one_line, removed)) or 'nothing'}")
    return ExitCode.DONE


def repair(arguments: argparse.Namespace) -> int:
    """Run ``runs repair``: rebuild damaged records from the other files."""
    from stackllama_engine.launch.repair import repair as repair_run

    home = Home(arguments.home)
    run = find(home, arguments.run)
    done = repair_run(home, run.id)
    if arguments.json:
        show_json({"run": run.id, "repaired": done})
    for sentence in done or [f"{NOTHING_DAMAGED}."]:
        say(f"{run.id}: {one_line(sentence)}")
    return ExitCode.DONE


def resume(arguments: argparse.Namespace) -> int:
    """Run ``runs resume``: start a new attempt from the newest complete checkpoint."""
    from stackllama_engine.launch import launcher
    from stackllama_engine.launch.recipe_changes import load_own_recipe

    from .launch import flush, follow_or_leave, set_on_end

    home = Home(arguments.home)
    run = find(home, arguments.run)
    set_on_end(arguments)
    recipe = load_own_recipe(run, run.read_state().stage)
    notices = [check_resume(run, recipe), unrecorded_notice(run, recipe)]
    confirmed = {"recipe_changed": arguments.recipe_changed, "function_changed": arguments.reward_fn_changed}
    while True:
        try:
            run = launcher.resume(home, run.id, host_gone=arguments.host_gone, **confirmed)
            break
        except UnconfirmedError as error:
            _confirm(run, error)
            confirmed[error.key] = True
    for notice in filter(None, notices):
        say(one_line(notice))
    if not arguments.json:
        show(run.id)
        flush()
    return follow_or_leave(arguments, home, run)
