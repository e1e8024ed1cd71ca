"""Keys of TRL, transformers, the alignment handbook, LLaMA-Factory and axolotl: which of ours they are, or why not.

One table per answer. A hint goes by meaning, from here; by spelling alone only where a key is all but the same.
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
}
"""Other names of one thing: the value is taken as it is."""

IGNORED: dict[str, str] = {
    "a run has a directory and an id of its own: `--home`, `--name`": """output_dir overwrite_output_dir run_name
        exp_name project trackio_space_id""",
    "metrics and logs are always recorded": """logging_dir logging_strategy logging_first_step logging_nan_inf_filter
        log_level log_level_replica log_on_each_node log_completions disable_tqdm include_num_input_tokens_seen
        include_tokens_per_second include_inputs_for_metrics plot_loss""",
    "nothing is uploaded": """hub_model_id hub_strategy hub_token hub_private_repo hub_always_push hub_revision
        hub_model_revision push_to_hub_model_id push_to_hub_organization push_to_hub_token""",
    "the stage is the one that is launched": "do_train do_eval do_predict predict_with_generate lora_task_type",
    "the engine sees to it": """dataset_num_proc preprocessing_num_workers dataset_batch_size ddp_timeout ddp_backend
        ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters remove_unused_columns
        gradient_checkpointing_kwargs dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor
        dataloader_persistent_workers use_cache low_cpu_mem_usage local_rank label_names torch_empty_cache_steps
        save_safetensors save_on_each_node save_only_model prediction_loss_only eval_accumulation_steps eval_packing
        eval_on_start eval_delay bf16_full_eval fp16_full_eval bnb_4bit_compute_dtype bnb_4bit_quant_storage
        overwrite_cache skip_memory_metrics use_fast_tokenizer""",
    "results do not depend on it": """use_liger_kernel liger_kernel_config activation_offloading padding_free
        pad_to_multiple_of tf32 torch_compile torch_compile_backend torch_compile_mode""",
}
"""What does not apply here and changes no result: accepted with one note. Reason → keys."""
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
"""Keys that give a recipe of TRL or transformers away."""

_DPO = "a key of DPO and its like, which this engine does not have: a reward model is trained on the pairs, then PPO"
_TEXT = "a text is `Question: … Answer: …` here, with the tokenizer's own special tokens; leave it out"
_SHARDED = (
    "nothing is sharded here: every GPU holds the whole model, in 8 or 4 bits if need be (`load_in_8bit`); leave it out"
)
_MIXTURE = "a run has one data set; give it as `dataset_name`, its split as `dataset_train_split`"
_ADAPTER = "adapters are plain LoRA here; leave it out"
REFUSED: dict[str, str] = {
    "push_to_hub": "nothing is uploaded from here; leave it out, and upload the merged model yourself",
    "resume_from_checkpoint": "a run is resumed by its id, `stackllama-console runs resume RUN`; leave it out",
    "load_best_model_at_end": "the result is always the last step's; `metric_for_best_model` also keeps the best "
    "checkpoint. Leave this one out",
    "auto_find_batch_size": "`stackllama-console plan` says which batch fits; leave it out",
    "average_tokens_across_devices": "losses are always averaged over the tokens of all devices; leave it out",
    "sft_model_path": "the policy starts from `model_name_or_path`; give the fine-tuned model there",
    "stop_token": "a response always ends at the end-of-sequence token; leave it out",
    "stop_token_id": "a response always ends at the tokenizer's end-of-sequence token; leave it out",
    "disable_dropout": "the adapter's dropout is `lora_dropout`; set that to 0 instead",
    "completion_only_loss": "the loss is over the whole text, question and answer; leave it out",
    "assistant_only_loss": "the loss is over the whole text, question and answer; leave it out",
    "dataset_text_field": "columns are found by their names (`stackllama-console data preview`); leave it out",
    "dataset_kwargs": "how texts are tokenised is fixed here; leave it out",
    "truncation_mode": "texts are cut at their end; leave it out",
    "neftune_noise_alpha": "noise on the embeddings is not done here; leave it out",
    "label_smoothing_factor": "labels are not smoothed here; leave it out",
    "group_by_length": "rows come in the order of the seed; leave it out",
    "dataloader_drop_last": "the last, smaller batch is trained on as well; leave it out",
    "optim_args": "an optimizer has `adam_beta1`, `adam_beta2`, `adam_epsilon` and `weight_decay` here; leave it out",
    "optim_target_modules": "GaLore and its like are not done here; leave it out",
    "lora_modules_to_save": "modules beside the adapter are not trained here; leave it out",
    "lora_target_parameters": "LoRA is put on modules, `lora_target_modules`; leave it out",
    "init_lora_weights": "adapters start as PEFT's default; leave it out",
    "tokenizer_name_or_path": "the tokenizer is the model's own; leave it out",
    "model_init_kwargs": "what a model is loaded with are keys of their own: `dtype`, `attn_implementation`, "
    "`model_revision`",
    "model_adapter_name": "adapters are named by the engine; leave it out",
    "ref_adapter_name": "the reference is the frozen base; leave it out",
    "shuffle_dataset": "rows come in the order of the seed; leave it out",
    "data_seed": "one `seed` is of everything random; leave it out",
    "config_file": "launch settings are keys here: `num_processes`; leave it out",
    "reward_funcs": "a reward function of yours is `reward_fn: package.module:function` here",
    "batch_size": "PPO's batch is `per_device_train_batch_size` × `gradient_accumulation_steps` × `num_mini_batches` "
    "per device here",
    "mini_batch_size": "PPO's mini-batch is `per_device_train_batch_size` × `gradient_accumulation_steps` per device "
    "here",
    **dict.fromkeys(("use_rslora", "use_dora", "lora_bias"), _ADAPTER),
    **dict.fromkeys(
        ("chat_template", "chat_template_path", "eos_token", "pad_token", "special_tokens", "template"), _TEXT
    ),
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config"), _SHARDED),
    **dict.fromkeys(("dataset_mixture", "dataset_mixer", "dataset_splits", "datasets"), _MIXTURE),
    **dict.fromkeys(
        (
            "beta",
            "loss_type",
            "rpo_alpha",
            "reference_free",
            "precompute_ref_log_probs",
            "ref_model_init_kwargs",
            "f_divergence_type",
            "sync_ref_model",
            "ref_model_mixup_alpha",
            "label_smoothing",
            "simpo_gamma",
            "cpo_alpha",
            "desirable_weight",
            "undesirable_weight",
            "pref_beta",
            "pref_loss",
            "pref_ftx",
            "rl",
            "generate_during_eval",
            "max_completion_length",
        ),
        _DPO,
    ),
}
"""What would change the outcome: refused by a sentence of its own, unless the value asks for nothing."""

ASKS_FOR_NOTHING: dict[str, tuple[Any, ...]] = {
    "average_tokens_across_devices": (True,),
    "stop_token": ("eos",),
    "dataset_text_field": (),
    "truncation_mode": ("keep_start",),
    "lora_bias": ("none",),
    "init_lora_weights": (True,),
    "beta": (),
}
"""Values of refused keys that say what is done anyway, besides null, false, 0, '' and nothing in brackets."""


def refusal(key: str, value: Any) -> str | None:
    """Why a key is refused; empty where its value asks for nothing; None for a key that is not in the table."""
    why = REFUSED.get(key)
    if why is None:
        return None
    neutral = ASKS_FOR_NOTHING.get(key, ())
    if any(value is one or (isinstance(one, str) and value == one) for one in neutral):
        return ""
    # `average_tokens_across_devices: false` and `beta: 0` do ask for something
    asks = key in ASKS_FOR_NOTHING and value is not None and value != "none"
    return why if value or asks else ""


class ForeignKey(Struct, frozen=True):
    """What a key of another trainer is here.

    Attributes:
        ours: our key; empty where there is none.
        why: why there is none, or what differs.
        read: the value in our key's words; None: as it is.
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


