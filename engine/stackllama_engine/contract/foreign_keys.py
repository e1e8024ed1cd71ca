"""Keys of TRL, transformers, the alignment handbook, LLaMA-Factory and axolotl, and their equivalents here.

One table per kind of answer. Hints are by meaning, from here; by spelling alone only if a key is almost the same.
Sources: TRL 1.x ``SFTConfig``, ``RewardConfig``, ``PPOConfig``, ``DPOConfig``, ``ModelConfig``; transformers 5
``TrainingArguments``; alignment-handbook ``recipes/``; LLaMA-Factory ``hparams/``; axolotl ``utils/schemas/``.
"""

from collections.abc import Callable
from typing import Any

from msgspec import Struct

ACCEPTED = {
    "torch_dtype": "dtype",
    "max_seq_length": "max_length",
    "no_cuda": "use_cpu",
    "init_kl_coef": "kl_coef",
    "chat_template_path": "chat_template",
    "completion_only_loss": "assistant_only_loss",
}
"""Other names of our keys; the value is taken as it is."""

IGNORED: dict[str, str] = {
    "a run has its own directory and id, see `--home` and `--name`": """output_dir overwrite_output_dir run_name
        exp_name project trackio_space_id""",
    "metrics and logs are always recorded": """logging_dir logging_strategy logging_first_step logging_nan_inf_filter
        log_level log_level_replica log_on_each_node log_completions disable_tqdm include_num_input_tokens_seen
        include_tokens_per_second include_inputs_for_metrics plot_loss""",
    "nothing is uploaded": """hub_model_id hub_strategy hub_token hub_private_repo hub_always_push hub_revision
        hub_model_revision push_to_hub_model_id push_to_hub_organization push_to_hub_token""",
    "the stage is set by the command": "do_train do_eval do_predict predict_with_generate lora_task_type",
    "set by the engine": """dataset_num_proc preprocessing_num_workers dataset_batch_size ddp_timeout ddp_backend
        ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters remove_unused_columns
        gradient_checkpointing_kwargs dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor
        dataloader_persistent_workers use_cache low_cpu_mem_usage local_rank label_names torch_empty_cache_steps
        save_safetensors save_on_each_node save_only_model prediction_loss_only eval_accumulation_steps eval_packing
        eval_on_start eval_delay bf16_full_eval fp16_full_eval bnb_4bit_compute_dtype bnb_4bit_quant_storage
        overwrite_cache skip_memory_metrics use_fast_tokenizer""",
    "results do not depend on it": """liger_kernel_config activation_offloading padding_free
        pad_to_multiple_of tf32 torch_compile torch_compile_backend torch_compile_mode""",
}
"""Keys that do not apply here and change no result: accepted with one note. Reason → keys."""
IGNORED_KEYS = {key: reason for reason, keys in IGNORED.items() for key in keys.split()}

TRL_ONLY = frozenset(
    {
        "output_dir",
        "overwrite_output_dir",
        "do_train",
        "do_eval",
        "eval_strategy",
        "save_strategy",
        "torch_dtype",
        "max_seq_length",
        "hub_model_id",
        "push_to_hub",
        "warmup_ratio",
        "dataset_num_proc",
    }
)
"""Keys by which a recipe of TRL or transformers is recognised."""

