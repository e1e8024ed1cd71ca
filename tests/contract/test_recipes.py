"""Recipes: every kind of mistake is one error that names file, key, value and the fix; the rest round-trips."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackllama_engine.contract.errors import ExitCode, RecipeError
from stackllama_engine.contract.recipe import RECIPES, WIRED, PipelineRecipe, PPORecipe, SFTRecipe, TrainRecipe
from stackllama_engine.contract.recipe_io import build_recipe, dump_recipe, load_recipe
from stackllama_engine.contract.stages import PIPELINE_STAGES, TRAINING_STAGES, Split, Stage

NEEDED: dict[Stage, dict[str, Any]] = {
    Stage.SFT: {"model_name_or_path": "gpt2"},
    Stage.REWARD: {"model_name_or_path": "gpt2"},
    Stage.PREFERENCE: {"model_name_or_path": "gpt2"},
    Stage.PPO: {"model_name_or_path": "gpt2", "reward_model_path": "r"},
    Stage.MERGE: {"adapter_path": "a"},
    Stage.PIPELINE: {"model_name_or_path": "gpt2"},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def refusal(stage: Stage, file: Path | None = None, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(stage, file, overrides)
    assert caught.value.exit_code == ExitCode.USAGE == 2
    text = str(caught.value)
    assert "\n" not in text
    return text


def sft(file: Path | None = None, *overrides: str) -> SFTRecipe:
    recipe = load_recipe(Stage.SFT, file, overrides)
    assert isinstance(recipe, SFTRecipe)
    return recipe


# defaults, and the published numbers


def test_defaults_suit_a_lora_run() -> None:
    fine_tuning = sft(None, "model_name_or_path=gpt2")
    assert (fine_tuning.learning_rate, fine_tuning.max_steps, fine_tuning.num_train_epochs) == (2e-4, -1, 1)
    assert (fine_tuning.dataset_train_split, fine_tuning.dataset_test_split) == ("finetune", "evaluation")
    ppo = build_recipe(Stage.PPO, NEEDED[Stage.PPO])
    assert isinstance(ppo, PPORecipe)
    assert ppo.local_batch_size == 64
    assert (ppo.value_adapter, ppo.value_head_init, ppo.value_learning_rate) == (True, "auto", None)
    assert (ppo.eos_penalty, ppo.length_limits, ppo.longest_response) == (1.0, (128, 129), 128)
    own = build_recipe(Stage.PPO, {"model_name_or_path": "gpt2", "reward_funcs": ["mine:score"]})
    assert isinstance(own, PPORecipe) and own.eos_penalty == 0.0  # whatever the function thinks of an open end


PUBLISHED: dict[Stage, dict[str, object]] = {
    Stage.SFT: {
        "load_in_8bit": True,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 100,
        "weight_decay": 0.05,
        "per_device_train_batch_size": 4,
        "packing": True,
        "packing_strategy": "wrapped",
        "max_length": 1024,
        "max_steps": 5000,
    },
    Stage.REWARD: {
        "load_in_8bit": False,
        "dtype": "bfloat16",
        "lora_r": 8,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "linear",
        "weight_decay": 0.001,
        "per_device_train_batch_size": 4,
        "max_length": 512,
        "max_train_samples": 100_000,
        "num_train_epochs": 1,
        "max_eval_samples": 50_000,
    },
    Stage.PPO: {
        "load_in_8bit": True,
        "lora_r": 16,
        "lora_alpha": 32,
        "learning_rate": 1.4e-5,
        "local_batch_size": 8,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "max_prompt_length": 512,
        "length_limits": (32, 128),
        "max_train_samples": 100_000,
        "kl_coef": 0.2,
        "kl_estimator": "k1",
        "adap_kl_ctrl": True,
        "target": 6.0,
        "horizon": 10_000,
        "gamma": 1.0,
        "lam": 0.95,
        "cliprange": 0.2,
        "cliprange_value": 0.2,
        "vf_coef": 0.1,
        "num_ppo_epochs": 4,
        "whiten_advantages": True,
        "early_stopping": True,
        "target_kl": 0.1,
        "ratio_threshold": 10.0,
        "eos_penalty": 0.0,
    },
}
"""What the blog and its scripts say (https://huggingface.co/blog/stackllama)."""


@pytest.mark.parametrize("stage", PIPELINE_STAGES)
def test_the_example_has_the_published_values(stage: Stage) -> None:
    pipeline = load_recipe(Stage.PIPELINE, Path(__file__).parents[2] / "examples" / "stackllama-7b.yaml")
    assert isinstance(pipeline, PipelineRecipe)
    section = getattr(pipeline, stage) | dict.fromkeys(WIRED[stage], "wired")
    recipe = build_recipe(stage, section)
    assert {key: getattr(recipe, key) for key in PUBLISHED[stage]} == PUBLISHED[stage]


def test_every_stage_trains_on_its_own_split() -> None:
    splits: list[str] = []
    for stage in PIPELINE_STAGES:
        recipe = build_recipe(stage, NEEDED[stage])
        assert isinstance(recipe, TrainRecipe)
        splits.append(recipe.dataset_train_split)
    assert splits == [Split.FINETUNE, Split.REWARD, Split.RL]
    assert Split.EVALUATION not in splits


@pytest.mark.parametrize("stage", list(Stage))
def test_every_key_has_a_type_and_help(stage: Stage) -> None:
    if stage is Stage.PIPELINE:
        return
    properties = msgspec.json.schema(RECIPES[stage])["$defs"][RECIPES[stage].__name__]["properties"]
    assert [key for key, schema in properties.items() if not schema.get("description")] == []


@pytest.mark.parametrize("stage", TRAINING_STAGES)
def test_every_stage_saves_by_the_clock_unless_told_not_to(stage: Stage) -> None:
    """Also one whose recipe was written out before the key was: `save_steps` may be hours."""
    recipe = build_recipe(stage, NEEDED[stage])
    assert isinstance(recipe, TrainRecipe) and recipe.save_minutes == 15
    assert "save_minutes: 15.0\n" in dump_recipe(recipe)
    off = build_recipe(stage, NEEDED[stage] | {"save_minutes": 0, "save_steps": 0})
    assert isinstance(off, TrainRecipe) and off.save_minutes == 0


# precedence


def test_defaults_then_file_then_command_line(file: Path) -> None:
    file.write_text("model_name_or_path: gpt2\nlearning_rate: 2e-5\nlora_r: 4\n")
    assert (sft(file).learning_rate, sft(file).lora_r) == (2e-5, 4)
    recipe = sft(file, "lora_r=2", "lora_r=3", "num_processes=2")
    assert (recipe.learning_rate, recipe.lora_r, recipe.num_processes) == (2e-5, 3, 2)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("1E-5", 1e-5), ("1.0e-5", 1e-5), ("0.00001", 1e-5), ('"1e-5"', 1e-5), ("1", 1.0)],
)
def test_numbers_are_read_in_common_notations(file: Path, text: str, value: float) -> None:
    """YAML 1.1 reads 1e-5, without a point, as a string."""
    file.write_text(f"model_name_or_path: gpt2\nlearning_rate: {text}\n")
    assert sft(file).learning_rate == value
    assert sft(None, "model_name_or_path=gpt2", f"learning_rate={text}").learning_rate == value


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("packing=false", "packing", False),
        ("packing=no", "packing", False),
        ("model_revision=null", "model_revision", None),
        ("model_revision=", "model_revision", None),
        ("report_to=[wandb]", "report_to", ["wandb"]),
        ("lora_target_modules=[q_proj, v_proj]", "lora_target_modules", ["q_proj", "v_proj"]),
        ("lora_target_modules=all-linear", "lora_target_modules", "all-linear"),
        ("model_name_or_path=a=b", "model_name_or_path", "a=b"),
        ("dataset_name={odd: [", "dataset_name", "{odd: ["),
    ],
)
def test_command_line_values_are_yaml(override: str, key: str, value: object) -> None:
    assert getattr(sft(None, "model_name_or_path=gpt2", override), key) == value