_OTHER_OPTIMIZER = "another optimizer than those of `optim`"
_IMAGES = "for images, sound or video; this engine reads text"
_VOCABULARY = "the tokenizer is taken as it is"
_TEMPLATE = "a text is `Question: … Answer: …` here, without a chat template"

LLAMA_FACTORY: dict[str, ForeignKey] = {
    **_same(
        cutoff_len="max_length",
        lora_rank="lora_r",
        max_samples="max_train_samples",
        streaming="dataset_streaming",
        double_quantization="use_bnb_nested_quant",
        quantization_type="bnb_4bit_quant_type",
        reward_model="reward_model_path",
        ppo_epochs="num_ppo_epochs",
        ppo_target="target",
        ppo_whiten_rewards="whiten_rewards",
        ppo_score_norm="normalize_reward",
        vllm_gpu_util="vllm_gpu_memory_utilization",
        max_new_tokens="response_length",
        val_dataset="dataset_name",
    ),
    "lora_target": ForeignKey("lora_target_modules", "`all` is `all-linear`", _modules),
    "flash_attn": ForeignKey("attn_implementation", "`fa2` is `flash_attention_2`", _attention),
    "dataset": ForeignKey(
        "dataset_name",
        "one data set: a hub id, or the .jsonl or .parquet file that the name stands for in dataset_info.json",
    ),
    "quantization_bit": ForeignKey(why="8 is `load_in_8bit: true`, 4 is `load_in_4bit: true`"),
    "quantization_method": ForeignKey(why="8 and 4 bits are bitsandbytes' here"),
    "finetuning_type": ForeignKey(why="`lora` is `use_peft: true`, `full` is `use_peft: false`"),
    "stage": ForeignKey(why="the stage is the word after `launch`: `launch sft`, `launch reward`, `launch ppo`"),
    "val_size": ForeignKey(why="rows are held out by a split, `dataset_test_split`, and limited by `max_eval_samples`"),
    "adapter_name_or_path": ForeignKey(
        "policy_adapter_path", "sft and reward begin with a new adapter; merge the old one first"
    ),
    "disable_gradient_checkpointing": ForeignKey("gradient_checkpointing", "turned round", lambda value: not value),
    "pure_bf16": ForeignKey("dtype", "`true` is `bfloat16`", lambda value: "bfloat16" if value else "auto"),
    "enable_liger_kernel": ForeignKey(why="results do not depend on it"),
    "use_unsloth": ForeignKey(why="its kernels are not used; results do not depend on it"),
    **_why("the loss is over the whole text", "train_on_prompt mask_history"),
    **_why(_TEMPLATE, "template default_system tool_format enable_thinking preserve_thinking"),
    **_why(_VOCABULARY, "resize_vocab add_tokens add_special_tokens split_special_tokens new_special_tokens_config"),
    **_why("names of data sets are not looked up", "dataset_dir eval_dataset media_dir tokenized_path"),
    **_why("a run has one data set", "mix_strategy interleave_probs buffer_size"),
    **_why(
        "packing here fills a sequence with several texts",
        "neat_packing",
    ),
    **_why(_OTHER_OPTIMIZER, "use_galore use_apollo use_badam use_adam_mini use_muon loraplus_lr_ratio"),
    **_why(
        "another way of training than LoRA or every weight",
        "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules use_llama_pro mixture_of_depths "
        "pissa_init pissa_iter pissa_convert additional_target shift_attn oft_rank oft_target oft_block_size fp8 "
        "fp8_backend",
    ),
    **_why("another loss than the published one", "use_dft_loss use_asft_loss asft_alpha use_eaft_loss eaft_alpha"),
    **_why(
        _IMAGES,
        "freeze_vision_tower freeze_multi_modal_projector freeze_language_model image_max_pixels image_min_pixels "
        "video_max_pixels video_min_pixels video_fps video_maxlen audio_sampling_rate",
    ),
    **_why("a run is on this machine", "ray_num_workers ray_run_name placement_strategy resources_per_worker"),
    **_why("the engine sees to it", "use_reentrant_gc upcast_layernorm preprocessing_batch_size print_param_status"),
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
    ),
    "optimizer": ForeignKey("optim", "", _optimizer),
    "adapter": ForeignKey(why="`lora` and `qlora` are `use_peft: true`; none is `use_peft: false`"),
    "lora_target_linear": ForeignKey(why="`true` is `lora_target_modules: all-linear`"),
    "datasets": ForeignKey("dataset_name", "one data set, its `path`; the split is `dataset_train_split`"),
    "evals_per_epoch": ForeignKey("eval_steps", "a share of all steps, 1 / (evaluations per epoch × epochs)"),
    "saves_per_epoch": ForeignKey("save_steps", "a share of all steps, 1 / (saves per epoch × epochs)"),
    "lora_model_dir": ForeignKey(
        "policy_adapter_path", "sft and reward begin with a new adapter; merge the old one first"
    ),
    "val_set_size": ForeignKey(
        why="rows are held out by a split, `dataset_test_split`, and limited by `max_eval_samples`"
    ),
    "special_tokens": ForeignKey(why=_VOCABULARY),
    **_why(_VOCABULARY, "tokens added_tokens_overrides eot_tokens resize_token_embeddings_to_32x tokenizer_config"),
    **_why(_TEMPLATE, "chat_template chat_template_jinja default_system_message"),
    **_why(
        "model and tokenizer are of the classes that their files name",
        "model_type tokenizer_type "
        "is_llama_derived_model is_mistral_derived_model is_falcon_derived_model tokenizer_use_fast "
        "tokenizer_legacy processor_type base_model_config tokenizer_use_mistral_common "
        "trust_remote_code type_of_model",
    ),
    **_why("the loss is over the whole text", "train_on_inputs train_on_eos roles_to_train"),
    **_why(
        "the engine sees to it",
        "dataset_prepared_path dataset_processes skip_prepare_dataset pad_to_sequence_len "
        "eval_sample_packing eval_table_size group_by_length strict hf_use_auth_token "
        "experimental_skip_move_to_device push_dataset_to_hub local_rank max_packed_sequence_len torchdistx_path",
    ),
    **_why(
        "its kernels are not used; results do not depend on them",
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
        "not done here",
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
    ("liger_", "its kernels are not used; results do not depend on them"),
    ("kto_", _DPO),
    ("dpo_", _DPO),
    ("orpo_", _DPO),
    ("simpo_", _DPO),
    ("oft_", _ADAPTER),
    ("fp8_", "8 bits are bitsandbytes' here, `load_in_8bit`"),
    ("kt_", "KTransformers is not used here"),
    ("llama4_", "not done here"),
    ("gemma4_", "not done here"),
)
"""Keys that begin alike and have one answer."""


def meaning(key: str) -> ForeignKey | None:
    """What a key of LLaMA-Factory or axolotl, or of a family of keys, is here; None for one that nobody knows."""
    if found := LLAMA_FACTORY.get(key) or AXOLOTL.get(key):
        return found
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
"""Keys that together give another trainer's recipe away."""


def format_of(keys: set[str]) -> str | None:
    """Whose recipe a file is as a whole: LLaMA-Factory's or axolotl's; None for TRL's and ours."""
    return next((name for name, signs in FORMATS.items() if any(sign <= keys for sign in signs)), None)
