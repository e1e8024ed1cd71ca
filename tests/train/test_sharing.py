"""Adapters that change their base are told from those that can share it: peft#2184, #493, #741."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from stackllama_engine.contract.errors import StageError
from stackllama_engine.contract.prompt_format import PromptFormat
from stackllama_engine.train import models
from stackllama_engine.train.encoding import Encoder
from stackllama_engine.train.ppo.response_text import ResponseText
from stackllama_engine.train.ppo.scorers import SeparateScorer, load_scorer
from stackllama_engine.train.ppo.shared_base import SharedBase
from stackllama_engine.train.sharing import own_base

from .toy import ppo_recipe, text_ids

CPU = torch.device("cpu")
PLAIN = {"peft_type": "LORA", "init_lora_weights": True, "bias": "none", "modules_to_save": ["score"]}
RESPONSE_TEXTS = [ResponseText("How?", "so", True), ResponseText("Why is it so?", "because of that", False)]


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, None),
        ({"modules_to_save": ["classifier", "score"], "use_dora": True, "init_lora_weights": "gaussian"}, None),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "init_lora_weights: olora"),
        ({"bias": "lora_only"}, "bias: lora_only"),
        ({"modules_to_save": ["score", "embed_tokens"]}, "modules_to_save: ['embed_tokens']"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices: [5]"),
        ({"peft_type": "IA3"}, "peft_type: IA3"),
    ],
)
def test_what_an_adapter_changes_besides_low_rank_matrices(tmp_path: Path, changed: Any, found: str | None) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(PLAIN | changed))
    assert own_base(tmp_path) == found


@pytest.mark.parametrize("changed", [{"init_lora_weights": "pissa"}, {"modules_to_save": ["score", "embed_tokens"]}])
def test_a_reward_adapter_that_changes_its_base_leaves_the_policys_alone_and_scores_as_trained(
    base: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = models.load_plain(str(base), None, "float32", CPU, reward=True, new_head=True)
    tokenizer = models.load_tokenizer(str(base))
    model.config.pad_token_id = models.pad_id(tokenizer)
    config = {"target_modules": ["q_proj"], "modules_to_save": ["score"], "r": 4} | changed
    trained = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", **config)).eval()
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    trained.save_pretrained(str(tmp_path))
    tokenizer.save_pretrained(str(tmp_path))
    recipe = ppo_recipe(base, f"reward_model_path={tmp_path}", "dtype=float32")
    shared = SharedBase(recipe, CPU)
    said: list[str] = []
    reporter: Any = type("Reporter", (), {"health": staticmethod(said.append)})
    encoder = Encoder(tokenizer, PromptFormat())
    scorer = load_scorer(recipe, shared, encoder, reporter)
    assert isinstance(scorer, SeparateScorer) and "changes the base that it would share" in said[0]
    with torch.no_grad():
        rows = [trained(torch.tensor([text_ids(encoder, answer)])).logits[0, 0] for answer in RESPONSE_TEXTS]
    torch.testing.assert_close(scorer(RESPONSE_TEXTS, 8), torch.stack(rows), atol=1e-4, rtol=1e-3)
    plain: Any = models.load_plain(str(base), None, "float32", CPU).get_decoder()
    layer: Any = shared.trunk.get_submodule("layers.0.self_attn.q_proj.base_layer")
    assert torch.equal(layer.weight, plain.layers[0].self_attn.q_proj.weight)


def test_a_policy_cannot_continue_such_an_adapter(base: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(PLAIN | {"init_lora_weights": "pissa"}))
    with pytest.raises(StageError, match=r"policy_adapter_path=.*`init_lora_weights: pissa` changes more"):
        SharedBase(ppo_recipe(base, f"policy_adapter_path={tmp_path}"), CPU)
