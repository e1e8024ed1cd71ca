"""The two models of a chat: what a run trained, and its base.

After LoRA both are one model in memory, its adapter on or off. After full training and after a merge they are two
models. What a run wrote is read from safetensors alone, and so is the base wherever it is not a .gguf file.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file

from ...contract.base import find_base, read_identity
from ...contract.chat_messages import Side
from ...contract.chat_target import Target
from ...contract.errors import StageError
from ...contract.recipe import MergeRecipe, PPORecipe, PreferenceRecipe, SFTRecipe, TrainRecipe
from ...contract.recipe_io import load_recipe
from ...contract.run_dir import RunDir
from ...contract.stages import Stage
from ...contract.threads import threads_per_process
from .. import checkpoint, limits, models
from ..encoding import Encoder
from ..ppo.state import POLICY_FILE
from ..prompt_formats import recorded_encoder
from .steps import GraphChoice

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Sides:
    """Models by side.

    Args:
        encoder: of both.
        tuned: with an adapter, or whole.
        base: None where ``tuned`` without its adapter is the base, or where there is none.
        name: the base's, or where the weights came from.
        bf16: whether the stage computed in bfloat16 autocast.
        note: why a side is missing.
    """

    def __init__(
        self,
        encoder: Encoder,
        tuned: Any,
        base: "PreTrainedModel | None" = None,
        *,
        name: str,
        bf16: bool = False,
        note: str | None = None,
    ) -> None:
        self.encoder = encoder
        self.name = name
        self.note = note
        self.device: torch.device = tuned.device
        self.graphs = GraphChoice(self.device)
        """Whether answers are decoded by CUDA graphs."""
        self.tuned = tuned.eval()
        self._base = base.eval() if base is not None else None
        self._bf16 = bf16

    @property
    def names(self) -> list[Side]:
        """The sides that exist."""
        return ["base", "tuned"] if self._base is not None or isinstance(self.tuned, PeftModel) else ["tuned"]

    @contextmanager
    def use(self, side: Side) -> Iterator[Any]:
        """Yield a side's model, for as long as the context lasts.

        Raises:
            StageError: there is no such side.
        """
        if side not in self.names:
            raise StageError(f"there is no {side} model here: {self.note}")
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else nullcontext()
        with autocast:
            if side == "tuned":
                yield self.tuned
            elif self._base is not None:
                yield self._base
            else:
                with self.tuned.disable_adapter():
                    yield self.tuned


def load_sides(run: RunDir, target: Target, *, cpu: bool) -> Sides:
    """Load both sides of a chat.

    Args:
        run: the run.
        target: which weights of it.
        cpu: stay on the CPU even where there is a GPU; a recipe that trained there stays there anyway.

    Raises:
        StackllamaError: the recipe, the weights or the base cannot be used.
    """
    if target.checkpoint and (reason := checkpoint.problem(target.path)):
        raise StageError(f"checkpoint {target.checkpoint} {reason}; name another one.")
    recipe: Any = load_recipe(target.stage, run.recipe_file)
    trained_on_cpu = target.stage is not Stage.MERGE and recipe.use_cpu  # a merge needs no GPU, a chat does
    device = torch.device("cpu" if cpu or trained_on_cpu or not torch.cuda.is_available() else "cuda")
    weights = target.path if isinstance(recipe, MergeRecipe) else recipe.model_name_or_path
    torch.set_num_threads(threads_per_process(weights, on_cpu=device.type == "cpu"))
    sides = _sides(run, recipe, target, device)
    limits.check_tokens(sides.tuned, sides.encoder.tokenizer, sides.name)
    return sides


def _sides(run: RunDir, recipe: Any, target: Target, device: torch.device) -> Sides:
    if isinstance(recipe, TrainRecipe):  # a chat may run without the GPU of the training
        recipe = msgspec.structs.replace(recipe, gradient_checkpointing=False, use_liger_kernel=False)
    match recipe:
        case MergeRecipe():
            return _merged(recipe, target.path, device)
        case SFTRecipe(use_peft=False):
            tuned, encoder = _whole(target.path, device)
            base = models.load_causal_lm(recipe, device)
            return Sides(encoder, tuned, base, name=recipe.model_name_or_path, bf16=recipe.bf16)
        case SFTRecipe() | PreferenceRecipe() | PPORecipe():
            return _adapted(run, recipe, target.path, device)
        case _:
            raise StageError(f"{run.id} is a {target.stage} run, which writes no text.")


def _adapted(run: RunDir, recipe: SFTRecipe | PreferenceRecipe | PPORecipe, path: Path, device: torch.device) -> Sides:
    """Load one model with its adapter, which the base side switches off."""
    name, revision = recipe.model_name_or_path, recipe.model_revision
    if (path / models.BASE_FILE).is_file() and not models.same_base(
        read_identity(path), models.base_identity(name, revision)
    ):
        why = "its weights have changed" if Path(name).exists() else "it no longer exists"
        raise StageError(f"{name} is no longer the base that {path} was trained on: {why}.")
    tokenizer = models.load_tokenizer(name, revision)
    base = models.load_causal_lm(recipe, device)
    tuned = models.add_lora(base, recipe, "CAUSAL_LM", _adapter_config(recipe, path))
    policy = path / POLICY_FILE
    state = load_file(policy, device=str(device)) if policy.is_file() else models.adapter_weights(path, device)
    models.set_adapter_state(tuned, state, "default")
    return Sides(recorded_encoder(run.path, tokenizer, name, revision), tuned, name=name, bf16=recipe.bf16)


def _adapter_config(recipe: SFTRecipe | PreferenceRecipe | PPORecipe, path: Path) -> LoraConfig | None:
    """Return the adapter's configuration: the one beside the weights or the continued adapter's; None: the recipe's."""
    continued = recipe.policy_adapter_path if isinstance(recipe, PPORecipe) else None
    for place in (path, Path(continued) if continued else None):
        if place is not None and (place / "adapter_config.json").is_file():
            config: Any = LoraConfig.from_pretrained(str(place))
            return config
    return None


def _merged(recipe: MergeRecipe, path: Path, device: torch.device) -> Sides:
    """Load the merged model, and the base where the adapter still names it."""
    tuned, encoder = _whole(path, device)
    adapter = Path(recipe.adapter_path)
    if not (adapter / "adapter_config.json").is_file():
        return Sides(encoder, tuned, name=str(path), note=f"{adapter} holds no adapter that would name a base.")
    try:
        source = find_base(adapter, recipe.base_model_name_or_path)
    except StageError as error:
        return Sides(encoder, tuned, name=str(path), note=str(error))
    base = models.load_plain(source.name, source.revision, "auto", device)
    return Sides(encoder, tuned, base, name=source.name)


def _whole(path: Path, device: torch.device) -> "tuple[PreTrainedModel, Encoder]":
    encoder = recorded_encoder(path, models.load_tokenizer(str(path)), str(path), None)
    return models.load_plain(str(path), None, "auto", device), encoder
