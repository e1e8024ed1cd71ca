"""Matrices and sizes of a model from its ``config.json``, by model family.

Sources: the configuration and modelling files of transformers 5 (https://github.com/huggingface/transformers,
``src/transformers/models``); PEFT's default LoRA targets
(https://github.com/huggingface/peft, ``src/peft/utils/constants.py``).
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from ..contract.errors import UsageError
from . import known
from .architecture import DTYPE_BYTES, Architecture, Linear

_QV = ("q_proj", "v_proj")
_TARGETS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "stablelm", "opt"), _QV
    ),
    "phi": (*_QV, "fc1", "fc2"),
    "gpt_neox": ("query_key_value",),
    "gpt2": ("c_attn",),
}
_QKV_BIAS = frozenset({"qwen2", "qwen2_moe"})
_TIED = frozenset({"gemma", "gemma2", "gemma3", "gemma3_text", "gpt2"})
"""Model types whose configuration class ties embedding and head by default."""
_ALIASES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "d_ff"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions"),
}
_DEFAULTS = {
    "gemma": {"head_dim": 256},
    "gemma2": {"head_dim": 256},
    "gemma3_text": {"head_dim": 256},
    "mistral": {"num_key_value_heads": 8},
    "mixtral": {"num_key_value_heads": 8},
    "qwen3": {"head_dim": 128},
}
"""Defaults of transformers' configuration classes, where they differ from those derived from other sizes."""
_MOST = {
    "hidden_size": 1 << 20,
    "num_hidden_layers": 4096,
    "num_attention_heads": 1 << 14,
    "num_key_value_heads": 1 << 14,
    "head_dim": 1 << 14,
    "intermediate_size": 1 << 22,
    "vocab_size": 1 << 26,
    "max_position_embeddings": 1 << 32,
    "num_experts": 4096,
    "num_local_experts": 4096,
    "num_experts_per_tok": 4096,
    "moe_intermediate_size": 1 << 22,
}


class Sizes(Struct, frozen=True, kw_only=True):
    """Checked sizes of a configuration."""

    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    positions: int
    experts: int | None
    experts_used: int

    @property
    def q(self) -> int:
        """Width of all heads' queries."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of all heads' keys."""
        return self.kv_heads * self.head_dim


def architecture_of(config: Mapping[str, Any], name: str, where: str, modules: frozenset[str]) -> Architecture:
    """Return the sizes of the model that a configuration describes; parameters are counted by formula.

    Args:
        config: content of ``config.json``.
        name: display name of the model.
        where: the file, for messages.
        modules: names of the checkpoint's tensors if they are known; they decide about tied weights and biases.

    Raises:
        UsageError: a size is missing or impossible.
    """
    outer = config
    config = _text_config(config)
    given = config.get("model_type") or outer.get("model_type")
    model_type = given if isinstance(given, str) else ""
    sizes = _sizes(config, model_type, where)
    family = _family(model_type)
    linears = _LAYERS[family](sizes, _flag(config, "attention_bias", model_type in _QKV_BIAS), config)
    if modules and any(m.startswith(f"{prefix}layers.0.") for m in modules for prefix in ("model.", "")):
        linears = tuple(_with_bias(linear, modules) for linear in linears)
    tied = _tied(config, outer, model_type, modules)
    norms, extra = _norms(sizes, family, model_type), _extra(sizes, family)
    bias = sum(linear.outputs * linear.count for linear in linears if linear.bias)
    matrices = sum(linear.inputs * linear.outputs * linear.count for linear in linears)
    router = sizes.hidden * sizes.experts if sizes.experts else 0
    head = 0 if tied else sizes.vocab * sizes.hidden
    parameters = sizes.vocab * sizes.hidden + head + extra + sizes.layers * (matrices + bias + norms + router)
    unknown = known.unknown(model_type, config, outer)
    if unknown:
        parameters = known.least_parameters(
            model_type, config, hidden=sizes.hidden, layers=sizes.layers, vocab=sizes.vocab
        )
    return Architecture(
        name=name,
        model_type=model_type or "unknown",
        parameters=parameters,
        layers=sizes.layers,
        hidden=sizes.hidden,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        intermediate=sizes.intermediate,
        vocab=sizes.vocab,
        tied=tied,
        experts=sizes.experts,
        experts_used=sizes.experts_used,
        dtypes=_dtypes(config, outer),
        rough="a mixture of experts: activations are approximate" if sizes.experts and not unknown else None,
        unknown=unknown,
        packed=known.packed_bytes(outer),
        linears=linears,
        norms=norms,
        extra=extra,
        family=family,
        qk_norm=model_type in ("qwen3", "qwen3_moe", "gemma3", "gemma3_text"),
        gated=family in ("llama", "gemma", "phi3"),
        activation=_activation(config, family),
        logit_steps=known.logit_steps(model_type, config),
        window=known.window(model_type, config),
        attention_dropout=known.attention_dropout(config),
        default_targets=_TARGETS.get("gemma3_text" if model_type == "gemma3" else model_type),
    )


