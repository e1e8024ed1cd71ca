"""Loading models and tokenizers, and putting adapters on them: one way for every stage.

A model is a hub id, a local directory or a local ``.gguf`` file (transformers dequantises it). Code from a model
repository is never executed, neither as Python nor out of a pickle: weights are safetensors, or they are refused.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
)

from ..contract.attention import check_allowed
from ..contract.base import BASE_FILE as BASE_FILE
from ..contract.base import base_identity as base_identity
from ..contract.base import same_base as same_base
from ..contract.errors import StageError
from ..contract.prompt_format import PromptFormat, write_prompt_format
from ..contract.recipe import ModelRecipe, TrainRecipe
from ..contract.recipe_common import ALL_LINEAR
from .fast_lora import speed_up_lora
from .faults import memory_that_ran_out
from .liger import use_liger_kernels
from .loading import loading, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MAMBA = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})
_MAMBA_KERNELS = ("out_proj", "conv1d")
"""Modules of these types that fused kernels read past an adapter, so that PEFT refuses to adapt them."""


def load_tokenizer(name: str, revision: str | None = None, *, must_end: bool = True) -> "PreTrainedTokenizerBase":
    """Load the tokenizer, with a pad token that is not its end token wherever one exists.

    A reward model finds a text's end by the first pad token; were pad and end the same, the end token itself
    would be taken for padding.

    Args:
        name: hub id, directory or .gguf file.
        revision: of the hub.
        must_end: whether an end token is needed, as it is for every text that is written or trained on here.

    Raises:
        StageError: it cannot be loaded, or has no end token, or nothing to pad with.
    """
    source, extra = _source(name)
    with loading(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False, **extra)
    if tokenizer.eos_token_id is None and must_end:
        raise StageError(f"The tokenizer of {name} has no end-of-sequence token, which every stage needs.")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        unknown = tokenizer.unk_token
        usable = unknown is not None and tokenizer.unk_token_id != tokenizer.eos_token_id
        tokenizer.pad_token = unknown if usable else tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise StageError(f"The tokenizer of {name} has no pad token, and none that could stand in for it; add one.")
    return tokenizer


def eos_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the end token's id; :func:`load_tokenizer` made sure of it."""
    return int(tokenizer.eos_token_id)  # type: ignore[arg-type]


def pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the pad token's id; :func:`load_tokenizer` made sure of it."""
    return int(tokenizer.pad_token_id)  # type: ignore[arg-type]


def load_causal_lm(recipe: TrainRecipe, device: torch.device) -> "PreTrainedModel":
    """Load the base as a causal language model in the recipe's precision, on ``device``.

    Raises:
        StageError: it cannot be loaded.
    """
    model = _load(AutoModelForCausalLM, recipe, _quantization(recipe), device)
    if recipe.use_liger_kernel:
        use_liger_kernels(model, device)
    return model


def load_reward_base(recipe: TrainRecipe, pad_token_id: int, device: torch.device) -> "PreTrainedModel":
    """Load the base with one score per sequence (a new head), in the recipe's precision, on ``device``.

    Raises:
        StageError: it cannot be loaded.
    """
    model = _load(AutoModelForSequenceClassification, recipe, _quantization(recipe), device, num_labels=1)
    model.config.get_text_config().pad_token_id = pad_token_id
    score_in_head_dtype(model)
    if recipe.use_liger_kernel:
        use_liger_kernels(model, device)
    return model