def test_existing_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    assert sft(None, "model_name_or_path=./base").model_name_or_path == str(tmp_path / "base")
    assert sft(None, "model_name_or_path=org/base").model_name_or_path == "org/base"


# mistakes


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("learning_rte: 1e-5", ["`learning_rte=1e-5`", "Did you mean `learning_rate`?"]),
        ("zzzzzz: 1", ["has no key `zzzzzz`"]),
        ("lora_r: many", ["`lora_r=many`: expected a whole number"]),
        ("lora_r: 0", ["`lora_r=0`", "of at least 1"]),
        ("lora_r: 1.5", ["`lora_r=1.5`"]),
        ("lora_r: true", ["`lora_r=true`"]),
        ("lora_r: null", ["`lora_r=null`"]),
        ("learning_rate: 0", ["`learning_rate=0`", "greater than 0"]),
        ("learning_rate: 2", ["of at most 1"]),
        ("learning_rate: .nan", ["`learning_rate=.nan`"]),
        ("learning_rate: .inf", ["`learning_rate=.inf`"]),
        ("lora_dropout: 1", ["`lora_dropout=1`", "less than 1"]),
        ("save_minutes: -1", ["`save_minutes=-1`", "of at least 0"]),
        ("save_minutes: .inf", ["`save_minutes=.inf`"]),
        ("packing: maybe", ["`packing=maybe`"]),
        ("lr_scheduler_type: cosin", ["expected one of", "did you mean `cosine`?"]),
        ("report_to: [wandbb]", ["expected one of", "`wandb`"]),
        ("report_to: mlflow", ["`report_to=mlflow`", "expected one of"]),
        ("model_name_or_path: ''", ["`model_name_or_path=`"]),
        ("model_name_or_path: 7", ["`model_name_or_path=7`"]),
        ("model_name_or_path: {a: 1}", ["`model_name_or_path={a: 1}`"]),
        ("model_name_or_path: 2024-01-01", ["`model_name_or_path=2024-01-01`"]),
        ("adapter_path: x", ["sft recipe has no key `adapter_path`"]),
        ("trust_remote_code: true", ["trust_remote_code: true", "never executed"]),
        ("load_in_8bit: true\nload_in_4bit: true", ["`load_in_8bit` and `load_in_4bit` are both true"]),
        ("model_name_or_path: m.gguf\nbase_precision: int8", ["a .gguf model", "base_precision: bf16"]),
        ("optim: adafactor\nadam_beta2: 0.95", ["`optim: adafactor` has no `adam_beta1`"]),
        ("bf16: true\nfp16: true", ["`bf16` and `fp16` are both true"]),
        ("metric_for_best_model: eval_loss\nsave_steps: 0", ["`metric_for_best_model: eval_loss`", "`save_steps: 0`"]),
        ("keep_every_steps: 750", ["`keep_every_steps: 750` must be a multiple of `save_steps: 500`"]),
        ("use_peft: false\nbase_precision: nf4", ["`use_peft: false`", "base_precision: dtype"]),
        ("num_processes: 0", ["of at least 1"]),
        ("seed: -1", ["of at least 0"]),
        ("seed: 99999999999", ["expected a whole number of at most 4294967295"]),
        ("logging_steps: 0", ["expected a whole number of at least 1, or a share of all steps between 0 and 1"]),
        ("save_steps: -1", ["expected a whole number of at least 0, or a share of all steps between 0 and 1"]),
        ("attn_implementation: fast", ["expected one of eager, sdpa, flash_attention_2,", "kernels-community/NAME@"]),
        ("attn_implementation: kernels-community/flash-attn3@main", ["code from a hub; pin it by its commit"]),
        ("attn_implementation: someone/flash-attn@" + "0" * 40, ["expected one of eager"]),
    ],
)
def test_mistake_in_a_file_is_named(file: Path, text: str, named: list[str]) -> None:
    base = "" if text.startswith("model_name_or_path") else "model_name_or_path: gpt2\n"
    file.write_text(f"{base}{text}\n")
    message = refusal(Stage.SFT, file)
    assert message.startswith(f"{file}: ")
    assert all(part in message for part in named), message


