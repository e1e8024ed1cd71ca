# pyright: basic
"""Model of a recipe without weights, as its stage builds it.

First on torch's ``meta`` device, so that transformers, PEFT and our own code can change modules and dtypes; then with
fake tensors, which operations accept.
"""

import functools
from typing import Any

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ...contract.recipe import TrainRecipe
from ...train import models
from ..weights import NF4_BLOCK, NF4_NESTED_BLOCK

_PER_LAYER = ("layer_types", "no_rope_layers", "attention_layers")
"""Keys of a configuration with a list of one entry per layer."""


def configuration(config: dict[str, Any], layers: int | None) -> Any:
    """Build a configuration with another number of layers; None: its own.

    Raises:
        ValueError: this architecture is not part of transformers.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ValueError(f"architecture `{kind}` is not part of transformers.")
    made = CONFIG_MAPPING[kind].from_dict(config)
    text = made.get_text_config()
    if layers is not None:
        for name in _PER_LAYER:
            entries = getattr(text, name, None)
            if isinstance(entries, list):
                setattr(text, name, entries[:layers])
        text.num_hidden_layers = layers
    text.use_cache = False
    if text.pad_token_id is None:
        text.pad_token_id = 0
    return made


def depth(config: dict[str, Any]) -> int:
    """Return the number of layers of a configuration."""
    return configuration(config, None).get_text_config().num_hidden_layers


def base(config: dict[str, Any], layers: int, recipe: TrainRecipe, *, score: bool = False, plain: bool = False) -> Any:
    """Build a base on ``meta``, in the recipe's precision.

    Args:
        config: content of ``config.json``.
        layers: number of layers.
        recipe: gives dtype, quantisation and attention.
        score: with one score per text instead of a language-model head.
        plain: never quantised.
    """
    made = configuration(config, layers)
    auto = AutoModelForSequenceClassification if score else AutoModelForCausalLM
    if score:
        made.num_labels = 1
    dtype = dtype_of(config) if recipe.dtype == "auto" else getattr(torch, recipe.dtype)
    with torch.device("meta"):
        model: Any = auto.from_config(made, dtype=dtype, attn_implementation=_attention(recipe))
    if recipe.quantised and not plain:
        _quantise(model, recipe)
    if score:
        models.score_in_head_dtype(model)
    return model


def dtype_of(config: dict[str, Any]) -> torch.dtype:
    """Return the checkpoint's dtype; float32 if the configuration does not say, as in transformers."""
    for part in (config, config.get("text_config") or {}):
        for key in ("dtype", "torch_dtype"):
            if isinstance(part.get(key), str):
                return getattr(torch, part[key].removeprefix("torch."))
    return torch.float32


def fake(model: nn.Module) -> None:
    """Replace every tensor on ``meta`` by a fake one on the CPU; call it in a fake mode. Tied tensors stay tied."""
    known: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = _fake_parameter(parameter, known)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = known.setdefault(id(buffer), _empty(buffer))
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor):  # such as a rotary embedding's first frequencies
                setattr(module, name, known.setdefault(id(value), _empty(value)))
        if isinstance(module, Linear8bitLt):
            module.state.CB, module.state.SCB = module.weight.data, torch.empty(module.out_features)
        if isinstance(module, Linear4bit):
            weight: Any = module.weight
            weight.quant_state = _four_bit_state(module)
            module.support_avx512bf16_for_cpu = False


def checkpointing(model: Any, recipe: TrainRecipe) -> None:
    """Enable checkpointing as TRL and transformers do, except for random states, which fake tensors do not have."""
    keep = {"use_reentrant": recipe.load_in_8bit, "preserve_rng_state": False}
    model.gradient_checkpointing_enable(keep)
    if recipe.use_peft:
        model.enable_input_require_grads()


def _attention(recipe: TrainRecipe) -> str | None:
    """Return the recipe's attention; None: transformers chooses.

    Flash attention is what transformers chooses for 16-bit sequences without padding; its own package is not needed.
    """
    return "eager" if recipe.attn_implementation == "eager" else None


def _quantise(model: Any, recipe: TrainRecipe) -> None:
    """Quantise every linear except the head, as transformers does."""
    dtype = torch.bfloat16 if recipe.dtype in ("auto", "bfloat16") else getattr(torch, recipe.dtype)
    quantisation = BitsAndBytesConfig(
        load_in_8bit=recipe.load_in_8bit,
        load_in_4bit=recipe.load_in_4bit,
        bnb_4bit_quant_type=recipe.base_precision if recipe.load_in_4bit else "nf4",
        bnb_4bit_use_double_quant=recipe.use_bnb_nested_quant,
        bnb_4bit_compute_dtype=dtype,
    )
    replace_with_bnb_linear(model, ["lm_head", "embed_out", "score"], quantisation)
    model.is_loaded_in_8bit, model.is_loaded_in_4bit = recipe.load_in_8bit, recipe.load_in_4bit
    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            whole = torch.empty(module.weight.shape, dtype=torch.int8, device="meta")
            module.weight = _marked(whole, CB=None, SCB=None)
        elif isinstance(module, Linear4bit):
            count = -(-module.in_features * module.out_features // 2)
            packed = torch.empty(count, 1, dtype=torch.uint8, device="meta")
            marks = {"compress_statistics": recipe.use_bnb_nested_quant, "quant_type": recipe.base_precision}
            module.weight = _marked(packed, **marks, quant_state=None)
            module.compute_type_is_set = True
        else:
            continue
        if module.bias is not None:
            module.bias = nn.Parameter(module.bias.to(dtype), requires_grad=False)


def _marked(tensor: Tensor, **marks: Any) -> nn.Parameter:
    """Make a frozen parameter with the attributes that bitsandbytes and PEFT read from their own classes."""
    parameter = nn.Parameter(tensor, requires_grad=False)
    for name, value in marks.items():
        setattr(parameter, name, value)
    return parameter


def _four_bit_state(module: Linear4bit) -> QuantState:
    """Make the scales of one matrix, one per block of 64; with double quantisation in 8 bits with their own scales."""
    blocks = -(-module.in_features * module.out_features // NF4_BLOCK)
    weight: Any = module.weight
    nested = weight.compress_statistics
    make = functools.partial(QuantState, blocksize=NF4_BLOCK, quant_type=weight.quant_type, dtype=module.compute_dtype)
    shape = torch.Size((module.out_features, module.in_features))
    if not nested:
        return make(absmax=torch.empty(blocks), shape=shape, code=torch.empty(16))
    inner = QuantState(
        absmax=torch.empty(-(-blocks // NF4_NESTED_BLOCK)),
        blocksize=NF4_NESTED_BLOCK,
        code=torch.empty(256),
        dtype=torch.float32,
    )
    scales = torch.empty(blocks, dtype=torch.uint8)
    return make(absmax=scales, shape=shape, code=torch.empty(16), offset=torch.empty(()), state2=inner)


def _fake_parameter(parameter: nn.Parameter, known: dict[int, Any]) -> nn.Parameter:
    made = known.get(id(parameter))
    if made is None:
        made = nn.Parameter(_empty(parameter), requires_grad=parameter.requires_grad)
        for name, value in vars(parameter).items():
            setattr(made, name, value)
        known[id(parameter)] = made
        known[-id(parameter)] = parameter  # keeps its id from being given to another
    return made


def _empty(one: Tensor) -> Tensor:
    return torch.empty(one.shape, dtype=one.dtype, device="cpu")
