"""Sampling of responses with vLLM, in the process that trains and on its GPU.

vLLM holds a copy of the base and gets the policy's adapter anew for every rollout. It sleeps, its weights in the host's
memory and its cache dropped, while PPO scores and updates. Its log-probabilities are compared with the learner's and
never trained on: its kernels round otherwise, so what it sampled is scored by the pass that the update is compared
with, and the ratio begins at exactly 1.

The same response gets the same seed on every attempt and in every layout of ranks. vLLM's arithmetic depends on what
else is in a batch, so unlike :mod:`.sampling` it does not promise the same tokens.

Written against the sources of vLLM 0.22.0 and 0.33.0 (``entrypoints/llm.py``, ``engine/arg_utils.py``,
``sampling_params.py``, ``lora/``) and run against a stand-in only, never on a GPU.
"""

import importlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import save_file
from torch import distributed
from torch._C._distributed_c10d import HashStore

from ...contract.atomic_files import make_private_dir
from ...contract.errors import StageError
from ...contract.recipe import VLLM_LORA_RANKS, PPORecipe
from ..faults import free_memory, memory_that_ran_out
from ..session import SCRATCH, Session
from .sampling import Noise, Responses
from .shared_base import POLICY, SharedBase
from .state import dense

_BATCHED_TOKENS = 4096
"""Tokens per step of vLLM. With its own default it reserves memory for eight times as many (TRL's
``generation/vllm_generation.py``)."""


class VllmSampler:
    """Replaces :func:`.sampling.sample` where ``use_vllm`` is set; one engine per rank.

    Args:
        recipe: the PPO recipe.
        session: rank and run directory; tells before and after a rollout, not during one, whether a stop waits.
        base: the policy is its active adapter.

    Raises:
        StageError: vLLM does not start, or could not sample from this policy.
    """

    def __init__(self, recipe: PPORecipe, session: Session, base: SharedBase) -> None:
        self._base = base
        self._leave = session.requests.leave_early
        self._temperature = recipe.temperature
        self._folder = session.run.path / SCRATCH / f"vllm-{session.rank}"
        self._rollouts = 0
        length = recipe.max_prompt_length - 1 + recipe.longest_response  # prompts of `max_prompt_length` are dropped
        options = {
            "model": recipe.model_name_or_path,
            "revision": recipe.model_revision,
            "dtype": _dtype(base),
            "load_format": "safetensors",
            "trust_remote_code": False,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "seed": recipe.seed,
            "distributed_executor_backend": "external_launcher",
            "gpu_memory_utilization": recipe.vllm_gpu_memory_utilization,
            "max_model_len": length,
            "max_num_seqs": recipe.local_batch_size,
            "max_num_batched_tokens": max(_BATCHED_TOKENS, length, recipe.local_batch_size),
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": _rank(base),
            "enable_prefix_caching": False,
            "enable_sleep_mode": True,
            "logprobs_mode": "processed_logprobs",  # after the temperature
        }
        _meet(session)
        try:
            self._vllm: Any = importlib.import_module("vllm")
            self._lora: Any = importlib.import_module("vllm.lora.request")
            self._llm: Any = self._vllm.LLM(**options)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise StageError(
                f"vLLM failed to start: {_first_line(error)} Change `vllm_gpu_memory_utilization` if this is about "
                "memory (its share holds the base's weights as well); or set `use_vllm: false`."
            ) from error
        self._llm.sleep(level=1)

    def __call__(self, prompts: Sequence[Sequence[int]], noise: Sequence[Noise], stops: Sequence[int]) -> Responses:
        """Sample one response per prompt, its end token included; it ends there or at its noise's length.

        Args:
            prompts: token ids.
            noise: one per prompt; gives length and seed.
            stops: tokens that end a response.

        Raises:
            LeftEarly: a stop waits.
            StageError: there is no memory to wake up in, or to sample in.
        """
        self._leave()
        parameters = [self._sampling_parameters(one, stops) for one in noise]
        texts = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        with self._awake(), self._policy() as adapter:
            try:
                outputs = self._llm.generate(texts, parameters, lora_request=adapter, use_tqdm=False)
            except RuntimeError as error:
                if memory_that_ran_out(error) is None:
                    raise
                raise StageError(  # smaller batches, which PPO would try next, are nothing to vLLM
                    f"vLLM ran out of memory while it sampled: {_first_line(error)} Lower "
                    "`vllm_gpu_memory_utilization` or `per_device_train_batch_size`, or set `use_vllm: false`."
                ) from error
        self._leave()
        samples = [output.outputs[0] for output in outputs]
        return Responses((list(one.token_ids) for one in samples), (_logprobs(one) for one in samples))

    def _sampling_parameters(self, noise: Noise, stops: Sequence[int]) -> Any:
        """Make sampling parameters of the recipe's policy alone, ignoring end tokens that a model's own files name."""
        return self._vllm.SamplingParams(
            temperature=self._temperature,
            seed=seed_of(noise),
            max_tokens=noise.length,
            ignore_eos=True,
            stop_token_ids=[*stops],
            detokenize=False,
            logprobs=0,  # those of the sampled tokens alone
        )

    @contextmanager
    def _awake(self) -> Iterator[None]:
        free_memory()  # what torch keeps for itself is not there for vLLM
        try:
            self._llm.wake_up()
        except RuntimeError as error:
            raise StageError(
                f"vLLM has not enough memory to wake up: {_first_line(error)} Lower `vllm_gpu_memory_utilization` or "
                "`per_device_train_batch_size`, or set `use_vllm: false`."
            ) from error
        try:
            yield
        finally:
            self._llm.sleep(level=1)

    @contextmanager
    def _policy(self) -> Iterator[Any]:
        """Yield the policy as vLLM takes it: a directory, under a new name and number."""
        self._rollouts += 1
        shutil.rmtree(self._folder, ignore_errors=True)  # of an attempt that was killed here
        make_private_dir(self._folder)
        try:
            save_file(dense(self._base.policy_state()), self._folder / "adapter_model.safetensors")
            self._base.model.peft_config[POLICY].save_pretrained(str(self._folder))
            yield self._lora.LoRARequest(f"policy-{self._rollouts}", self._rollouts, str(self._folder))
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


