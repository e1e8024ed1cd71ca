"""Liger's kernels on a CPU, run by Triton's interpreter in an environment of its own: beside transformers' modules.

Liger replaces transformers' functions for the whole process, so everything plain is computed first.

Shapes: ``B`` rows, ``T`` tokens, ``D`` width, ``H`` heads, ``K`` heads of keys.
"""
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false
# ruff: noqa: E402 - the environment and the path come before what reads them

import os

os.environ["TRITON_INTERPRET"] = "1"  # read where a kernel is defined

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "engine")]

import numpy
import torch
import triton.language as tl
from liger_kernel.ops import rms_norm
from tests.train import in_process, toy, update_kit
from torch import Tensor
from transformers.models.llama import modeling_llama as llama
from triton.runtime import interpreter

from stackllama_engine.contract.events import EventReader
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import models
from stackllama_engine.train.liger import use_liger_kernels

CUDA = torch.device("cuda")
LIGER = ("use_cpu=false", "use_liger_kernel=true")
launches: Counter[str] = Counter()
"""Of each kernel, since it was last cleared."""


@contextmanager
def kernels_on_a_cpu() -> Iterator[None]:
    """Let Liger's kernels run interpreted, and count them.

    A compiled kernel receives numbers as float32 scalars, on which Liger calls ``.to``; the interpreter leaves them
    Python's. And Liger takes ``rsqrt`` from CUDA's device library, of which the interpreter has nothing.
    """
    convert, call = interpreter._implicit_cvt, interpreter.GridExecutor.__call__

    def converted(argument: Any) -> Any:
        if isinstance(argument, float):
            scalar = interpreter.TensorHandle(numpy.array([argument], numpy.float32), tl.float32)
            return tl.tensor(scalar, tl.float32)
        return convert(argument)

    def counted(self: Any, *arguments: Any, **named: Any) -> None:
        launches[self.fn.__name__] += 1
        call(self, *arguments, **named)

    with (
        mock.patch.object(interpreter, "_implicit_cvt", converted),
        mock.patch.object(interpreter.GridExecutor, "__call__", counted),
        mock.patch.object(rms_norm, "rsqrt", lambda x: tl.rsqrt(x)),
        mock.patch.object(models, "use_liger_kernels", lambda model, _: use_liger_kernels(model, CUDA)),
    ):
        yield


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def with_gradients(outputs: list[Tensor], inputs: list[Tensor]) -> list[Any]:
    """Return outputs, and the gradients of a sum in which each element has a weight of its own."""
    loss = torch.stack([(one * normal(*one.shape, seed=9)).sum() for one in outputs]).sum()
    gradients = torch.autograd.grad(loss, inputs)
    return [each.tolist() for each in (*outputs, *gradients)]


def modules(keys: tuple[str, ...], base: Path) -> dict[str, list[Any]]:
    """Compute the three parts of a Llama that Liger replaces, alone, with their gradients."""
    model: Any = models.load_causal_lm(toy.ppo_recipe(base, *keys), torch.device("cpu"))
    layer = model.model.layers[0]
    norm, mlp = layer.input_layernorm, layer.mlp
    with torch.no_grad():
        norm.weight.copy_(normal(64, seed=1))
    x = normal(2, 5, 64, seed=2)  # [B, T, D]
    query, key = normal(2, 4, 5, 16, seed=3), normal(2, 2, 5, 16, seed=4)  # [B, H, T, D / H], [B, K, T, D / H]
    cos, sin = model.model.rotary_emb(x, torch.arange(5).unsqueeze(0))
    return {
        "norm": with_gradients([norm(x)], [x, norm.weight]),
        "mlp": with_gradients([mlp(x)], [x, *mlp.parameters()]),
        "rotary": with_gradients([*llama.apply_rotary_pos_emb(query, key, cos, sin)], [query, key]),
    }


def update(keys: tuple[str, ...], base: Path) -> dict[str, Any]:
    """Run PPO's scoring and the gradients of its update, on padded rows, with LoRA on every matrix and two adapters."""
    kit = update_kit.toy(base, *keys, "value_adapter=true")
    metrics = kit.update(kit.advantages()).metrics()
    old = kit.rollout.old
    return {
        "logprobs": old.logprobs.tolist(),
        "values": old.values.tolist(),
        "gradient": kit.gradients[0].tolist(),
        "metrics": metrics,
    }


def run(base: Path) -> list[dict[str, float | None]]:
    """Run the PPO stage with Liger to its end, and return the metrics of its steps."""
    home = Home(base.parent / "home")
    small = ("max_steps=1", "num_ppo_epochs=1", "per_device_train_batch_size=2", "random_length_limits=[3, 4]")
    keys = (*in_process.PPO, *LIGER, *small, "max_train_samples=2", "max_eval_samples=1", "max_prompt_length=32")
    attempt, _ = in_process.finish(home, base, Stage.PPO, *keys)
    events = EventReader(attempt.attempt_dir(1) / "events.jsonl").read()
    return [event.metrics for event in events if event.kind == "metrics" and "val/ratio_first" in event.metrics]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sys.path.append(str(Path(folder) / "rewards"))
        base = toy.make_base(Path(folder) / "base")
        answers: dict[str, Any] = {"plain": {**modules((), base), "update": update((), base)}}
        with kernels_on_a_cpu():
            answers["liger"] = {**modules(LIGER, base), "update": update(LIGER, base)}
            answers["launches"] = dict(launches)
            answers["steps"] = run(base)
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
