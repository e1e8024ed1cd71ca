"""Memory estimate of a recipe on one device, phase by phase, before anything is loaded.

The numbers follow what ``train/`` does with a recipe: how models are loaded, batched, checkpointed and stepped.
"""

import msgspec
from msgspec import Struct

from ..contract.attention import WIDEST_HEAD, is_flash
from ..contract.errors import UsageError
from ..contract.recipe import (
    MergeRecipe,
    PPORecipe,
    PreferenceRecipe,
    RewardRecipe,
    SFTRecipe,
    SupervisedRecipe,
    TrainedRecipe,
    TrainRecipe,
)
from . import adapter, device, inference, least, lm_head, merging, optimizer, preference, sharding, training, weights
from .activations import Attention, LayerMode
from .architecture import DTYPE_BYTES, Architecture
from .parts import Component, PhaseEstimate
from .precision import Precision, native_bytes, precision_of
from .rules import Rule, rules_for

EstimatedRecipe = TrainedRecipe | MergeRecipe
_ADAPTER = 4
"""Adapters are float32 whatever the base (``train/models.py``)."""
_RECORD = 8
"""float32 values per response token: log-probability, value, entropy, reference, mask, KL, advantage, and the return,
or without a critic the mask of the loss."""


class Estimate(Struct, frozen=True, kw_only=True):
    """Bytes on one device. Intervals are (low, high)."""

    phases: list[PhaseEstimate]
    peak: str
    """Name of the phase with the highest memory use."""
    components: tuple[Component, ...]
    """Components of the peak; they sum to ``allocated``."""
    allocated: int
    reserved: tuple[int, int]
    device: tuple[int, int]
    rules: list[Rule]
    rough: str | None = None
    """Why the numbers are approximate; None if nothing was missing."""
    unknown: str | None = None
    """Why the numbers are a guess, of which only :attr:`least` is certain; None: they are an estimate."""
    least: int = 0
    """Minimum bytes, if the rest is unknown."""


def estimate(
    recipe: EstimatedRecipe,
    arch: Architecture,
    *,
    gpus: int = 1,
    on_gpu: bool,
    reward: Architecture | None = None,
    device_bytes: int | None = None,
) -> Estimate:
    """Estimate the peak of each phase on one of ``gpus`` devices.

    Args:
        recipe: recipe of any stage except a pipeline.
        arch: sizes of ``model_name_or_path``; for a merge, of the adapter's base.
        gpus: number of processes; each holds everything, gradients are averaged.
        on_gpu: on a GPU, or in a CPU's main memory.
        reward: sizes of PPO's separate reward model; None: an adapter on the policy's base, or no reward model.
        device_bytes: total memory of the device, of which vLLM takes a share; None: unknown.
    """
    rough = arch.rough
    match recipe:
        case SFTRecipe() | RewardRecipe():
            phases = training.phases(workload(recipe, arch, gpus=gpus, on_gpu=on_gpu))
        case PreferenceRecipe():
            phases = preference.phases(workload(recipe, arch, gpus=gpus, on_gpu=on_gpu))
        case PPORecipe():
            share = _vllm_share(recipe, device_bytes)
            phases = _ppo(recipe, arch, on_gpu, reward, share)
            if share is not None:
                held = weights.base(arch, precision_of(recipe, arch))
                rough = "; ".join(filter(None, (rough, _vllm_note(recipe, share, held))))
        case MergeRecipe():
            chosen = adapter.targets(arch, None)
            phases = merging.phases(arch, adapter.parameters(chosen, 16, arch.layers), DTYPE_BYTES[recipe.dtype])
    why = least.unknown(recipe, arch, reward)
    return msgspec.structs.replace(
        summed(phases, arch, gpus=gpus, on_gpu=on_gpu),
        rough=rough,
        unknown=why,
        least=least.least(recipe, arch, reward) if why else 0,
    )


