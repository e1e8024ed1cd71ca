"""``accelerate launch … -m stackllama_engine.train STAGE RUN_DIR``: one process of one attempt of one stage.

Whatever happens, rank 0 ends the attempt with an ``end`` event that carries the exit code and the cause, because
the launcher above maps every failure to exit code 1.
"""

import contextlib
import importlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contract.errors import ExitCode, StackllamaError
from ..contract.prompt_format import read_prompt_format
from ..contract.recipe import AnyRecipe, MergeRecipe, RewardRecipe, SupervisedRecipe
from ..contract.recipe_io import load_recipe
from ..contract.redact import redact_output, redactor
from ..contract.run_dir import RunDir
from ..contract.stacks import offer_stacks
from ..contract.stages import Stage
from ..contract.streams import open_standard_streams
from .read_ahead import read_ahead
from .restart import Restarts
from .signals import Signals, Stopped
from .unused import hide_unused

if TYPE_CHECKING:
    from .reporting import Reporter
    from .session import Session

_MAKE_ROOM = "Make room, then resume."
_STAGE_MODULES = {
    Stage.SFT: ".sft",
    Stage.REWARD: ".reward",
    Stage.PREFERENCE: ".preference",
    Stage.PPO: ".ppo",
    Stage.MERGE: ".merge",
}


def main(argv: list[str]) -> int:
    """Run one stage; returns the exit code."""
    signals = Signals()
    stage, run = Stage(argv[0]), RunDir(Path(argv[1]))
    with contextlib.suppress(StackllamaError, OSError):  # a recipe that cannot be read is reported below
        read_ahead(load_recipe(stage, run.recipe_file))
    from .reporting import Reporter  # and with it torch

    attempt = int(os.environ.get("STACKLLAMA_ATTEMPT", "1"))
    run.attempt_dir(attempt).mkdir(mode=0o700, parents=True, exist_ok=True)
    offer_stacks(run.attempt_dir(attempt))
    reporter = Reporter(run, attempt, is_main=int(os.environ.get("RANK", "0")) == 0)
    try:
        _run_stage(stage, run, reporter, signals, Restarts(run, attempt, signals))
    except Stopped:
        code, cause = ExitCode.STOPPED, reporter.stop_cause
    except StackllamaError as error:
        code, cause = ExitCode(error.exit_code), str(error)
        print(error, file=sys.stderr)  # noqa: T201 - a person's mistake: the log says what the cause says
    except Exception as error:  # noqa: BLE001 - the last line of defence turns every failure into a cause
        code, cause = ExitCode.FAILED, _cause(error, reporter.current_phase)
        traceback.print_exc()
        with contextlib.suppress(OSError):  # a full disk: this rank's own cause stands
            cause = _first_cause(run.attempt_dir(attempt), cause)
    else:
        code, cause = ExitCode.DONE, None
    reporter.end(code, cause)
    return code


def _run_stage(stage: Stage, run: RunDir, reporter: "Reporter", signals: Signals, restarts: Restarts) -> None:
    reporter.phase("start")
    reporter.activity("importing libraries")
    if reporter.is_main:
        restarts.disk = reporter.disk
        reporter.disk.hold_least()
    signals.load()
    restarts.start()
    # once at import and once a layer and step it tells its callers what they cannot change
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    started = time.monotonic()
    recipe: Any = restarts.now.applied(load_recipe(stage, run.recipe_file))  # of the stage
    hide_unused(recipe)
    from transformers import set_seed

    from . import models
    from .disk_wait import write_result
    from .loading_progress import report_weights
    from .session import Session

    models.quiet_libraries()
    report_weights(reporter)
    set_seed(recipe.seed)  # adapters and heads start at random: alike on every rank and in every attempt
    trackers = getattr(recipe, "report_to", ())
    session = Session(run, reporter, signals, restarts, use_cpu=recipe.use_cpu, report_to=trackers)
    run_stage: Callable[[AnyRecipe, Session], dict[str, Any]] = importlib.import_module(
        _STAGE_MODULES[stage], __package__
    ).run
    try:
        facts = run_stage(recipe, session)
    except Exception as error:
        if isinstance(recipe, SupervisedRecipe):
            _begin_again(error, recipe, session)
        raise
    seconds = round(time.monotonic() - started, 1)

    def leave() -> None:
        _write_lineage(recipe, run)
        reporter.result({"stage": stage.value, **facts, "seconds": seconds})

    write_result(session.requests, reporter, int(facts.get("steps", 0)), leave, what="result.json")
    session.clean_up()


