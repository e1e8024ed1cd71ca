"""One frozen base, and everything PPO needs as adapters and heads on it.

Shapes: ``B`` sequences, ``T`` tokens, ``R`` response positions, ``V`` vocabulary, ``H`` hidden width.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import layer as lora
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from ...contract.base import read_identity
from ...contract.errors import StageError
from ...contract.recipe import PPORecipe
from .. import models, right_padding
from ..fast_lora import FastLoraLinear, speed_up_lora
from ..sharing import check_shares, own_base
from . import head, upper_layers
from .narrowed_adapter import narrowed

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

POLICY = "default"  # PEFT saves the adapter of this name at the top of its directory
REFERENCE = "reference"
REWARD = "reward"
CRITIC = "critic"
"""The value head's own adapter, and the directory in the policy's that it is saved in."""
VALUE_FILE = "value_head"
"""Name of the critic's head, which is saved beside the policy's adapter."""


class Outputs(NamedTuple):
    """Outputs of one forward pass for sampled tokens, float32 ``[B, R]`` each."""

    logprobs: Tensor
    values: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class DecodingMode:
    """Shortcuts of sampling; :mod:`.model_checks` turns off those that change a model's log-probabilities."""

    merge: bool = True
    """Merge the adapter into float32 weights while sampling."""
    cache: bool = True
    """Keep keys, values and recurrent states from one token to the next; without, every token reads the whole text."""
    drop_rows: bool = True
    """Remove finished rows from the batch."""
    static: bool = False
    """Decode over buffers that stay where they are, as a CUDA graph where there is a GPU; needs ``cache``."""


