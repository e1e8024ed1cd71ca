"""One base, several adapters: each role computes what a model of its own would compute."""

import gc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from stackllama_engine.contract.errors import StageError
from stackllama_engine.contract.prompt_format import PromptFormat
from stackllama_engine.train import models
from stackllama_engine.train.encoding import Encoder
from stackllama_engine.train.ppo.algorithm import Updater
from stackllama_engine.train.ppo.response_text import ResponseText
from stackllama_engine.train.ppo.rollout import Advantages, Rollout, pad_tokens, policy_outputs
from stackllama_engine.train.ppo.sampling import draw_noise, pick, sample
from stackllama_engine.train.ppo.scorers import SeparateScorer, SharedScorer
from stackllama_engine.train.ppo.shared_base import CRITIC, POLICY, REFERENCE, REWARD, SharedBase, score_weight

from .toy import ppo_recipe as recipe_of
from .toy import text_ids

CPU = torch.device("cpu")
TEXTS = [
    ResponseText("How do I peel garlic?", "Use a knife.", True),
    ResponseText("Why?", "Because it is so", False),
]


@pytest.fixture
def shared(base: Path) -> SharedBase:
    torch.manual_seed(0)
    return SharedBase(recipe_of(base), CPU)


def move_policy(shared: SharedBase) -> None:
    """Make a policy that differs from the reference."""
    generator = torch.Generator().manual_seed(7)
    for parameter in shared.trainable():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def test_only_the_policy_adapter_and_the_value_head_train(shared: SharedBase) -> None:
    trainable = {id(p) for p in shared.trainable()}
    asked = {id(p) for p in (*shared.model.parameters(), *shared.value_head.parameters()) if p.requires_grad}
    assert trainable == asked


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Address → bytes of the memory behind tensors; what two of them share counts once."""
    return {
        (storage := tensor.untyped_storage()).data_ptr(): storage.nbytes()
        for tensor in tensors
        if tensor.layout is torch.strided and tensor.device.type == "cpu"
    }


def alive() -> dict[int, int]:
    """Of every tensor that Python knows, wherever it hides."""
    gc.collect()
    return storages(one for one in gc.get_objects() if issubclass(type(one), torch.Tensor))


@pytest.mark.parametrize("precision", ["dtype=bfloat16", "load_in_8bit=true"])
def test_the_base_is_held_once(reward_model: Path, base: Path, tmp_path: Path, precision: str) -> None:
    """Policy, its frozen copy, reward and critic on one base, each of them used; counted by storage, not by name."""
    tokenizer, recipe = models.load_tokenizer(str(base)), recipe_of(base, precision)
    plain = models.load_causal_lm(recipe, CPU)
    alone = sum(storages([*plain.parameters(), *plain.buffers()]).values())
    models.save_adapter(SharedBase(recipe, CPU).model, tokenizer, tmp_path / "adapter", recipe, PromptFormat())
    before = alive()

    shared = SharedBase(
        recipe_of(base, precision, "value_adapter=true", f"policy_adapter_path={tmp_path / 'adapter'}"), CPU
    )
    scorer = SharedScorer(shared, reward_model, Encoder(tokenizer, PromptFormat()))
    scorer(TEXTS, 8)
    ids, attention, _ = pad_tokens([[1, 5, 6], [1, 7]], [[8, 9, 2], [10, 2]], 0, CPU)
    assert policy_outputs(shared, ids, attention, 3, 2).logprobs.isfinite().all()
    with shared.reference():
        assert policy_outputs(shared, ids, attention, 3, 2).logprobs.isfinite().all()

    named = dict(shared.model.named_parameters())
    base_tensors = [*(p for name, p in named.items() if "lora_" not in name), *shared.model.buffers()]
    assert sum(storages(base_tensors).values()) == alone
    adapters = {
        role: sum(storages(p for name, p in named.items() if f".{role}." in name).values())
        for role in (POLICY, REFERENCE, CRITIC, REWARD)
    }
    assert adapters[POLICY] == adapters[REFERENCE] == adapters[CRITIC] > 0 and adapters[REWARD] > 0
    new = sum(size for address, size in alive().items() if address not in before)
    small = 16 << 10  # heads, scales of int8 rows, what the passes left; a second int8 base has 74 KiB at least
    assert new <= alone + sum(adapters.values()) + small


def test_reference_is_the_base_itself(shared: SharedBase, base: Path) -> None:
    move_policy(shared)
    ids, attention, mask = pad_tokens([[1, 5, 6], [1, 7]], [[8, 9, 2], [10, 2]], 0, CPU)
    with shared.reference():
        reference = policy_outputs(shared, ids, attention, 3, 2).logprobs
    moved = policy_outputs(shared, ids, attention, 3, 2).logprobs
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        for row, tokens in enumerate(([1, 5, 6, 8, 9, 2], [1, 7, 10, 2])):
            logits = torch.log_softmax(plain(torch.tensor([tokens])).logits[0].float(), -1)
            length = int(mask[row].sum())
            start = len(tokens) - length
            expected = torch.stack([logits[start + t - 1, tokens[start + t]] for t in range(length)])
            torch.testing.assert_close(reference[row, :length], expected, atol=1e-5, rtol=1e-5)
            assert (moved[row, :length] - expected).abs().max() > 1e-3


def test_temperature_divides_every_logit(base: Path) -> None:
    hot, plain = SharedBase(recipe_of(base, "temperature=2.0"), CPU), SharedBase(recipe_of(base), CPU)
    hidden = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hot.logits(hidden) * 2, plain.logits(hidden))


@pytest.mark.parametrize("rows", [1, 8, 32, 33])
def test_logits_are_the_heads_however_many_rows(shared: SharedBase, rows: int) -> None:
    module: Any = shared.base.get_output_embeddings()
    hidden = torch.randn(rows, module.in_features, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(shared.logits(hidden), module(hidden))


def test_log_probabilities_do_not_depend_on_padding(shared: SharedBase) -> None:
    move_policy(shared)
    one = pad_tokens([[1, 7]], [[10, 2]], 0, CPU)
    two = pad_tokens([[1, 7], [1, 5, 6, 7, 8]], [[10, 2], [11, 12, 13, 2]], 0, CPU)
    alone = policy_outputs(shared, one[0], one[1], 2, 1)
    padded = policy_outputs(shared, two[0], two[1], 4, 2)
    for name in ("logprobs", "values", "entropy"):
        torch.testing.assert_close(getattr(padded, name)[:1, :2], getattr(alone, name), atol=1e-5, rtol=1e-5)


def test_shared_scorer_equals_the_reward_model_it_came_from(shared: SharedBase, reward_model: Path, base: Path) -> None:
    tokenizer = models.load_tokenizer(str(base))
    scores = SharedScorer(shared, reward_model, Encoder(tokenizer, PromptFormat()))(TEXTS, 8)
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    classifier.config.pad_token_id = tokenizer.pad_token_id
    whole = PeftModel.from_pretrained(classifier, str(reward_model)).eval()
    with torch.no_grad():
        alone = [
            whole(torch.tensor([text_ids(Encoder(tokenizer, PromptFormat()), answer)])).logits.item()
            for answer in TEXTS
        ]
    assert scores.tolist() == pytest.approx(alone, abs=1e-5)
    assert abs(scores[0] - scores[1]) > 1e-4


def test_texts_of_like_length_are_scored_together_and_the_scores_keep_their_places(
    shared: SharedBase, reward_model: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = SharedScorer(shared, reward_model, Encoder(models.load_tokenizer(str(base)), PromptFormat()))
    texts = [*TEXTS, *TEXTS]
    alone = [float(scorer([answer], 1)) for answer in texts]
    shapes, hidden = list[tuple[int, ...]](), SharedBase.hidden

    def counted(self: SharedBase, input_ids: torch.Tensor, *arguments: Any) -> torch.Tensor:
        shapes.append(tuple(input_ids.shape))
        return hidden(self, input_ids, *arguments)

    monkeypatch.setattr(SharedBase, "hidden", counted)
    torch.testing.assert_close(scorer(texts, 2), torch.tensor(alone))
    (_, longer), (_, shorter) = shapes
    assert longer > shorter


def test_a_separate_reward_models_scores_keep_their_places(base: Path, tmp_path: Path) -> None:
    reward_model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    reward_model.save_pretrained(tmp_path / "reward_model")
    models.load_tokenizer(str(base)).save_pretrained(tmp_path / "reward_model")
    scorer = SeparateScorer(recipe_of(base, f"reward_model_path={tmp_path / 'reward_model'}"), CPU, PromptFormat())
    texts = [TEXTS[1], TEXTS[0], TEXTS[1]]  # the longest is not the first
    alone = [float(scorer([answer], 1)) for answer in texts]
    torch.testing.assert_close(scorer(texts, 2), torch.tensor(alone))
    assert abs(alone[0] - alone[1]) > 1e-4


def test_scoring_leaves_the_policy_active_and_trainable(shared: SharedBase, reward_model: Path, base: Path) -> None:
    move_policy(shared)
    ids, attention, _ = pad_tokens([[1, 5]], [[8, 2]], 0, CPU)
    before = policy_outputs(shared, ids, attention, 2, 1).logprobs
    SharedScorer(shared, reward_model, Encoder(models.load_tokenizer(str(base)), PromptFormat()))(TEXTS, 8)
    torch.testing.assert_close(policy_outputs(shared, ids, attention, 2, 1).logprobs, before, atol=0, rtol=0)
    assert all(p.requires_grad for p in shared.trainable())
    assert not any(p.requires_grad for n, p in shared.model.named_parameters() if ".reward." in n)


def test_an_adapter_without_a_head_is_refused(shared: SharedBase, tmp_path: Path) -> None:
    shared.model.save_pretrained(str(tmp_path), selected_adapters=["default"])
    with pytest.raises(StageError, match="no score head"):
        score_weight(tmp_path)


def test_continued_policy_starts_as_its_adapter_and_keeps_it_as_reference(
    shared: SharedBase, base: Path, tmp_path: Path
) -> None:
    move_policy(shared)
    path = tmp_path / "adapter"
    models.save_adapter(shared.model, models.load_tokenizer(str(base)), path, recipe_of(base), PromptFormat())
    ids, attention, _ = pad_tokens([[1, 5, 6]], [[8, 9, 2]], 0, CPU)
    trained = policy_outputs(shared, ids, attention, 3, 1).logprobs
    # what the recipe says of LoRA does not matter: the adapter brings its own rank and scale
    continued = SharedBase(recipe_of(base, f"policy_adapter_path={path}", "lora_r=4", "lora_alpha=64"), CPU)
    torch.testing.assert_close(policy_outputs(continued, ids, attention, 3, 1).logprobs, trained)
    move_policy(continued)
    with continued.reference():
        torch.testing.assert_close(policy_outputs(continued, ids, attention, 3, 1).logprobs, trained)
    assert (policy_outputs(continued, ids, attention, 3, 1).logprobs - trained).abs().max() > 1e-3


def test_sampling_with_a_cache_equals_sampling_without(shared: SharedBase) -> None:
    move_policy(shared)
    prompts = [[1, 5, 6, 7], [1, 9], [1, 3, 4]]
    noise = [draw_noise(0, 0, index, (6, 10)) for index in range(3)]
    together = sample(shared, prompts, noise, stops=(2,), pad=0)
    for prompt, drawn, response in zip(prompts, noise, together, strict=True):
        tokens = list(prompt)
        for position in range(drawn.length):
            mask = torch.ones(1, len(tokens), dtype=torch.long)
            with torch.no_grad():
                hidden = shared.hidden(torch.tensor([tokens]), mask, mask.cumsum(1) - 1)
            token = int(pick(shared.logits(hidden[:, -1]), drawn.uniforms[position : position + 1]))
            tokens.append(token)
            if token == 2:
                break
        assert tokens[len(prompt) :] == response


def test_responses_end_at_the_end_token_or_at_their_drawn_length(shared: SharedBase) -> None:
    noise = [draw_noise(3, 1, index, (4, 9)) for index in range(16)]
    responses = sample(shared, [[1, 5]] * 16, noise, stops=(2,), pad=0)
    for drawn, response in zip(noise, responses, strict=True):
        assert 2 not in response[:-1]
        assert len(response) == drawn.length or response[-1] == 2
        assert 4 <= drawn.length < 9


def test_pick_follows_the_distribution() -> None:
    probabilities = torch.tensor([[0.1, 0.0, 0.6, 0.3]])
    uniforms = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:-1]
    tokens = pick(probabilities.log().expand(10_000, 4), uniforms)
    assert torch.bincount(tokens, minlength=4).tolist() == pytest.approx([1000, 0, 6000, 3000], abs=2)


def test_a_language_model_is_no_reward_model(base: Path) -> None:
    with pytest.raises(StageError, match="no trained"):
        SeparateScorer(recipe_of(base, f"reward_model_path={base}"), CPU, PromptFormat())


def test_an_adapter_in_a_pickle_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(StageError, match="pickles"):
        score_weight(tmp_path)


@pytest.mark.parametrize("name", ["layers.0.self_attn.q_proj", "layers.1.mlp.gate_proj", "embed_tokens", "norm"])
def test_training_any_tensor_makes_another_base(base: Path, tmp_path: Path, name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    model.save_pretrained(tmp_path / "same")
    dict(model.named_parameters())[f"model.{name}.weight"].data += 0.01
    model.save_pretrained(tmp_path / "other")
    same, other = (models.base_identity(str(tmp_path / part), None) for part in ("same", "other"))
    assert not models.same_base(same, other)
    assert models.same_base(same, models.base_identity(str(tmp_path / "same"), "ignored"))


def test_ratio_is_one_while_checkpointing_too(base: Path) -> None:
    shared = SharedBase(recipe_of(base, "gradient_checkpointing=true"), CPU)
    move_policy(shared)
    ids, attention, _ = pad_tokens([[1, 5, 6], [1, 7]], [[8, 9, 2], [10, 2]], 0, CPU)
    old = policy_outputs(shared, ids, attention, 3, 2).logprobs
    shared.model.train()
    new = shared.outputs(ids, attention, 3).logprobs
    assert new.requires_grad
    assert torch.equal(new.detach(), old)


def test_a_nan_is_never_applied(shared: SharedBase) -> None:
    recipe = recipe_of(Path(shared.base.config._name_or_path))
    ids, attention, mask = pad_tokens([[1, 5], [1, 7], [1, 8], [1, 9]], [[8, 2], [10, 2], [11, 2], [12, 2]], 0, CPU)
    old = policy_outputs(shared, ids, attention, 2, 2)
    rollout = Rollout(ids, attention, mask, [], old, old.logprobs, torch.zeros(4))
    nan = torch.full_like(mask, float("nan"))
    advantages = Advantages(kl=torch.zeros_like(mask), advantages=nan, returns=torch.zeros_like(mask))
    before = [parameter.detach().clone() for parameter in shared.trainable()]
    optimizer = torch.optim.AdamW(shared.trainable(), lr=0.1)
    statistics = Updater(recipe, shared, optimizer, lambda part: part).update(rollout, advantages, torch.Generator())
    assert (statistics.updates, statistics.skipped) == (0, recipe.num_ppo_epochs)
    assert all(torch.equal(a, b) for a, b in zip(before, shared.trainable(), strict=True))
