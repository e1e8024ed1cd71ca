"""Preflight: a stage's refusals are reported at launch, for every stage of a pipeline, from model files alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.weights import write_weights

from stackllama_engine.contract.base import DEMO_BASE
from stackllama_engine.contract.errors import DataError, RecipeError, RefusedError, StackllamaError
from stackllama_engine.contract.recipe_io import build_recipe, load_recipe
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.data.kinds import kind_of
from stackllama_engine.launch import installed_types, launcher
from stackllama_engine.launch.module_names import module_names
from stackllama_engine.launch.preflight import find_problems, preflight
from stackllama_engine.launch.unused_keys import unused_notices

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 600,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
PLAIN = {"load_in_8bit": False}
REWARD_FN = {"reward_model_path": "org/judge"}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 600}


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., str]:
    """Make a model directory of a configuration, and of files beside it."""

    def write(config: dict[str, Any], **files: Any) -> str:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        return str(folder)

    return write


def llama(**more: Any) -> dict[str, Any]:
    return {"model_type": "llama", **SIZES, **more}


def said(stage: Stage, path: str, **keys: Any) -> dict[str, str]:
    values = {"model_name_or_path": path, **PLAIN, **(REWARD_FN if stage is Stage.PPO else {}), **keys}
    return {one.check.name: one.text for one in find_problems(build_recipe(stage, values))}


def test_nothing_is_wrong_with_the_defaults_on_the_demo() -> None:
    for stage in (Stage.SFT, Stage.REWARD, Stage.PPO):
        assert said(stage, str(DEMO_BASE)) == {}


def test_of_a_hub_model_that_is_not_here_nothing_is_said() -> None:
    assert said(Stage.REWARD, "ibm-granite/granite-3.1-2b-base", lora_target_modules=["nonsense"]) == {}


def test_a_critic_in_more_layers_than_there_are_is_refused(model: Callable[..., str]) -> None:
    path = model(llama())
    text = said(Stage.PPO, path, value_adapter_layers=3)["critic-layers"]
    assert text == f"`value_adapter_layers: 3`: {path} has 2 layers; use fewer, or leave it empty."
    assert [said(Stage.PPO, path, value_adapter_layers=layers) for layers in (2, 0.5, None)] == [{}] * 3
    assert said(Stage.PPO, path, value_adapter_layers=3, advantage="rloo", num_generations=2) == {}


@pytest.mark.parametrize(
    ("targets", "wrong"),
    [
        (["q_proj", "q_prj"], "`lora_target_modules=q_prj`: model has no such module"),
        ("q_(p|k)roj", "a text is a pattern that matches the full name of no module"),
        ("(", "is not a valid pattern"),
        (["input_layernorm"], "has no such module"),
    ],
)
def test_targets_that_the_model_does_not_have_are_named_with_those_that_it_has(
    model: Callable[..., str], targets: Any, wrong: str
) -> None:
    text = said(Stage.SFT, model(llama()), lora_target_modules=targets)["targets"]
    assert wrong in text
    assert "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" in text


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj"],
        ["self_attn.q_proj", "model.layers.1.mlp.down_proj"],
        "all-linear",
        r".*\.(q|v)_proj",
        r"model\.layers\.1\..*",
        ["embed_tokens"],
    ],
)
def test_targets_that_peft_takes_are_taken(model: Callable[..., str], targets: Any) -> None:
    assert said(Stage.SFT, model(llama()), lora_target_modules=targets) == {}
    assert said(Stage.SFT, model(llama(kv_lora_rank=2)), lora_target_modules=["kv_a_proj"]) == {}, "not a known one"


def test_a_type_without_a_default_says_which_targets_it_has(model: Callable[..., str]) -> None:
    path = model({"model_type": "phi3", **SIZES})
    assert said(Stage.SFT, path) == {}
    text = said(Stage.SFT, path, lora_target_modules=None)["targets"]
    assert "PEFT has no default for `phi3`" in text and "qkv_proj, o_proj, gate_up_proj, down_proj" in text
    assert said(Stage.SFT, path, lora_target_modules=["qkv_proj"]) == {}
    assert said(Stage.SFT, path, use_peft=False) == {}
    assert "all-linear" in said(Stage.PPO, model({"model_type": "olmo2", **SIZES}), lora_target_modules=None)["targets"]
    mixtral = {"model_type": "mixtral", **SIZES, "num_local_experts": 4}
    text = said(Stage.SFT, model(mixtral), lora_target_modules=None)["targets"]
    assert "some of q_proj, k_proj, v_proj, o_proj, or all-linear" in text


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.PPO])
@pytest.mark.parametrize("config", [llama(tie_word_embeddings=True), GPT2], ids=["llama", "gpt2"])
def test_an_adapter_on_a_matrix_that_is_embedding_and_head_is_refused(
    model: Callable[..., str], stage: Stage, config: dict[str, Any]
) -> None:
    short = {"max_length": 64} if stage is Stage.SFT else {"max_prompt_length": 64, "output_max_length": 33}
    embedding = "wte" if config is GPT2 else "embed_tokens"
    inside = "c_attn" if config is GPT2 else "q_proj"
    for targets in ([inside, embedding], [inside, "lm_head"]):
        found = said(stage, model(config), lora_target_modules=targets, **short)
        assert list(found) == ["tied-targets"] and f"`{targets[1]}`" in found["tied-targets"]
    assert said(stage, model(config), lora_target_modules=[inside], **short) == {}


def test_an_untied_head_is_refused_by_sft_alone(model: Callable[..., str]) -> None:
    path = model(llama())
    assert "would not train" in said(Stage.SFT, path, lora_target_modules=["q_proj", "lm_head"])["tied-targets"]
    assert said(Stage.PPO, path, lora_target_modules=["q_proj", "lm_head"]) == {}
    assert "no such module" in said(Stage.REWARD, path, lora_target_modules=["q_proj", "lm_head"])["targets"]


def test_a_base_that_cannot_become_a_reward_model_is_refused(model: Callable[..., str]) -> None:
    for model_type in ("granite", "cohere", "falcon_h1", "lfm2"):
        path = model({"model_type": model_type, **SIZES})
        assert (
            "no sequence-classification class"
            in said(Stage.REWARD, path, lora_target_modules="all-linear")["classifier"]
        )
        assert "classifier" not in said(Stage.SFT, path, lora_target_modules="all-linear")
    assert said(Stage.REWARD, model(llama())) == {}


@pytest.mark.parametrize("model_type", ["gemma2", "granite"])
def test_ppo_takes_heads_that_rescale(model: Callable[..., str], model_type: str) -> None:
    scales = {"final_logit_softcapping": 30.0, "logits_scaling": 8}
    assert said(Stage.PPO, model({"model_type": model_type, **SIZES, **scales})) == {}


def test_lengths_beyond_the_positions_that_a_model_has_learned(model: Callable[..., str]) -> None:
    path = model(GPT2)
    assert "`max_length=129`" in said(Stage.SFT, path, max_length=129)["length"]
    assert "at most 128" in said(Stage.REWARD, path, max_length=129)["length"]
    assert said(Stage.SFT, path, max_length=128) == {} == said(Stage.REWARD, path, max_length=128)
    assert (
        "up to 129 tokens"
        in said(Stage.PPO, path, max_prompt_length=100, output_min_length=8, output_max_length=31)["length"]
    )
    assert said(Stage.PPO, path, max_prompt_length=100, output_min_length=8, output_max_length=30) == {}
    assert said(Stage.SFT, model(llama(max_position_embeddings=64)), max_length=2048) == {}, (
        "rotary ones take longer texts"
    )


TOKENIZER = {"model": {"type": "BPE", "vocab": {"a": 0, "</s>": 599}, "merges": []}}
ADDED = TOKENIZER | {"added_tokens": [{"id": 600, "content": "[PAD]"}]}


@pytest.mark.parametrize(
    ("tokenizer", "config", "wrong"),
    [
        (ADDED, {"eos_token": "</s>", "pad_token": "[PAD]"}, "pad token '[PAD]' has the id 600"),
        (ADDED, {"eos_token": {"content": "[PAD]"}}, "end token '[PAD]' has the id 600"),
        (ADDED, {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "[PAD]"}, "pad token '[PAD]'"),
        (ADDED, {"eos_token": "</s>", "unk_token": "a", "pad_token": None}, None),
        (TOKENIZER, {"eos_token": "</s>", "pad_token": "[PAD]"}, None),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, {"eos_token": "</s>"}, None),
        ([], {"eos_token": "</s>"}, None),
    ],
)
def test_a_special_token_that_the_model_has_no_row_for(
    model: Callable[..., str], tokenizer: Any, config: Any, wrong: str | None
) -> None:
    found = said(Stage.REWARD, model(llama(), tokenizer=tokenizer, tokenizer_config=config))
    assert (wrong in found["token-ids"]) if wrong else found == {}


@pytest.mark.parametrize("key", ["num_local_experts", "num_experts", "n_routed_experts"])
@pytest.mark.parametrize("bits", [8, 4])
def test_experts_are_not_quantised(model: Callable[..., str], key: str, bits: int) -> None:
    path = model({"model_type": "newest", **SIZES, key: 8})
    keys = {"load_in_8bit": bits == 8, "load_in_4bit": bits == 4, "lora_target_modules": ["q_proj"]}
    text = said(Stage.SFT, path, **keys)["experts"]
    assert f"`base_precision: {'int8' if bits == 8 else 'nf4'}`" in text and "set `base_precision: bf16`" in text
    assert "experts" not in said(Stage.SFT, path, lora_target_modules=["q_proj"])


def test_a_truncated_or_missing_weight_file_is_named(model: Callable[..., str]) -> None:
    path = model(llama())
    (Path(path) / "model.safetensors").write_bytes(b"\xff\x00\x00")
    assert "model.safetensors: truncated" in said(Stage.SFT, path)["weights"]
    (Path(path) / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (Path(path) / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00001.safetensors: a weight file that" in said(Stage.SFT, path)["weights"]


def test_a_pipeline_says_what_every_stage_would_refuse_before_the_first_begins(
    model: Callable[..., str], tmp_path: Path
) -> None:
    path = model({"model_type": "granite", **SIZES, "logits_scaling": 8})
    write_weights(Path(path))
    words = [f"model_name_or_path={path}", "sft.load_in_8bit=false", "lora_target_modules=[q_prj]"]
    recipe = load_recipe(Stage.PIPELINE, None, [*words, "dataset_name=demo"])
    with pytest.raises(RefusedError) as caught:
        launcher.plan(Home(tmp_path / "home"), recipe)
    text = str(caught.value)
    assert "reward: `granite`: transformers has no sequence-classification class" in text
    assert "sft, reward, ppo: `lora_target_modules=q_prj`" in text
    assert not (tmp_path / "home").exists()


def test_what_a_change_of_the_recipe_mends_is_a_recipe_error(model: Callable[..., str], tmp_path: Path) -> None:
    path = model(llama())
    write_weights(Path(path))
    recipe = load_recipe(
        Stage.SFT, None, [f"model_name_or_path={path}", "lora_target_modules=[x]", "dataset_name=demo"]
    )
    with pytest.raises(RecipeError, match="`lora_target_modules=x`"):
        launcher.launch(launcher.plan(Home(tmp_path / "home"), recipe))
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("config", ["", "[]", '{"model_type": 3}', '{"model_type": "llama", "num_experts": "8"}'])
def test_a_configuration_that_says_nothing_is_left_to_the_stage(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    assert said(Stage.PPO, str(tmp_path), load_in_8bit=True) == {}


@pytest.mark.parametrize("name", ["ok.txt", "ok.jsonl.xz", "Posts.xml"])
def test_a_data_file_of_another_kind_is_refused_at_launch(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("question,response_j\n")
    with pytest.raises(DataError, match=r"expected a \.jsonl, \.json, \.csv, \.tsv, \.parquet or \.arrow file"):
        kind_of(str(tmp_path / name))
    recipe = load_recipe(Stage.SFT, None, ["model_name_or_path=demo", f"dataset_name={tmp_path / name}"])
    with pytest.raises(StackllamaError, match=r"expected a \.jsonl"):
        launcher.plan(Home(tmp_path / "home"), recipe)


def test_tables_are_found_in_the_installed_packages() -> None:
    assert (installed_types.can_classify("llama"), installed_types.can_classify("granite")) == (True, False)
    assert installed_types.can_classify("no-such-type") is None
    assert (installed_types.has_default_targets("gpt2"), installed_types.has_default_targets("phi3")) == (True, False)


@pytest.mark.long
def test_tables_say_what_transformers_and_peft_say() -> None:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TARGETS
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    for model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        real = CONFIG_MAPPING[model_type] in auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        assert installed_types.can_classify(model_type) is real, model_type
        assert installed_types.has_default_targets(model_type) is (model_type in TARGETS), model_type


@pytest.mark.long
def test_module_names_are_those_of_transformers() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.pytorch_utils import Conv1D

    from stackllama_engine.budget.known import TYPES
    from stackllama_engine.budget.shapes import architecture_of

    for model_type in sorted(TYPES):
        make: Any = CONFIG_MAPPING[model_type]
        config = make(num_hidden_layers=2)
        arch = architecture_of(json.loads(config.to_json_string(use_diff=False)), "m", "c", frozenset())
        for stage, auto in ((Stage.SFT, AutoModelForCausalLM), (Stage.REWARD, AutoModelForSequenceClassification)):
            if stage is Stage.REWARD and not installed_types.can_classify(model_type):
                continue
            with torch.device("meta"):
                model = auto.from_config(config)
            adaptable = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
            real = {name for name, module in model.named_modules() if isinstance(module, adaptable)}
            claimed = set(module_names(arch, stage))
            assert real <= claimed and (arch.expert or real == claimed), (model_type, stage, real ^ claimed)


def test_the_console_is_told_while_the_form_is_filled(model: Callable[..., str], tmp_path: Path) -> None:
    from stackllama_console.readers.input_check import find_unusable

    path = model(llama())
    write_weights(Path(path))
    recipe = load_recipe(
        Stage.SFT, None, [f"model_name_or_path={path}", "lora_target_modules=[x]", "dataset_name=demo"]
    )
    found = find_unusable(Home(tmp_path / "home"), {}, recipe)
    assert "`lora_target_modules=x`" in found[""]


def test_one_message_for_a_single_stage(model: Callable[..., str]) -> None:
    recipe = build_recipe(
        Stage.SFT, {"model_name_or_path": model(GPT2), "lora_target_modules": ["x"], "max_length": 129, **PLAIN}
    )
    with pytest.raises(RecipeError, match=r"no such module.* `max_length=129`"):
        preflight(recipe)


def test_keys_that_nothing_reads_are_named_with_the_setting() -> None:
    keys: dict[str, Any] = {"model_name_or_path": str(DEMO_BASE), **PLAIN, **REWARD_FN}
    assert unused_notices(build_recipe(Stage.PPO, keys)) == []
    chosen = build_recipe(Stage.PPO, keys | {"advantage": "rloo", "lam": 0.9, "vf_coef": 0.5, "num_generations": 8})
    assert unused_notices(chosen) == ["`lam`, `vf_coef` have no effect with `advantage: rloo`"]
    whole = load_recipe(Stage.PIPELINE, None, ["model_name_or_path=demo", "ppo.scale_rewards=true"])
    assert unused_notices(whole) == ["`scale_rewards` has no effect with `advantage: gae`"]