def _begin_again(error: Exception, recipe: SupervisedRecipe, session: "Session") -> None:
    """Restart every rank with smaller batches when memory ran out, or when another rank restarts; else return."""
    from .faults import memory_that_ran_out, smaller_micro_batch, smaller_token_limit

    phase = session.reporter.current_phase
    memory = memory_that_ran_out(error)
    if memory is None:
        if session.world_size > 1:
            session.restarts.join_peer()
        return
    where = f"out of {memory} on rank {session.rank} in phase {phase}: from now on"
    tokens = recipe.max_tokens_per_micro_batch if isinstance(recipe, RewardRecipe) else None
    if phase == "train" and tokens is not None:
        if (smaller := smaller_token_limit(tokens, 2 * recipe.max_length)) < tokens:
            message = f"{where} `max_tokens_per_micro_batch: {smaller}` on every rank (was {tokens}); the effective "
            session.restarts.again(max_tokens_per_micro_batch=smaller, message=f"{message}batch stays")
        return
    micro_batch_size, accumulation = recipe.micro_batch_size, recipe.gradient_accumulation_steps
    if phase == "train" and micro_batch_size > 1:
        half, passes = smaller_micro_batch(micro_batch_size, accumulation)
        session.restarts.again(
            per_device_train_batch_size=half,
            gradient_accumulation_steps=passes,
            message=f"{where} `per_device_train_batch_size: {half}` and `gradient_accumulation_steps: {passes}` on "
            f"every rank (were {micro_batch_size} and {accumulation}); the effective batch stays "
            f"{micro_batch_size * accumulation} per device",
        )
    eval_size = recipe.per_device_eval_batch_size
    if phase == "evaluate" and eval_size > 1:
        session.restarts.again(
            per_device_eval_batch_size=eval_size // 2,
            message=f"{where} `per_device_eval_batch_size: {eval_size // 2}` on every rank (was {eval_size})",
        )


def _write_lineage(recipe: Any, run: RunDir) -> None:
    """``lineage.json``: which base, data and prompt format, and which runs this one came from; rank 0 only."""
    from .models import base_identity

    name = getattr(recipe, "model_name_or_path", None)
    base = base_identity(name, getattr(recipe, "model_revision", None)) if name else None
    parents = run.read_launch().parents if (run.path / "launch.json").exists() else []
    data = getattr(recipe, "dataset_name", None)
    prompt_format = read_prompt_format(run.merged if isinstance(recipe, MergeRecipe) else run.path)
    lineage = {"base": base, "dataset_name": data, "seed": recipe.seed, "parents": parents}
    if prompt_format is not None:
        lineage["prompt_format"] = {"kind": prompt_format.kind, "digest": prompt_format.digest}
    run.write_json("lineage.json", lineage)


def _first_cause(attempt: Path, cause: str) -> str:
    """Return the first failure over all ranks; the others only report that their peer is gone.

    Every failing rank leaves its cause in the attempt's folder; rank 0 reports the earliest.
    """
    rank = os.environ.get("RANK", "0")
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return cause
    (attempt / f"cause-rank-{rank}.txt").write_text(redactor().text(cause), encoding="utf-8")
    files = sorted(attempt.glob("cause-rank-*.txt"), key=lambda path: path.stat().st_mtime_ns)
    first = files[0]
    return cause if first.stem.endswith(f"-{rank}") else f"rank {first.stem[11:]}: {first.read_text(encoding='utf-8')}"


def _cause(error: Exception, phase: str) -> str:
    """Describe a failure in one sentence that a person can act on."""
    from .faults import is_disk_full, memory_that_ran_out
    from .loading import one_line

    reason = one_line(error)
    if memory := memory_that_ran_out(error):
        forward = phase in ("rollout", "score", "evaluate")
        lever = (
            "Halve `local_rollout_forward_batch_size` (PPO) or `per_device_eval_batch_size`"
            if forward
            else "Halve `per_device_train_batch_size` and double `gradient_accumulation_steps`, or use "
            "`gradient_checkpointing: true` or `base_precision: nf4` where they are not set"
        )
        return f"Out of {memory} in phase {phase}. {lever}. ({reason})"
    if is_disk_full(error):
        return f"The disk is full in phase {phase}: {getattr(error, 'filename', None) or reason}. {_MAKE_ROOM}"
    return f"{type(error).__name__} in phase {phase}: {reason}"


if __name__ == "__main__":
    open_standard_streams()
    os.umask(0o077)
    redact_output()
    sys.exit(main(sys.argv[1:]))