_DPO = "the preference stage has the keys `loss_type`, `loss_weights`, `beta` and `label_smoothing`; remove this one"
_SPECIAL = "special tokens are the tokenizer's own; remove it"
_SHARDED = (
    "sharding is not supported: every GPU holds the whole model, in 8 or 4 bits if needed (`base_precision`); remove it"
)
_MIXTURE = "a run has one data set; give it as `dataset_name`, its split as `dataset_train_split`"
_ADAPTER = "only plain LoRA adapters are supported; remove it"
REFUSED: dict[str, str] = {
    "push_to_hub": "uploading is not supported; remove it, and upload the merged model yourself",
    "resume_from_checkpoint": "resume a run by its id with `stackllama-console runs resume RUN`; remove it",
    "load_best_model_at_end": "the result is always the last step's, and `metric_for_best_model` also keeps the best "
    "checkpoint; remove it",
    "auto_find_batch_size": "`stackllama-console plan` says which batch size fits; remove it",
    "average_tokens_across_devices": "losses are always averaged over the tokens of all devices; remove it",
    "sft_model_path": "the policy starts from `model_name_or_path`; give the fine-tuned model there",
    "stop_token": "a response always ends at the end-of-sequence token; remove it",
    "stop_token_id": "a response always ends at the tokenizer's end-of-sequence token; remove it",
    "disable_dropout": "set `lora_dropout: 0` instead, which is the only dropout here",
    "dataset_text_field": "columns are found by their names, or named by `dataset_columns`; remove it",
    "dataset_kwargs": "`prompt_format` says how texts are written and tokenised; remove it",
    "truncation_mode": "texts are truncated at their end; remove it",
    "neftune_noise_alpha": "noise on the embeddings is not supported; remove it",
    "label_smoothing_factor": "label smoothing is not supported; remove it",
    "group_by_length": "the order of examples is given by `seed`; remove it",
    "dataloader_drop_last": "the last, smaller batch is always trained on; remove it",
    "optim_args": "set `adam_beta1`, `adam_beta2`, `adam_epsilon` and `weight_decay` instead; remove it",
    "optim_target_modules": "GaLore and similar optimizers are not supported; remove it",
    "lora_modules_to_save": "training modules besides the adapter is not supported; remove it",
    "lora_target_parameters": "LoRA is applied to modules, `lora_target_modules`; remove it",
    "init_lora_weights": "adapters are always initialised as PEFT's default; remove it",
    "tokenizer_name_or_path": "the tokenizer is always the model's own; remove it",
    "model_init_kwargs": "set the keys `dtype`, `attn_implementation` and `model_revision` instead",
    "model_adapter_name": "adapters are named by the engine; remove it",
    "ref_adapter_name": "the reference is the frozen base; remove it",
    "shuffle_dataset": "the order of examples is given by `seed`; remove it",
    "data_seed": "one `seed` is for everything that is random; remove it",
    "config_file": "launch settings are keys of the recipe: `num_processes`; remove it",
    "batch_size": "PPO's batch size per device is `per_device_train_batch_size` × `gradient_accumulation_steps` × "
    "`num_mini_batches`; set those",
    "mini_batch_size": "PPO's mini-batch size per device is `per_device_train_batch_size` × "
    "`gradient_accumulation_steps`; set those",
    **dict.fromkeys(("use_rslora", "use_dora", "lora_bias"), _ADAPTER),
    "template": "choose `prompt_format: chat`, which uses the tokenizer's chat template, or a file of your own as "
    "`chat_template`",
    **dict.fromkeys(("eos_token", "pad_token", "special_tokens"), _SPECIAL),
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config"), _SHARDED),
    **dict.fromkeys(("dataset_mixture", "dataset_mixer", "dataset_splits", "datasets"), _MIXTURE),
    **dict.fromkeys(
        (
            "rpo_alpha",
            "reference_free",
            "precompute_ref_log_probs",
            "ref_model_init_kwargs",
            "f_divergence_type",
            "sync_ref_model",
            "ref_model_mixup_alpha",
            "simpo_gamma",
            "cpo_alpha",
            "desirable_weight",
            "undesirable_weight",
            "pref_ftx",
            "generate_during_eval",
            "max_completion_length",
        ),
        _DPO,
    ),
}
"""Keys that would change the result: refused, each with its reason, unless the value is neutral."""

ASKS_FOR_NOTHING: dict[str, tuple[Any, ...]] = {
    "average_tokens_across_devices": (True,),
    "stop_token": ("eos",),
    "dataset_text_field": (),
    "truncation_mode": ("keep_start",),
    "lora_bias": ("none",),
    "init_lora_weights": (True,),
}
"""Neutral values of refused keys, besides null, false, 0, '' and empty brackets."""