@pytest.mark.parametrize(
    ("word", "expectation"),
    [
        ("missing_eos_penalty=abc", "expected `auto`, a number or null"),
        ("missing_eos_penalty=-1", "expected a number of at least 0"),
        ("random_length_limits=[1]", "expected a list such as [a, b] with exactly 2 entries"),
        ("random_length_limits=[1, 2, 3]", "expected a list such as [a, b] with exactly 2 entries"),
    ],
)
def test_expectation_names_every_kind_of_value_and_the_length(word: str, expectation: str) -> None:
    message = refusal(Stage.PPO, None, "model_name_or_path=gpt2", "reward_funcs=a:b", word)
    assert message == f"command line: `{word}`: {expectation}."


@pytest.mark.parametrize(
    "word", ["lora_r=yes", "lora_r=", "learning_rate=0x10", "warmup_steps=1_0.5x", "lora_r=[ 1,2 ]"]
)
def test_mistake_on_the_command_line_echoes_what_was_typed(word: str) -> None:
    assert refusal(Stage.SFT, None, "model_name_or_path=gpt2", word).startswith(f"command line: `{word}`: expected a")


def test_mistake_on_the_command_line_is_not_blamed_on_the_file(file: Path) -> None:
    file.write_text("model_name_or_path: gpt2\nlora_r: 4\n")
    assert refusal(Stage.SFT, file, "lora_r=no-number").startswith(
        "command line: `lora_r=no-number`: expected a whole number"
    )
    assert refusal(Stage.SFT, file, "lorar=3").endswith("Did you mean `lora_r`?")
    assert "is not of the form key=value" in refusal(Stage.SFT, file, "lora_r")
    assert "is not of the form key=value" in refusal(Stage.SFT, file, "=3")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"lora_r: 4\nlora_r: 5\n", "key `lora_r` is given twice"),
        (b"a: {b: 1, b: 2}\n", "key `b` is given twice"),
        (b"lora_r: [\n", "not valid YAML"),
        (b"- a\n- b\n", "a recipe is a mapping"),
        (b"just text\n", "a recipe is a mapping"),
        (b"1: 2\n", "a recipe is a mapping"),
        (b"? [a, b]\n: 1\n", "a key must be plain text"),
        (b"? {a: b}\n: 1\n", "a key must be plain text"),
        (b"lora_r: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        (b"a: 2024-99-99\n", "not valid YAML"),
        (b"model_name_or_path: x\na: &a [*a]\n", "an alias of a value that contains it"),
        (b"[" * 5000, "not valid YAML"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"a: \x00\n", "not valid YAML"),
        (b"", "`model_name_or_path` is required by the sft recipe"),
        (b"# only a comment\n", "`model_name_or_path=demo` tries the embedded model"),
    ],
)
def test_file_that_is_no_recipe_is_refused(file: Path, content: bytes, named: str) -> None:
    file.write_bytes(content)
    message = refusal(Stage.SFT, file)
    assert message.startswith(f"{file}: ") and named in message


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    assert "no such recipe file" in refusal(Stage.SFT, tmp_path / "none.yaml")
    assert "cannot be read" in refusal(Stage.SFT, tmp_path)