def load_plain(
    name: str,
    revision: str | None,
    dtype: str,
    device: torch.device,
    *,
    reward: bool = False,
    new_head: bool = False,
    several_labels: bool = False,
) -> "PreTrainedModel":
    """Load a model without quantisation, for merging and for separate reward models.

    Args:
        name: hub id, directory or .gguf file.
        revision: of the hub.
        dtype: of the weights.
        device: where it goes.
        reward: with one score per sequence instead of a language-model head.
        new_head: whether the score head may be missing, because an adapter brings it.
        several_labels: whether it may return several scores per sequence.

    Raises:
        StageError: it cannot be loaded, or it is a reward model without a trained head.
    """
    recipe = ModelRecipe(model_name_or_path=name, model_revision=revision, dtype=dtype)  # type: ignore[arg-type]
    if not reward:
        return _load(AutoModelForCausalLM, recipe, None, device)
    labels = {} if _own_labels(name, revision) and not new_head else {"num_labels": 1}
    model, info = _load(AutoModelForSequenceClassification, recipe, None, device, output_loading_info=True, **labels)
    if info["missing_keys"] and not new_head:
        raise StageError(
            f"{name} is not a reward model: it has no trained `{sorted(info['missing_keys'])[0]}`, so its scores would "
            "be random. Name a finished reward run, its adapter, or a sequence-classification model."
        )
    if model.config.num_labels != 1 and not several_labels:
        named = ", ".join(str(label) for label in list(model.config.id2label.values())[:4])
        raise StageError(
            f"{name} returns {model.config.num_labels} scores per text ({named}), but a reward is one number; name a "
            "model with one label."
        )
    score_in_head_dtype(model)
    return model


def _own_labels(name: str, revision: str | None) -> bool:
    """Return whether a model was saved with a classification head, whose labels its configuration then counts."""
    source, extra = _source(name)
    with loading(name, "model"):
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False, **extra)
    return any("Classification" in architecture for architecture in config.architectures or ())


def add_lora(
    model: "PreTrainedModel", recipe: TrainRecipe, task_type: str, config: LoraConfig | None = None
) -> "PreTrainedModel | PeftModel":
    """LoRA on a frozen base (after k-bit preparation where it is quantised), or the model itself for full training.

    Args:
        model: the base.
        recipe: its LoRA keys are used unless ``config`` is given.
        task_type: PEFT's ``CAUSAL_LM`` or ``SEQ_CLS``.
        config: of an adapter that is continued.

    Raises:
        StageError: the target modules do not exist in this model.
    """
    if not recipe.use_peft:
        return model
    if recipe.quantised:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=recipe.checkpointing)
    try:
        peft_model = get_peft_model(model, config or lora_config(recipe, task_type, model.config.model_type))
    except ValueError as error:
        raise StageError(f"LoRA does not fit {recipe.model_name_or_path}: {error} Set `lora_target_modules`.") from None
    speed_up_lora(peft_model)
    return peft_model


def lora_config(recipe: TrainRecipe, task_type: str, model_type: str) -> LoraConfig:
    """PEFT's configuration of the recipe's adapter; a reward adapter trains and saves its score head."""
    every_matrix = recipe.lora_target_modules == ALL_LINEAR
    return LoraConfig(
        task_type=task_type,
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=recipe.lora_target_modules,
        exclude_modules=[*_MAMBA_KERNELS] if every_matrix and model_type in _MAMBA else None,
        modules_to_save=["score"] if task_type == "SEQ_CLS" else None,
        bias="none",
    )