def estimate_sharded(
    recipe: SFTRecipe | RewardRecipe, arch: Architecture, shard: sharding.Sharding, *, on_gpu: bool = True
) -> Estimate:
    """Estimate the memory of one of several GPUs if the run were sharded over them, which the engine cannot launch.

    Raises:
        UsageError: parameters in 8 or 4 bits cannot be sharded.
    """
    if recipe.quantised and shard.kind != "zero2":
        raise UsageError(
            f"{shard.kind} shards parameters, which int8 and 4-bit weights do not support; "
            "set `base_precision: bf16`, or use zero2."
        )
    work = workload(recipe, arch, gpus=1, on_gpu=on_gpu)
    phases = [sharding.sharded(one, work, shard) for one in training.phases(work)]
    why = least.unknown(recipe, arch, shard=shard)
    return msgspec.structs.replace(
        summed(phases, arch, gpus=shard.ranks, on_gpu=on_gpu),
        unknown=why,
        least=least.least(recipe, arch, shard=shard, phases=phases) if why else 0,
    )


def summed(phases: list[PhaseEstimate], arch: Architecture, *, gpus: int, on_gpu: bool) -> Estimate:
    """Make an estimate from its phases."""
    peak = max(phases, key=lambda one: one.bytes)
    reserved = device.reserved(peak.bytes, on_gpu=on_gpu)
    return Estimate(
        phases=phases,
        peak=peak.name,
        components=peak.components,
        allocated=peak.bytes,
        reserved=reserved,
        device=device.device(reserved, gpus=gpus, on_gpu=on_gpu),
        rules=rules_for(arch.parameters),
        rough=arch.rough,
    )


def attention_kind(recipe: TrainRecipe, arch: Architecture, precision: Precision, *, masked: bool) -> Attention:
    """Return the attention kernel that transformers and torch choose.

    Flash attention supports 16-bit dtypes without a mask. The memory-efficient kernel supports the rest, but not
    grouped heads, which transformers leaves grouped if there is no mask: then torch falls back to plain matrix
    products.
    """
    if recipe.attn_implementation == "eager" or arch.model_type == "gemma2":
        return "eager"
    if is_flash(recipe.attn_implementation) or "/" in (recipe.attn_implementation or ""):  # or a kernel of the hub
        return "flash"
    if precision.attention == 2 and not masked:
        return "flash"
    if not masked and arch.kv_heads != arch.heads:
        return "math"
    return "efficient"


def keeps_mask(arch: Architecture, precision: Precision) -> bool:
    """Return whether rows that are padded on the right get a mask, as ``train/right_padding.py`` decides on a GPU."""
    return precision.attention == 4 and arch.kv_heads != arch.heads


def takes_bounds(recipe: SFTRecipe, arch: Architecture, precision: Precision) -> bool:
    """Return whether attention keeps the documents of a row apart without a mask, as ``train/varlen.py`` on a GPU."""
    head = arch.head_dim <= WIDEST_HEAD and arch.head_dim % 8 == 0
    plain = not arch.attention_dropout and not 0 < arch.window <= recipe.max_length
    return recipe.attn_implementation in (None, "sdpa") and precision.attention == 2 and head and plain