def test_ppo_refuses_keys_that_exclude_each_other() -> None:
    given = [f"{key}={value}" for key, value in NEEDED[Stage.PPO].items()]
    assert "must be below" in refusal(Stage.PPO, None, *given, "random_length_limits=[128, 128]")
    assert "PPO needs `use_peft: true`" in refusal(Stage.PPO, None, *given, "use_peft=false", "load_in_8bit=false")
    assert "needs `reward_model_path` or `reward_funcs`" in refusal(Stage.PPO, None, "model_name_or_path=gpt2")


# round trip


@pytest.mark.parametrize("stage", list(Stage))
def test_dump_reads_back_unchanged_with_every_default(stage: Stage, file: Path) -> None:
    recipe = build_recipe(stage, NEEDED[stage])
    file.write_text(dump_recipe(recipe))
    assert load_recipe(stage, file) == recipe
    if not isinstance(recipe, PipelineRecipe):
        assert all(f"\n{name}:" in file.read_text() for name in recipe.__struct_fields__)


@settings(max_examples=60)
@given(
    name=st.text(min_size=1).filter(lambda text: not text.startswith(("~", "/"))),
    rate=st.floats(min_value=1e-300, max_value=1, exclude_min=True),
    modules=st.one_of(st.none(), st.lists(st.text(), max_size=3)),
)
def test_any_text_and_number_round_trips(
    tmp_path_factory: pytest.TempPathFactory, name: str, rate: float, modules: list[str] | None
) -> None:
    values = {"model_name_or_path": "gpt2", "dataset_config": name, "learning_rate": rate}
    recipe = build_recipe(Stage.SFT, values | {"lora_target_modules": modules})
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(dump_recipe(recipe))
    assert load_recipe(Stage.SFT, file) == recipe


