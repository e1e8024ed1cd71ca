"""Lower bound of a run's memory where the estimate is unknown, so that the verdict is not "it fits".

Only what is certain is counted: no activations, no fragmentation, no CUDA context.
"""

from ..contract.recipe import MergeRecipe, TrainedRecipe
from . import adapter, optimizer, sharding, weights
from .architecture import Architecture
from .parts import PhaseEstimate
from .precision import Precision, native_bytes, precision_of

_RESIDENT = ("base weights", "adapter", "gradients", "optimizer")
_FOUR_BITS = 0.5
"""Bytes per weight in nf4 or fp4, without scales."""


def unknown(
    recipe: TrainedRecipe | MergeRecipe,
    arch: Architecture,
    reward: Architecture | None = None,
    shard: sharding.Sharding | None = None,
) -> str | None:
    """Return why an estimate is only a guess; None if it is reliable.

    Args:
        recipe: recipe of any stage except a pipeline.
        arch: sizes of the model.
        reward: sizes of PPO's separate reward model.
        shard: hypothetical sharding of the run over GPUs.
    """
    reasons: list[str] = []
    if arch.unknown:
        reasons.append(arch.unknown)
    if reward and reward.unknown:
        reasons.append(f"reward model: {reward.unknown}")
    if not isinstance(recipe, MergeRecipe) and recipe.quantised and arch.expert:
        reasons.append("the experts of a mixture are not quantised; set `base_precision: bf16`")
    if (
        not isinstance(recipe, MergeRecipe)
        and recipe.use_peft
        and adapter.names_experts(arch, recipe.lora_target_modules)
    ):
        reasons.append("an adapter on the experts of a mixture is not counted")
    if shard and not isinstance(recipe, MergeRecipe) and not recipe.use_peft:
        reasons.append(f"full training sharded by {shard.kind} was never measured against this estimate")
    return "; ".join(reasons) or None


def least(
    recipe: TrainedRecipe | MergeRecipe,
    arch: Architecture,
    reward: Architecture | None = None,
    shard: sharding.Sharding | None = None,
    phases: list[PhaseEstimate] | None = None,
) -> int:
    """Return the minimum bytes that one device must hold.

    Args:
        recipe, arch, reward, shard: as for :func:`unknown`.
        phases: phases of the estimate, if the architecture is known; their resident components are certain.
    """
    if isinstance(recipe, MergeRecipe):
        return _packed(arch) if arch.packed else 4 * arch.parameters
    if arch.unknown is None and shard and phases:
        return max(sum(one.bytes for one in phase.components if one.name in _RESIDENT) for phase in phases)
    precision = precision_of(recipe, arch)
    held = _weights(arch, precision)
    if reward is not None:
        held += _weights(reward, Precision(native=native_bytes(recipe, reward)), head=False)
    if recipe.use_peft:
        return held if shard is None or shard.kind == "zero2" else sharding.share(held, shard.ranks)
    trained = optimizer.gradients(arch.parameters, precision.native) + _moments(recipe, arch, precision.native)
    if shard is None:
        return held + trained
    whole = held if shard.kind == "zero2" else sharding.share(held, shard.ranks)
    return whole + sharding.share(trained, shard.ranks)


def _weights(arch: Architecture, precision: Precision, *, head: bool = True) -> int:
    if arch.packed:
        return _packed(arch)
    if arch.unknown is None:
        return weights.base(arch, precision, head=head)
    width = 1 if precision.quant == "int8" else _FOUR_BITS if precision.quant else precision.native
    # a reward model has no head, which the parameters may count
    elements = arch.parameters - (0 if head else min(arch.embedding, arch.parameters // 2))
    return int(width * elements)


def _packed(arch: Architecture) -> int:
    """Return the bytes of a checkpoint that is already quantised."""
    return max(int((arch.packed or 0) * arch.parameters), arch.bytes_on_disk)


def _moments(recipe: TrainedRecipe, arch: Architecture, width: int) -> int:
    """Return the bytes of the optimizer's moments; those that may be in host memory, and Adafactor's, count as 0."""
    if recipe.optim in ("adamw_torch", "adamw_torch_fused"):
        return 2 * width * arch.parameters
    return 2 * arch.parameters if recipe.optim in ("adamw_8bit", "adamw_bnb_8bit") else 0
