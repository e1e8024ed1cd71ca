"""Every allocation of a real training step on the CPU, followed from storage to storage."""

import weakref
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

_BLOCK = 512
"""Bytes that the CUDA allocator rounds up to."""


class Allocations(TorchDispatchMode):
    """Live bytes of all tensors made inside, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK
        self._seen[storage] = size
        self.live += size
        weakref.finalize(storage, self._drop, size)
        self.peak = max(self.peak, self.live)

    def _drop(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return out


def peak_of_second_step(
    config: dict[str, Any],
    *,
    lora: dict[str, Any] | None,
    dtype: torch.dtype,
    checkpointing: str,
    sequences: int,
    length: int,
) -> int:
    """Return the peak bytes in the second of two steps of cross entropy over all logits, with AdamW's states.

    Args:
        config: of a causal language model.
        lora: keys of an adapter; None trains everything.
        dtype: of the base.
        checkpointing: none, plain or reentrant.
        sequences: in the batch.
        length: tokens of each.
    """
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=dtype)
    model.config.use_cache = False
    if lora is not None:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))
    if checkpointing != "none":
        base = model.get_base_model() if lora is not None else model
        base.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
        if lora is not None:
            model.enable_input_require_grads()
    model.train()
    ids = torch.randint(0, config["vocab_size"], (sequences, length))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, foreach=False)
    allocations = Allocations()
    for tensor in (*model.parameters(), *model.buffers()):
        allocations.add(tensor.data)
    with allocations:
        for _ in range(2):
            allocations.peak = 0
            _loss(model, ids).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return allocations.peak


def _loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids).logits.float()[:, :-1]
    return nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
