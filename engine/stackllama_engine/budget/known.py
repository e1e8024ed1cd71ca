"""Model configurations that are counted exactly, and lower bounds for all others.

A model type is listed if its count was compared with transformers' own classes (``tests/budget/test_known.py``). A key
of its configuration that may be a size and is on no list here (``kv_lora_rank``, ``n_routed_experts``) makes the model
unknown: what it adds is not counted, and a verdict would be a guess.
"""

from collections.abc import Iterable, Mapping
from typing import Any, cast

TYPES = frozenset(
    {
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "gemma",
        "gemma2",
        "gemma3_text",
        "stablelm",
        "olmo",
        "granite",
        "smollm3",
        "phi",
        "phi3",
        "gpt_neox",
        "gpt2",
    }
)
"""Model types that are counted exactly."""

_SIZES = frozenset(
    {
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "tie_word_embeddings",
    }
)
_MOE_SIZES = frozenset({"num_experts", "num_local_experts", "num_experts_per_tok"})
_OWN: dict[str, frozenset[str]] = {
    "llama": frozenset({"attention_bias", "mlp_bias"}),
    "qwen2": frozenset({"attention_bias"}),  # it has biases whatever the file says
    "qwen3": frozenset({"attention_bias"}),
    "qwen3_moe": _MOE_SIZES | {"attention_bias", "moe_intermediate_size"},
    "mixtral": _MOE_SIZES,
    "gemma": frozenset({"attention_bias"}),
    "gemma2": frozenset({"attention_bias"}),
    "gemma3_text": frozenset({"attention_bias"}),
    "granite": frozenset({"attention_bias", "mlp_bias"}),
    "olmo": frozenset({"attention_bias"}),
    "smollm3": frozenset({"attention_bias", "mlp_bias"}),
    "stablelm": frozenset({"use_qkv_bias"}),
    "gpt_neox": frozenset({"attention_bias"}),
    "gpt2": frozenset({"n_embd", "n_layer", "n_head", "n_positions", "n_inner"}),
}
"""Further keys that are counted, by model type."""
_NO_SIZE = frozenset(
    {
        "architectures",
        "attn_logit_softcapping",
        "auto_map",
        "chunk_size_feed_forward",
        "do_sample",
        "embedding_multiplier",
        "final_logit_softcapping",
        "hidden_dropout",
        "attention_dropout",
        "id2label",
        "label2id",
        "logits_scaling",
        "max_length",
        "max_sequence_length",
        "max_window_layers",
        "min_length",
        "n_ctx",
        "no_rope_layer_interval",
        "no_rope_layers",
        "norm_topk_prob",
        "num_beams",
        "num_labels",
        "original_max_position_embeddings",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pretraining_tp",
        "quantization_config",
        "query_pre_attn_scalar",
        "return_dict",
        "rope_local_base_freq",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "rotary_emb_base",
        "scale_attn_weights",
        "sliding_window",
        "sliding_window_pattern",
        "summary_proj_to_labels",
        "summary_use_proj",
        "task_specific_params",
        "top_k",
        "torchscript",
        "use_bidirectional_attention",
        "use_cache",
        "use_parallel_residual",
        "use_sliding_window",
    }
)
"""Keys that add no parameters, whatever their value."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {"decoder_sparse_step": (1,), "text_config": ()}
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
_NO_SIZE_ENDINGS = ("_token_id", "_token_ids", "_token_index")
_PRIVATE = ("_", "unsloth")
_MOST_NAMED = 4
_PACKED_LEAST = 0.2
"""Minimum bytes per element of any method: three values in less than two bits."""
_PACKED_BYTES = {"fp8": 1.0, "fbgemm_fp8": 1.0, "mxfp4": 0.5, "awq": 0.5}

_EXPERT_KEYS: dict[str, tuple[str, str]] = {
    "deepseek_v2": ("n_routed_experts", "moe_intermediate_size"),
    "deepseek_v3": ("n_routed_experts", "moe_intermediate_size"),
    "glm4_moe": ("n_routed_experts", "moe_intermediate_size"),
    "qwen2_moe": ("num_experts", "moe_intermediate_size"),
    "qwen3_next": ("num_experts", "moe_intermediate_size"),
    "gpt_oss": ("num_local_experts", "intermediate_size"),
}
"""Keys of types that are not counted: number of experts, and their width."""
_EXPERTS_OF_ANY = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")


def unknown(model_type: str, config: Mapping[str, Any], outer: Mapping[str, Any]) -> str | None:
    """Return why a configuration is not counted exactly; None if it is.

    Args:
        model_type: type of the language model.
        config: the language model's part of the configuration.
        outer: the whole configuration.
    """
    if model_type not in TYPES:
        return f"architecture `{model_type[:40] or 'unknown'}` is not known"
    if uncounted := sorted({*_uncounted(model_type, config), *_uncounted(model_type, outer)}):
        names = ", ".join(f"`{key[:40]}`" for key in uncounted[:_MOST_NAMED])
        more = f" and {len(uncounted) - _MOST_NAMED} more" if len(uncounted) > _MOST_NAMED else ""
        return f"`{model_type}` with {names}{more} is not known: what that adds is not counted"
    return None


def least_parameters(model_type: str, config: Mapping[str, Any], *, hidden: int, layers: int, vocab: int) -> int:
    """Return a lower bound of a model's parameters.

    An embedding, a square matrix in every layer, and the experts if the type says how many it has. Smaller than every
    causal language model of transformers at its class's default sizes; not valid for models whose layers share weights.
    """
    return vocab * hidden + layers * hidden * hidden + _experts(model_type, config, hidden, layers)


def experts_of(config: Mapping[str, Any]) -> int:
    """Return the number of experts in each layer, under any known key; 0 if it is not a mixture."""
    counts = [part.get(key) for part in (config, _object(config.get("text_config"))) for key in _EXPERTS_OF_ANY]
    return max((count for count in counts if type(count) is int and count > 1), default=0)


def logit_steps(model_type: str, config: Mapping[str, Any]) -> int:
    """Return how many operations follow the head's product: a cap is a division and a tanh, a scale one product."""
    if config.get("final_logit_softcapping", 30.0 if model_type == "gemma2" else None) is not None:
        return 2
    return int(any(config.get(key) not in (None, 1) for key in ("logits_scaling", "logit_scale")))