class SharedBase:
    """Policy, reference, value and, where it belongs to the same base, reward.

    The critic is a second trained adapter and a head on its hidden states: one more pass through the trunk. Without
    ``value_adapter`` the head reads the policy's hidden states, detached. Either way nothing of the value loss reaches
    the policy, whose gradient it would outweigh and oppose once both share an adapter (measured: docs/results.md). An
    estimator of advantages that needs no values has no critic: neither is trained or saved, and values are 0.

    Where the critic's adapter is in the upper layers alone, the output of the layers below is the frozen base's own. It
    is the same in every epoch, so that the critic's passes begin with states kept from scoring.

    Args:
        recipe: the PPO recipe.
        device: of model and heads.

    Raises:
        StageError: model or adapter cannot be loaded.
    """

    decoding = DecodingMode()
    """Shortcuts that sampling uses."""
    plain_head = True
    """Whether logits are the output head times the hidden states; else the model's own code computes them, which may
    project, scale or cap. :mod:`.model_checks` finds out which."""
    masks_padding = False
    """Whether rows of different lengths get a mask; see :mod:`..right_padding`."""
    below_critic = 0
    """Number of layers below the critic's adapter, which its passes leave out; 0: they begin with the token ids."""

    def __init__(self, recipe: PPORecipe, device: torch.device) -> None:
        continued = Path(recipe.policy_adapter_path) if recipe.policy_adapter_path else None
        if continued:
            check_shares(continued, "policy_adapter_path")
        base = models.load_causal_lm(recipe, device)
        _drop_dropout(base)
        peft_model = models.add_lora(base, recipe, "CAUSAL_LM", _config_of(continued) if continued else None)
        assert isinstance(peft_model, PeftModel)  # PPORecipe insists on use_peft
        self.model = peft_model
        self.device = device
        self.temperature = recipe.temperature
        self.checkpointing = recipe.checkpointing
        self._entropy_trains = recipe.ent_coef > 0
        self._bf16 = recipe.bf16
        self.masks_padding = right_padding.keeps_mask(base, device, bf16=recipe.bf16)
        self.report: Callable[[str], None] = print
        """Receives notices for people."""
        self.value_head = nn.Linear(models.head_hidden(base), 1, bias=False, device=device, dtype=torch.float32)
        nn.init.zeros_(self.value_head.weight)
        self._continues = continued is not None
        self.has_critic = recipe.has_critic
        self.has_separate_critic = recipe.has_separate_critic
        self.reward_adapter = _reward_adapter(recipe)
        self._role = POLICY
        self.below_critic = self._layers_below(recipe)
        if continued:
            self._continue_from(continued, recipe)
        if self.has_separate_critic:
            self._add_critic(continued, recipe)
        elif self.has_critic and recipe.value_head_init == "reward":
            raise StageError(
                "`value_head_init: reward` needs `value_adapter: true`: the reward model's head says nothing about "
                "hidden states without its adapter. Use `value_head_init: auto`."
            )
        if self.checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": recipe.load_in_8bit})
            peft_model.enable_input_require_grads()
        _drop_dropout(self.model)
        self.model.eval()

    @property
    def trunk(self) -> nn.Module:
        """The transformer without its language-model head."""
        return self.base.get_decoder()

    @property
    def layers(self) -> nn.ModuleList:
        """The trunk's layers, which were found where there is a :attr:`below_critic`."""
        found = upper_layers.layers_of(self.trunk, int(self.base.config.get_text_config().num_hidden_layers))
        assert found is not None
        return found

    @property
    def base(self) -> "PreTrainedModel":
        """The causal language model under the adapters."""
        return self.model.get_base_model()  # type: ignore[return-value]

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters of policy adapter, then of critic adapter and value head if there are any."""
        policy, critic = self.parameter_groups()
        return [*policy, *critic]

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return :meth:`trainable` in two groups: the policy's, and the critic's with the value head, or none."""
        named = sorted(self.model.named_parameters())
        policy, *critic = ([p for name, p in named if f".{adapter}." in name] for adapter in self.saved)
        if not self.has_critic:
            return policy, []
        return policy, [*(p for adapter in critic for p in adapter), *self.value_head.parameters()]

    @property
    def saved(self) -> tuple[str, ...]:
        """The adapters that are trained."""
        return (POLICY, CRITIC) if self.has_separate_critic else (POLICY,)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Make the base the reference: adapter off, or the frozen copy when the policy continued one."""
        with self.adapter(REFERENCE) if self._continues else self._without_adapter():
            yield

    @contextmanager
    def adapter(self, name: str) -> Iterator[None]:
        """Activate another adapter; the policy's comes back afterwards.

        A backward pass under gradient checkpointing runs layers again, so it belongs inside as well.
        """
        self._activate(name)
        try:
            yield
        finally:
            self._activate(POLICY)

    @contextmanager
    def _without_adapter(self) -> Iterator[None]:
        self._role = REFERENCE
        try:
            with self.model.disable_adapter():
                yield
        finally:
            self._activate(POLICY)

    def _activate(self, name: str) -> None:
        """Activate an adapter; PEFT freezes the others, but policy and critic stay trainable."""
        self.model.set_adapter(name, inference_mode=name not in self.saved)
        self._role = name
        for parameter in self.trainable():
            parameter.requires_grad_(True)

    def autocast(self) -> Any:
        """Return bfloat16 autocast where the recipe asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else nullcontext()

    @contextmanager
    def acting(self, *, policy: bool, temperature: float) -> Iterator[None]:
        """Let policy or reference sample and give log-probabilities, at a temperature."""
        before, self.temperature = self.temperature, temperature
        try:
            with nullcontext() if policy else self.reference():
                yield
        finally:
            self.temperature = before

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Prepare the active adapter for fast sampling without gradients; see :func:`merged` and :func:`narrowed`."""
        with ExitStack() as stack:
            if self._bf16:
                stack.enter_context(narrowed(self.model, self._role))
            merging = self.decoding.merge and self._role == POLICY and not self._bf16
            if merging and stack.enter_context(merged(self.model, POLICY)):
                stack.enter_context(self._without_adapter())
            yield

    def decode_without_graph(self, reason: str) -> None:
        """Stop decoding by CUDA graphs, because of a reason that is reported."""
        self.decoding = replace(self.decoding, static=False)
        self.report(f"sampling continues without a CUDA graph, which is slower: {reason}")

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        cache: "DynamicCache | None" = None,
    ) -> Tensor:
        """Compute the last hidden states, ``[B, T, H]``.

        Position ids are explicit because prompts are padded on the left. Without padding the mask should be None: at
        every token, transformers waits for the device to find out that it masks nothing.
        """
        with self.autocast():
            return self.trunk(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute next-token logits over the temperature, float32 ``[..., V]``, from hidden states ``[..., H]``."""
        module: Any = self.base.get_output_embeddings()
        hidden = hidden.to(module.weight.dtype)
        if not self.plain_head:
            logits = self._own_logits(hidden)
        elif type(module) is nn.Linear and module.bias is None and not self._bf16 and _few_rows_on_a_cpu(hidden):
            logits = (module.weight @ hidden.T).T.contiguous()
        else:
            with self.autocast():
                logits = module(hidden)
        return logits.float() if self.temperature == 1.0 else logits.float() / self.temperature

    def _own_logits(self, hidden: Tensor) -> Tensor:
        """Compute logits by the model's own forward pass, ``[..., V]``, whose trunk returns the given hidden states."""
        rows = hidden.reshape(1, -1, hidden.shape[-1])  # [1, N, H]
        ids = torch.zeros(rows.shape[:2], dtype=torch.int64, device=hidden.device)  # read by nothing but the trunk
        with _returns(self.trunk, rows), self.autocast():
            logits = self.base(input_ids=ids, use_cache=False).logits
        return logits.view(*hidden.shape[:-1], -1)

    def outputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        responses: int,
        *,
        run_separate_critic: bool = True,
        padded: bool = True,
        width: int | None = None,
        lower: Tensor | None = None,
    ) -> Outputs:
        """Compute log-probabilities, values and entropy at the last ``responses`` positions.

        The value of a position is that of the state *before* its token, so both come from the hidden state there.

        Args:
            input_ids: ``[B, P + R]``: prompts padded on the left, responses on the right.
            attention_mask: ``[B, P + R]``.
            responses: ``R``.
            run_separate_critic: False leaves out the forward pass of a critic with an adapter of its own, and its
                values are 0; so they are of the reference.
            padded: False: the mask is known to be all ones.
            width: tokens of the longest row, if known.
            lower: kept states that the separate critic's pass begins with, see :meth:`lower_states`; None: it computes
                them itself.
        """
        before = self._before(input_ids, attention_mask, responses, padded, width)  # [B, R, H]
        tokens = input_ids[:, -responses:]  # [B, R]
        by_frozen_head = self._chosen_by_frozen_matrix if self.plain_head else self._chosen_by_own_head
        chosen = by_frozen_head(before, tokens) or self._chosen(before, tokens)
        if self.has_critic and not self.has_separate_critic:
            values = self._valued(before.detach())  # [B, R]; the value loss stops at the detached states
        elif self.has_critic and run_separate_critic and self._role == POLICY:
            with self.adapter(CRITIC):
                values = self.values(input_ids, attention_mask, responses, padded=padded, width=width, lower=lower)
        else:
            values = torch.zeros_like(chosen.logprobs)
        return Outputs(chosen.logprobs, values, chosen.entropy)

    def values(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        responses: int,
        *,
        padded: bool = True,
        width: int | None = None,
        lower: Tensor | None = None,
    ) -> Tensor:
        """Apply the value head to the active adapter's hidden states, ``[B, R]``; arguments as :meth:`outputs`."""
        with nullcontext() if lower is None else self.beginning_with(lower):
            before = self._before(input_ids, attention_mask, responses, padded, width)  # [B, R, H]
        return self._valued(before)

    def lower_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        responses: int,
        *,
        padded: bool = True,
        width: int | None = None,
    ) -> Tensor:
        """Compute what the critic's lowest layer reads, by the layers below alone, ``[B, T, H]``, rows from the left.

        Arguments as :meth:`outputs`.
        """
        kept: list[Tensor] = []
        with (
            self._without_adapter(),
            upper_layers.without_upper(self.layers, self.below_critic),
            self.keeping_lower_states(kept.append),
        ):
            self._before(input_ids, attention_mask, responses, padded, width)
        return kept[0]

    @property
    def reference_is_base(self) -> bool:
        """Whether the reference has no adapter, so that its lower layers' output is what the critic reads."""
        return not self._continues

    @contextmanager
    def keeping_lower_states(self, keep: Callable[[Tensor], None]) -> Iterator[None]:
        """Hand over the output of the layers below the critic's in every pass, ``[B, T, H]``, rows from the left."""
        with upper_layers.keeping(self.layers, self.below_critic, keep):
            yield

    @contextmanager
    def beginning_with(self, lower: Tensor) -> Iterator[None]:
        """Let passes leave out the layers below the critic's, whose output is ``lower``, ``[B, T, H]``."""
        # reentrant checkpointing runs a layer again only if its input has a gradient
        states = lower.detach().requires_grad_(self.checkpointing and torch.is_grad_enabled())
        with upper_layers.without_lower(self.layers, self.below_critic, states):
            yield

    def _chosen_by_frozen_matrix(self, before: Tensor, tokens: Tensor) -> head.Chosen | None:
        """Compute them a few tokens at a time, for a head that is a plain frozen matrix; None for any other."""
        module: Any = self.base.get_output_embeddings()
        if type(module) is not nn.Linear or module.weight.requires_grad:
            return None
        dtype = torch.bfloat16 if self._bf16 else module.weight.dtype  # autocast would narrow it for every chunk
        # [B, R, H] → [B · R, H], and back
        flat = head.chosen(
            before.reshape(-1, before.shape[-1]).to(dtype),
            module.weight.to(dtype),
            None if module.bias is None else module.bias.to(dtype),
            tokens.reshape(-1),
            self.temperature,
            entropy_trains=self._entropy_trains,
        )
        return head.Chosen(*(column.view(tokens.shape) for column in flat))

    def _chosen_by_own_head(self, before: Tensor, tokens: Tensor) -> head.Chosen | None:
        """Compute them a few tokens at a time by the model's own code; None where something behind the trunk trains."""
        within = {id(parameter) for parameter in self.trunk.parameters()}
        if any(parameter.requires_grad and id(parameter) not in within for parameter in self.base.parameters()):
            return None
        states = before.reshape(-1, before.shape[-1])  # [B · R, H]
        vocabulary = len(self.base.get_output_embeddings().weight)  # type: ignore[arg-type]
        flat = head.chosen_by(self.logits, states, tokens.reshape(-1), vocabulary, entropy_trains=self._entropy_trains)
        return head.Chosen(*(column.view(tokens.shape) for column in flat))

    def _chosen(self, before: Tensor, tokens: Tensor) -> head.Chosen:
        """Compute them from all logits at once, for a head that is quantised or trained."""
        return head.chosen_of(self.logits(before), tokens, entropy_trains=self._entropy_trains)

    def _before(
        self, input_ids: Tensor, attention_mask: Tensor, responses: int, padded: bool, width: int | None
    ) -> Tensor:
        """Return the hidden states before each response token, ``[B, R, H]``: the last R + 1 but the very last.

        Rows of different lengths are moved to the left first, so that all padding follows them. Causal attention then
        never sees it, and needs no mask.
        """
        if not padded:
            positions = attention_mask.cumsum(1) - 1  # [B, P + R]
            return self.hidden(input_ids, None, positions)[:, -responses - 1 : -1]
        split = input_ids.shape[1] - responses  # P
        width = width or input_ids.shape[1]  # T, of the longest row
        prompts = attention_mask[:, :split].sum(1, keepdim=True)  # [B, 1]
        columns = torch.arange(width, device=input_ids.device).unsqueeze(0)  # [1, T]
        source = (columns + split - prompts).clamp(max=input_ids.shape[1] - 1)  # [B, T]
        mask = (columns < attention_mask.sum(1, keepdim=True)).long() if self.masks_padding else None  # [B, T]
        hidden = self.hidden(input_ids.gather(1, source), mask, columns.expand(len(input_ids), -1))  # [B, T, H]
        steps = torch.arange(-1, responses - 1, device=input_ids.device)  # [R]
        before = (prompts + steps).clamp(max=width - 1)  # [B, R]; beyond a row's end any state will do
        rows = width * torch.arange(len(input_ids), device=input_ids.device).unsqueeze(1)  # [B, 1]
        states = hidden.flatten(0, 1).index_select(0, (rows + before).flatten())  # [B · R, H]
        return states.view(*before.shape, -1)

    def _valued(self, before: Tensor) -> Tensor:
        return self.value_head(before.float()).squeeze(-1)

    def policy_state(self, adapter: str = POLICY) -> dict[str, Tensor]:
        """Return an adapter's weights under PEFT's names."""
        return get_peft_model_state_dict(self.model, adapter_name=adapter)

    def load_policy_state(self, state: dict[str, Tensor], adapter: str = POLICY) -> None:
        """Set an adapter's weights.

        Raises:
            StageError: they are another adapter's.
        """
        models.set_adapter_state(self.model, state, adapter)

    def critic_runs_whole(self, reason: str) -> None:
        """Let the critic's passes begin with the token ids, because of a reason that is reported."""
        self.below_critic = 0
        self.report(f"the critic runs through all layers, which is slower and changes nothing else: {reason}")

    def add_adapter_from(self, path: Path, name: str) -> None:
        """Add a frozen adapter from its directory, without the heads that it may hold.

        Raises:
            StageError: it does not fit this base.
        """
        state = models.adapter_weights(path, self.device)
        self.model.add_adapter(name, _config_of(path))
        speed_up_lora(self.model)
        self.load_policy_state({key: value for key, value in state.items() if "lora_" in key}, name)
        self._activate(POLICY)

    def _add_critic(self, continued: Path | None, recipe: PPORecipe) -> None:
        """Add the critic's adapter.

        A continued run's own, else the policy's that its value head was trained on, else the reward model's with its
        head, else a new one.
        """
        continues = bool(continued and (continued / f"{VALUE_FILE}.safetensors").is_file())
        if continued and (continued / CRITIC).is_dir():
            self.add_adapter_from(continued / CRITIC, CRITIC)
        elif continued and continues:
            self.add_adapter_from(continued, CRITIC)
        elif self.reward_adapter and recipe.value_head_init != "zero":
            self.add_adapter_from(self.reward_adapter, CRITIC)
            if not (recipe.normalize_reward or recipe.whiten_rewards):  # else the returns are in other units
                weight = recipe.reward_model_weight * score_weight(self.reward_adapter)
                self.value_head.weight.data.copy_(weight)
        elif recipe.value_head_init == "reward":
            raise StageError(
                f"`value_head_init: reward` needs a reward adapter trained on {recipe.model_name_or_path}, and "
                f"{recipe.reward_model_path} is not; use `value_head_init: auto`."
            )
        else:
            self.model.add_adapter(CRITIC, models.lora_config(recipe, "CAUSAL_LM", self.base.config.model_type))
            speed_up_lora(self.model)
            self._activate(POLICY)
        if self.below_critic and continues:  # it keeps the layers that it was trained in
            self.below_critic = min(self.below_critic, upper_layers.lowest_adapted(self.layers, CRITIC))
        elif self.below_critic:
            upper_layers.cut_adapter(self.model, self.layers, self.below_critic, CRITIC)

    def _layers_below(self, recipe: PPORecipe) -> int:
        """Return the number of layers below those of the recipe's critic.

        Raises:
            StageError: the base has not so many layers, or they are in no list.
        """
        if recipe.value_adapter_layers is None or not recipe.has_separate_critic:
            return 0
        given = f"`value_adapter_layers: {recipe.value_adapter_layers}`"
        depth = int(self.base.config.get_text_config().num_hidden_layers)
        covered = recipe.critic_layers(depth)
        if covered > depth:
            raise StageError(f"{given}: {recipe.model_name_or_path} has {depth} layers; use fewer, or leave it empty.")
        if upper_layers.layers_of(self.trunk, depth) is None:
            raise StageError(
                f"{given}: the layers of {self.base.config.model_type} are in no list, so that the upper ones cannot "
                "be told from the others; leave it empty."
            )
        return depth - covered

    def _continue_from(self, path: Path, recipe: PPORecipe) -> None:
        identity = read_identity(path)
        if not models.same_base(identity, models.base_identity(recipe.model_name_or_path, recipe.model_revision)):
            raise StageError(f"{path} was trained on {identity['name']}, not on {recipe.model_name_or_path}.")
        if (path / CRITIC).is_dir() and recipe.has_critic and not recipe.value_adapter:
            raise StageError(f"The value head in {path} has an adapter of its own: set `value_adapter: true`.")
        self.load_policy_state(models.adapter_weights(path, self.device))
        self.add_adapter_from(path, REFERENCE)
        critic = path / f"{VALUE_FILE}.safetensors"
        if critic.is_file() and self.has_critic:
            self.value_head.load_state_dict(load_file(critic, device=str(self.device)))


