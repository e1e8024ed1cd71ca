"""Recipe keys as form fields: read off the recipe Structs, grouped for people; types and help are not repeated here."""

import functools
import types
import typing
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct

from stackllama_engine.contract.recipe import RECIPES, WIRED, TrainRecipe
from stackllama_engine.contract.stages import PIPELINE_STAGES, Stage
from stackllama_engine.contract.wording import is_steps

Kind = Literal["text", "whole", "number", "flag", "choice", "list", "mapping"]

_SECTIONS: dict[str, str] = {
    "Model": """model_name_or_path adapter_path reward_model_path policy_adapter_path base_model_name_or_path
        model_revision
        base_precision dtype use_bnb_nested_quant attn_implementation use_liger_kernel trust_remote_code""",
    "Data": """dataset_name dataset_config dataset_columns dataset_train_split dataset_test_split dataset_streaming
        max_train_samples max_eval_samples prompt_format system_prompt chat_template enable_thinking""",
    "Adapter": "use_peft lora_r lora_alpha lora_dropout lora_target_modules",
    "Optimisation": """optim learning_rate value_learning_rate lr_scheduler_type min_lr_rate warmup_steps max_steps
        total_episodes num_train_epochs weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm
        max_skipped_steps max_rollbacks bf16 fp16 seed""",
    "Batch & length": """per_device_train_batch_size gradient_accumulation_steps num_mini_batches
        local_rollout_forward_batch_size max_tokens_per_micro_batch per_device_eval_batch_size gradient_checkpointing
        max_length max_prompt_length packing packing_strategy assistant_only_loss""",
    "PPO": """advantage num_generations scale_rewards mask_truncated_completions skip_zero_std_groups num_ppo_epochs
        cliprange epsilon_high cliprange_value vf_coef ent_coef gamma lam whiten_rewards whiten_advantages
        early_stopping target_kl ratio_threshold value_adapter value_adapter_layers
        value_head_init""",
    "Loss": "loss_type kl_in_loss loss_weights beta label_smoothing",
    "Sampling": """temperature response_length random_length_limits missing_eos_penalty missing_eos_reward use_vllm
        vllm_gpu_memory_utilization""",
    "KL & reward": """kl_coef kl_estimator adap_kl_ctrl target horizon normalize_reward cliprange_reward
        reward_baseline reward_model_weight reward_model_label reward_funcs reward_weights reward_kwargs reward_columns
        reward_timeout reward_func_paths length_penalty
        length_penalty_start repetition_penalty repetition_n_grams center_rewards_coefficient""",
    "Checkpoints & reports": """logging_steps eval_steps eval_temperatures eval_best_of save_steps save_minutes
        save_total_limit metric_for_best_model greater_is_better keep_every_steps report_to
        num_sample_generations pause_on""",
    "Machine": "num_processes use_cpu",
}
OTHER = "Other"
_PLACE = {
    name: (rank, index) for rank, names in enumerate(_SECTIONS.values()) for index, name in enumerate(names.split())
}
_NOWHERE = (len(_SECTIONS), 0)
_TITLES = {
    Stage.SFT: "SFT",
    Stage.REWARD: "Reward",
    Stage.PREFERENCE: "Preference",
    Stage.PPO: "PPO",
    Stage.MERGE: "Merge",
}
_STEPS = "whole number, or a share of all steps below 1"
_LEAST, _MOST = ("ge", "gt"), ("le", "lt")


class FormField(Struct, frozen=True, kw_only=True):
    """One recipe key as a person meets it."""

    key: str
    """The key on the command line: ``lora_r``, in a pipeline also ``sft.lora_r``."""
    name: str
    """The key without its stage."""
    stage: Stage | None = None
    """The section of a pipeline recipe that holds the key; None at the top."""
    section: str
    """The key's group: Model, Data, …"""
    heading: str
    """The section as a heading, with the stage where that is needed."""
    kind: Kind
    default: Any = UNSET
    """UNSET for a required key, and for a pipeline's shared key whose default depends on the stage."""
    required: bool = False
    optional: bool = False
    """True if the value may be left empty."""
    choices: tuple[str, ...] = ()
    bounds_text: str = ""
    """The accepted values, in words: ``whole number, at least 1``."""
    help: str = ""
    wired: bool = False
    """A pipeline's first stage takes it; the later ones get theirs from the stage before."""
    type: Any = None
    """The annotation in the Struct."""

    @property
    def by_stage(self) -> bool:
        """True if the default depends on the stage."""
        return self.default is UNSET and not self.required


@functools.cache
def fields_of(stage: Stage) -> dict[str, FormField]:
    """Return the fields of one stage's form by key, in the order of their sections.

    A pipeline has the shared keys of its training stages first, then each stage's own, without the wired ones.
    """
    if stage is not Stage.PIPELINE:
        fields = _stage_fields(stage)
    else:
        fields = _shared_fields()
        for part in (*PIPELINE_STAGES, Stage.MERGE):
            left_out = {*WIRED[part], "model_name_or_path"}  # the shared key says it once
            fields += [
                msgspec.structs.replace(
                    field, key=f"{part}.{field.name}", stage=part, heading=_heading(part, field.section)
                )
                for field in _stage_fields(part)
                if field.name not in left_out
            ]
    return {field.key: field for field in fields}