def window(model_type: str, config: Mapping[str, Any]) -> int:
    """Return the tokens of a sliding window of attention; 0 without one. Qwen's is off unless it says otherwise."""
    on = config.get("use_sliding_window", not model_type.startswith("qwen"))
    return _whole(config, "sliding_window") if on else 0


def attention_dropout(config: Mapping[str, Any]) -> bool:
    """Return whether attention drops weights in training."""
    return any(config.get(key) for key in ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob"))


def packed_bytes(config: Mapping[str, Any]) -> float | None:
    """Return the minimum bytes per element of a checkpoint that is already quantised; None if it is not."""
    quantisation = _object(config.get("quantization_config"))
    if not quantisation:
        return None
    bits = quantisation.get("bits")
    if type(bits) is int and 1 <= bits <= 16:
        return bits / 8
    if quantisation.get("load_in_8bit") is True:
        return 1.0
    if quantisation.get("load_in_4bit") is True:
        return 0.5
    return _PACKED_BYTES.get(str(quantisation.get("quant_method")), _PACKED_LEAST)


def _object(value: Any) -> Mapping[str, Any]:
    """Return an object of a configuration; empty if it is something else."""
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _uncounted(model_type: str, config: Mapping[str, Any]) -> Iterable[str]:
    """Yield keys that may add parameters and are not counted."""
    counted = _SIZES | _OWN.get(model_type, frozenset[str]())
    for key, value in config.items():
        if key in counted or key in _NO_SIZE or key.endswith(_NO_SIZE_ENDINGS) or key.startswith(_PRIVATE):
            continue
        if _may_be_a_size(key, value):
            yield key


def _may_be_a_size(key: str, value: Any) -> bool:
    """Return whether a value may be a size, and not just a scale, a name, or a feature that is off."""
    if value is None or value is False or isinstance(value, float | str) or value in (0, [], {}):
        return False
    if key == "layer_types" and isinstance(value, list):
        return not _LAYER_TYPES.issuperset(str(one) for one in cast("list[object]", value))
    if key == "text_config":
        return not isinstance(value, dict)
    return value not in _NEUTRAL.get(key, ())


def _experts(model_type: str, config: Mapping[str, Any], hidden: int, layers: int) -> int:
    keys = _EXPERT_KEYS.get(model_type)
    if keys is None:
        return 0
    count, width = (_whole(config, key) for key in keys)
    dense, step = _whole(config, "first_k_dense_replace"), max(1, _whole(config, "decoder_sparse_step"))
    plain = config.get("mlp_only_layers")
    dense += len(cast("list[object]", plain)) if isinstance(plain, list) else 0
    return max(0, layers - dense) // step * count * 3 * hidden * width


def _whole(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    return value if type(value) is int and 0 < value < 1 << 22 else 0
