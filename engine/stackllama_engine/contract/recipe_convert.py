"""Conversion of a recipe of TRL, the alignment handbook, LLaMA-Factory or axolotl into one of this engine.

Keys with an equivalent are converted, and the other trainer's defaults are written out where ours differ; the rest is
listed with the reason. The result loads: nothing is converted that this engine would refuse.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from msgspec import Struct

from .errors import RecipeError
from .findings import Findings
from .foreign_keys import AXOLOTL, LLAMA_FACTORY, ForeignKey, format_of
from .precision_keys import FOUR_BITS, put_over, without_kind
from .recipe import RECIPES
from .recipe_common import ALL_LINEAR
from .recipe_io import build_recipe, key_types, read_file, unknown_key
from .recipe_preference import SMOOTHED, PreferenceLoss
from .stages import Stage
from .translate import number, translate
from .wording import echo, wrong

TRL = "TRL"
_NO_STAGE = {
    "kto": "KTO",
    "orpo": "ORPO",
    "simpo": "SimPO",
    "grpo": "GRPO",
    "pt": "pre-training",
    "ebft": "EBFT",
    "gdpo": "GDPO",
}
_STAGES = {"sft": Stage.SFT, "rm": Stage.REWARD, "dpo": Stage.PREFERENCE, "ipo": Stage.PREFERENCE, "ppo": Stage.PPO}
_OF_METHOD = {
    "num_generations": "GRPO or RLOO",
    "reward_funcs": "GRPO or RLOO",
    "cpo_alpha": "CPO",
    "simpo_gamma": "SimPO",
    "desirable_weight": "KTO",
    "undesirable_weight": "KTO",
    "rpo_alpha": "RPO",
}
"""Keys of TRL's other trainers → method; some of these have `beta` and `loss_type` as well."""
_OF_PPO = frozenset({"reward_model_path", "total_episodes", "num_ppo_epochs", "kl_coef", "sft_model_path"})
_SFT_LOSSES = frozenset({"nll", "dft", "chunked_nll"})
_LOSS_OF = _NO_STAGE | {
    **dict.fromkeys(("dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"), "GRPO"),
    **dict.fromkeys(("kto_pair", "apo_zero_unpaired"), "KTO"),
    "alphapo": "AlphaPO",
}
"""Losses that are none of the preference stage → method."""

_TRAINER: dict[str, Any] = {
    "use_peft": False,
    "base_precision": "dtype",
    "dataset_streaming": False,
    "dataset_train_split": "train",
    "dataset_test_split": "test",
    "max_eval_samples": None,
    "optim": "adamw_torch_fused",
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "per_device_train_batch_size": 8,
    "max_steps": -1,
    "num_train_epochs": 3.0,
    "gradient_checkpointing": False,
    "eval_steps": 0,
    "save_total_limit": None,
    "seed": 42,
}
"""Defaults of transformers' TrainingArguments, where ours differ."""
_TRL = _TRAINER | {
    "gradient_checkpointing": True,
    "dtype": "float32",
    "bf16": True,
    "max_length": 1024,
    "lora_target_modules": None,
}
_TRL_PPO = {
    "learning_rate": 3e-6,
    "num_train_epochs": None,
    "kl_coef": 0.05,
    "adap_kl_ctrl": False,
    "temperature": 0.7,
    "response_length": 53,
    "early_stopping": False,
    "max_steps": None,
    "eval_steps": None,
}
DEFAULTS: dict[tuple[str, Stage], dict[str, Any]] = {
    (TRL, Stage.SFT): _TRL | {"learning_rate": 2e-5, "packing": False},
    (TRL, Stage.REWARD): _TRL | {"learning_rate": 1e-4, "lora_r": 16, "lora_dropout": 0.05},
    (TRL, Stage.PREFERENCE): _TRL | {"learning_rate": 1e-6, "lora_r": 16},
    (TRL, Stage.PPO): {key: value for key, value in (_TRL | _TRL_PPO).items() if value is not None}
    | {"lora_target_modules": None},
    ("LLaMA-Factory", Stage.SFT): _TRAINER
    | {
        "learning_rate": 5e-5,
        "packing": False,
        "max_length": 2048,
        "use_peft": True,
        "lora_r": 8,
        "lora_dropout": 0.0,
        "lora_target_modules": ALL_LINEAR,
        "gradient_checkpointing": True,
    },
    ("axolotl", Stage.SFT): _TRAINER
    | {
        "per_device_train_batch_size": 1,
        "num_train_epochs": 1.0,
        "max_length": 512,
        "packing": False,
        "lr_scheduler_type": "cosine",
    },
}
"""Defaults of other trainers (their configuration classes), by our keys."""
DEFAULTS["LLaMA-Factory", Stage.REWARD] = DEFAULTS["LLaMA-Factory", Stage.SFT]
DEFAULTS["axolotl", Stage.REWARD] = DEFAULTS["axolotl", Stage.SFT]
DEFAULTS["LLaMA-Factory", Stage.PREFERENCE] = DEFAULTS["LLaMA-Factory", Stage.SFT]
DEFAULTS["axolotl", Stage.PREFERENCE] = DEFAULTS["axolotl", Stage.SFT]