def refusal(key: str, value: Any) -> str | None:
    """Return why a key is refused; empty if its value is neutral; None for a key that is not in the table."""
    why = REFUSED.get(key)
    if why is None:
        return None
    neutral = ASKS_FOR_NOTHING.get(key, ())
    if any(value is one or (isinstance(one, str) and value == one) for one in neutral):
        return ""
    # `average_tokens_across_devices: false` is not neutral
    asks = key in ASKS_FOR_NOTHING and value is not None and value != "none"
    return why if value or asks else ""


class ForeignKey(Struct, frozen=True):
    """Equivalent of another trainer's key.

    Attributes:
        ours: our key; empty if there is none.
        why: why there is none, or what differs.
        read: converts the value; None: it is the same.
    """

    ours: str = ""
    why: str = ""
    read: Callable[[Any], Any] | None = None


def _same(**keys: str) -> dict[str, ForeignKey]:
    return {key: ForeignKey(ours) for key, ours in keys.items()}


def _why(why: str, keys: str) -> dict[str, ForeignKey]:
    return {key: ForeignKey(why=why) for key in keys.split()}


def _modules(value: Any) -> Any:
    return "all-linear" if value == "all" else value


def _attention(value: Any) -> str | None:
    return {"fa2": "flash_attention_2", "sdpa": "sdpa", "disabled": "eager"}.get(str(value))


_OTHER_OPTIMIZER = "this optimizer is not supported; `optim` lists those that are"
_IMAGES = "images, audio and video are not supported"
_VOCABULARY = "the tokenizer is used unchanged"
_TEMPLATE = "`prompt_format: chat` uses the tokenizer's chat template, or a file of your own, `chat_template`"
_HELD_OUT = "the held-out data is a split, `dataset_test_split`, limited by `max_eval_samples`"
_NEW_ADAPTER = "sft, reward and preference start from a new adapter; merge the old one first"

LLAMA_FACTORY: dict[str, ForeignKey] = {
    **_same(
        cutoff_len="max_length",
        lora_rank="lora_r",
        max_samples="max_train_samples",
        streaming="dataset_streaming",
        double_quantization="use_bnb_nested_quant",
        reward_model="reward_model_path",
        ppo_epochs="num_ppo_epochs",
        ppo_target="target",
        ppo_whiten_rewards="whiten_rewards",
        ppo_score_norm="normalize_reward",
        vllm_gpu_util="vllm_gpu_memory_utilization",
        max_new_tokens="response_length",
        val_dataset="dataset_name",
        pref_beta="beta",
        pref_loss="loss_type",
    ),
    "lora_target": ForeignKey("lora_target_modules", "`all` is `all-linear`", _modules),
    "flash_attn": ForeignKey("attn_implementation", "`fa2` is `flash_attention_2`", _attention),
    "dataset": ForeignKey(
        "dataset_name",
        "one data set: a hub id, or the .jsonl or .parquet file of that name in dataset_info.json",
    ),
    "quantization_bit": ForeignKey("base_precision", "8 is `int8`, 4 is `nf4` or `fp4`"),
    "quantization_type": ForeignKey("base_precision", "the same word, where `quantization_bit` is 4"),
    "quantization_method": ForeignKey(why="quantisation is always by bitsandbytes"),
    "finetuning_type": ForeignKey(why="`lora` is `use_peft: true`, `full` is `use_peft: false`"),
    "stage": ForeignKey(why="the command sets the stage, as in `launch sft` or `launch preference`"),
    "val_size": ForeignKey(why=_HELD_OUT),
    "adapter_name_or_path": ForeignKey("policy_adapter_path", _NEW_ADAPTER),
    "disable_gradient_checkpointing": ForeignKey("gradient_checkpointing", "inverted", lambda value: not value),
    "pure_bf16": ForeignKey("dtype", "`true` is `bfloat16`", lambda value: "bfloat16" if value else "auto"),
    "enable_liger_kernel": ForeignKey(why="results do not depend on it"),
    "use_unsloth": ForeignKey(why="its kernels are not used, and results do not depend on it"),
    "default_system": ForeignKey("system_prompt", "the same text"),
    "train_on_prompt": ForeignKey("assistant_only_loss", "inverted", lambda value: not value),
    **_why("of several turns, the last response is trained on", "mask_history"),
    **_why(_TEMPLATE, "template tool_format preserve_thinking"),
    **_why(_VOCABULARY, "resize_vocab add_tokens add_special_tokens split_special_tokens new_special_tokens_config"),
    **_why("data sets are given by path or hub id", "dataset_dir eval_dataset media_dir tokenized_path"),
    **_why("a run has one data set", "mix_strategy interleave_probs buffer_size"),
    **_why("`packing` already packs several texts into a sequence", "neat_packing"),
    **_why(_OTHER_OPTIMIZER, "use_galore use_apollo use_badam use_adam_mini use_muon loraplus_lr_ratio"),
    **_why(
        "only LoRA or full training is supported",
        "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules use_llama_pro mixture_of_depths "
        "pissa_init pissa_iter pissa_convert additional_target shift_attn oft_rank oft_target oft_block_size fp8 "
        "fp8_backend",
    ),
    **_why("this loss is not supported", "use_dft_loss use_asft_loss asft_alpha use_eaft_loss eaft_alpha"),
    **_why(
        _IMAGES,
        "freeze_vision_tower freeze_multi_modal_projector freeze_language_model image_max_pixels image_min_pixels "
        "video_max_pixels video_min_pixels video_fps video_maxlen audio_sampling_rate",
    ),
    **_why("Ray is not supported", "ray_num_workers ray_run_name placement_strategy resources_per_worker"),
    **_why("set by the engine", "use_reentrant_gc upcast_layernorm preprocessing_batch_size print_param_status"),
    **_why("`stackllama-console merge RUN` merges an adapter", "export_dir export_size export_device"),
}

