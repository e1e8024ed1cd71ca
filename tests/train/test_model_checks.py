"""What PPO takes for granted about a model is measured: each wrong way is refused, or its shortcut turned off."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    CohereConfig,
    CohereForCausalLM,
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from stackllama_engine.contract.errors import StageError
from stackllama_engine.contract.prompt_format import PromptFormat
from stackllama_engine.contract.recipe import PPORecipe
from stackllama_engine.train import models
from stackllama_engine.train.encoding import Encoder
from stackllama_engine.train.ppo import model_checks
from stackllama_engine.train.ppo.decoder import key_value_cache
from stackllama_engine.train.ppo.model_checks import check_policy
from stackllama_engine.train.ppo.sampling import draw_noise, sample
from stackllama_engine.train.ppo.shared_base import DecodingMode, SharedBase

from .toy import ppo_recipe

CPU = torch.device("cpu")


class NoticeReporter:
    """A reporter that keeps the notices."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def health(self, message: str) -> None:
        self.notices.append(message)


def checked(recipe: PPORecipe, shared: SharedBase) -> list[str]:
    reporter: Any = NoticeReporter()
    encoder = Encoder(models.load_tokenizer(recipe.model_name_or_path), PromptFormat())
    check_policy(recipe, shared, encoder, reporter)
    return reporter.notices


