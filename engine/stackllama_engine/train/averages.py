"""A Trainer's sums between two logs, in checkpoints that fall between them.

transformers and TRL begin their averages anew when they resume, so that the first log afterwards would speak of fewer
steps than the same log of a run that was never interrupted, and TRL's count of tokens would lack those since the last
one. Each rank keeps its own part. Older checkpoints have no such file; theirs begin anew.
"""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState


def keep(trainer: Any, checkpoint: Path) -> None:
    """Write this rank's part beside the Trainer's own files.

    Raises:
        OSError: disk full or not writable.
    """
    facts = {
        "ranks": PartialState().num_processes,
        "loss": float(trainer._tr_loss),
        "logged_at": trainer._globalstep_last_logged,
        "tokens": trainer._total_train_tokens,
        "metrics": dict(trainer._metrics["train"]),
    }
    _file(checkpoint).write_text(json.dumps(facts), encoding="utf-8")  # NaN included, which is read back as such


def restore(trainer: Any, checkpoint: Path) -> None:
    """Restore this rank's part, once the Trainer has begun its own anew; with another number of ranks, do nothing."""
    file = _file(checkpoint)
    if not file.is_file():
        return
    facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if facts["ranks"] != PartialState().num_processes:
        return
    trainer._tr_loss = torch.tensor(facts["loss"], device=trainer._tr_loss.device)
    trainer._globalstep_last_logged = facts["logged_at"]
    trainer._total_train_tokens = facts["tokens"]
    trainer._metrics["train"].clear()
    trainer._metrics["train"].update(facts["metrics"])


def _file(checkpoint: Path) -> Path:
    return checkpoint / f"averages_{PartialState().process_index}.json"