def trainables_to_fp32(model: nn.Module) -> None:
    """Keep an adapter (and its score head) in float32.

    TRL casts a quantised model's adapter to bfloat16, whose 8-bit mantissa rounds away an Adam step of 1e-5 on a
    weight of 1e-2: at the published learning rates such an adapter would hardly move.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def score_in_head_dtype(model: nn.Module) -> None:
    """Let a score head read hidden states of any dtype (a float32 head on a bfloat16 trunk)."""
    head = getattr(model, "score", None)  # classifiers of other families have deeper heads, in one dtype
    if head is not None:
        head.register_forward_pre_hook(_cast_input)


def save_adapter(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    path: Path,
    recipe: TrainRecipe,
    prompt_format: PromptFormat,
    adapters: Sequence[str] = ("default",),
    stops: Sequence[int] = (),
    **extra: Any,
) -> None:
    """Write the adapter, its score head if it has one, its base's identity, the prompt format and the tokenizer.

    All or nothing: written beside ``path`` and renamed.

    Args:
        model: a PeftModel.
        tokenizer: the base's.
        path: the adapter's directory.
        recipe: says which base.
        prompt_format: that it was trained with.
        adapters: which of the model's are saved; all but the first in directories of their names.
        stops: tokens that end a response, for ``generation_config.json``; none for a reward model.
        extra: safetensors files to add, name → tensors.

    Raises:
        OSError: disk full or not writable.
    """
    with _whole(path) as staging:
        model.save_pretrained(str(staging), selected_adapters=list(adapters))
        identity = base_identity(recipe.model_name_or_path, recipe.model_revision)
        (staging / BASE_FILE).write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
        for name, tensors in extra.items():
            save_file(tensors, staging / f"{name}.safetensors")
        _save_tokenizer(tokenizer, prompt_format, staging)
        write_prompt_format(staging, prompt_format)
        if stops:
            ends: dict[str, Any] = {"eos_token_id": [*stops], "pad_token_id": pad_id(tokenizer)}
            GenerationConfig(bos_token_id=tokenizer.bos_token_id, **ends).save_pretrained(str(staging))


def save_model(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    path: Path,
    prompt_format: PromptFormat | None,
    stops: Sequence[int] = (),
) -> None:
    """Write a whole model, its tokenizer and its prompt format, all or nothing.

    The tokenizer gets the format's chat template, and the generation configuration the tokens that end a response, so
    that a program that serves the model renders prompts and ends responses as it was trained to.

    Raises:
        OSError: disk full or not writable.
    """
    with _whole(path) as staging:
        model.config.use_cache = True  # off while training; generation is slow without it
        if stops:
            model.generation_config.eos_token_id = [*stops]
        model.save_pretrained(str(staging))
        write_prompt_format(staging, prompt_format)
        _save_tokenizer(tokenizer, prompt_format, staging)


def _save_tokenizer(tokenizer: "PreTrainedTokenizerBase", prompt_format: PromptFormat | None, folder: Path) -> None:
    """Write a tokenizer with the chat template of the training; the one in memory stays as it is."""
    own = tokenizer.chat_template
    first: Any = tokenizer("a")["input_ids"][:1]
    begins = tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
    if prompt_format is not None and (template := prompt_format.served_template(begins=begins)):
        tokenizer.chat_template = template
    try:
        tokenizer.save_pretrained(str(folder))
    finally:
        tokenizer.chat_template = own


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yield a directory beside ``path`` that replaces it at the end, and is removed when anything fails."""
    staging = path.with_name(f".tmp-{path.name}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        yield staging
        shutil.rmtree(path, ignore_errors=True)  # of an attempt that was cut off after this point
        staging.replace(path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def adapter_weights(path: Path, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Read the tensors of an adapter directory.

    Raises:
        StageError: it has none in safetensors, or they cannot be read.
    """
    file = path / "adapter_model.safetensors"
    if not file.is_file():
        raise StageError(f"{path} has no adapter_model.safetensors; other formats hold pickles and are not read.")
    with loading(str(path), "adapter"):
        return load_file(file, device=str(device))


def load_adapter(base: "PreTrainedModel", path: Path) -> PeftModel:
    """Put an adapter as it was saved on a base, for merging.

    Raises:
        StageError: the adapter is not in safetensors, or not this base's.
    """
    saved = adapter_weights(path)  # PEFT would read a pickle where there is nothing else
    with loading(str(path), "adapter"):
        model = PeftModel.from_pretrained(base, str(path))
        there = get_peft_model_state_dict(model, save_embedding_layers=False)
    if lacking := sorted(name for name in there if "lora_" in name and name not in saved):
        raise StageError(f"The adapter {path} does not fit its adapter_config.json: it lacks {lacking[0]}.")
    for name, tensor in ((name, tensor) for name, tensor in saved.items() if "lora_" in name):
        # of a tensor that it finds no place for, PEFT only warns
        if name not in there or not torch.equal(there[name].cpu(), tensor.to(there[name].dtype)):
            raise StageError(f"The adapter {path} does not fit its base: it has no place for {name}.")
    return model


def set_adapter_state(model: Any, state: dict[str, torch.Tensor], adapter: str) -> None:
    """Set the weights of one adapter of a PeftModel; names as PEFT saves them.

    Raises:
        StageError: they are another adapter's.
    """
    try:
        result = set_peft_model_state_dict(model, state, adapter_name=adapter)
    except RuntimeError as error:  # of another rank
        if memory_that_ran_out(error):
            raise
        raise StageError(f"The adapter does not fit this model: {one_line(error)}") from error
    missing = [key for key in result.missing_keys if f".{adapter}." in key]
    if missing or result.unexpected_keys:
        odd = [*missing, *result.unexpected_keys][0]
        raise StageError(f"The adapter does not fit this model (first mismatch: {odd}).")


def padding_notice(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return a notice when padding and end token are the same, else None."""
    if pad_id(tokenizer) != eos_id(tokenizer):
        return None
    return "pad and end token are the same: the reward model cannot see whether a response ended"


def head_hidden(model: "PreTrainedModel") -> int:
    """Return the width of the language-model head's input; not every configuration has it as a key."""
    head: Any = model.get_output_embeddings()
    return int(getattr(head, "in_features", None) or head.weight.shape[-1])


def _load(auto: Any, recipe: ModelRecipe, quantization: Any, device: torch.device, **more: Any) -> Any:
    name = recipe.model_name_or_path
    check_allowed(recipe.attn_implementation)
    source, extra = _source(name)
    dtype = recipe.dtype if recipe.dtype == "auto" else getattr(torch, recipe.dtype)
    # straight to the GPU: loading every rank's copy through host memory first would need ranks × the model there
    direct = quantization is not None or device.type != "cpu"
    with loading(name, "model"):
        loaded = auto.from_pretrained(
            source,
            revision=recipe.model_revision,
            dtype=dtype,
            attn_implementation=recipe.attn_implementation,
            quantization_config=quantization,
            device_map={"": device} if direct else None,
            trust_remote_code=False,
            use_safetensors=None if extra else True,  # of a .gguf file there is nothing else to choose
            **extra,
            **more,
        )
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    if extra:
        model.name_or_path = name  # PEFT writes it into adapter_config.json: the file, not the folder it lies in
        # the weights in memory are plain; the Trainer would refuse to train what the file says they were
        model.hf_quantizer = None
        model.is_quantized = False
        model.config.__dict__.pop("quantization_config", None)
    model.config.use_cache = False
    return loaded


def _quantization(recipe: TrainRecipe) -> BitsAndBytesConfig | None:
    if not recipe.quantised:
        return None
    return BitsAndBytesConfig(
        load_in_8bit=recipe.load_in_8bit,
        load_in_4bit=recipe.load_in_4bit,
        bnb_4bit_quant_type=recipe.base_precision if recipe.load_in_4bit else "nf4",
        bnb_4bit_use_double_quant=recipe.use_bnb_nested_quant,
        bnb_4bit_compute_dtype=torch.bfloat16 if recipe.dtype in ("auto", "bfloat16") else getattr(torch, recipe.dtype),
    )


def _source(name: str) -> tuple[str, dict[str, str]]:
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise StageError(f"{name}: no such file.")
        return str(path.parent), {"gguf_file": path.name}
    return name, {}


def _cast_input(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    weight = next(module.parameters())
    return (inputs[0].to(weight.dtype), *inputs[1:])


def quiet_libraries() -> None:
    """Keep a log file readable: no progress bars, and no library's advice to its own callers per layer and step."""
    transformers.utils.logging.disable_progress_bar()
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # read when a stage imports it
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