class Converted(Struct, frozen=True, kw_only=True):
    """A recipe of this engine, converted from another trainer's.

    Attributes:
        stage: the stage of the recipe.
        source: the other trainer.
        values: our keys and values.
        left_out: sentences: each key that was not converted, and why.
        defaults: keys that were not given and have the other trainer's default.
        text: the whole recipe file.
    """

    stage: Stage
    source: str
    values: dict[str, Any]
    left_out: tuple[str, ...]
    defaults: tuple[str, ...]
    text: str


def convert_recipe(file: Path, stage: Stage | None = None) -> Converted:
    """Convert another trainer's recipe into one of this engine.

    Args:
        file: a YAML file.
        stage: stage of the result; None: that of the file.

    Raises:
        RecipeError: unreadable, of a stage that this engine does not have, or without the required keys.
    """
    given = read_file(file)
    source = format_of(set(given)) or TRL
    stage = stage or _stage_of(file, source, given)
    left = Findings()
    values = _spelt_as_trl(source, stage, given, left)
    values = _ours(stage, values, left)
    defaults = {
        key: value
        for key, value in DEFAULTS.get((source, stage), {}).items()
        if key in key_types(stage) and key not in values
    }
    if "max_steps" in values:
        defaults.pop("num_train_epochs", None)
    values = _consistent(stage, values | defaults, left)
    defaults = {key: value for key, value in defaults.items() if values.get(key, "") == value}
    build_recipe(stage, values, where=str(file))
    left_out = tuple(text for _, text in left.problems) + tuple(left.notes)
    text = _as_text(file, source, stage, values, defaults, left_out)
    return Converted(stage=stage, source=source, values=values, left_out=left_out, defaults=tuple(defaults), text=text)


def _stage_of(file: Path, source: str, given: Mapping[str, Any]) -> Stage:
    """Return the stage that a file is for.

    Raises:
        RecipeError: this engine does not have it.
    """
    if given.get("reward_model") is True:  # axolotl
        return Stage.REWARD
    if source == TRL:
        return _stage_of_trl(file, given)
    named = str(given.get("stage") if source == "LLaMA-Factory" else given.get("rl") or "sft")
    if named not in _STAGES:
        raise _no_stage(file, _NO_STAGE.get(named, named))
    if _STAGES[named] is Stage.PREFERENCE:
        _check_losses(file, given.get("pref_loss"))
    return _STAGES[named]


def _stage_of_trl(file: Path, given: Mapping[str, Any]) -> Stage:
    keys = {key for key, value in given.items() if value is not None}
    losses = _losses(given.get("loss_type"))
    if keys & _OF_PPO:
        return Stage.PPO
    for key, method in _OF_METHOD.items():
        if key in keys:
            raise _no_stage(file, method)
    if losses and set(losses) <= _SFT_LOSSES:
        return Stage.SFT
    if losses or "beta" in keys:
        _check_losses(file, losses)
        return Stage.PREFERENCE
    return Stage.REWARD if "center_rewards_coefficient" in keys else Stage.SFT


