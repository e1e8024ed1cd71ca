"""Sizes of public models, as data: the keys of each ``config.json`` that decide about memory.

Sources: the ``config.json`` of each model on https://huggingface.co (the name is the repository), and for Llama 2 and 3
also arXiv:2307.09288 and arXiv:2407.21783, for Qwen2.5 arXiv:2412.15115, for Gemma arXiv:2403.08295, for Mistral
arXiv:2310.06825, for Pythia arXiv:2304.01373, for SmolLM2 arXiv:2502.02737.
"""

from typing import Any

KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
)
"""The sizes of a model, in the order of the tables here and in `stacks.py`."""
_SIZES: dict[str, tuple[Any, ...]] = {
    "openai-community/gpt2": ("gpt2", 768, 12, 12, 12, 64, 3072, 50257, True),
    "HuggingFaceTB/SmolLM2-135M": ("llama", 576, 30, 9, 3, 64, 1536, 49152, True),
    "HuggingFaceTB/SmolLM2-360M": ("llama", 960, 32, 15, 5, 64, 2560, 49152, True),
    "Qwen/Qwen2.5-0.5B": ("qwen2", 896, 24, 14, 2, 64, 4864, 151936, True),
    "Qwen/Qwen3-0.6B": ("qwen3", 1024, 28, 16, 8, 128, 3072, 151936, True),
    "TinyLlama/TinyLlama_v1.1": ("llama", 2048, 22, 32, 4, 64, 5632, 32000, False),
    "meta-llama/Llama-3.2-1B": ("llama", 2048, 16, 32, 8, 64, 8192, 128256, True),
    "EleutherAI/pythia-1.4b": ("gpt_neox", 2048, 24, 16, 16, 128, 8192, 50304, False),
    "Qwen/Qwen2.5-1.5B": ("qwen2", 1536, 28, 12, 2, 128, 8960, 151936, True),
    "google/gemma-2b": ("gemma", 2048, 18, 8, 1, 256, 16384, 256000, True),
    "google/gemma-2-2b": ("gemma2", 2304, 26, 8, 4, 256, 9216, 256000, True),
    "meta-llama/Llama-3.2-3B": ("llama", 3072, 28, 24, 8, 128, 8192, 128256, True),
    "microsoft/phi-2": ("phi", 2560, 32, 32, 32, 80, 10240, 51200, False),
    "huggyllama/llama-7b": ("llama", 4096, 32, 32, 32, 128, 11008, 32000, False),
    "mistralai/Mistral-7B-v0.1": ("mistral", 4096, 32, 32, 8, 128, 14336, 32000, False),
    "Qwen/Qwen2.5-7B": ("qwen2", 3584, 28, 28, 4, 128, 18944, 152064, False),
    "meta-llama/Llama-3.1-8B": ("llama", 4096, 32, 32, 8, 128, 14336, 128256, False),
    "google/gemma-7b": ("gemma", 3072, 28, 16, 16, 256, 24576, 256000, True),
    "meta-llama/Llama-2-13b-hf": ("llama", 5120, 40, 40, 40, 128, 13824, 32000, False),
    "Qwen/Qwen2.5-32B": ("qwen2", 5120, 64, 40, 8, 128, 27648, 152064, False),
    "meta-llama/Llama-2-70b-hf": ("llama", 8192, 80, 64, 8, 128, 28672, 32000, False),
    "meta-llama/Llama-3.1-70B": ("llama", 8192, 80, 64, 8, 128, 28672, 128256, False),
}
_MORE: dict[str, dict[str, Any]] = {
    "gemma": {"hidden_act": "gelu_pytorch_tanh"},
    "gemma2": {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 4096},
    "mistral": {"sliding_window": 4096},
    "gpt2": {"activation_function": "gelu_new", "n_positions": 1024},
    "phi": {"hidden_act": "gelu_new", "partial_rotary_factor": 0.4},
    "gpt_neox": {"hidden_act": "gelu", "rotary_pct": 0.25, "use_parallel_residual": True},
}


def config_of(name: str) -> dict[str, Any]:
    """Return what ``config.json`` says about a model's sizes; bf16 throughout.

    Args:
        name: of the repository, or its last part.
    """
    full = next(one for one in _SIZES if name in (one, one.rpartition("/")[2]))
    sizes = dict(zip(("model_type", *KEYS), _SIZES[full], strict=True))
    return {**sizes, **_MORE.get(sizes["model_type"], {}), "dtype": "bfloat16", "max_position_embeddings": 8192}
