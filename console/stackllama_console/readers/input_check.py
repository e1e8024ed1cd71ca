"""Launch's checks of the models, data and runs that a form names, made early. For threads."""

from collections.abc import Collection, Mapping

from stackllama_engine.contract.errors import StackllamaError
from stackllama_engine.contract.recipe import AnyRecipe
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.launch.hub_check import check_hub, wanted_from_hub
from stackllama_engine.launch.inputs import INPUTS, check_input, resolve_inputs
from stackllama_engine.launch.preflight import preflight

from ..sanitise import one_line

MODEL = "model_name_or_path"


def refusal(home: Home, key: str, value: str) -> str:
    """Return why a launch would refuse this input, sanitised; empty where it would not.

    Args:
        home: whose runs it may name.
        key: of the recipe, such as ``model_name_or_path``.
        value: what was typed.
    """
    try:
        check_input(home, key, value)
    except (StackllamaError, OSError) as error:
        return one_line(str(error))
    return ""


def find_unusable(
    home: Home, inputs: Mapping[str, str], recipe: AnyRecipe | None, allow: Collection[str] = ()
) -> dict[str, str]:
    """Return form key → why a launch would refuse its value; under an empty key errors of several together.

    Args:
        home: whose runs they may name.
        inputs: form key (a stage's own as ``ppo.dataset_name``) → text.
        recipe: the whole; None while it cannot be made.
        allow: names of findings that a launch allows.
    """
    named = {key: key.rpartition(".")[2] for key in inputs}
    refusals = {key: refusal(home, name, inputs[key]) for key, name in named.items() if name in INPUTS}
    wrong = {key: text for key, text in refusals.items() if text}
    if wrong or recipe is None:
        return wrong
    try:
        resolved, _ = resolve_inputs(home, recipe)
        preflight(resolved, allow)
    except (StackllamaError, OSError) as error:
        return {"": str(error)}
    return {}


def names_from_hub(home: Home, recipe: AnyRecipe) -> list[str]:
    """Return what a launch would download from the hub; empty where that is nothing, or an input is wrong."""
    try:
        return [one.name for one in wanted_from_hub(resolve_inputs(home, recipe)[0])]
    except (StackllamaError, OSError):  # `find_unusable` says it
        return []


def find_withheld(home: Home, recipe: AnyRecipe) -> dict[str, str]:
    """Ask the hub for what a launch would download; return what is wrong as :func:`find_unusable` does. Takes seconds.

    Args:
        home: whose runs the recipe may name.
        recipe: the whole.
    """
    try:
        check_hub(resolve_inputs(home, recipe)[0])
    except (StackllamaError, OSError) as error:
        return {"": str(error)}
    return {}