def _reward_adapter(recipe: PPORecipe) -> Path | None:
    """Return the reward model's adapter where it can share the policy's base; None where it is a separate model."""
    path = Path(recipe.reward_model_path or "")
    if not recipe.reward_model_path or not (path / "adapter_config.json").is_file():
        return None
    own = models.base_identity(recipe.model_name_or_path, recipe.model_revision)
    return path if models.same_base(read_identity(path), own) and own_base(path) is None else None


def score_weight(adapter: Path) -> Tensor:
    """Read the score head that the reward stage saved, ``[1, H]``.

    Raises:
        StageError: the adapter holds none; its reward would be random.
    """
    state = models.adapter_weights(adapter)
    heads = [value for key, value in state.items() if key.endswith("score.weight")]
    if len(heads) != 1 or heads[0].shape[0] != 1:
        raise StageError(f"{adapter} holds no score head: it is not a reward model, and its reward would be random.")
    return heads[0]


class _HiddenStates(BaseModelOutput):
    """Output of a trunk with its last hidden states alone: whatever else a model asks for is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _returns(trunk: Any, hidden: Tensor) -> Iterator[None]:
    """Let a trunk return these hidden states, ``[B, T, H]``, instead of computing any."""
    own = vars(trunk).get("forward")  # accelerate puts one of its own there
    trunk.forward = lambda *_, **__: _HiddenStates(last_hidden_state=hidden)  # type: ignore[arg-type]
    try:
        yield
    finally:
        del trunk.forward
        if own is not None:
            trunk.forward = own


def _few_rows_on_a_cpu(hidden: Tensor) -> bool:
    """Return whether the product is faster with the head as the left factor.

    For 8 to 32 rows it is up to twice as fast with MKL, and only in float32.
    """
    return (
        hidden.device.type == "cpu" and hidden.dtype == torch.float32 and hidden.dim() == 2 and 8 <= len(hidden) <= 32
    )


def _config_of(adapter: Path) -> Any:
    """Read an adapter's own configuration, for use on a causal language model without dropout."""
    config: Any = LoraConfig.from_pretrained(str(adapter))
    config.modules_to_save = None
    config.task_type = "CAUSAL_LM"
    config.lora_dropout = 0.0
    config.inference_mode = False
    config.init_lora_weights = True  # the saved weights follow; some initialisations write into the base
    return config