def _losses(given: Any) -> list[str]:
    listed: list[Any] = cast("list[Any]", given) if isinstance(given, list) else [given]
    return [str(one) for one in listed if one]


def _check_losses(file: Path, given: Any) -> None:
    """Refuse losses that are none of the preference stage: the recipe is for another method."""
    for loss in _losses(given):
        if loss not in get_args(PreferenceLoss):
            raise _no_stage(file, _LOSS_OF.get(loss, f"the loss `{loss}`"))


def _no_stage(file: Path, name: str) -> RecipeError:
    return RecipeError(
        f"{file}: this recipe is for {name}, which is not supported. `--stage preference` converts it to DPO on its "
        "pairs, `--stage reward` to a reward model."
    )


# -- other spellings ----------------------------------------------------------------------------------------------


def _spelt_as_trl(source: str, stage: Stage, given: Mapping[str, Any], left: Findings) -> dict[str, Any]:
    """Rename the keys of LLaMA-Factory and axolotl to those of TRL or this engine."""
    if source == TRL:
        return _one_data_set(dict(given), left)
    table = LLAMA_FACTORY if source == "LLaMA-Factory" else AXOLOTL
    special = _llama_factory(given, left) if source == "LLaMA-Factory" else _axolotl(given, left)
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key in special or value is None:
            continue
        known = table.get(key)
        if known is None:
            values[key] = value
        elif known.ours in key_types(stage):
            values[known.ours] = known.read(value) if known.read else value
        elif value:
            left.wrong("", f"{echo(key, value)}: {_reason(known, stage)}")
    for made in special.values():
        values |= made
    return values


def _reason(known: ForeignKey, stage: Stage) -> str:
    if known.ours:
        return f"the {stage} recipe has no key `{known.ours}`" + (f": {known.why}" if known.why else "")
    return known.why


def _llama_factory(given: Mapping[str, Any], left: Findings) -> dict[str, dict[str, Any]]:
    """Convert the keys of LLaMA-Factory that stand for several of ours, or that need more than a new name."""
    kind = given.get("finetuning_type", "lora")
    bits = given.get("quantization_bit")
    if kind not in ("lora", "full"):
        left.wrong("", f"{echo('finetuning_type', kind)}: only LoRA or full training is supported; LoRA is used")
    if bits not in (None, 4, 8):
        left.wrong("", f"{echo('quantization_bit', bits)}: only 8 and 4 bits are supported; the base is not quantised")
    names = [name.strip() for name in str(given.get("dataset", "")).split(",") if name.strip()]
    if names:
        left.wrong(
            "",
            f"{echo('dataset', given['dataset'])}: LLaMA-Factory looks names up in dataset_info.json; replace "
            f"`dataset_name: {names[0]}` by the file or hub id of one of them",
        )
    precision = "int8" if bits == 8 else given.get("quantization_type", "nf4") if bits == 4 else "dtype"
    alpha = {} if given.get("lora_alpha") else {"lora_alpha": 2 * int(number(given.get("lora_rank")) or 8)}
    return {
        "stage": {},
        "finetuning_type": {"use_peft": kind != "full"} | alpha,
        "quantization_bit": {"base_precision": precision},
        "quantization_method": {},
        "quantization_type": {},
        "dataset": {"dataset_name": names[0]} if names else {},
    }


