"""Stop, save, resume or delete the selected runs, after one question that names them all.

A run for which the action makes no sense is named with the reason and left alone. The runs are taken one by one: what
one of them refuses does not keep the others from being done.
"""

import asyncio
from collections.abc import Callable, Sequence

from msgspec import Struct

from stackllama_engine.contract import requests
from stackllama_engine.contract.errors import StackllamaError, UnconfirmedError
from stackllama_engine.contract.run_dir import ENDED, Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.ownership import check_run
from stackllama_engine.launch.reconcile import reconcile

from ..request_texts import ASKED_TO_STOP, READ_ONLY, already_ended, dependents
from ..sanitise import one_line
from .run_actions import phase_and_stage, size_text
from .screen import ConsoleScreen
from .screens.confirm import ConfirmScreen

_NAMED = 12  # runs in the question, before the rest is counted


class _Kind(Struct, frozen=True):
    """One action: its verb, what is to be known before, what was done, why a run is left alone, and the doing."""

    verb: str
    note: str
    done: str
    refusal: Callable[[Home, str], str]
    work: Callable[[Home, str], object]


class SelectionActions:
    """The actions of one screen on several runs of one home.

    Args:
        screen: asks and says.
        home: where the runs live.
        forget: forgets the directories of other trainers, which is all that deleting can do to them.
    """

    def __init__(self, screen: ConsoleScreen, home: Home, forget: Callable[[Sequence[str]], None]) -> None:
        self.screen = screen
        self.home = home
        self._forget = forget

    def act(self, what: str, run_ids: Sequence[str]) -> None:
        """Ask, naming the runs, then stop, save, resume or delete them: ``what`` is the action's name."""
        self.screen.begin(self._ask(_KINDS[what], run_ids), group="actions")

    async def _ask(self, kind: _Kind, run_ids: Sequence[str]) -> None:
        deletes = kind is _KINDS["delete"]
        forgotten = [run_id for run_id in run_ids if _is_foreign(run_id)] if deletes else []
        rest = [run_id for run_id in run_ids if run_id not in forgotten]
        able, refused = await asyncio.to_thread(self._sorted_out, kind, rest)
        if not able and not forgotten:
            self.screen.say("; ".join(refused), error=True)
            return
        parts = [f"{kind.verb.capitalize()} {_count(able)}?\n{_names(able)}"] if able else []
        parts += [await asyncio.to_thread(_what_goes, self.home, able) if deletes else kind.note] if able else []
        if forgotten:
            parts.append(f"Forget {_count(forgotten)} of other trainers? The files stay.\n{_names(forgotten)}")
        parts += ["\n".join(["Left alone:", *refused[:_NAMED]]) if refused else ""]
        doing = [f"{kind.verb} {_count(able)}"] if able else []
        doing += [f"forget {_count(forgotten)}"] if forgotten else []

        def answered(yes: bool | None) -> None:
            if yes and forgotten:
                self._forget(forgotten)
            if yes and able:
                self.screen.begin(self._carry_out(kind, able), group="actions")

        question = "\n\n".join(filter(None, parts))
        self.screen.console_app.push_screen(ConfirmScreen(question, " and ".join(doing)), answered)

    def _sorted_out(self, kind: _Kind, run_ids: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the runs that the action makes sense for, and a sentence for each other one."""
        able: list[str] = []
        refused: list[str] = []
        for run_id in run_ids:
            if _is_foreign(run_id):
                refused.append(one_line(f"{run_id}: {READ_ONLY}"))
                continue
            try:
                check_run(self.home.run(run_id))
                why = kind.refusal(self.home, run_id)
            except (StackllamaError, OSError, TimeoutError) as error:
                why = str(error)
            (refused if why else able).append(one_line(why) or run_id)
        return able, refused

    async def _carry_out(self, kind: _Kind, run_ids: Sequence[str]) -> None:
        done, failed = await asyncio.to_thread(self._do, kind, run_ids)
        if done:
            self.screen.say(f"{kind.done}: {', '.join(done)}")
        for why in failed:
            self.screen.say(why, error=True)

    def _do(self, kind: _Kind, run_ids: Sequence[str]) -> tuple[list[str], list[str]]:
        done: list[str] = []
        failed: list[str] = []
        for run_id in run_ids:
            try:
                kind.work(self.home, run_id)
            except UnconfirmedError as error:
                failed.append(
                    f"{run_id} needs an answer of its own: {error.question} Clear the selection, then r on it."
                )
            except (StackllamaError, OSError, TimeoutError) as error:
                failed.append(str(error))
            else:
                done.append(run_id)
        return done, failed


def _is_foreign(run_id: str) -> bool:
    """Return whether a row is a directory of another trainer."""
    return "/" in run_id


def _count(run_ids: Sequence[str]) -> str:
    return f"{len(run_ids)} runs" if len(run_ids) > 1 else "1 run"


def _names(run_ids: Sequence[str]) -> str:
    more = len(run_ids) - _NAMED
    return ", ".join(map(one_line, run_ids[:_NAMED])) + (f" and {more} more" if more > 0 else "")


def _stop_refusal(home: Home, run_id: str) -> str:
    state = reconcile(home.run(run_id))
    return already_ended(run_id, state) if state.has_ended else ""


def _stop(home: Home, run_id: str) -> None:
    from stackllama_engine.launch.run_requests import stop

    stop(home.run(run_id), wait=False)


def _save_refusal(home: Home, run_id: str) -> str:
    state = reconcile(home.run(run_id))
    if state.has_ended or state.stage is not Stage.PIPELINE:  # which of its stages is running is found out later
        requests.check(run_id, state, "save")
    return ""


def _save(home: Home, run_id: str) -> None:
    from stackllama_engine.launch.run_requests import ask

    ask(home.run(run_id), "save")


def _resume_refusal(home: Home, run_id: str) -> str:
    state = reconcile(home.run(run_id))
    if not state.has_ended:
        return f"{run_id} is {state.phase}"
    return f"{run_id} has finished" if state.phase == "finished" else ""


def _resume(home: Home, run_id: str) -> None:
    from stackllama_engine.launch.launcher import resume

    resume(home, run_id)


def _delete_refusal(home: Home, run_id: str) -> str:
    phase, _ = phase_and_stage(home.run(run_id))
    return "" if phase in (*ENDED, "damaged") else f"{run_id} is {phase}; stop it first (x)"


def _delete(home: Home, run_id: str) -> None:
    from stackllama_engine.launch.remove import remove

    if (home.runs_dir / run_id).exists():  # else it went with its pipeline
        remove(home, run_id)


def _what_goes(home: Home, run_ids: Sequence[str]) -> str:
    """Return what deleting these runs takes: bytes, stages of pipelines, and what others can no longer do."""
    from stackllama_engine.contract.children import children_of
    from stackllama_engine.launch.remove import users_of

    runs = {run_id: home.run(run_id) for run_id in run_ids}
    pipelines = [run for run in runs.values() if phase_and_stage(run)[1] is Stage.PIPELINE]
    stages = {child.id: child for run in pipelines for child in children_of(run) if child.id not in runs}
    users = {user for run_id in run_ids for user in users_of(home, run_id)} - runs.keys() - stages.keys()
    lines = [f"This cannot be undone. {size_text([*runs.values(), *stages.values()])}"]
    if stages:
        lines.append(f"Stages that are deleted too: {_names(sorted(stages))}")
    if users:
        lines.append(dependents([_names(sorted(users))]))
    return "\n".join(lines)


_KINDS = {
    "stop": _Kind("stop", "Each that runs saves first; r: resume later.", ASKED_TO_STOP, _stop_refusal, _stop),
    "save": _Kind("save a checkpoint of", "", "will save a checkpoint", _save_refusal, _save),
    "resume": _Kind("resume", "Each from its last checkpoint.", "resumed", _resume_refusal, _resume),
    "delete": _Kind("delete", "", "deleted", _delete_refusal, _delete),
}