def _heading(stage: Stage, section: str) -> str:
    title = _TITLES[stage]
    return section if section == title else f"{title} · {section}"


def _shared_fields() -> list[FormField]:
    defaults = {stage: {field.name: field.default for field in _stage_fields(stage)} for stage in PIPELINE_STAGES}
    shared = {field.name for field in msgspec.structs.fields(TrainRecipe)}
    fields: list[FormField] = []
    for field in _stage_fields(PIPELINE_STAGES[0]):
        if field.name not in shared:
            continue
        stage_defaults = [defaults[stage][field.name] for stage in PIPELINE_STAGES]
        fields.append(
            msgspec.structs.replace(
                field,
                heading=f"Every stage · {field.section}",
                default=stage_defaults[0] if all(value == stage_defaults[0] for value in stage_defaults) else UNSET,
                wired=any(field.name in WIRED[stage] for stage in PIPELINE_STAGES),
            )
        )
    return fields


@functools.cache
def _stage_fields(stage: Stage) -> list[FormField]:
    fields = [_field(field) for field in msgspec.structs.fields(RECIPES[stage])]
    return sorted(fields, key=lambda field: _PLACE.get(field.name, _NOWHERE))


def _field(field: msgspec.structs.FieldInfo) -> FormField:
    parts, metas = _unwrapped(field.type)
    optional = type(None) in parts
    kind, choices = _kind([part for part in parts if part is not type(None)])
    section = list(_SECTIONS)[_PLACE[field.name][0]] if field.name in _PLACE else OTHER
    return FormField(
        key=field.name,
        name=field.name,
        section=section,
        heading=section,
        kind=kind,
        default=_default(field),
        required=field.required,
        optional=optional,
        choices=choices,
        bounds_text=_STEPS if is_steps(field.type) else _bounds_text(kind, choices, metas, optional),
        help=next((meta.description for meta in metas if meta.description), ""),
        type=field.type,
    )


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.required:
        return UNSET
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()


def _unwrapped(annotation: Any) -> tuple[list[Any], list[Meta]]:
    """Return the members of a (perhaps annotated or optional) type, and every Meta on the way, outermost first."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        inner, *extras = typing.get_args(annotation)
        parts, metas = _unwrapped(inner)
        return parts, [extra for extra in extras if isinstance(extra, Meta)] + metas
    if origin in (typing.Union, types.UnionType):
        members = [_unwrapped(part) for part in typing.get_args(annotation)]
        return [part for parts, _ in members for part in parts], [meta for _, metas in members for meta in metas]
    return [annotation], []


def _kind(parts: list[Any]) -> tuple[Kind, tuple[str, ...]]:
    """Return the kind of input of a type, and its choices.

    Raises:
        TypeError: a type that recipes have not had so far.
    """
    for part in parts:
        if typing.get_origin(part) is list:
            return "list", _literals(typing.get_args(part)[0])
        if typing.get_origin(part) is dict:
            return "mapping", ()
    words = tuple(word for part in parts for word in _literals(part))  # a number may have a word that stands for one
    others = [part for part in parts if not _literals(part)]
    if not others:
        return "choice", words
    if set(others) == {int, float}:
        return "number", words
    (part,) = others
    kinds: dict[Any, Kind] = {str: "text", int: "whole", float: "number", bool: "flag"}
    if part not in kinds:
        raise TypeError(f"a form has no way to enter {part!r}")
    return kinds[part], words


def _literals(annotation: Any) -> tuple[str, ...]:
    if typing.get_origin(annotation) is not Literal:
        return ()
    return tuple(str(value) for value in typing.get_args(annotation))


def _bounds_text(kind: Kind, choices: tuple[str, ...], metas: list[Meta], optional: bool) -> str:
    plain = {"text": "text", "whole": "whole number", "number": "number", "flag": "true or false"}
    match kind:
        case "choice":
            text = ("one of " if len(choices) > 1 else "always ") + ", ".join(choices)
        case "list":
            bounds = ", ".join(bound for meta in metas if (bound := _interval(meta)))
            named = "any of " + ", ".join(choices) if choices else "names, separated by commas"
            text = f"numbers, {bounds}, separated by commas" if bounds else named
        case "mapping":
            text = "`name: value` pairs, separated by commas"
        case _:
            bounds = [bound for meta in metas if (bound := _interval(meta))]
            text = ", ".join([plain[kind], *bounds, *(f"or {choice}" for choice in choices)])
    return f"{text}, or empty" if optional else text


def _interval(meta: Meta) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    values = {name: getattr(meta, name) for name in (*_LEAST, *_MOST)}
    return ", ".join(f"{words[name]} {_plain(value)}" for name, value in values.items() if value is not None)


def _plain(value: float) -> str:
    return "2^32" if value == 2**32 else f"{value:g}"