def workload(recipe: SupervisedRecipe, arch: Architecture, *, gpus: int, on_gpu: bool) -> training.Workload:
    """Describe one training step of SFT, a reward model or the preference stage, whose ``sequences`` are pairs."""
    precision = precision_of(recipe, arch)
    pairs = isinstance(recipe, RewardRecipe)
    masked = keeps_mask(arch, precision)
    if isinstance(recipe, SFTRecipe) and recipe.packing:
        masked = recipe.packing_strategy != "wrapped" and not takes_bounds(recipe, arch, precision)
    sequences = recipe.micro_batch_size * (2 if pairs else 1)
    accumulates = recipe.gradient_accumulation_steps > 1
    if isinstance(recipe, RewardRecipe) and recipe.max_tokens_per_micro_batch is not None:
        step = sequences * recipe.gradient_accumulation_steps
        sequences = min(step, 2 * (recipe.max_tokens_per_micro_batch // (2 * recipe.max_length)))
        accumulates = sequences < step
    width = _ADAPTER if recipe.use_peft else precision.native
    trained = adapter.trained_parameters(recipe, arch)
    if pairs:
        trained = trained + arch.hidden if recipe.use_peft else trained - (0 if arch.tied else arch.embedding)
    return training.Workload(
        arch=arch,
        mode=_mode(recipe, arch, precision, masked=masked, length=recipe.max_length, on_gpu=on_gpu),
        sequences=sequences,
        base=weights.base(arch, precision, head=not pairs),
        trained=trained,
        adapter=trained * width if recipe.use_peft else 0,
        width=width,
        checkpointing=_checkpointing(recipe),
        optimizer=optimizer.kind_of(recipe.optim, on_gpu=on_gpu),
        accumulates=accumulates,
        head="score" if pairs else "tiled",
        ddp=gpus > 1,
        on_gpu=on_gpu,
    )


def _ppo(
    recipe: PPORecipe, arch: Architecture, on_gpu: bool, reward: Architecture | None, share: int | None
) -> list[PhaseEstimate]:
    """Return the phases of PPO; ``share`` is vLLM's in bytes, None: vLLM does not sample."""
    precision = precision_of(recipe, arch)
    prompt, response = max(1, recipe.max_prompt_length - 1), recipe.longest_response  # a longer prompt is dropped
    length = prompt + response
    left = _mode(recipe, arch, precision, masked=True, length=length, on_gpu=on_gpu)  # sampling pads prompts there
    mode = _mode(recipe, arch, precision, masked=keeps_mask(arch, precision), length=length, on_gpu=on_gpu)
    one = adapter.trained_parameters(recipe, arch)
    critic_layers = min(recipe.critic_layers(arch.layers), arch.layers) if recipe.has_separate_critic else 0
    head = arch.hidden if recipe.has_critic else 0  # the value head
    trained = one + adapter.parameters(mode.targets, mode.rank, critic_layers) + head
    tensors = (
        *adapter.tensors(mode.targets, mode.rank, arch.layers),
        *adapter.tensors(mode.targets, mode.rank, critic_layers),
        *([optimizer.Trained(1, head)] if head else []),
    )
    kind = optimizer.kind_of(recipe.optim, on_gpu=on_gpu)
    reference = one if recipe.policy_adapter_path else 0
    reward_forward = None
    reward_bytes = _ADAPTER * (one + arch.hidden) if recipe.reward_model_path else 0
    if reward is not None:
        own = Precision(native=native_bytes(recipe, reward))
        reward_forward = (
            reward,
            _mode(recipe, reward, own, masked=keeps_mask(reward, own), length=length, on_gpu=on_gpu),
        )
        reward_bytes = weights.base(reward, own, head=False)
    stream = precision.residual * arch.hidden  # of one token
    kept = stream if 0 < critic_layers < arch.layers else 0  # what a critic in the upper layers reads
    record = recipe.local_batch_size * (4 * _RECORD * response + (16 + kept) * length)
    resident = inference.Resident(
        base_weights=weights.base(arch, precision),
        adapter=_ADAPTER * (trained + reference),
        reward_model=reward_bytes,
        optimizer=optimizer.states(tensors, _ADAPTER, kind),
        narrowed=2 * (one + arch.hidden) if precision.amp else 0,
        rollout_record=record,
    )
    batch = recipe.local_rollout_forward_batch_size
    held_out = batch if recipe.max_eval_samples is None else recipe.max_eval_samples
    rows = min(batch, max(recipe.local_batch_size, held_out))
    prompts = inference.distinct_prompts(recipe)
    size, mini_batch = recipe.micro_batch_size, recipe.local_batch_size // recipe.num_mini_batches
    scored = rows
    if recipe.max_tokens_per_micro_batch is not None:
        scored = recipe.max_tokens_per_micro_batch // length
        size = min(mini_batch, scored)
    kept_by_autocast = precision.native == 4 and not precision.quant and not recipe.checkpointing
    narrowed = 0 if kept_by_autocast else lm_head.narrowed(arch, precision)  # which then is among the layers' copies
    work = training.Workload(
        arch=arch,
        mode=mode,
        sequences=size,
        base=resident.base_weights,
        trained=trained,
        resting_layers=critic_layers,
        adapter=resident.adapter,
        checkpointing=_checkpointing(recipe),
        optimizer=kind,
        summed=True,
        accumulates=size < mini_batch,
        head_bytes=lm_head.update(
            arch, precision, size * response, directions=2 if recipe.ent_coef else 1, on_gpu=on_gpu
        )
        + size * length * precision.residual * arch.hidden
        + narrowed,
        on_gpu=on_gpu,
    )
    moments = training.phases(work)
    if recipe.has_separate_critic:  # its pass comes after the policy's, whose gradients still exist; it has no logits
        states = size * (8 * response * arch.hidden + (stream + kept) * length)
        critic = msgspec.structs.replace(arch, layers=critic_layers)
        moments += training.phases(
            msgspec.structs.replace(work, arch=critic, resting_layers=arch.layers, accumulates=True, head_bytes=states)
        )
    update = max(moments, key=lambda moment: moment.bytes)
    more = [Component("reward model", reward_bytes)] if reward_bytes else []
    more.append(Component("rollout record", record))
    rollout = inference.rollout(arch, left, resident, rows, prompt, response, prompts=prompts, on_gpu=on_gpu)
    return [
        rollout if share is None else inference.vllm_rollout(resident, share),
        inference.score(arch, mode, resident, scored, length, response, reward_forward, on_gpu=on_gpu),
        PhaseEstimate("update", (*update.components, *more)),
    ]


def _vllm_share(recipe: PPORecipe, device_bytes: int | None) -> int | None:
    """Return the bytes that vLLM takes while it samples, 0 if the card is unknown; None: it does not sample."""
    return round(recipe.vllm_gpu_memory_utilization * (device_bytes or 0)) if recipe.use_vllm else None


def _vllm_note(recipe: PPORecipe, share: int, base_weights: int) -> str:
    """Return a note on what the share does not cover. vLLM's weights are as wide as ours: its base is not quantised."""
    if not share:
        return "vLLM's share of the memory is not counted, because the card is not known"
    if share <= base_weights:
        return "vLLM's share is too small for the weights: raise `vllm_gpu_memory_utilization`"
    return "vLLM holds its share while it samples; what it keeps while asleep (context, CUDA graphs) is not counted"


def _mode(
    recipe: TrainRecipe, arch: Architecture, precision: Precision, *, masked: bool, length: int, on_gpu: bool
) -> LayerMode:
    return LayerMode(
        precision=precision,
        full=not recipe.use_peft,
        targets=adapter.targets(arch, recipe.lora_target_modules) if recipe.use_peft else (),
        rank=recipe.lora_r if recipe.use_peft else 0,
        dropout=recipe.lora_dropout > 0,
        dropout_mask=1 if on_gpu else _ADAPTER,
        adapter=_ADAPTER,
        fused=adapter.fused(recipe, arch, precision),
        attention=attention_kind(recipe, arch, precision, masked=masked),
        masked=masked,
        length=length,
    )


def _checkpointing(recipe: TrainRecipe) -> training.Checkpointing:
    """Return the kind of checkpointing: reentrant for int8, whose inputs would otherwise be kept (see ``train/``)."""
    if not recipe.checkpointing:
        return "none"
    return "reentrant" if recipe.load_in_8bit else "plain"
