"""The children of a pipeline, for commands and screens: which one still runs, which one it is at, which failed."""

from stackllama_engine.contract.children import CHILDREN, child_id, parents_of
from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.reconcile import reconcile


def children(run: RunDir, state: State) -> list[tuple[RunDir, State]]:
    """The children that a pipeline has begun, in order, with their reconciled states; none of another stage's run."""
    if state.stage is not Stage.PIPELINE:
        return []
    home = Home(run.path.parents[1])
    found: list[tuple[RunDir, State]] = []
    for child in CHILDREN:
        try:
            directory = home.run(child_id(run.id, child.suffix))
            if run.id in parents_of(directory):
                found.append((directory, reconcile(directory)))
        except UsageError:
            continue  # not begun, or damaged: `runs ls` names it, and it must not hide the pipeline's state
    return found


def still_running(run: RunDir, state: State) -> RunDir | None:
    """The child that goes on alone although its pipeline has ended."""
    alive = [child for child, its in children(run, state) if not its.has_ended]
    return alive[-1] if state.has_ended and alive else None


def newest(run: RunDir, state: State) -> RunDir | None:
    """The child that a pipeline is at, or ended at."""
    return at_work(children(run, state))


def at_work(begun: list[tuple[RunDir, State]]) -> RunDir | None:
    """Of the children that were begun, in order: the one that runs, else the one that failed, else the last."""
    alive = [pair for pair in begun if not pair[1].has_ended]
    failed = [pair for pair in begun if pair[1].phase in ("failed", "lost")]
    for pairs in (alive, failed, begun):
        if pairs:
            return pairs[-1][0]
    return None
