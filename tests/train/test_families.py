"""Every stage on a tiny random model of each family, in chat format with a template of that family's shape."""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as token_models
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MiniCPM3Config,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
    SmolLM3Config,
)

from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.data import demo_data
from stackllama_engine.train.encoding import Encoder
from stackllama_engine.train.ppo.sampling import draw_noise, sample
from stackllama_engine.train.ppo.shared_base import SharedBase
from stackllama_engine.train.prompt_formats import recorded_encoder

from .in_process import REWARDS, attempt, finish
from .toy import ppo_recipe

pytestmark = pytest.mark.long

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's and SmolLM's shape."""
THINKING = CHATML.replace(
    "{% endif %}", "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Qwen 3's: without thinking the prompt ends with an empty thought."""
HEADERS = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
ROLES = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
INSTRUCTIONS = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    " {{ message['content'] }}{{ eos_token }}{% else %}[INST] {{ message['content'] }} [/INST]{% endif %}{% endfor %}"
)
PLAIN_ROLES = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CHANNELS = (
    "{% for message in messages %}<|start|>{{ message['role'] }}"
    "{% if message['role'] == 'assistant' %}<|channel|>final{% endif %}<|message|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
PUBLIC = {"pad": "<pad>", "bos": "<s>", "eos": "</s>"}


@dataclass(frozen=True)
class Family:
    """A family's model, special tokens and template.

    Attributes:
        config: makes the configuration from sizes that every family has.
        template: of its chats.
        tokens: of the tokenizer, by role: ``pad``, ``bos``, ``eos``.
        more: special tokens of the template.
        ends: tokens of its generation configuration that end a response.
        sizes: keys of the configuration beside :data:`SIZES`.
        spare: rows of the embedding that no token has.
    """

    config: Callable[..., PreTrainedConfig]
    template: str
    tokens: dict[str, str]
    more: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    sizes: dict[str, Any] = field(default_factory=dict)
    spare: int = 0


SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
GROUPED = {"num_key_value_heads": 2}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16, "head_dim": 16}
IM = ("<|im_start|>", "<|im_end|>")
QWEN = {"pad": "<|endoftext|>", "eos": "<|im_end|>"}
FAMILIES: dict[str, Family] = {
    "qwen2": Family(
        Qwen2Config, CHATML, QWEN, IM, ("<|im_end|>", "<|endoftext|>"), GROUPED | {"tie_word_embeddings": True}, 40
    ),
    "qwen3": Family(Qwen3Config, THINKING, QWEN, IM, ("<|im_end|>", "<|endoftext|>"), GROUPED | {"head_dim": 16}, 40),
    "llama3": Family(
        LlamaConfig,
        HEADERS,
        {"pad": "<|finetune_right_pad_id|>", "bos": "<|begin_of_text|>", "eos": "<|eot_id|>"},
        ("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>", "<|eom_id|>"),
        ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        GROUPED
        | {
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256,
            },
        },
    ),
    "gemma2": Family(
        Gemma2Config,
        TURNS,
        {"pad": "<pad>", "bos": "<bos>", "eos": "<eos>"},
        ("<start_of_turn>", "<end_of_turn>"),
        ("<eos>", "<end_of_turn>"),
        GROUPED | LAYERS | {"query_pre_attn_scalar": 16, "final_logit_softcapping": 5.0},
    ),
    "gemma3": Family(
        Gemma3TextConfig,
        TURNS,
        {"pad": "<pad>", "bos": "<bos>", "eos": "<eos>"},
        ("<start_of_turn>", "<end_of_turn>"),
        ("<eos>", "<end_of_turn>"),
        GROUPED | LAYERS | {"query_pre_attn_scalar": 16},
    ),
    "phi3": Family(
        Phi3Config,
        ROLES,
        {"pad": "<|endoftext|>", "bos": "<s>", "eos": "<|endoftext|>"},
        ("<unk>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        ("<|endoftext|>", "<|end|>"),
        GROUPED,
        spare=9,
    ),
    "mistral": Family(MistralConfig, INSTRUCTIONS, PUBLIC, sizes=GROUPED | {"sliding_window": 16}),
    "olmo2": Family(
        Olmo2Config,
        PLAIN_ROLES,
        {"pad": "<|pad|>", "bos": "<|endoftext|>", "eos": "<|endoftext|>"},
        sizes=GROUPED,
    ),
    "smollm3": Family(
        SmolLM3Config,
        CHATML,
        {"pad": "<|im_end|>", "eos": "<|im_end|>", "bos": "<|begin_of_text|>"},
        (*IM, "<|end_of_text|>"),
        ("<|im_end|>",),
        GROUPED | {"no_rope_layers": [1, 0], "use_sliding_window": False},
    ),
    "gpt_neox": Family(GPTNeoXConfig, PLAIN_ROLES, PUBLIC),
    "gpt_oss": Family(
        GptOssConfig,
        CHANNELS,
        {"pad": "<|endoftext|>", "bos": "<|startoftext|>", "eos": "<|return|>"},
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>"),
        ("<|return|>", "<|endoftext|>", "<|call|>"),
        GROUPED | LAYERS | {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}

IM_PUBLIC = {"pad": "<pad>", "bos": "<s>", "eos": "<|im_end|>"}
WITHOUT_CLASSIFIER: dict[str, Family] = {
    "granite": Family(GraniteConfig, CHATML, IM_PUBLIC, IM, sizes=GROUPED | {"logits_scaling": 8.0}),
    "cohere": Family(CohereConfig, CHATML, IM_PUBLIC, IM, sizes=GROUPED | {"logit_scale": 0.0625}),
    "minicpm3": Family(
        MiniCPM3Config,
        CHATML,
        IM_PUBLIC,
        IM,
        sizes={
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "dim_model_base": 16,
        },
    ),
    "qwen3_next": Family(
        Qwen3NextConfig,
        CHATML,
        IM_PUBLIC,
        IM,
        sizes=GROUPED
        | {
            "head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "lfm2": Family(Lfm2Config, CHATML, IM_PUBLIC, IM, sizes=GROUPED | {"layer_types": ["conv", "full_attention"]}),
    "falcon_h1": Family(
        FalconH1Config,
        CHATML,
        IM_PUBLIC,
        IM,
        sizes=GROUPED
        | {
            "head_dim": 16,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "lm_head_multiplier": 0.5,
        },
    ),
}
"""Families without a reward model of their own, whose logits are scaled or whose layers are recurrent."""

COMMON = (
    "use_cpu=true",
    "dataset_name=demo",
    "prompt_format=chat",
    "load_in_8bit=false",
    "dtype=float32",
    "lora_dropout=0",
    "learning_rate=1e-2",
    "max_train_samples=24",
    "max_eval_samples=4",
    "logging_steps=1",
    "save_steps=0",
    "save_minutes=0",
)
SFT = (*COMMON, "warmup_steps=0", "max_steps=3", "max_length=96", "eval_steps=0")
REWARD = (*COMMON, "max_steps=3")
PPO = (
    *COMMON,
    "max_steps=2",
    "max_train_samples=8",
    "eval_steps=0",
    "random_length_limits=[4, 9]",
    "early_stopping=false",
    "per_device_train_batch_size=2",
    "gradient_accumulation_steps=2",
    "num_mini_batches=1",
    "num_ppo_epochs=1",
    "local_rollout_forward_batch_size=4",
    "num_sample_generations=0",
)


def make_model(family: Family, path: Path) -> Path:
    """Save a random model of a family with a tokenizer that knows the demo's words and the family's special tokens."""
    special = list(dict.fromkeys([*family.tokens.values(), *family.more, *family.ends]))
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rows = itertools.islice(demo_data.generate("finetune"), 100)
    tokenizer.train_from_iterator((f"{row['question']} {row['response_j']}" for row in rows), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=[token for token in special if token not in family.tokens.values()],
        **{f"{role}_token": token for role, token in family.tokens.items()},
    )
    fast.chat_template = family.template
    ids: dict[str, Any] = {f"{role}_token_id": fast.convert_tokens_to_ids(t) for role, t in family.tokens.items()}
    torch.manual_seed(0)
    config = family.config(**{"vocab_size": len(fast) + family.spare, **SIZES, **family.sizes, **ids})
    model = AutoModelForCausalLM.from_config(config)
    if family.ends:
        model.generation_config.eos_token_id = fast.convert_tokens_to_ids(list(family.ends))
    model.save_pretrained(path)
    fast.save_pretrained(path)
    return path


def merged(home: Home, adapter: Path) -> Path:
    run, facts = finish(home, adapter, Stage.MERGE, f"adapter_path={adapter}", "dtype=float32")
    assert facts["difference"] < 1e-3 * facts["difference_from_base"]
    return run.merged


def encoder_of(run: RunDir, model: Path) -> Encoder:
    from stackllama_engine.train.models import load_tokenizer

    return recorded_encoder(run.path, load_tokenizer(str(model)), str(model), None)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_stage_takes_a_family_in_chat_format(name: str, tmp_path: Path) -> None:
    family, home = FAMILIES[name], Home(tmp_path / "home")
    base = make_model(family, tmp_path / "base")

    sft, facts = finish(home, base, Stage.SFT, *SFT)
    assert facts["loss_last"] < facts["loss_first"]
    policy = merged(home, sft.adapter)
    reward, _ = finish(home, policy, Stage.REWARD, *REWARD)
    targets = json.loads((reward.adapter / "adapter_config.json").read_text())["target_modules"]
    assert targets and not any("score" in target for target in targets)
    reward_model = merged(home, reward.adapter)
    with attempt(home, policy, Stage.PPO, *PPO, f"reward_model_path={reward_model}") as ppo:
        assert ppo.train() is not None

    assert ppo.metrics("val/ratio_first")[1] == pytest.approx(1.0, abs=1e-4)
    assert ppo.metrics("sampling/logprob_difference")[1] == pytest.approx(0, abs=1e-3)
    assert "sampling from" not in ppo.health and "merged into" not in ppo.health
    encoder = encoder_of(ppo.run, policy)
    assert encoder.format.kind == "chat" and encoder.format.chat_template == family.template
    ends: Any = encoder.tokenizer.convert_tokens_to_ids([family.tokens["eos"], *family.ends])
    assert set(ends) <= set(encoder.stop_ids)


@pytest.mark.parametrize("name", WITHOUT_CLASSIFIER)
def test_ppo_takes_scaled_logits_and_recurrent_layers(name: str, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    base = make_model(WITHOUT_CLASSIFIER[name], tmp_path / "base")
    sft, facts = finish(home, base, Stage.SFT, *SFT, "packing=false")
    assert facts["loss_last"] < facts["loss_first"]
    with attempt(home, merged(home, sft.adapter), Stage.PPO, *PPO, f"reward_fn={REWARDS}:length") as ppo:
        assert ppo.train() is not None
    assert ppo.metrics("val/ratio_first")[1] == pytest.approx(1.0, abs=1e-4)
    assert ppo.metrics("sampling/logprob_difference")[1] == pytest.approx(0, abs=1e-3)
    assert "sampling from" not in ppo.health and "merged into" not in ppo.health


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "mistral", "gpt_oss", "qwen3_next", "lfm2", "falcon_h1"])
def test_a_prompt_read_once_per_group_samples_the_same(name: str, tmp_path: Path) -> None:
    """Copies of sliding windows, convolutions and recurrent states continue as what they were copied from."""
    model = make_model((FAMILIES | WITHOUT_CLASSIFIER)[name], tmp_path / "base")
    shared = SharedBase(ppo_recipe(model), torch.device("cpu"))
    prompts = [prompt for prompt in ([5, 6, 7, 9], [5, 8], [5, 9, 11, 12, 13, 14]) for _ in range(3)]
    noise = [draw_noise(0, 0, index, (12, 20)) for index in range(len(prompts))]
    expected = sample(shared, prompts, noise, stops=(2,), pad=0)
    found = sample(shared, prompts, noise, stops=(2,), pad=0, group_size=3)
    assert found == expected
    for mine, theirs in zip(found.logprobs, expected.logprobs, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