_OPTIMIZERS = {"adamw_torch_8bit": "adamw_8bit", "adamw_hf": "adamw_torch"}


def _optimizer(value: Any) -> Any:
    return _OPTIMIZERS.get(str(value), value)


AXOLOTL: dict[str, ForeignKey] = {
    **_same(
        base_model="model_name_or_path",
        sequence_len="max_length",
        micro_batch_size="per_device_train_batch_size",
        eval_batch_size="per_device_eval_batch_size",
        num_epochs="num_train_epochs",
        lr_scheduler="lr_scheduler_type",
        sample_packing="packing",
        adam_eps="adam_epsilon",
        revision_of_model="model_revision",
        float16="fp16",
        bfloat16="bf16",
        rl_beta="beta",
    ),
    "rl": ForeignKey(why="the command sets the stage: `dpo` is `launch preference`"),
    "optimizer": ForeignKey("optim", "", _optimizer),
    "adapter": ForeignKey(why="`lora` and `qlora` are `use_peft: true`; no adapter is `use_peft: false`"),
    "lora_target_linear": ForeignKey(why="`true` is `lora_target_modules: all-linear`"),
    "datasets": ForeignKey("dataset_name", "the `path` of one data set; its split is `dataset_train_split`"),
    "evals_per_epoch": ForeignKey("eval_steps", "a share of all steps, 1 / (evaluations per epoch × epochs)"),
    "saves_per_epoch": ForeignKey("save_steps", "a share of all steps, 1 / (saves per epoch × epochs)"),
    "lora_model_dir": ForeignKey("policy_adapter_path", _NEW_ADAPTER),
    "val_set_size": ForeignKey(why=_HELD_OUT),
    "special_tokens": ForeignKey(why=_VOCABULARY),
    **_why(_VOCABULARY, "tokens added_tokens_overrides eot_tokens resize_token_embeddings_to_32x tokenizer_config"),
    "default_system_message": ForeignKey("system_prompt", "the same text"),
    "train_on_inputs": ForeignKey("assistant_only_loss", "inverted", lambda value: not value),
    **_why(_TEMPLATE, "chat_template_jinja"),
    **_why(
        "the classes of model and tokenizer are read from their files",
        "model_type tokenizer_type "
        "is_llama_derived_model is_mistral_derived_model is_falcon_derived_model tokenizer_use_fast "
        "tokenizer_legacy processor_type base_model_config tokenizer_use_mistral_common "
        "trust_remote_code type_of_model",
    ),
    **_why("of several turns, the last response and its end are trained on", "train_on_eos roles_to_train"),
    **_why(
        "set by the engine",
        "dataset_prepared_path dataset_processes skip_prepare_dataset pad_to_sequence_len "
        "eval_sample_packing eval_table_size group_by_length strict hf_use_auth_token "
        "experimental_skip_move_to_device push_dataset_to_hub local_rank max_packed_sequence_len torchdistx_path",
    ),
    **_why(
        "its kernels are not used, and results do not depend on them",
        "plugins lora_mlp_kernel lora_qkv_kernel "
        "lora_o_kernel cut_cross_entropy flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_mlp "
        "flash_attn_fuse_qkv use_kernels flex_attn_compile_kwargs xformers_attention flash_optimum",
    ),
    **_why(
        "use `report_to: [wandb]`; wandb reads the rest from its environment variables",
        "wandb_project wandb_entity wandb_watch wandb_name wandb_run_id wandb_log_model wandb_mode",
    ),
    **_why("use `report_to: [trackio]`", "trackio_project_name trackio_run_name trackio_space_id"),
    **_why(
        "not supported",
        "relora relora_steps relora_prune_ratio relora_cpu_offload jagged_restart_steps "
        "jagged_restart_warmup_steps jagged_restart_anneal_steps lr_quadratic_warmup unfrozen_parameters "
        "loss_watchdog_threshold loss_watchdog_patience early_stopping_patience quantize_moe_experts "
        "lora_fan_in_fan_out peft_use_rslora peft_use_dora ebft trl model_config gptq gptq_groupsize gptq_model_v1 "
        "gptq_disable_exllama model_quantization_config model_quantization_config_kwargs bnb_config_kwargs",
    ),
    **_why(_IMAGES, "image_size image_resize_algorithm freeze_mm_modules"),
}

