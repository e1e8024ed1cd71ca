"""Trackers (tensorboard, wandb, trackio) beside our own events: a full disk under them ends no run.

Their metrics are in ``events.jsonl`` as well. What a tracker could not take is tried again once there is room;
TensorBoard's writer, whose thread dies of a full disk, is begun anew.
"""

from collections.abc import Callable, Mapping
from typing import Any

from .pending_writes import is_disk_full
from .reporting import Reporter

_INTEGRATIONS = "transformers.integrations"


def survive_trackers(trainer: Any, reporter: Reporter) -> None:
    """Let the Trainer's own trackers fail on a full disk without ending it; their metrics of that moment are lost."""
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__module__.startswith(_INTEGRATIONS):
            for name in [name for name in dir(type(callback)) if name.startswith("on_")]:
                setattr(callback, name, _surviving(callback, getattr(callback, name), reporter))


def log(accelerator: Any, metrics: Mapping[str, float], step: int, reporter: Reporter) -> None:
    """Log metrics to accelerate's trackers, now or when there is room; on every rank, of which the first writes."""
    if not accelerator.trackers:
        return

    def write() -> None:
        try:
            accelerator.log(dict(metrics), step=step)
        except Exception as error:
            if is_disk_full(error):
                _begin_anew(accelerator)
            raise

    if reporter.is_main:
        reporter.disk.write("trackers", write)
    else:
        write()


def end(accelerator: Any, reporter: Reporter) -> None:
    """Close accelerate's trackers."""
    try:
        accelerator.end_training()
    except Exception as error:  # libraries report a full disk in classes of their own
        if not is_disk_full(error):
            raise
        reporter.health("the disk is full: the trackers' last metrics are lost")


def _surviving(callback: Any, method: Callable[..., Any], reporter: Reporter) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return method(*arguments, **named)
        except Exception as error:  # libraries report a full disk in classes of their own
            if not is_disk_full(error):
                raise
            reporter.health(f"the disk is full: {type(callback).__name__} lost metrics")
            if getattr(callback, "tb_writer", None) is not None:
                callback.tb_writer = None  # its thread has died; the next call makes another
            return None

    return call


def _begin_anew(accelerator: Any) -> None:
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.writer = type(tracker.writer)(log_dir=tracker.writer.log_dir)
