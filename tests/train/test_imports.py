"""What a stage imports: nothing that it does not use."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stackllama_engine.contract.recipe import AnyRecipe
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train.unused import needs_bitsandbytes

_CODE = """
import importlib, sys
from pathlib import Path
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.train.unused import hide_unused
hide_unused(build_recipe("ppo", {{"model_name_or_path": {base!r}, "reward_funcs": "a:b", "load_in_8bit": False}}))
importlib.import_module("stackllama_engine.train.ppo")
importlib.import_module("stackllama_engine.train.merge")
importlib.import_module("stackllama_engine.train.chat.sides")
importlib.import_module("stackllama_engine.train.token_preview")
print(*sorted(name for name in {unused!r} if sys.modules.get(name)))
"""
_UNUSED = ("bitsandbytes", "datasets", "pandas", "torch._inductor.compile_fx", "trl", "transformers.trainer", "vllm")


def recipe_of(base: Path | str, **values: object) -> AnyRecipe:
    return build_recipe(Stage.SFT, {"model_name_or_path": str(base), "load_in_8bit": False} | values)


def test_ppo_merge_chat_and_preview_import_nothing_that_they_do_not_use(base: Path) -> None:
    code = _CODE.format(base=str(base), unused=_UNUSED)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("values", "needed"),
    [
        ({}, False),
        ({"load_in_8bit": True}, True),
        ({"load_in_4bit": True}, True),
        ({"optim": "adamw_8bit"}, True),
        ({"optim": "paged_adamw_32bit"}, True),
        ({"optim": "adafactor"}, False),
    ],
)
def test_bitsandbytes_is_hidden_where_nothing_needs_it(base: Path, values: dict[str, object], needed: bool) -> None:
    assert needs_bitsandbytes(recipe_of(base, **values)) is needed


def test_bitsandbytes_stays_where_weights_may_be_quantised_already(base: Path, tmp_path: Path) -> None:
    assert needs_bitsandbytes(recipe_of("someone/model-bnb-4bit"))
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    assert needs_bitsandbytes(recipe_of(tmp_path))
    assert needs_bitsandbytes(build_recipe(Stage.MERGE, {"adapter_path": str(base)}))


@pytest.mark.parametrize(("named", "needed"), [("someone/model-bnb-4bit", True), ("base", False)])
def test_the_base_that_a_reward_adapter_names_may_be_quantised(
    base: Path, tmp_path: Path, named: str, needed: bool
) -> None:
    named = str(base) if named == "base" else named
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": named}))
    values = {"model_name_or_path": str(base), "load_in_8bit": False, "reward_model_path": str(tmp_path)}
    assert needs_bitsandbytes(build_recipe(Stage.PPO, values)) is needed
