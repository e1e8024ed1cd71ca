"""Decoding over static buffers, as a CUDA graph or run, samples what decoding over a growing cache does."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

from stackllama_engine.budget.inference import ROOM_TILE
from stackllama_engine.contract.prompt_format import PromptFormat
from stackllama_engine.train import models
from stackllama_engine.train.control import LeftEarly
from stackllama_engine.train.encoding import Encoder
from stackllama_engine.train.ppo import cuda_graph, model_checks, static_decoder
from stackllama_engine.train.ppo.cuda_graph import CaptureError, Direct, Step
from stackllama_engine.train.ppo.model_checks import check_policy
from stackllama_engine.train.ppo.sampling import Noise, Responses, draw_noise, sample
from stackllama_engine.train.ppo.shared_base import SharedBase
from stackllama_engine.train.ppo.static_decoder import StaticLayer, obstacle, open_decoder, room_for, static_cache

from .test_model_checks import NoticeReporter, saved
from .test_sampling import PROMPTS, policy
from .toy import ppo_recipe
from .update_kit import Waits

CPU = torch.device("cpu")
NOISE = [draw_noise(1, 0, index, (3, 24)) for index in range(len(PROMPTS))]
EQUAL = [[1, *range(4, 9)], [1, *range(30, 35)], [1, *range(50, 55)], [1, 9, 9, 9, 9, 9]]
"""Prompts of one length."""


def both(shared: SharedBase, prompts: Sequence[list[int]], stops: Sequence[int] = (), **more: Any) -> list[Responses]:
    """Sample over a growing cache, then over static buffers."""
    noise = [NOISE[index] for index in range(len(prompts))]
    sampled: list[Responses] = []
    for static in (False, True):
        shared.decoding = replace(shared.decoding, static=static)
        sampled.append(sample(shared, prompts, noise, stops, pad=0, **more))
    return sampled


def assert_same_responses(one: Responses, other: Responses) -> None:
    assert one == other
    for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


@pytest.fixture
def shrinking(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows leave however few tokens follow; list the batch sizes."""
    monkeypatch.setattr(static_decoder, "_WORTH", 1)
    sizes: list[int] = []
    real = static_decoder.StaticStep.keep
    monkeypatch.setattr(
        static_decoder.StaticStep, "keep", lambda self, rows: (sizes.append(len(rows)), real(self, rows))[1]
    )
    return sizes


@pytest.mark.parametrize("prompts", [PROMPTS, EQUAL], ids=["padded", "not padded"])
def test_static_buffers_sample_the_same_tokens(base: Path, prompts: list[list[int]], shrinking: list[int]) -> None:
    shared = policy(base)
    grown, static = both(shared, prompts)
    assert_same_responses(grown, static)
    assert len({len(response) for response in grown}) > 1
    assert shrinking
    assert all(2 * after <= before for before, after in pairwise([len(prompts), *shrinking]))


def test_stop_tokens_end_responses_over_static_buffers(base: Path, shrinking: list[int]) -> None:
    shared = policy(base)
    free = both(shared, PROMPTS)[0]
    stops = [free[1][1], free[4][2]]
    grown, static = both(shared, PROMPTS, stops)
    assert_same_responses(grown, static)
    assert any(row[-1] in stops and len(row) < noise.length for row, noise in zip(static, NOISE, strict=True))


def test_micro_batches_sample_the_same_over_static_buffers(base: Path) -> None:
    grown, static = both(policy(base), PROMPTS, micro_batch_size=2)
    assert_same_responses(grown, static)


