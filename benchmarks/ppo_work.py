"""One piece of PPO work for every trainer that is compared, and how it is measured.

Imported by each side in its own environment: torch, transformers and the standard library only. Sixteen prompts of 64
tokens, responses of 64 tokens whose end token is ignored, four epochs of mini-batches of four, LoRA of rank 16 on
``q_proj`` and ``v_proj``, a value function, a reward model of the same size, and the reference's log-probabilities.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

RANK, ALPHA = 16, 32
LEARNING_RATE, KL, VALUE = 1.4e-5, 0.2, 0.1
THREADS = 2
PAD, BEGIN, END = 0, 1, 2
SPECIAL = ["<pad>", "<s>", "</s>", "Question:", "Answer:"]


@dataclass(frozen=True)
class Work:
    """Sizes of a PPO step and of its LLaMA: responses, responses per mini-batch and per micro-batch, tokens."""

    batch: int = 16
    mini: int = 4
    micro: int | None = None
    """Responses per forward and backward pass; None: a whole mini-batch."""
    epochs: int = 4
    prompt: int = 64
    response: int = 64
    vocabulary: int = 32_000
    hidden: int = 512
    layers: int = 8
    intermediate: int = 1376
    heads: int = 8
    kv_heads: int | None = None
    """Heads of keys and values; None: as many as of queries."""
    targets: str | tuple[str, ...] = ("q_proj", "v_proj")
    """Matrices with an adapter."""


FULL = Work()
TINY = Work(
    batch=4, mini=2, epochs=2, prompt=8, response=8, vocabulary=100, hidden=32, layers=2, intermediate=64, heads=4
)
"""A step of a fraction of a second: whether a side still runs. Its speed says nothing."""
_LARGE = Work(
    batch=128,
    mini=128,
    micro=16,
    prompt=511,
    response=127,
    hidden=2048,
    layers=16,
    intermediate=5632,
    heads=16,
    kv_heads=8,
    targets="all-linear",
)
GPU = {
    "0.9b": _LARGE,
    "7b": replace(_LARGE, micro=8, hidden=4096, layers=32, intermediate=11008, heads=32, kv_heads=32),
    "tiny": replace(TINY, mini=4, micro=2, targets="all-linear"),
}
"""The work of a GPU, by the model's size; ``tiny`` is for a CPU."""


class Placement(TypedDict):
    """Where weights are drawn, and in which dtype they are saved."""

    device: str
    dtype: str


def placement(model: str | None) -> Placement:
    """Return device and dtype of a model of `GPU`; ``tiny`` and the work of a CPU, None, are in float32 on the CPU."""
    on_cpu = model in (None, "tiny")
    return Placement(device="cpu", dtype="float32") if on_cpu else Placement(device="cuda", dtype="bfloat16")


def work_of(options: argparse.Namespace) -> Work:
    """Return the work that :func:`parser`'s options name."""
    return GPU[options.model] if options.model else TINY if options.tiny else FULL