def _drop_dropout(module: nn.Module) -> None:
    """Set dropout to 0 for rollout and update, in modules and where attention reads it from a number."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for name, value in vars(part).items():
            if "dropout" in name and isinstance(value, float):
                setattr(part, name, 0.0)


@contextmanager
def merged(model: PeftModel, adapter: str) -> Iterator[bool]:
    """Merge the adapter, which must then be off, into the base's weights; yield whether that was possible.

    One matrix product per layer and token instead of three while something is sampled. Only where a weight is float32:
    a narrower one would round the adapter away, and what is sampled would not be the policy. Afterwards each weight is
    the very parameter that it was before; nothing is subtracted.

    A model with anything else than plain LoRA on float32 matrices is left as it is. Takes the memory of the weights
    that the adapter changes. Each adapted layer gets a parameter of its own: one that other modules use as well (a head
    tied to the embeddings) must stay what it is for them.
    """
    adapted = _plain_layers(model, adapter)
    layers = [layer.get_base_layer() for layer in adapted]
    weights = [layer.weight for layer in layers]
    try:
        with torch.no_grad():
            for base, weight, layer in zip(layers, weights, adapted, strict=True):
                base.weight = nn.Parameter(weight + layer.get_delta_weight(adapter), requires_grad=False)
        yield bool(layers)
    finally:
        for base, weight in zip(layers, weights, strict=True):
            base.weight = weight


def _plain_layers(model: PeftModel, adapter: str) -> list[Any]:
    """Return the layers that the adapter changes; none where one of them cannot be merged."""
    layers = [module for module in model.modules() if isinstance(module, lora.LoraLayer) and adapter in module.r]
    return layers if all(_is_plain(layer, adapter) for layer in layers) else []


def _is_plain(layer: Any, adapter: str) -> bool:
    base = layer.get_base_layer()
    special = adapter in layer.lora_variant or layer.lora_bias.get(adapter, False)
    plain = type(layer) in (lora.Linear, FastLoraLinear) and type(base) is nn.Linear
    return plain and base.weight.dtype == torch.float32 and not special
