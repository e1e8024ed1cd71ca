"""vLLM as PPO's sampler, against a stand-in: what it is asked and given, and that its arithmetic is not trusted."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import distributed

from stackllama_engine.contract.errors import StageError
from stackllama_engine.contract.recipe import PPORecipe
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train.control import LeftEarly
from stackllama_engine.train.ppo import sampling
from stackllama_engine.train.ppo.sampling import Noise, draw_noise
from stackllama_engine.train.ppo.shared_base import POLICY, SharedBase
from stackllama_engine.train.ppo.vllm_sampler import VllmSampler

from .fake_vllm import FakeVllm
from .in_process import PPO, Attempt, attempt

KEYS = (*PPO, "use_cpu=false", "use_vllm=true", "dtype=bfloat16", "lora_r=9", "max_prompt_length=40")
"""The session of these tests is on the CPU whatever the recipe says."""
VARIABLES = ("RANK", "LOCAL_RANK", "VLLM_NO_USAGE_STATS", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL")
EOS = 2
PROMPTS = [[1, 5, 9], [1, 7], [1, 5, 9, 11, 30]]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVllm]:
    for name in (*VARIABLES, "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # so that what it was before comes back afterwards
        monkeypatch.delenv(name)
    fake = FakeVllm()
    fake.install(monkeypatch)
    yield fake
    if distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.fixture
def ppo(tmp_path: Path, base: Path) -> Iterator[Attempt]:
    with attempt(Home(tmp_path / "home"), base, Stage.PPO, *KEYS) as found:
        yield found


@pytest.fixture
def policy(ppo: Attempt) -> SharedBase:
    return trained(SharedBase(ppo.recipe, torch.device("cpu")), 1)


def trained(base: SharedBase, seed: int) -> SharedBase:
    """With an adapter that changes something: a new one's product is 0."""
    random = torch.Generator().manual_seed(seed)
    base.load_policy_state(
        {name: torch.randn(value.shape, generator=random) / 4 for name, value in base.policy_state().items()}
    )
    return base


def noise(step: int = 0, lengths: tuple[int, int] = (4, 9)) -> list[Noise]:
    return [draw_noise(0, step, index, lengths) for index in range(len(PROMPTS))]


def test_responses_end_at_their_end_token_or_length(vllm: FakeVllm, ppo: Attempt, policy: SharedBase) -> None:
    sampler = VllmSampler(ppo.recipe, ppo.session, policy)
    drawn = noise(lengths=(30, 36))
    free = sampler(PROMPTS, drawn, ())
    assert [len(response) for response in free] == [one.length for one in drawn]
    assert all(not params.ends for params in vllm.asked[0])
    end = free[0][10]
    ended = sampler(PROMPTS, drawn, (end,))
    expected = [response[: response.index(end) + 1] if end in response else response for response in free]
    assert ended == expected and len(ended[0]) < len(free[0])  # the end token is part of the response


def test_a_response_has_a_seed_of_its_own_on_every_attempt(vllm: FakeVllm, ppo: Attempt, policy: SharedBase) -> None:
    sampler = VllmSampler(ppo.recipe, ppo.session, policy)
    first, again = sampler(PROMPTS, noise(), (EOS,)), sampler(PROMPTS, noise(), (EOS,))
    assert first == again
    assert sampler(PROMPTS[1:2], noise()[1:2], (EOS,)) == first[1:2]  # another rank layout
    sampler(PROMPTS, noise(step=1), (EOS,))
    seeds = [[params.seed for params in asked] for asked in vllm.asked]
    assert seeds[0] == seeds[1] and seeds[2] == seeds[0][1:2]
    assert len({*seeds[0], *seeds[3]}) == 2 * len(PROMPTS) and min(seeds[0] + seeds[3]) >= 0  # type: ignore[type-var]
    assert {params.temperature for params in vllm.asked[0]} == {ppo.recipe.temperature}


def test_the_policy_of_each_rollout_is_handed_over_and_nothing_is_left(
    vllm: FakeVllm, ppo: Attempt, policy: SharedBase
) -> None:
    sampler = VllmSampler(ppo.recipe, ppo.session, policy)
    for seed in (2, 3):
        held = {name: value.clone() for name, value in trained(policy, seed).policy_state().items()}
        sampler(PROMPTS, noise(), (EOS,))
        assert held.keys() == vllm.weights[-1].keys()
        assert all(torch.equal(held[name], value) for name, value in vllm.weights[-1].items())
    assert not torch.equal(*(next(iter(weights.values())) for weights in vllm.weights))
    assert [one.id for one in vllm.adapters] == [1, 2] and len({one.name for one in vllm.adapters}) == 2
    folder = vllm.adapters[0].path
    assert folder.is_relative_to(ppo.run.path) and not folder.exists()
    assert vllm.modes == [stat.S_IRWXU, stat.S_IRWXU]