# pipeline


def pipeline(*overrides: str) -> PipelineRecipe:
    recipe = load_recipe(Stage.PIPELINE, None, overrides)
    assert isinstance(recipe, PipelineRecipe)
    return recipe


def test_shared_keys_go_to_every_stage_that_has_them_and_sections_override() -> None:
    recipe = pipeline("model_name_or_path=gpt2", "lora_r=4", "packing=false", "reward.lora_r=2", "merge.dtype=float32")
    assert (recipe.sft["lora_r"], recipe.reward["lora_r"], recipe.ppo["lora_r"]) == (4, 2, 4)
    assert recipe.sft["packing"] is False and "packing" not in recipe.ppo
    assert recipe.merge["dtype"] == "float32" and recipe.sft["dtype"] == "auto"
    assert recipe.sft["model_name_or_path"] == "gpt2"


def test_wired_keys_are_not_in_the_recipe_and_may_not_be_given() -> None:
    recipe = pipeline("model_name_or_path=gpt2")
    for stage in (*PIPELINE_STAGES, Stage.MERGE):
        keys = WIRED[stage]
        assert not set(keys) & set(getattr(recipe, stage))
        for key in keys:
            text = refusal(Stage.PIPELINE, None, "model_name_or_path=gpt2", f"{stage}.{key}=x")
            assert f"`{stage}.{key}` is wired from the stage before" in text


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("sft.lora_r=0", "`sft.lora_r=0`: expected a whole number of at least 1"),
        ("sft.lorar=1", "Did you mean `lora_r`?"),
        ("lorar=1", "the pipeline recipe has no key `lorar`. Did you mean `lora_r`?"),
        ("sft=7", "a section is a mapping"),
        ("lora_r.x=1", "`lora_r"),
        ("sft={load_in_8bit: true, load_in_4bit: true}", "are both true"),
        ("ppo.random_length_limits=[500, 128]", "must be below"),
    ],
)
def test_mistakes_in_a_pipeline_are_named(override: str, named: str) -> None:
    assert named in refusal(Stage.PIPELINE, None, "model_name_or_path=gpt2", override)


def test_pipeline_needs_a_base() -> None:
    assert "`model_name_or_path` is required by the sft recipe" in refusal(Stage.PIPELINE)


def test_section_of_a_plain_value_is_refused(file: Path) -> None:
    file.write_text("model_name_or_path: gpt2\nsft: 7\n")
    assert "`sft=7`: a section is a mapping" in refusal(Stage.PIPELINE, file)
    assert "`sft=7`: a section is a mapping" in refusal(Stage.PIPELINE, file, "sft.lora_r=1")
    assert "`sft` is a value, not a section" in refusal(Stage.PIPELINE, file, "sft=1", "sft.lora_r=1")


def test_a_response_without_end_is_penalised_or_replaced_not_both() -> None:
    inputs = ("model_name_or_path=gpt2", "reward_model_path=r")
    message = refusal(Stage.PPO, None, *inputs, "missing_eos_penalty=1", "missing_eos_reward=-1")
    assert "`missing_eos_penalty` and `missing_eos_reward` are both set" in message