def test_the_reference_samples_the_same_over_static_buffers(base: Path) -> None:
    shared = policy(base)
    with shared.acting(policy=False, temperature=0.7):
        assert_same_responses(*both(shared, PROMPTS))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_static_buffers_agree_in_16_bits(base: Path, implementation: str) -> None:
    """Whether attention reads unfilled room shows in log-probabilities far beyond rounding."""
    shared = policy(base, "bf16=true", "dtype=bfloat16", f"attn_implementation={implementation}")
    prompts = [[1, 5, 6, 7], [1, 9]]
    hidden: list[Tensor] = []
    with torch.no_grad(), shared.sampling():
        for static in (False, True):
            shared.decoding = replace(shared.decoding, static=static)
            decoder = open_decoder(shared, prompts, 4, 0)
            decoder.prefill()
            hidden.append(torch.cat([decoder.step(torch.tensor([token, token])) for token in (7, 8, 9)], 1))
            decoder.close()
    torch.testing.assert_close(hidden[0], hidden[1], atol=0.05, rtol=0.05)
    torch.testing.assert_close(hidden[0].float().mean(), hidden[1].float().mean(), atol=1e-3, rtol=0)


TINY: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 400, "initializer_range": 0.3}
FAMILIES: list[Any] = [
    Qwen2Config(**TINY),
    Qwen3Config(**TINY),
    MistralConfig(**TINY, sliding_window=None),
    GemmaConfig(**TINY),
    CohereConfig(**TINY),
    GraniteConfig(**TINY),
    GPTNeoXConfig(**TINY),
    GPT2Config(**GPT2),
    OPTConfig(**TINY, ffn_dim=48, word_embed_proj_dim=32),
]


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config.model_type)
def test_static_step_computes_what_each_family_does(config: Any) -> None:
    """A forward pass per token, prompts padded, against one over the whole text."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    assert obstacle(model) is None
    ids = torch.tensor([[0, 0, 1, 5, 6, 7, 8, 9], [1, 3, 4, 9, 11, 12, 13, 14]])
    mask = (ids > 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    trunk = model.get_decoder()
    room = room_for(8)
    with torch.no_grad():
        whole = trunk(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
        cache = static_cache(model.config, room)

        def read(ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
            return trunk(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            ).last_hidden_state

        wide = torch.zeros(2, room, dtype=torch.int64)
        wide[:, :4] = mask[:, :4]
        read(ids[:, :4], wide[:, :4], positions[:, :4], cache)
        step = static_decoder.StaticStep(read, cache, wide, positions[:, 4:5].clone(), Direct(), pytest.fail)
        with Waits() as waits:
            steps = [step(ids[:, 4]), step(ids[:, 5])]
        assert not waits.seen
        step.keep(torch.tensor([1]))
        steps += [step(ids[1:, 6]), step(ids[1:, 7])]
    torch.testing.assert_close(torch.cat(steps[:2], 1), whole[:, 4:6], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat(steps[2:], 1), whole[1:, 6:], atol=1e-4, rtol=1e-4)


def test_room_is_what_the_memory_estimate_counts() -> None:
    assert [room_for(tokens) for tokens in (1, 16, 638)] == [ROOM_TILE, ROOM_TILE, 640]


def test_a_static_step_never_waits_for_the_device(base: Path) -> None:
    """What waits cannot be captured; a growing cache waits at every token of a padded batch."""
    shared = policy(base)
    seen: dict[bool, int] = {}
    for static in (False, True):
        shared.decoding = replace(shared.decoding, static=static)
        decoder = open_decoder(shared, PROMPTS, 4, 0)
        with torch.no_grad():
            decoder.prefill()
            with Waits() as waits:
                decoder.step(torch.full((len(PROMPTS),), 7))
                decoder.step(torch.full((len(PROMPTS),), 8))
        seen[static] = sum(waits.seen.values())
    assert seen == {False: 2, True: 0}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Gemma2Config(**TINY, sliding_window=8), "sliding windows"),
        (MistralConfig(**TINY, sliding_window=8), "sliding windows"),
        (
            LlamaConfig(
                **TINY,
                rope_parameters={
                    "rope_type": "dynamic",
                    "factor": 2.0,
                    "rope_theta": 1e4,
                    "original_max_position_embeddings": 64,
                },
            ),
            "depends on the length",
        ),
    ],
)
def test_obstacles_are_named(config: Any, words: str) -> None:
    reason = obstacle(AutoModelForCausalLM.from_config(config))
    assert reason is not None and words in reason and config.model_type in reason


def test_int8_and_flash_attention_stay_without_a_graph() -> None:
    model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**TINY))
    model.is_loaded_in_8bit = True
    assert "LLM.int8" in str(obstacle(model))
    model.config._attn_implementation = "flash_attention_2"
    assert "attn_implementation=flash_attention_2" in str(obstacle(model))
    model._can_compile_fullgraph = False
    assert "llama chooses" in str(obstacle(model))


def test_unfilled_room_holds_no_nan() -> None:
    layer = StaticLayer(4)
    layer.update(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 3))
    for array in layer._arrays:
        array[:, :, 2:] = float("nan")  # what `torch.empty` may find
    layer.fix(torch.tensor([2]))
    assert all(not array.isnan().any() for array in layer._arrays)


class Graphs:
    """Stand-in for CUDA graphs: a replay runs the step, which must still read the tensors that it was captured with."""

    def __init__(self, fails_at: str = "", error: Exception | None = None) -> None:
        self.log: list[str] = []
        self._fails_at = fails_at
        self._error = error or CaptureError("RuntimeError: called a synchronizing CUDA operation")

    def rehearse(self, step: Step) -> Tensor:
        self._note("rehearse")
        return step()

    def capture(self, step: Step) -> "Graphs.Replayed":
        self._note("capture")
        return Graphs.Replayed(self, step)

    def give_back(self) -> None:
        self.log.append("give back")

    def _note(self, what: str) -> None:
        self.log.append(what)
        if what == self._fails_at:
            raise self._error

    class Replayed:
        def __init__(self, owner: "Graphs", step: Step) -> None:
            self._owner, self._step = owner, step
            self._addresses: tuple[int, ...] | None = self.addresses()

        def addresses(self) -> tuple[int, ...]:
            steps: Any = self._step
            own = steps.__self__
            arrays = [array for layer in own._cache.layers for array in layer._arrays]
            return tuple(each.data_ptr() for each in (own._tokens, own._mask, own._positions, own._place, *arrays))

        def __call__(self) -> Tensor:
            assert self.addresses() == self._addresses  # a graph reads what it read while it was captured
            self._owner.log.append("replay")
            return self._step()

        def close(self) -> None:
            self._addresses = None
            self._owner.log.append("close")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Graphs]:
    def install(*args: Any) -> Graphs:
        made = Graphs(*args)
        monkeypatch.setattr(static_decoder, "recorder_for", lambda device: made)
        return made

    return install


def test_a_graph_is_rehearsed_captured_replayed_and_given_back(
    base: Path, graphs: Callable[..., Graphs], shrinking: list[int]
) -> None:
    shared = policy(base)
    recorder = graphs()
    noise = [Noise(length, torch.full((length,), 0.3, dtype=torch.float64)) for length in (4, 4, 9)]
    shared.decoding = replace(shared.decoding, static=True)
    static = sample(shared, EQUAL[:3], noise, (), pad=0)
    # after 4 tokens one row of three is left
    whole = ["rehearse", "capture", "replay", "replay", "close", "rehearse", "capture", *["replay"] * 4]
    assert recorder.log == [*whole, "close", "give back"]
    shared.decoding = replace(shared.decoding, static=False)
    assert sample(shared, EQUAL[:3], noise, (), pad=0) == static
    assert shrinking == [1]


def test_finished_rows_stay_until_half_have_finished_and_enough_tokens_follow(base: Path) -> None:
    shared = policy(base)
    shared.decoding = replace(shared.decoding, static=True)
    decoder = open_decoder(shared, [[1, 5]] * 8, 64, 0)
    assert not decoder.is_worth_shrinking(5, 64)
    assert decoder.is_worth_shrinking(4, 64)
    assert not decoder.is_worth_shrinking(1, 31)
    shared.decoding = replace(shared.decoding, drop_rows=False)
    assert not open_decoder(shared, [[1, 5]] * 8, 64, 0).is_worth_shrinking(1, 64)


@pytest.mark.parametrize("moment", ["rehearse", "capture"])
def test_a_failed_capture_is_reported_once_and_sampling_goes_on(
    base: Path, graphs: Callable[..., Graphs], moment: str, shrinking: list[int]
) -> None:
    shared, notices = policy(base), list[str]()
    shared.report = notices.append
    recorder = graphs(moment)
    grown, static = both(shared, PROMPTS, micro_batch_size=3)
    assert_same_responses(grown, static)
    assert notices == [
        "sampling continues without a CUDA graph, which is slower: RuntimeError: called a synchronizing CUDA operation"
    ]
    assert not shared.decoding.static  # nor is it tried again
    assert recorder.log.count(moment) == 1


def test_memory_that_runs_out_in_a_capture_is_not_taken_for_an_obstacle(
    base: Path, graphs: Callable[..., Graphs]
) -> None:
    shared = policy(base)
    recorder = graphs("capture", torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        both(shared, PROMPTS)
    assert shared.decoding.static
    assert recorder.log[-1] == "give back"


def test_causes_of_a_failed_capture_are_told_apart() -> None:
    """torch reports that a capture was invalidated; what invalidated it is the context of that error."""
    full = torch.OutOfMemoryError("CUDA out of memory")
    reported = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    reported.__context__ = full
    assert cuda_graph._failure(reported) is full
    reported.__context__ = ValueError("no such kernel\nand more")
    failure = cuda_graph._failure(reported)
    assert isinstance(failure, CaptureError) and str(failure) == "ValueError: no such kernel"


def test_sampling_that_is_left_early_gives_the_graph_back(base: Path, graphs: Callable[..., Graphs]) -> None:
    shared = policy(base)
    recorder, tokens = graphs(), iter(range(5))

    def stop() -> None:
        if next(tokens) == 4:
            raise LeftEarly

    shared.decoding = replace(shared.decoding, static=True)
    with pytest.raises(LeftEarly):
        sample(shared, PROMPTS, NOISE, (), 0, stop)
    assert recorder.log[-2:] == ["close", "give back"]


def checked_on_cuda(shared: SharedBase) -> list[str]:
    """Check a policy's graph as `check_policy` does on a CUDA device."""
    encoder = Encoder(models.load_tokenizer(shared.base.config._name_or_path), PromptFormat())
    rows = model_checks._rows(encoder)
    reporter: Any = NoticeReporter()
    shared.report = reporter.health
    with torch.no_grad():
        own = [model_checks._own(shared, [*prompt, *response]) for prompt, response in rows]
        model_checks._try_graph(shared, [rows], own, 0, 1e-3)
    return reporter.notices


