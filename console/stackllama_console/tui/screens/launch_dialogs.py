"""Dialogs of the launch screen: which model, which run, which name, which file. They ask; the screen acts on it."""

from collections.abc import Sequence

from ...readers.choices import RUN_KEYS, Choice, typed_models
from ...sanitise import one_line
from .confirm import AskScreen
from .launch_controller import LaunchController
from .pick import PickScreen


def model_dialog(controller: LaunchController) -> PickScreen:
    """Make the list of models that were found; a hub id or a path may be typed."""
    home = controller.home
    return PickScreen(
        "model",
        controller.models,
        controller.draft.model,
        typed=lambda text: typed_models(home, text),
        hint="words to filter, a hub id, or a path",
    )


def run_dialog(controller: LaunchController, key: str, runs: Sequence[Choice]) -> PickScreen:
    """Make the list of finished runs for one recipe key; a path may be typed."""
    return PickScreen(
        f"{key}: a finished {' or '.join(RUN_KEYS[key])} run",
        runs,
        controller.draft.form.text(key),
        typed=lambda text: [Choice(value=text, title=one_line(text), facts="as typed")],
        hint="words to filter, or a path",
    )


def name_dialog(controller: LaunchController) -> AskScreen:
    """Make the question for the run's name; a name that no run can have stays to be corrected."""
    question = "Run name (empty: stage, date and time)"
    return AskScreen(question, controller.draft.name or "", check=controller.name_error)


def after_dialog(controller: LaunchController, runs: Sequence[Choice]) -> PickScreen:
    """Make the list of runs that the launch can wait for."""
    return PickScreen("start after", runs, controller.draft.after or "", hint="words to filter")


def write_dialog(controller: LaunchController) -> AskScreen:
    """Make the question for the new file that the recipe is written to."""
    stage = controller.draft.stage
    return AskScreen(f"Write the {stage} recipe to a new file", f"{stage}.yaml")


def open_dialog(controller: LaunchController) -> AskScreen:
    """Make the question for the recipe file that fills the form."""
    stage = controller.draft.stage
    question = f"Open a recipe file (of {stage}, unless its first line names another stage)"
    return AskScreen(question, placeholder="path", path=True)
