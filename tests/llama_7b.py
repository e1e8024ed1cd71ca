"""Sizes of LLaMA-7B, as in its `config.json` (arXiv:2302.13971)."""

from typing import Any

LLAMA_7B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "dtype": "float16",
    "tie_word_embeddings": False,
}