def parser(description: str) -> argparse.ArgumentParser:
    """Return the parser of one side: the folder of the prepared work, how many batches count, ``--tiny``."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("folder", nargs="?", type=Path, help="the prepared work; --tiny prepares its own without it")
    options.add_argument("batches", nargs="?", type=int, default=1, help="batches that count, after one to warm up")
    options.add_argument("--tiny", action="store_true", help="a tiny model: whether it runs, not how fast")
    options.add_argument("--model", choices=GPU, help="the work of a GPU, on it; `tiny`: its sizes, on the CPU")
    return options


def prepare(
    folder: Path,
    batches: int,
    work: Work,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    reward_model: bool = True,
) -> None:
    """Write the base, the reward model and the prompts that all sides read.

    ``base/`` is a language model and tokenizer; ``reward/`` the same trunk with a score head; ``prompts.json`` has
    token ids ``[batches × B, P]``; ``questions.jsonl`` the same prompts as text for a template of two words.

    Args:
        folder: for all of it.
        batches: of prompts.
        work: the sizes.
        device: where the random weights are drawn.
        dtype: in which they are saved.
        reward_model: whether one of its own is written.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    words = {name: number for number, name in enumerate(SPECIAL)}
    words |= {f"w{number}": number for number in range(len(SPECIAL), work.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=work.vocabulary,
        hidden_size=work.hidden,
        intermediate_size=work.intermediate,
        num_hidden_layers=work.layers,
        num_attention_heads=work.heads,
        num_key_value_heads=work.kv_heads or work.heads,
        max_position_embeddings=1024,
        pad_token_id=PAD,
        bos_token_id=BEGIN,
        eos_token_id=END,
        tie_word_embeddings=False,
    )
    with torch.device(device):
        models_of: dict[str, Any] = {"base": LlamaForCausalLM(config).to(getattr(torch, dtype))}
        if reward_model:
            config.num_labels = 1
            models_of["reward"] = LlamaForSequenceClassification(config).to(getattr(torch, dtype))
            models_of["reward"].model.load_state_dict(models_of["base"].model.state_dict())
    for name, model in models_of.items():
        model.save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
    prompts = torch.randint(len(SPECIAL), work.vocabulary, (batches * work.batch, work.prompt - 2)).tolist()
    rows = [[SPECIAL.index("Question:"), *row, SPECIAL.index("Answer:")] for row in prompts]
    (folder / "prompts.json").write_text(json.dumps(rows))
    questions = (json.dumps({"question": " ".join(f"w{token}" for token in row)}) for row in prompts)
    (folder / "questions.jsonl").write_text("\n".join(questions) + "\n")


def flop(work: Work) -> float:
    """Return multiply-adds × 2 of one batch that no arrangement of ours avoids, without attention's own products.

    With trunk N = layers × (4 H² + 3 H I) and head V × H parameters, B responses, P prompt and R response tokens:
    sampling 2 B ((P + R) N + R V H); the policy's and the reference's recorded log-probabilities 2 × 2 B ((P + R) N +
    R V H); reward 2 B (P + R) N; each epoch forward and, as the base is frozen, an equally large backward
    2 × 2 B ((P + R) N + R V H).
    """
    trunk = work.layers * (4 * work.hidden * work.hidden + 3 * work.hidden * work.intermediate)
    reward = 2.0 * work.batch * (work.prompt + work.response) * trunk
    whole = reward + 2.0 * work.batch * work.response * work.vocabulary * work.hidden
    return whole * (1 + 2 + 2 * work.epochs) + reward


class Meter:
    """Times of batches and peak memory of this process, from when the libraries are loaded, before any model."""

    def __init__(self) -> None:
        self._baseline = _status("VmRSS")
        self._marks: list[tuple[float, float]] = []

    def mark(self) -> None:
        """Note the end of a batch (the first mark: of the warm-up)."""
        self._marks.append((time.perf_counter(), time.process_time()))

    def run(self, step: Callable[[int], object], batches: int) -> None:
        """Run one batch to warm up, then ``batches`` that count."""
        for number in range(batches + 1):
            step(number)
            self.mark()

    def report(self, **more: Any) -> None:
        """Print one JSON line: seconds and processor seconds per batch, bytes."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        print(
            json.dumps(
                {
                    "seconds": [after[0] - before[0] for before, after in pairs],
                    "processor": [after[1] - before[1] for before, after in pairs],
                    "peak": _status("VmHWM"),
                    "baseline": self._baseline,
                    "allocated": _peak_allocated(),
                    **more,
                }
            ),
            flush=True,
        )


def versions(*names: str) -> dict[str, str]:
    """Return installed versions."""
    from importlib.metadata import version

    return {name: version(name) for name in names}


def set_threads() -> None:
    """Set the threads of a CPU; a GPU's host keeps torch's own choice."""
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(THREADS)


def quiet(*, on_gpu: bool | None = None) -> None:
    """Set no network, no trackers and, on a CPU, two threads; before torch is imported.

    Args:
        on_gpu: None: what :func:`parser` will read from the command line.
    """
    if on_gpu is None:
        models = dict(zip(sys.argv, sys.argv[1:], strict=False))
        on_gpu = placement(models.get("--model"))["device"] == "cuda"
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
    if on_gpu:
        return
    os.environ.update(
        OMP_NUM_THREADS=str(THREADS),
        MKL_NUM_THREADS=str(THREADS),
        CUDA_VISIBLE_DEVICES="",
        ACCELERATE_USE_CPU="true",
    )


def _peak_allocated() -> int | None:
    """Return the most bytes that were allocated on the GPU at once; None without one."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def _status(key: str) -> int:
    """Return bytes from ``/proc/self/status`` (which counts KiB)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