def _family(model_type: str) -> str:
    if model_type.startswith("gemma"):
        return "gemma"
    return {"phi": "phi", "phi3": "phi3", "gpt_neox": "neox", "gpt2": "gpt2"}.get(model_type, "llama")


def _llama(sizes: Sizes, bias: bool, config: Mapping[str, Any]) -> tuple[Linear, ...]:
    h, q, kv, i = sizes.hidden, sizes.q, sizes.kv, sizes.intermediate
    qwen = sizes.model_type in _QKV_BIAS
    bias = bias or _flag(config, "use_qkv_bias", False)
    out_bias = bias and not qwen and not _flag(config, "use_qkv_bias", False)
    mlp = _flag(config, "mlp_bias", False)
    experts = sizes.experts or 1
    return (
        Linear("q_proj", h, q, bias, source="attn"),
        Linear("k_proj", h, kv, bias, source="attn"),
        Linear("v_proj", h, kv, bias, source="attn"),
        Linear("o_proj", q, h, out_bias, source="out"),
        Linear("gate_proj", h, i, mlp, experts, source="mlp"),
        Linear("up_proj", h, i, mlp, experts, source="mlp"),
        Linear("down_proj", i, h, mlp, experts, source="down"),
    )


def _phi(sizes: Sizes, bias: bool, config: Mapping[str, Any]) -> tuple[Linear, ...]:
    h, q, kv, i = sizes.hidden, sizes.q, sizes.kv, sizes.intermediate
    return (
        Linear("q_proj", h, q, True, source="attn"),
        Linear("k_proj", h, kv, True, source="attn"),
        Linear("v_proj", h, kv, True, source="attn"),
        Linear("dense", q, h, True, source="out"),
        Linear("fc1", h, i, True, source="mlp"),
        Linear("fc2", i, h, True, source="down"),
    )


def _phi3(sizes: Sizes, bias: bool, config: Mapping[str, Any]) -> tuple[Linear, ...]:
    h, q, kv, i = sizes.hidden, sizes.q, sizes.kv, sizes.intermediate
    return (
        Linear("qkv_proj", h, q + 2 * kv, source="attn"),
        Linear("o_proj", q, h, source="out"),
        Linear("gate_up_proj", h, 2 * i, source="mlp"),
        Linear("down_proj", i, h, source="down"),
    )


def _neox(sizes: Sizes, bias: bool, config: Mapping[str, Any]) -> tuple[Linear, ...]:
    h, i = sizes.hidden, sizes.intermediate
    bias = _flag(config, "attention_bias", True)
    return (
        Linear("query_key_value", h, 3 * h, bias, source="attn"),
        Linear("dense", h, h, bias, source="out"),
        Linear("dense_h_to_4h", h, i, True, source="mlp"),
        Linear("dense_4h_to_h", i, h, True, source="down"),
    )


def _gpt2(sizes: Sizes, bias: bool, config: Mapping[str, Any]) -> tuple[Linear, ...]:
    h, i = sizes.hidden, sizes.intermediate
    return (
        Linear("c_attn", h, 3 * h, True, source="attn"),
        Linear("attn.c_proj", h, h, True, source="out"),
        Linear("c_fc", h, i, True, source="mlp"),
        Linear("mlp.c_proj", i, h, True, source="down"),
    )


_LAYERS: dict[str, Callable[[Sizes, bool, Mapping[str, Any]], tuple[Linear, ...]]] = {
    "llama": _llama,
    "gemma": _llama,
    "phi": _phi,
    "phi3": _phi3,
    "neox": _neox,
    "gpt2": _gpt2,
}


def _norms(sizes: Sizes, family: str, model_type: str) -> int:
    if model_type == "olmo":  # its norms have no weights
        return 0
    qk = 2 * sizes.head_dim if model_type in ("qwen3", "qwen3_moe", "gemma3", "gemma3_text") else 0
    if model_type in ("gemma2", "gemma3", "gemma3_text") or family in ("neox", "gpt2") or model_type == "stablelm":
        return 4 * sizes.hidden + qk  # four RMS norms, or two layer norms with weight and bias
    return 2 * sizes.hidden + qk