def _axolotl(given: Mapping[str, Any], left: Findings) -> dict[str, dict[str, Any]]:
    """Convert the keys of axolotl that stand for several of ours, or that need more than a new name."""
    adapter = given.get("adapter")
    if adapter not in (None, "", "lora", "qlora"):
        left.wrong("", f"{echo('adapter', adapter)}: only LoRA or full training is supported; LoRA is used")
    epochs = number(given.get("num_epochs")) or 1
    special: dict[str, dict[str, Any]] = {
        "adapter": {"use_peft": bool(adapter)},
        "load_in_8bit": {"load_in_8bit": bool(given.get("load_in_8bit"))},
        "load_in_4bit": {"load_in_4bit": bool(given.get("load_in_4bit"))},
        "lora_target_linear": {"lora_target_modules": ALL_LINEAR} if given.get("lora_target_linear") else {},
        "datasets": _first_data_set("datasets", given.get("datasets"), "path", left),
        "reward_model": {},
        "gradient_checkpointing": {"gradient_checkpointing": bool(given.get("gradient_checkpointing"))},
        "wandb_project": {"report_to": ["wandb"]} if given.get("wandb_project") else {},
    }
    if given.get("rl") == "ipo":
        special["rl"] = {"loss_type": "ipo"}
    if given.get("lora_target_linear"):
        special["lora_target_modules"] = {}
    for key, ours in (("evals_per_epoch", "eval_steps"), ("saves_per_epoch", "save_steps")):
        per_epoch = number(given.get(key)) or 0
        share = 1 / (per_epoch * epochs) if per_epoch > 0 else 0
        special[key] = {ours: int(1e6 * share) / 1e6} if 0 < share < 1 else {}
    return special


def _one_data_set(given: dict[str, Any], left: Findings) -> dict[str, Any]:
    """Replace the alignment handbook's mixture by its first data set, unless another one is named."""
    mixture: Any = given.pop("dataset_mixture", None)
    mixer: Any = given.pop("dataset_mixer", None)
    made: dict[str, Any] = {}
    if isinstance(mixture, dict) and mixture:
        facts = cast("dict[str, Any]", mixture)
        made = _first_data_set("dataset_mixture", facts.get("datasets"), "id", left)
        if facts.get("test_split_size"):
            left.wrong(
                "",
                f"{echo('test_split_size', facts['test_split_size'])}: the held-out data is a split, "
                "`dataset_test_split`, limited by `max_eval_samples`",
            )
    elif isinstance(mixer, dict) and mixer:
        names = [str(name) for name in cast("dict[Any, Any]", mixer)]
        made = {"dataset_name": names[0]}
        left.wrong("", f"{echo('dataset_mixer', mixer)}: a run has one data set; all of the first is used")
    return made | given


def _first_data_set(key: str, listed: Any, name: str, left: Findings) -> dict[str, Any]:
    entries = [cast("dict[str, Any]", one) for one in cast("list[Any]", listed or []) if isinstance(one, dict)]
    entries = [one for one in entries if isinstance(one.get(name), str)]
    if not entries:
        return {}
    first = entries[0]
    others = [str(one[name]) for one in entries[1:]]
    if others:
        left.wrong("", f"`{key}`: a run has one data set, `{first[name]}`; left out: {', '.join(others)}")
    if more := {k: v for k, v in first.items() if k not in (name, "config", "name", "split", "splits")}:
        left.wrong("", f"{echo(f'{key}[0]', more)}: columns are found by their names, and every row is used")
    made: dict[str, Any] = {"dataset_name": first[name]}
    config = first.get("config") or first.get("name")
    split = first.get("split") or first.get("splits")
    return (
        made
        | ({"dataset_config": config} if config else {})
        | ({"dataset_train_split": split} if isinstance(split, str) else {})
    )


# -- our keys -----------------------------------------------------------------------------------------------------


def _ours(stage: Stage, values: Mapping[str, Any], left: Findings) -> dict[str, Any]:
    """Return the values that the stage's recipe accepts; the rest is added to ``left``."""
    types = key_types(stage)
    entries = without_kind(put_over({}, translate(values, types, "", left), types, left), types)
    left.notes = {note.removeprefix(": "): None for note in left.notes}
    made: dict[str, Any] = {}
    for key, entry in entries.items():
        if key not in types:
            if entry.typed is not None:
                left.wrong("", unknown_key(key, entry.key, entry.typed, f"{stage} recipe", types))
        elif reason := wrong(entry.value, types[key]):
            if entry.value is not None:
                left.wrong("", f"{entry.echo}: {reason}")
        else:
            made[key] = entry.value
    return made


