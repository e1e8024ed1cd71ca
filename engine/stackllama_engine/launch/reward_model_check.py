"""Check at launch of a reward model from elsewhere, as far as its files say how it reads and what it returns.

The stage checks again, with the model loaded; a hub model is checked there alone.
"""

from pathlib import Path
from typing import Any

from ..contract.audit import Audit, read_audit
from ..contract.errors import DamagedError, UsageError
from ..contract.prompt_format import Kind, read_prompt_format
from ..contract.recipe import AnyRecipe, PPORecipe
from ..contract.run_dir import RunDir
from ..contract.user_files import read_json
from .lineage import training_run
from .prompt_format_check import has_chat_template


def check_reward_model(recipe: PPORecipe, kind: Kind | None) -> None:
    """Refuse one that has no chat template for a chat, or several scores of which none is chosen.

    Args:
        recipe: with its inputs resolved.
        kind: of its prompt format; None: not known yet.

    Raises:
        UsageError: as said.
        StageError: its ``prompt_format.json`` cannot be read.
    """
    directory = Path(recipe.reward_model_path or "")
    if not recipe.reward_model_path or not (directory / "config.json").is_file() or read_prompt_format(directory):
        return
    key = f"`reward_model_path: {recipe.reward_model_path}`"
    if kind == "chat" and not has_chat_template(directory):
        raise UsageError(
            f"{key}: its tokenizer has no chat template, so nothing says how it reads a conversation; use a reward "
            "model that has one, or set `prompt_format` to another one than chat."
        )
    labels, label = _labels(directory), recipe.reward_model_label
    names = f"({', '.join(labels[:4])})"
    if labels and label is not None and label >= len(labels):
        raise UsageError(
            f"`reward_model_label: {label}`: {key} returns {len(labels)} scores per text {names}; choose one from 0 to "
            f"{len(labels) - 1}."
        )
    if len(labels) > 2 and label is None:
        raise UsageError(
            f"{key} returns {len(labels)} scores per text {names}, but a reward is one number; choose one with "
            "`reward_model_label`, from 0."
        )


def audit_notices(recipe: AnyRecipe) -> list[str]:
    """Return what the audit of a PPO run's reward model says against it; the run is launched all the same.

    Args:
        recipe: with its inputs resolved.
    """
    if not isinstance(recipe, PPORecipe) or not recipe.reward_model_path:
        return []
    merge = RunDir(Path(recipe.reward_model_path).parent)
    for run in (merge, training_run(merge)):
        try:
            audit = read_audit(run)
        except DamagedError as error:
            return [str(error)]
        if audit is not None:
            return _against(run, audit)
    return []


def _against(run: RunDir, audit: Audit) -> list[str]:
    if audit.verdict == "good":
        return []
    reasons = "; ".join(finding.text for finding in audit.findings if finding.verdict == audit.verdict)
    return [f"the audit of the reward model {run.id} says {audit.verdict}: {reasons}"]


def _labels(directory: Path) -> list[str]:
    """Return the names of a classifier's scores; empty where its configuration does not say them."""
    try:
        config: dict[str, Any] = read_json(directory / "config.json", dict[str, Any])
    except (OSError, ValueError):  # the stage says what is wrong with it
        return []
    labels: Any = config.get("id2label")
    return [str(name) for name in labels.values()] if isinstance(labels, dict) else []  # type: ignore[reportUnknown]