VLLM = ("model_name_or_path=gpt2", "reward_model_path=r", "use_vllm=true", "load_in_8bit=false", "dtype=bfloat16")


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (["use_cpu=true"], "`use_cpu: true` is set"),
        (["load_in_8bit=true"], "a base in 8 bits"),
        (["load_in_4bit=true"], "a base in 4 bits"),
        (["model_name_or_path=base.gguf"], "a .gguf base"),
        (["dtype=float32"], "`dtype: bfloat16`"),
        (["lora_r=513"], "ranks up to 512"),
        (["temperature=0.001"], "samples at 0.01 or more"),
    ],
)
def test_vllm_refuses_what_it_cannot_sample_from(keys: list[str], named: str) -> None:
    assert load_recipe(Stage.PPO, None, VLLM).use_vllm  # type: ignore[union-attr]
    message = refusal(Stage.PPO, None, *VLLM, *keys)
    assert "`use_vllm: true`" in message and named in message
    load_recipe(Stage.PPO, None, [*VLLM, *keys, "use_vllm=false"])


@pytest.mark.parametrize("value", ["0", "1"])
def test_vllm_takes_neither_nothing_nor_everything(value: str) -> None:
    assert "`vllm_gpu_memory_utilization" in refusal(Stage.PPO, None, *VLLM, f"vllm_gpu_memory_utilization={value}")


@pytest.mark.parametrize(
    "key",
    [
        "max_grad_norm",
        "lr_scheduler_type",
        "num_ppo_epochs",
        "random_length_limits",
        "response_length",
        "learning_rate",
        "temperature",
        "missing_eos_penalty",
        "missing_eos_reward",
        "normalize_reward",
        "cliprange_reward",
        "reward_baseline",
        "kl_coef",
        "kl_estimator",
        "adap_kl_ctrl",
        "target",
        "horizon",
        "gamma",
        "lam",
        "whiten_rewards",
        "whiten_advantages",
        "cliprange",
        "cliprange_value",
        "vf_coef",
        "ent_coef",
        "early_stopping",
        "target_kl",
        "ratio_threshold",
        "value_head_init",
    ],
)
def test_ppo_keys_name_their_source(key: str) -> None:
    fields = {field.name: field.type for field in msgspec.inspect.type_info(PPORecipe).fields}  # type: ignore[attr-defined]
    help_text = (fields[key].extra_json_schema or {}).get("description", "")
    assert re.search(r"arXiv:\d{4}\.\d{4,5}|https?://", help_text), help_text


def test_columns_are_named_one_by_one_or_together(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("model_name_or_path: demo\ndataset_columns:\n  prompt: title\n  completion: text\n")
    assert sft(file).dataset_columns == {"prompt": "title", "completion": "text"}
    assert sft(file, "dataset_columns.prompt=body").dataset_columns == {"prompt": "body", "completion": "text"}
    assert sft(file, "dataset_columns={messages: turns}").dataset_columns == {"messages": "turns"}
    both = sft(None, "model_name_or_path=demo", "dataset_columns.prompt=body", "dataset_columns.chosen=good")
    assert both.dataset_columns == {"prompt": "body", "chosen": "good"}
    shared = pipeline("model_name_or_path=demo", "dataset_columns.prompt=body", "sft.dataset_columns.prompt=title")
    assert [shared.sft["dataset_columns"], shared.ppo["dataset_columns"]] == [{"prompt": "title"}, {"prompt": "body"}]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset_columns.question=body", "`question` is none of prompt, chosen, rejected, completion, messages"),
        ("dataset_columns={messages: m, prompt: p}", "`messages` is a whole conversation, prompt and response"),
        ("dataset_columns={prompt: a, chosen: a}", "`prompt` and `chosen` are both the column a"),
        ("dataset_columns={chosen: a, completion: b}", "`chosen` and `completion` both name the response"),
        ("dataset_columns=title", "`dataset_columns=title`: expected a mapping"),
        ("dataset_columns.prompt=3", "expected text"),
    ],
)
def test_wrong_column_names_are_refused(override: str, message: str) -> None:
    assert message in refusal(Stage.SFT, None, "model_name_or_path=demo", override)
