"""A .gguf base is dequantised, trains, and merges like any other."""

import json
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage

from .in_process import finish
from .toy import SFT

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(base: Path, path: Path) -> None:
    """Write the toy base as llama.cpp would: its names, its order of rotary dimensions, float32."""
    model = AutoModelForCausalLM.from_pretrained(base)
    config, spec = model.config, json.loads((base / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in ("<pad>", "<s>", "</s>") else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in spec["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    for name, tensor in model.state_dict().items():
        module = name.removesuffix(".weight")
        if module in WHOLE:
            target = WHOLE[module]
        else:
            _, _, layer, part = module.split(".", 3)
            target = f"blk.{layer}.{NAMES[part]}"
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(NAMES[part])
            if heads:  # llama.cpp interleaves the halves of each head's rotary dimensions
                tensor = tensor.view(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(f"{target}.weight", tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.slow
def test_sft_and_merge_from_a_gguf_file(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "toy.gguf"
    write_gguf(base, file)
    read, original = (
        AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32),
        AutoModelForCausalLM.from_pretrained(base),
    )
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, original(ids).logits)
    home = Home(tmp_path / "home")
    run, _ = finish(home, file, Stage.SFT, *SFT, "max_steps=2", "dtype=float32")
    _, facts = finish(home, file, Stage.MERGE, f"adapter_path={run.adapter}", "dtype=float32")
    assert facts["difference_from_base"] > 0
