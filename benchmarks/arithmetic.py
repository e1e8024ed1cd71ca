"""A tiny model learns to solve word problems by PPO, from nothing but whether its number is right.

    python benchmarks/arithmetic.py base FOLDER             # the base, once: some minutes
    python benchmarks/arithmetic.py record FOLDER           # PPO with three seeds, about ten minutes each on one core
    python benchmarks/arithmetic.py write                   # docs/arithmetic.md, from docs/measurements/arithmetic.json
    python benchmarks/arithmetic.py --tiny                  # all of it in a minute, in a folder that is removed

The problems are in ``arithmetic_problems.py``. The base is a Llama of 0.3 million parameters, trained from nothing on
right equations, numbers read back from a text, and problems with the answers of a crowd that rarely picks the right
operation. PPO is the project's own stage, launched as anyone launches it; its evaluations are the accuracy on held-out
problems, sampled at the temperature of training, with the same noise before, between and after.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import arithmetic_problems
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "engine"))

from stackllama_engine.contract.prompt_format import PromptFormat  # noqa: E402
from stackllama_engine.data.manifest import MANIFEST, Report  # noqa: E402
from stackllama_engine.train import demo_base  # noqa: E402

_B, _T = 16, 96
_PROBLEMS = 0.4
"""Share of problems in the base's training text."""


def texts(seed: int) -> Iterator[str]:
    """Yield endless training texts of the base: a problem with the crowd's answer, or a few lines without one."""
    draw = random.Random(f"texts {seed}")
    problems, lines = arithmetic_problems.crowd(seed), arithmetic_problems.lines(seed)
    while True:
        if draw.random() < _PROBLEMS:
            yield PromptFormat().render(*next(problems))
        else:
            yield "\n".join(itertools.islice(lines, 3))


def make_base(folder: Path, steps: int, seed: int = 0) -> dict[str, Any]:
    """Train and save the base; return its facts."""
    torch.manual_seed(seed)
    started = time.process_time()
    tokenizer = demo_base.build_tokenizer(itertools.islice(texts(seed), 3000), vocab_size=512)
    model = demo_base.build_model(tokenizer, hidden_size=96, layers=3)

    def batches() -> Iterator[torch.Tensor]:
        stream, tokens = texts(seed), []
        while True:
            while len(tokens) < _B * _T:
                tokens += [*tokenizer(next(stream))["input_ids"], tokenizer.eos_token_id]
            yield torch.tensor(tokens[: _B * _T]).view(_B, _T)
            tokens = tokens[_B * _T :]

    loss = demo_base.train(model, batches(), [], steps)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    seconds = time.process_time() - started
    return {"parameters": model.num_parameters(), "steps": steps, "loss": loss, "cpu_seconds": seconds}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(make_base(Path(sys.argv[1]), int(sys.argv[2])))