_FAMILIES = (
    ("hub_", "nothing is uploaded"),
    ("swanlab_", "use `report_to` and the reporter's own environment variables"),
    ("wandb_", "use `report_to: [wandb]`; wandb reads the rest from its environment variables"),
    ("mlflow_", "use `report_to`: tensorboard, wandb or trackio"),
    ("comet_", "use `report_to`: tensorboard, wandb or trackio"),
    ("galore_", _OTHER_OPTIMIZER),
    ("apollo_", _OTHER_OPTIMIZER),
    ("badam_", _OTHER_OPTIMIZER),
    ("fsdp_", _SHARDED),
    ("liger_", "its kernels are not used, and results do not depend on them"),
    ("kto_", _DPO),
    ("dpo_", _DPO),
    ("orpo_", _DPO),
    ("simpo_", _DPO),
    ("oft_", _ADAPTER),
    ("fp8_", "8-bit weights are by bitsandbytes, `base_precision: int8`"),
    ("kt_", "KTransformers is not supported"),
    ("llama4_", "not supported"),
    ("gemma4_", "not supported"),
)
"""Prefixes of keys that share one answer."""


def meaning(key: str) -> ForeignKey | None:
    """Return the equivalent of a key of LLaMA-Factory or axolotl, or of a family of keys; None if it is unknown."""
    if foreign := LLAMA_FACTORY.get(key) or AXOLOTL.get(key):
        return foreign
    return next((ForeignKey(why=why) for prefix, why in _FAMILIES if key.startswith(prefix)), None)


FORMATS: dict[str, tuple[set[str], ...]] = {
    "LLaMA-Factory": (
        {"finetuning_type"},
        {"stage", "template"},
        {"stage", "cutoff_len"},
        {"cutoff_len", "lora_target"},
    ),
    "axolotl": (
        {"base_model", "micro_batch_size"},
        {"base_model", "sequence_len"},
        {"base_model", "datasets"},
        {"base_model", "adapter"},
    ),
}
"""Sets of keys by which another trainer's recipe is recognised."""


def format_of(keys: set[str]) -> str | None:
    """Return whether keys are of a LLaMA-Factory or an axolotl recipe, by name; None for TRL's and ours."""
    return next((name for name, signs in FORMATS.items() if any(sign <= keys for sign in signs)), None)