def test_a_graph_that_agrees_is_used(base: Path, graphs: Callable[..., Graphs]) -> None:
    shared, recorder = policy(base), graphs()
    assert checked_on_cuda(shared) == [] and shared.decoding.static
    assert recorder.log.count("capture") >= 2  # also of the smaller batch
    assert "replay" in recorder.log


def test_a_graph_that_does_not_agree_is_not_used(
    base: Path, graphs: Callable[..., Graphs], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, recorder = policy(base), graphs()
    real = Graphs.Replayed.__call__
    monkeypatch.setattr(Graphs.Replayed, "__call__", lambda self: real(self) * 1.5)
    (notice,) = checked_on_cuda(shared)
    assert "sampling from llama is off by" in notice and not shared.decoding.static
    assert "replay" in recorder.log


def test_a_model_with_an_obstacle_is_not_tried(base: Path, graphs: Callable[..., Graphs], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(MistralConfig(**TINY, sliding_window=8))
    shared = SharedBase(ppo_recipe(saved(base, tmp_path / "windows", model)), CPU)
    recorder = graphs()
    assert checked_on_cuda(shared) == [
        "sampling continues without a CUDA graph, which is slower: mistral has sliding windows or recurrent states"
    ]
    assert not shared.decoding.static and recorder.log == []


def test_a_cpu_keeps_its_growing_cache(base: Path) -> None:
    recipe = ppo_recipe(base)
    shared = SharedBase(recipe, CPU)
    reporter: Any = NoticeReporter()
    check_policy(recipe, shared, Encoder(models.load_tokenizer(str(base)), PromptFormat()), reporter)
    assert not shared.decoding.static and reporter.notices == []
    assert shared.report == reporter.health