def seed_of(noise: Noise) -> int:
    """Return a response's seed: 53 bits of its first uniform number, which follow from recipe, step and position."""
    return int(float(noise.uniforms[0]) * 2**53)


def _logprobs(output: Any) -> list[float]:
    """Read the log-probability of each sampled token, from one dictionary per position (``logprobs.py``)."""
    return [float(position[token].logprob) for token, position in zip(output.token_ids, output.logprobs, strict=True)]


def _dtype(base: SharedBase) -> str:
    """Return the base's dtype, if vLLM can apply LoRA to it (``lora/ops/triton_ops/lora_shrink_op.py``)."""
    if base.base.dtype not in (torch.bfloat16, torch.float16):
        raise StageError(
            f"vLLM applies LoRA to 16-bit weights only, and this base has {base.base.dtype}; "
            "set `dtype: bfloat16`, or `use_vllm: false`."
        )
    return str(base.base.dtype).removeprefix("torch.")


def _rank(base: SharedBase) -> int:
    """Return vLLM's smallest LoRA rank that holds the policy's; a continued adapter has its own.

    Source: vLLM's ``lora/peft_helper.py``.
    """
    config: Any = base.model.peft_config[POLICY]
    special = [name for name in ("use_dora", "lora_bias", "rank_pattern", "alpha_pattern") if getattr(config, name)]
    special += [] if config.bias == "none" else ["bias"]
    if special or config.r > VLLM_LORA_RANKS[-1]:
        what = f"`{special[0]}`" if special else f"rank {config.r}"
        raise StageError(f"vLLM cannot apply an adapter with {what}; set `use_vllm: false`.")
    return next(rank for rank in VLLM_LORA_RANKS if rank >= config.r)


def _meet(session: Session) -> None:
    """Prepare what vLLM expects of a launcher, in the environment and in torch.

    Of one process it would make a group through a store that listens on all interfaces; one in memory does as well.
    """
    os.environ["VLLM_NO_USAGE_STATS"] = "1"  # it would report the machine and the model's architecture to its makers
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["RANK"] = str(session.rank)
    os.environ["LOCAL_RANK"] = str(session.state.local_process_index)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if not distributed.is_initialized():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else f"{type(error).__name__}."
