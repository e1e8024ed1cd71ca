"""The children of a pipeline, for commands and screens: the active one, one still running, the failed one."""

from stackllama_engine.contract.children import CHILDREN, child_id, parents_of
from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.reconcile import reconcile


def children(run: RunDir, state: State) -> list[tuple[RunDir, State]]:
    """Return the children that a pipeline has started, in order, with reconciled states; none for other stages."""
    if state.stage is not Stage.PIPELINE:
        return []
    home = Home(run.path.parents[1])
    begun: list[tuple[RunDir, State]] = []
    for child in CHILDREN:
        try:
            directory = home.run(child_id(run.id, child.suffix))
            if run.id in parents_of(directory):
                begun.append((directory, reconcile(directory)))
        except UsageError:
            continue  # not started, or damaged: `runs ls` names it, and it must not hide the pipeline's state
    return begun


def still_running(run: RunDir, state: State) -> RunDir | None:
    """Return the child that is still running although its pipeline has ended."""
    alive = [child for child, its in children(run, state) if not its.has_ended]
    return alive[-1] if state.has_ended and alive else None


def newest(run: RunDir, state: State) -> RunDir | None:
    """Return the child that a pipeline is at, or ended at."""
    return at_work(children(run, state))


def at_work(begun: list[tuple[RunDir, State]]) -> RunDir | None:
    """Return the child that runs, else the one that failed, else the last; ``begun`` is in order."""
    alive = [pair for pair in begun if not pair[1].has_ended]
    failed = [pair for pair in begun if pair[1].phase in ("failed", "lost")]
    for pairs in (alive, failed, begun):
        if pairs:
            return pairs[-1][0]
    return None
