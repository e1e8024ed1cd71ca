"""Rewards of a chat's answers, by the reward model of the run's pipeline.

An adapter that was trained on the chat's base is one more adapter on it, with its head; any other reward model is a
second model in memory, and is not loaded while the run trains.

Shapes: ``T`` tokens of prompt and answer, ``H`` hidden width.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel

from ...contract.base import base_identity, read_identity, same_base
from ...contract.chat_reward import RewardModel, find_reward_model, has_reward_functions
from ...contract.errors import StackllamaError
from ...contract.recipe import PPORecipe
from ...contract.recipe_io import build_recipe
from ...contract.run_dir import RunDir
from ...contract.stages import Stage
from .. import models
from ..faults import memory_that_ran_out
from ..loading import one_line
from ..ppo.response_text import ResponseText
from ..ppo.scorers import SeparateScorer, last_token
from ..ppo.shared_base import POLICY, REWARD, score_weight
from ..sharing import own_base
from .sides import Sides

Score = Callable[[ResponseText], float]


def load_rewards(run: RunDir, sides: Sides) -> tuple[Score | None, str | None]:
    """Load the reward model of a run's pipeline.

    Returns:
        what scores an answer, None where there is no reward model or it cannot be used; and a notice that says why.
    """
    try:
        model = find_reward_model(run)
        if model is None:
            return None, "no reward model: functions score this run" if has_reward_functions(run) else None
        path = Path(model.path)
        if _shares_base(path, sides):
            return _shared(path, sides), None
        if not run.read_state().has_ended:
            return None, "no rewards while it trains: the reward model would be a second one in memory"
        return _separate(model, sides), None
    except (StackllamaError, OSError, RuntimeError, ValueError) as error:
        if memory_that_ran_out(error) and sides.device.type == "cuda":
            torch.cuda.empty_cache()
        return None, f"no rewards: {one_line(error)}"


def _shares_base(path: Path, sides: Sides) -> bool:
    if not isinstance(sides.tuned, PeftModel) or not (path / "adapter_config.json").is_file():
        return False
    return same_base(read_identity(path), base_identity(sides.name, None)) and own_base(path) is None


def _shared(path: Path, sides: Sides) -> Score:
    """Add the reward adapter to the chat's model, which stays as it was while another side answers."""
    model: Any = sides.tuned
    weight = score_weight(path).to(sides.device, torch.float32)  # [1, H]
    config: Any = LoraConfig.from_pretrained(str(path))
    config.modules_to_save, config.task_type, config.lora_dropout = None, "CAUSAL_LM", 0.0
    model.add_adapter(REWARD, config)
    state = models.adapter_weights(path, sides.device)
    models.set_adapter_state(model, {key: value for key, value in state.items() if "lora_" in key}, REWARD)
    model.set_adapter(POLICY)
    model.eval()

    @torch.no_grad()
    def score(answer: ResponseText) -> float:
        ids = sides.encoder.text_ids(answer.question, answer.text, answer.messages, ended=answer.ended)
        tokens = torch.tensor([ids], device=sides.device)  # [1, T]
        with sides.use("tuned"):
            model.set_adapter(REWARD)
            try:
                hidden = model.get_base_model().get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
            finally:
                model.set_adapter(POLICY)
        last = last_token(tokens, models.pad_id(sides.encoder.tokenizer))  # [1]
        return float(hidden[0, last].float() @ weight[0])

    return score


def _separate(model: RewardModel, sides: Sides) -> Score:
    """Load a reward model beside the chat's own, as PPO does."""
    values = {"model_name_or_path": sides.name, "dataset_name": "demo", "reward_model_path": model.path}
    recipe = build_recipe(Stage.PPO, values | {"reward_model_label": model.label})
    assert isinstance(recipe, PPORecipe)
    scorer = SeparateScorer(recipe, sides.device, sides.encoder.format)
    return lambda answer: float(scorer([answer], 1)[0])