def _extra(sizes: Sizes, family: str) -> int:
    layer_norm = family in ("neox", "gpt2", "phi") or sizes.model_type == "stablelm"
    final = 0 if sizes.model_type == "olmo" else sizes.hidden * (1 + layer_norm)
    positions = sizes.positions * sizes.hidden if family == "gpt2" else 0
    return final + positions + (sizes.vocab if family == "phi" else 0)


def _with_bias(linear: Linear, modules: frozenset[str]) -> Linear:
    """Return a linear of the Llama kind, with a bias if the checkpoint has one."""
    part = "self_attn" if linear.source in ("attn", "out") else "mlp"
    names = (f"{prefix}layers.0.{part}.{linear.name}" for prefix in ("model.", ""))
    for name in names:
        if f"{name}.weight" in modules:
            return msgspec.structs.replace(linear, bias=f"{name}.bias" in modules)
    return linear


def _text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the language model's part of a configuration that also describes a vision tower."""
    inner = config.get("text_config")
    if isinstance(inner, dict):
        return {str(key): value for key, value in inner.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return dict(config)


def _sizes(config: Mapping[str, Any], model_type: str, where: str) -> Sizes:
    config = {**_DEFAULTS.get(model_type, {}), **{k: v for k, v in config.items() if v is not None}}
    hidden = _size(config, "hidden_size", where)
    heads = _size(config, "num_attention_heads", where)
    if hidden < heads and "head_dim" not in config:
        raise UsageError(
            f"{where}: `hidden_size: {hidden}` is less than `num_attention_heads: {heads}`; the file is damaged."
        )
    experts = _size(config, "num_local_experts", where, 0) or _size(config, "num_experts", where, 0)
    dense = 4 * hidden if model_type in ("gpt2", "") or model_type not in known.TYPES else None
    intermediate = _size(config, "intermediate_size", where, dense)
    if experts:
        intermediate = _size(config, "moe_intermediate_size", where, intermediate)
    kv_default = 1 if config.get("multi_query") is True else heads
    return Sizes(
        model_type=model_type,
        hidden=hidden,
        layers=_size(config, "num_hidden_layers", where),
        heads=heads,
        kv_heads=_size(config, "num_key_value_heads", where, kv_default),
        head_dim=_size(config, "head_dim", where, hidden // heads),
        intermediate=intermediate,
        vocab=_size(config, "vocab_size", where),
        positions=_size(config, "max_position_embeddings", where, 0),
        experts=experts or None,
        experts_used=_size(config, "num_experts_per_tok", where, 1) if experts else 1,
    )


def _size(config: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    for name in _ALIASES.get(key, (key,)):
        value = config.get(name)
        if value is None:
            continue
        # bool is an int in Python, but not a size
        if type(value) is not int or not (0 if default is not None else 1) <= value <= _MOST[key]:
            raise UsageError(f"{where}: `{name}: {str(value)[:40]}` is not a valid model size.")
        return value or (default or 0)
    if default is None:
        raise UsageError(f"{where}: `{key}` is missing, which is needed to estimate the model's memory.")
    return default


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key)
    return value if isinstance(value, bool) else default


def _tied(config: Mapping[str, Any], outer: Mapping[str, Any], model_type: str, modules: frozenset[str]) -> bool:
    """Return whether weights are tied: as configured (transformers ties after loading), else the family's default."""
    if modules & {"lm_head.weight", "embed_out.weight"}:
        return _flag(config, "tie_word_embeddings", _flag(outer, "tie_word_embeddings", False))
    default = model_type in _TIED or model_type not in known.TYPES  # transformers' own default is True
    return _flag(config, "tie_word_embeddings", _flag(outer, "tie_word_embeddings", default))


def _dtypes(config: Mapping[str, Any], outer: Mapping[str, Any]) -> tuple[str, ...]:
    for source in (config, outer):
        for key in ("dtype", "torch_dtype"):
            value = source.get(key)
            if isinstance(value, str) and value.removeprefix("torch.") in DTYPE_BYTES:
                return (value.removeprefix("torch."),)
    return ()


def _activation(config: Mapping[str, Any], family: str) -> str:
    for key in ("hidden_activation", "hidden_act", "activation_function"):
        value = config.get(key)
        if isinstance(value, str):
            return value
    return {"gpt2": "gelu_new", "phi": "gelu_new", "neox": "gelu", "gemma": "gelu_pytorch_tanh"}.get(family, "silu")
