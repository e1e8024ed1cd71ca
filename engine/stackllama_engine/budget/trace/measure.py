# pyright: basic
"""Two shallow traces, extrapolated phase by phase to the depth of the model; the largest phase is the peak.

Within a phase memory is linear in the number of layers; the maximum over phases is not, so it is taken last.
"""

import time

from ...contract.recipe import PPORecipe, PreferenceRecipe, TrainedRecipe
from ...contract.recipe_io import build_recipe
from . import build, cuda, supervised
from .request import Request, Trace
from .storages import Storages

SHALLOW = (2, 4)
"""Numbers of layers of the two traces."""
_LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes")


def measure(request: Request, *, extrapolate: bool = True) -> Trace:
    """Trace a recipe.

    Args:
        request: recipe and configurations.
        extrapolate: extrapolate from shallow traces; otherwise every layer is run, which is slower with equal results.

    Raises:
        ValueError: an architecture that cannot be traced, or an invalid recipe.
    """
    recipe = build_recipe(request.stage, request.recipe)
    if not isinstance(recipe, TrainedRecipe):
        raise ValueError(f"`{request.stage}` has no steps to trace.")
    depth = build.depth(request.config)
    reward_depth = build.depth(request.reward_model) if request.reward_model else 0
    start = time.monotonic()
    few, many = SHALLOW
    if not extrapolate or depth <= many or (isinstance(recipe, PPORecipe) and recipe.value_adapter_layers is not None):
        phases = peaks(recipe, request, depth, reward_depth)
    else:
        low = peaks(recipe, request, few, few)
        rises = [(peaks(recipe, request, many, few), depth)]
        if reward_depth:
            rises.append((peaks(recipe, request, few, many), reward_depth))
        phases = {name: extrapolated(low, rises, name) for name in low if all(name in high for high, _ in rises)}
    peak = max(phases, key=lambda name: phases[name])
    return Trace(
        phases=phases,
        peak=peak,
        allocated=phases[peak],
        seconds=round(time.monotonic() - start, 3),
        versions={name: _version(name) for name in _LIBRARIES},
    )


def peaks(recipe: TrainedRecipe, request: Request, layers: int, reward_layers: int) -> dict[str, int]:
    """Measure the peak bytes of each phase of models of this depth."""
    storages = Storages(cuda.kernels(), cuda.momentary())
    with cuda.stand_ins(padded=True):
        if isinstance(recipe, PPORecipe):
            from . import rl

            rl.trace(recipe, request.config, request.reward_model, layers, reward_layers, storages)
        elif isinstance(recipe, PreferenceRecipe):
            from . import preference

            preference.trace(recipe, request.config, layers, storages)
        else:
            supervised.trace(recipe, request.config, layers, storages)
    return {name: count for name, count in storages.peaks.items() if name}


def extrapolated(low: dict[str, int], rises: list[tuple[dict[str, int], int]], name: str) -> int:
    """Extrapolate a phase to full depth.

    Two layers have no inner layers' backward pass, which lies between those of the last and the first layer.

    Args:
        low: phases of the shallow trace.
        rises: for each model, the phases if it alone is deeper, and its real depth.
        name: name of the phase.
    """
    few, many = SHALLOW
    return low[name] + sum((high[name] - low[name]) * (depth - few) // (many - few) for high, depth in rises)


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)
