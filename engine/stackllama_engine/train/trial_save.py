"""Trial save before the first step, so that what cannot be saved is found now and not after hours of training.

An adapter is written as it would be at the end. Of a whole model everything is written but its weights, of which each
tensor is cut to its first row: names, tied weights and configuration files are what fails.
"""

import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from ..contract.errors import StageError
from .faults import is_disk_full
from .loading import one_line
from .session import SCRATCH, Session

_FOLDER = "trial"


def try_save(model: nn.Module, tokenizer: Any, base: str, session: Session) -> None:
    """Save what a stage will save, remove it, and fix or refuse what would fail; rank 0 writes, every rank waits.

    Args:
        model: with an adapter, or whole.
        tokenizer: saved with the model.
        base: the base's name, for messages.
        session: owns the scratch folder that is written to.

    Raises:
        StageError: it cannot be saved; names the file and the way out.
    """
    if not isinstance(model, PeftModel) and (notice := fix_generation_config(model, base)):
        session.reporter.health(notice)
    if session.is_main:
        folder = session.run.path / SCRATCH / _FOLDER
        try:
            _write(model, tokenizer, folder)
            if notice := session.reporter.disk.expect(folder, model, whole=not isinstance(model, PeftModel)):
                session.reporter.health(notice)
        except Exception as error:
            if is_disk_full(error):
                raise
            raise StageError(
                f"What would be trained of {base} cannot be saved: {type(error).__name__}: {one_line(error)} "
                "Nothing was trained yet; correct that file of the base, or use another base."
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    session.state.wait_for_everyone()


def fix_generation_config(model: Any, base: str) -> str | None:
    """Make a model's generation_config one that can be saved, as its own error message recommends.

    Llama 2 and others were published with a temperature beside ``do_sample: false``; transformers loads that with a
    warning, and refuses to save it once anything in it was changed (transformers#29988).

    Returns:
        What was changed, for people; None: nothing.

    Raises:
        StageError: that does not make it valid.
    """
    config = getattr(model, "generation_config", None)
    if config is None or not model.can_generate():
        return None
    reason = _invalid(config)
    if reason is None:
        return None
    if not config.do_sample:
        config.do_sample = True
        if _invalid(config) is None:
            return (
                f"generation_config.json of {base} sets how to sample and `do_sample: false`, which cannot be saved: "
                "it is saved with `do_sample: true`"
            )
    raise StageError(
        f"generation_config.json of {base} is not valid and could not be saved after training: {reason} Correct it "
        "there."
    )


def _invalid(config: Any) -> str | None:
    try:
        config.validate(strict=True)
    except ValueError as error:
        return one_line(error)
    return None


def _write(model: Any, tokenizer: Any, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder))
    else:
        rows = {name: value[:1] if value.dim() else value for name, value in model.state_dict().items()}
        model.save_pretrained(str(folder), state_dict=rows, save_original_format=False)
    tokenizer.save_pretrained(str(folder))