def test_vllm_sleeps_except_while_it_samples(vllm: FakeVllm, ppo: Attempt, policy: SharedBase) -> None:
    sampler = VllmSampler(ppo.recipe, ppo.session, policy)
    assert vllm.calls == ["start", "sleep"]
    sampler(PROMPTS, noise(), (EOS,))
    assert vllm.calls[2:] == ["wake", "generate", "sleep"]
    vllm.fails["generate"] = RuntimeError("CUDA error: out of memory")
    with pytest.raises(StageError, match=r"vLLM ran out of memory while it sampled: CUDA.*vllm_gpu_memory_utilization"):
        sampler(PROMPTS, noise(), (EOS,))
    assert vllm.calls[5:] == ["wake", "generate", "sleep"] and not vllm.adapters[-1].path.exists()


def test_a_stop_is_served_before_and_after(vllm: FakeVllm, ppo: Attempt, policy: SharedBase) -> None:
    sampler = VllmSampler(ppo.recipe, ppo.session, policy)
    vllm.meanwhile = lambda: ppo.run.request("stop")
    for expected in (["wake", "generate", "sleep"], []):
        del vllm.calls[:]
        with pytest.raises(LeftEarly):
            sampler(PROMPTS, noise(), (EOS,))
        assert vllm.calls == expected


def test_what_the_engine_is_started_with(vllm: FakeVllm, ppo: Attempt, policy: SharedBase, base: Path) -> None:
    VllmSampler(ppo.recipe, ppo.session, policy)
    options = vllm.options
    assert options["model"] == str(base) and options["dtype"] == "bfloat16" and not options["trust_remote_code"]
    assert options["load_format"] == "safetensors"  # pickles are programs
    assert options["max_model_len"] == 39 + 7  # the longest prompt and response
    assert options["max_lora_rank"] == 16  # the least that holds 9
    assert options["gpu_memory_utilization"] == 0.3 and options["enable_sleep_mode"]
    assert options["distributed_executor_backend"] == "external_launcher"
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1" and os.environ["RANK"] == "0"


def test_nothing_listens_where_others_could_reach_it(vllm: FakeVllm, ppo: Attempt, policy: SharedBase) -> None:
    before = {one.laddr for one in psutil.Process().net_connections("inet") if one.status == psutil.CONN_LISTEN}
    VllmSampler(ppo.recipe, ppo.session, policy)
    assert distributed.get_world_size() == 1
    now = {one.laddr for one in psutil.Process().net_connections("inet") if one.status == psutil.CONN_LISTEN} - before
    assert now and all(address.ip in ("127.0.0.1", "::1") for address in now)


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        ("start", ValueError("No available memory for the cache blocks.\nAnd more."), "failed to start: No available"),
        ("start", ImportError("libcuda.so.1: cannot open"), "failed to start: libcuda"),
        ("wake", RuntimeError("CUDA Error: out of memory at cumem.cpp:62"), "not enough memory to wake up: CUDA Error"),
    ],
)
def test_where_vllm_fails_one_message_says_so(
    vllm: FakeVllm, ppo: Attempt, policy: SharedBase, call: str, error: Exception, told: str
) -> None:
    vllm.fails[call] = error
    with pytest.raises(StageError, match=told) as caught:
        VllmSampler(ppo.recipe, ppo.session, policy)(PROMPTS, noise(), (EOS,))
    assert "use_vllm: false" in str(caught.value) and "\n" not in str(caught.value)


def with_rank_pattern(policy: SharedBase) -> None:
    policy.model.peft_config[POLICY].rank_pattern = {"q_proj": 4}  # type: ignore[attr-defined]


def of_rank_600(policy: SharedBase) -> None:
    policy.model.peft_config[POLICY].r = 600  # type: ignore[attr-defined]


def in_float32(policy: SharedBase) -> None:
    policy.base.float()


@pytest.mark.parametrize(
    ("change", "told"), [(with_rank_pattern, "`rank_pattern`"), (of_rank_600, "rank 600"), (in_float32, "float32")]
)
def test_a_policy_that_vllm_would_get_wrong_is_refused(
    vllm: FakeVllm, ppo: Attempt, policy: SharedBase, change: Callable[[SharedBase], None], told: str
) -> None:
    change(policy)
    with pytest.raises(StageError, match=told):
        VllmSampler(ppo.recipe, ppo.session, policy)
    assert vllm.calls == []


@pytest.mark.slow
def test_ppo_scores_what_vllm_sampled_itself(vllm: FakeVllm, ppo: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Canary, evaluations and two steps: the ratio begins at 1 although another program did the sampling."""
    monkeypatch.setenv("STACKLLAMA_CANARY", "1")
    monkeypatch.setattr(sampling, "_sample", _never)
    assert isinstance(ppo.recipe, PPORecipe)
    facts = ppo.train()
    assert facts is not None and facts["steps"] == 3
    assert set(ppo.metrics("val/ratio_first").values()) == {1.0}
    assert all(0 < value < 0.1 for value in ppo.metrics("sampling/logprob_difference").values() if value is not None)
    assert "does not draw" not in ppo.health
    assert vllm.calls == ["start", "sleep", *["wake", "generate", "sleep"] * 6]  # canary, before, 3 steps, after
    assert len(vllm.asked[0]) == 4 and {params.max_tokens for params in vllm.asked[0]} == {7}
    first, last = (
        next(value for name, value in weights.items() if "lora_B" in name)
        for weights in (vllm.weights[2], vllm.weights[5])
    )
    assert not first.any() and last.any()  # the policy that was trained meanwhile


def _never(*_: Any) -> None:
    raise AssertionError("sampled by this engine")