def saved(base: Path, path: Path, model: Any) -> Path:
    """Another model with the toy's tokenizer."""
    model.save_pretrained(path)
    models.load_tokenizer(str(base)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tied(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a Llama whose head is its embeddings."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    return saved(base, tmp_path_factory.mktemp("tied"), LlamaForCausalLM(config))


def test_a_plain_model_keeps_every_shortcut_and_its_weights(base: Path) -> None:
    recipe = ppo_recipe(base)
    shared = SharedBase(recipe, CPU)
    before = {name: parameter.clone() for name, parameter in shared.model.named_parameters()}
    state = torch.get_rng_state()
    assert checked(recipe, shared) == []
    assert shared.decoding == DecodingMode()
    assert all(torch.equal(parameter, before[name]) for name, parameter in shared.model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)  # the run's random numbers are untouched


def test_an_adapter_on_a_tied_head_leaves_the_embeddings_alone_while_sampling(tied: Path) -> None:
    recipe = ppo_recipe(tied, "lora_target_modules=[q_proj,lm_head]")
    shared = SharedBase(recipe, CPU)
    generator = torch.Generator().manual_seed(1)
    for parameter in shared.trainable():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    ids = torch.tensor([[1, 5, 6, 7]])
    positions = torch.arange(4).unsqueeze(0)
    with torch.no_grad():
        scored = shared.logits(shared.hidden(ids, None, positions))
        with shared.sampling():
            sampled = shared.logits(shared.hidden(ids, None, positions))
    torch.testing.assert_close(sampled, scored, atol=1e-4, rtol=1e-4)
    assert checked(recipe, shared) == [] and shared.decoding.merge


def test_a_merge_that_changes_the_policy_is_not_used(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = ppo_recipe(base)
    shared = SharedBase(recipe, CPU)
    real = SharedBase.sampling

    @contextmanager
    def wrong(self: SharedBase) -> Iterator[None]:
        weight: Any = self.trunk.get_submodule("norm").weight
        with real(self):
            if self.decoding.merge:
                weight.data *= 2
            try:
                yield
            finally:
                if self.decoding.merge:
                    weight.data /= 2

    monkeypatch.setattr(SharedBase, "sampling", wrong)
    notices = checked(recipe, shared)
    assert shared.decoding == DecodingMode(merge=False)
    assert len(notices) == 1 and "merged into llama is off by" in notices[0]


@pytest.mark.parametrize("factor", [0.25, 1.001])
def test_scaled_logits_are_computed_by_the_models_own_code_whatever_the_key_is_called(
    base: Path, factor: float
) -> None:
    recipe = ppo_recipe(base)
    shared = SharedBase(recipe, CPU)
    assert checked(recipe, shared) == [] and shared.plain_head
    shared.base.register_forward_hook(lambda module, given, output: output | {"logits": output.logits * factor})
    assert checked(recipe, shared) == [] and not shared.plain_head
    hidden = torch.randn(3, 64)
    module: Any = shared.base.get_output_embeddings()
    torch.testing.assert_close(shared.logits(hidden), module(hidden) * factor)


def test_logits_that_depend_on_more_than_hidden_states_are_refused(base: Path) -> None:
    def by_prompt(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        return output | {"logits": output.logits * (1 + kwargs["input_ids"].unsqueeze(-1))}

    recipe = ppo_recipe(base)
    shared = SharedBase(recipe, CPU)
    shared.base.register_forward_hook(by_prompt, with_kwargs=True)
    with pytest.raises(StageError, match=r"`model_name_or_path=.*llama computes its logits from more .* nats per to"):
        checked(recipe, shared)


HEADS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "soft cap": lambda sizes: Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=16, final_logit_softcapping=2.0)),
    "divisor": lambda sizes: GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=4.0)),
    "factor": lambda sizes: CohereForCausalLM(CohereConfig(**sizes, logit_scale=0.0625)),
    "layers": lambda sizes: BertLMHeadModel(BertConfig(**sizes, is_decoder=True)),
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("entropy", [0.0, 0.1])
def test_log_probabilities_and_gradients_are_those_of_a_model_whose_head_is_more_than_a_product(
    base: Path, tmp_path: Path, kind: str, entropy: float
) -> None:
    torch.manual_seed(0)
    sizes = dict(vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    sizes |= dict(num_key_value_heads=1) if kind != "layers" else {}
    sizes |= dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.5, max_position_embeddings=128)
    recipe = ppo_recipe(saved(base, tmp_path / "model", HEADS[kind](sizes)), f"ent_coef={entropy}", "temperature=0.7")
    shared = SharedBase(recipe, CPU)
    checked(recipe, shared)
    assert not shared.plain_head
    for parameter in shared.trainable():
        parameter.data += 0.1 * torch.randn_like(parameter)
    ids = torch.randint(3, 400, (3, 90))
    found = shared.outputs(ids, torch.ones_like(ids), 80, padded=False)  # 240 tokens: two chunks
    logits = shared.base(input_ids=ids, use_cache=False).logits[:, -81:-1].float() / 0.7
    wanted = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(found.logprobs, wanted.log_prob(ids[:, -80:]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.entropy, wanted.entropy(), atol=1e-4, rtol=1e-4)
    spread = torch.linspace(-1, 1, 240).view(3, 80)
    policy = shared.parameter_groups()[0]

    def gradients(logprobs: Tensor, entropies: Tensor) -> list[Tensor]:
        loss = (logprobs * spread).sum() + (entropies * spread.flip(0) * entropy).sum()
        return list(torch.autograd.grad(loss, policy))

    of_model = gradients(wanted.log_prob(ids[:, -80:]), wanted.entropy())
    for ours, own in zip(gradients(found.logprobs, found.entropy), of_model, strict=True):
        torch.testing.assert_close(ours, own, atol=2e-3, rtol=2e-3)


def test_a_model_that_padding_changes_is_refused_and_taken_one_row_at_a_time(tied: Path) -> None:
    def leaky(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = kwargs["attention_mask"]
        return args, kwargs | {"attention_mask": None if mask is None else torch.ones_like(mask)}

    recipe = ppo_recipe(tied)
    shared = SharedBase(recipe, CPU)
    shared.trunk.register_forward_pre_hook(leaky, with_kwargs=True)
    with pytest.raises(
        StageError, match="set `local_rollout_forward_batch_size=1` and `per_device_train_batch_size=1`"
    ):
        checked(recipe, shared)
    alone = ppo_recipe(tied, "local_rollout_forward_batch_size=1", "per_device_train_batch_size=1")
    assert checked(alone, shared) == [] and shared.decoding == DecodingMode()


@pytest.mark.parametrize(
    ("fault", "mode", "words"),
    [
        ("rows", DecodingMode(drop_rows=False), "finished rows stay in the batch"),
        ("values", DecodingMode(cache=False), "the whole text is read again for every token"),
    ],
)
def test_a_cache_that_does_not_agree_is_not_used(
    tied: Path, monkeypatch: pytest.MonkeyPatch, fault: str, mode: DecodingMode, words: str
) -> None:
    class Cache(DynamicCache):
        def reorder_cache(self, beam_idx: Any) -> None:
            raise AttributeError("no such operation")

        def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **more: Any) -> Any:
            worse = value_states * 1.5 if fault == "values" and self.get_seq_length(layer_idx) else value_states
            return super().update(key_states, worse, layer_idx, *args, **more)

    monkeypatch.setattr(
        "stackllama_engine.train.ppo.decoder.key_value_cache", lambda config, room: Cache(config=config)
    )
    recipe = ppo_recipe(tied)
    shared = SharedBase(recipe, CPU)
    (notice,) = checked(recipe, shared)
    assert shared.decoding == mode
    assert "fails (AttributeError: no such operation)" in notice and words in notice
    noise = [draw_noise(1, 0, index, (3, 9)) for index in range(3)]
    prompts = [[1, 9], [1, 5, 6, 7, 8, 30], [1, 3, 4]]
    slow = sample(shared, prompts, noise, stops=(2,), pad=0)
    monkeypatch.undo()
    shared.decoding = DecodingMode()
    assert sample(shared, prompts, noise, stops=(2,), pad=0) == slow


def test_memory_that_runs_out_while_measuring_is_not_taken_for_an_answer(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model_checks, "_decoded", full)
    recipe = ppo_recipe(base)
    with pytest.raises(torch.OutOfMemoryError):
        checked(recipe, SharedBase(recipe, CPU))


def test_the_value_head_is_as_wide_as_what_the_output_head_reads(base: Path, tmp_path: Path) -> None:
    """As facebook/opt-350m: layers of one width, embeddings and head of another."""
    config = OPTConfig(
        vocab_size=400,
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        do_layer_norm_before=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    recipe = ppo_recipe(saved(base, tmp_path / "opt", OPTForCausalLM(config)), "lora_target_modules=[q_proj,v_proj]")
    shared = SharedBase(recipe, CPU)
    assert checked(recipe, shared) == []
    ids = torch.tensor([[1, 5, 6, 7]])
    assert shared.outputs(ids, torch.ones_like(ids), 2).values.shape == (1, 2)


def test_rows_leave_layers_that_keep_recurrent_states() -> None:
    """Hybrid layers (Falcon-H1, Qwen3-Next) hold states that `batch_select_indices` does not know."""
    from transformers.cache_utils import LinearAttentionAndFullAttentionLayer

    cache: Any = key_value_cache(LlamaConfig(num_hidden_layers=2), 4)
    cache.layers[1] = layer = LinearAttentionAndFullAttentionLayer()
    for each in (0, 1):
        cache.update(torch.arange(3.0).view(3, 1, 1, 1), torch.arange(3.0).view(3, 1, 1, 1), each)
    layer.update_conv_state(torch.arange(3.0).view(3, 1, 1))
    cache.reorder_cache(torch.tensor([2]))
    assert [layer.keys.flatten().tolist() for layer in cache.layers] == [[2.0], [2.0]]
    states: Any = layer.conv_states[0]
    assert states.flatten().tolist() == [2.0]