def _consistent(stage: Stage, values: dict[str, Any], left: Findings) -> dict[str, Any]:
    """Remove values that this engine would refuse together with others."""
    values = dict(values)
    if stage in (Stage.PREFERENCE, Stage.PPO):
        values |= _shared_base(stage, values, left)
    if not values["use_peft"]:
        if values.get("base_precision") in ("int8", *FOUR_BITS):
            left.wrong("", "a quantised base can only be trained with LoRA; the base is not quantised")
        values |= {"base_precision": "dtype"}
    if values.get("lr_scheduler_type") == "cosine_with_min_lr":
        values.setdefault("min_lr_rate", 0.0)
    if values.get("lr_scheduler_type") == "constant" and values.get("warmup_steps"):
        left.wrong(
            "",
            f"{echo('warmup_steps', values['warmup_steps'])}: `lr_scheduler_type: constant` has no warm-up; "
            "`constant_with_warmup` has",
        )
        values["warmup_steps"] = 0
    for applies, keys, why in _CLASHES:
        for key in keys if applies(values) else ():
            value = values.pop(key, None)
            if value not in (None, False):
                left.wrong("", f"{echo(key, value)}: {why}")
    return values


def _shared_base(stage: Stage, values: Mapping[str, Any], left: Findings) -> dict[str, Any]:
    if not values["use_peft"]:
        left.wrong("", f"`use_peft=false`: {stage} needs an adapter, so that policy and reference share one base")
    if values.get("lora_dropout"):
        why = f"{stage} compares log-probabilities of policy and reference, which dropout would blur; it is 0"
        left.wrong("", f"{echo('lora_dropout', values['lora_dropout'])}: {why}")
    return {"use_peft": True, "lora_dropout": 0.0}


_CLASHES: tuple[tuple[Callable[[Mapping[str, Any]], bool], tuple[str, ...], str], ...] = (
    (lambda values: True, ("trust_remote_code",), "code from a model repository is never executed"),
    (
        lambda values: not values["use_peft"],
        ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
        "all weights are trained, without an adapter",
    ),
    (
        lambda values: values.get("lr_scheduler_type") != "cosine_with_min_lr",
        ("min_lr_rate",),
        "needs `lr_scheduler_type: cosine_with_min_lr`",
    ),
    (
        lambda values: not set(_losses(values.get("loss_type", "sigmoid"))) & set(SMOOTHED),
        ("label_smoothing",),
        f"of effect with `loss_type` {', '.join(SMOOTHED)} only",
    ),
    (lambda values: bool(values.get("bf16")), ("fp16",), "`bf16` is set as well and is used"),
    (
        lambda values: values.get("optim") == "adafactor",
        ("adam_beta1", "adam_beta2", "adam_epsilon"),
        "`optim: adafactor` does not have it",
    ),
    (
        lambda values: values.get("save_steps") == 0,
        ("metric_for_best_model",),
        "no checkpoints are saved at the steps that are evaluated",
    ),
)
"""Condition, keys to remove, and why."""


def _as_text(
    file: Path, source: str, stage: Stage, values: Mapping[str, Any], defaults: Mapping[str, Any], left: tuple[str, ...]
) -> str:
    """Return the recipe file, comments first."""
    order = [name for name in RECIPES[stage].__struct_fields__ if name in values]
    lines = [
        f"# stage: {stage}",
        f"# Converted from {source}'s {_plain(file.name)} by `stackllama-console recipe convert`.",
    ]
    if left:
        lines += ["#", "# Left out, or read as something else:", *(f"#   {_plain(text)}" for text in left)]
    lines += [_yaml({name: values[name]}) for name in order if name not in defaults]
    if defaults:
        lines += ["", f"# Not given: defaults of {source}, where this engine's differ"]
        lines += [_yaml({name: values[name]}) for name in order if name in defaults]
    return "\n".join(lines) + "\n"


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=False, width=100).rstrip("\n")


def _plain(text: str) -> str:
    """Return the text on one line and printable, so that it stays inside a YAML comment."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
