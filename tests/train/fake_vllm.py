"""As much of vLLM as we ask, on the CPU: it loads the base, puts the adapter that it is handed on it, and samples.

Signatures are those of vLLM 0.22.0 and 0.33.0; of keyword arguments those that both have.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

OPTIONS = {
    "model",
    "revision",
    "dtype",
    "load_format",
    "trust_remote_code",
    "skip_tokenizer_init",
    "generation_config",
    "seed",
    "distributed_executor_backend",
    "gpu_memory_utilization",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "enable_lora",
    "max_loras",
    "max_lora_rank",
    "enable_prefix_caching",
    "enable_sleep_mode",
    "logprobs_mode",
}


class SamplingParams:
    def __init__(
        self,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        stop_token_ids: list[int] | None = None,
        ignore_eos: bool = False,
        max_tokens: int = 16,
        detokenize: bool = True,
        logprobs: int | None = None,
    ) -> None:
        assert ignore_eos and not detokenize and logprobs == 0
        assert stop_token_ids is not None and all(token >= 0 for token in stop_token_ids)
        self.temperature = temperature
        self.seed = seed
        self.ends = stop_token_ids
        self.max_tokens = max_tokens


class LoRARequest:
    def __init__(self, lora_name: str, lora_int_id: int, lora_path: str) -> None:
        self.name = lora_name
        self.id = lora_int_id
        self.path = Path(lora_path)


class FakeVllm:
    """The module, and what was asked of it."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.calls: list[str] = []
        self.asked: list[list[SamplingParams]] = []
        self.adapters: list[LoRARequest] = []
        self.weights: list[dict[str, Tensor]] = []
        """Of each adapter, as it lay on the disk."""
        self.modes: list[int] = []
        """Of each adapter's directory."""
        self.fails: dict[str, Exception] = {}
        self.meanwhile: Callable[[], object] = lambda: None
        """What happens while it samples."""

    def call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fails:
            raise self.fails[name]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        vllm, lora, request = (ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
        vllm.LLM = lambda model, **options: Engine(self, model, options)  # type: ignore[attr-defined]
        vllm.SamplingParams = SamplingParams  # type: ignore[attr-defined]
        request.LoRARequest = LoRARequest  # type: ignore[attr-defined]
        for module in (vllm, lora, request):
            monkeypatch.setitem(sys.modules, module.__name__, module)


class Engine:
    def __init__(self, fake: FakeVllm, model: str, options: dict[str, Any]) -> None:
        assert {"model", *options} <= OPTIONS
        fake.options = {"model": model, **options}
        self.fake = fake
        self.awake = True
        fake.call("start")

    def sleep(self, level: int = 1) -> None:
        assert self.awake and level == 1
        self.awake = False
        self.fake.call("sleep")

    def wake_up(self) -> None:
        assert not self.awake
        self.fake.call("wake")
        self.awake = True

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: list[SamplingParams],
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> list[Any]:
        assert self.awake and not use_tqdm and lora_request is not None and len(prompts) == len(sampling_params)
        fake, options = self.fake, self.fake.options
        fake.asked.append(sampling_params)
        fake.adapters.append(lora_request)
        fake.modes.append(lora_request.path.stat().st_mode & 0o777)
        fake.weights.append(load_file(lora_request.path / "adapter_model.safetensors"))
        fake.call("generate")
        fake.meanwhile()
        base = AutoModelForCausalLM.from_pretrained(options["model"], dtype=options["dtype"])
        policy = PeftModel.from_pretrained(base, str(lora_request.path))
        texts = [one["prompt_token_ids"] for one in prompts]
        assert all(
            len(t) + p.max_tokens <= options["max_model_len"] for t, p in zip(texts, sampling_params, strict=True)
        )
        return [
            SimpleNamespace(outputs=[_continued(policy, text, params, options["logprobs_mode"])])
            for text, params in zip(texts, sampling_params, strict=True)
        ]


@torch.no_grad()
def _continued(policy: Any, prompt: list[int], params: SamplingParams, mode: str) -> SimpleNamespace:
    assert params.seed is not None and mode == "processed_logprobs"
    random, tokens = torch.Generator().manual_seed(params.seed), list[int]()
    token_logprobs: list[dict[int, SimpleNamespace]] = []
    while len(tokens) < params.max_tokens and not (tokens and tokens[-1] in params.ends):
        logits = policy(torch.tensor([prompt + tokens])).logits[0, -1].float() / params.temperature
        tokens.append(int(torch.multinomial(torch.softmax(logits, -1), 1, generator=random)))
        token_logprobs.append({tokens[-1]: SimpleNamespace(logprob=float(logits.log_softmax(-1)[tokens[-1]]))})
    return SimpleNamespace(token_ids=tokens, logprobs=token_logprobs)
