"""Sharding over several GPUs: numbers worked by hand, and FSDP2 itself with fake ranks."""

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from stackllama_engine.budget import adapter, optimizer, sharding, training, weights
from stackllama_engine.budget.activations import LayerMode
from stackllama_engine.budget.architecture import Architecture
from stackllama_engine.budget.estimate import estimate, estimate_sharded
from stackllama_engine.budget.precision import Precision
from stackllama_engine.budget.shapes import architecture_of
from stackllama_engine.budget.sharding import Sharding
from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.stages import Stage

from .test_estimate import recipe

RANKS = 4
SMALL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 704,
    "vocab_size": 1000,
    "tie_word_embeddings": False,
}
LENGTH = 32
FULL: dict[str, Any] = {"use_peft": False, "load_in_8bit": False, "dtype": "bfloat16"}


def workload(lora: bool, checkpointing: Any) -> training.Workload:
    arch, precision = architecture_of(SMALL, "m", "config.json", frozenset()), Precision(native=4)
    targets = adapter.targets(arch, "all-linear") if lora else ()
    trained = adapter.parameters(targets, 8, arch.layers) if lora else arch.parameters
    mode = LayerMode(precision=precision, full=not lora, targets=targets, rank=8 if lora else 0, length=LENGTH)
    return training.Workload(
        arch=arch,
        mode=mode,
        sequences=1,
        base=weights.base(arch, precision),
        trained=trained,
        adapter=4 * trained if lora else 0,
        optimizer="loop",
        checkpointing=checkpointing,
    )


def test_states_are_sharded() -> None:
    work = workload(lora=False, checkpointing="none")
    whole = {one.name: one for one in training.phases(work)}["optimizer step"]
    parts = {part.name: part.bytes for part in whole.components}
    for kind, divided in (("zero2", {"gradients", "optimizer"}), ("fsdp", {"gradients", "optimizer", "base weights"})):
        shard = Sharding(kind=kind, ranks=RANKS)  # type: ignore[arg-type]
        found = {part.name: part.bytes for part in sharding.sharded(whole, work, shard).components}
        for name, count in parts.items():
            assert found[name] == (count // RANKS if name in divided else count), (kind, name)


def test_gathered_parameters_worked_by_hand() -> None:
    layer = 4 * (4 * 256 * 256 + 3 * 256 * 704 + 2 * 256)
    full, lora = workload(lora=False, checkpointing="none"), workload(lora=True, checkpointing="none")
    adapters = 4 * adapter.parameters(lora.mode.targets, 8, 1)
    assert sharding.layer_bytes(full) == layer
    assert sharding.layer_bytes(lora) == layer + adapters
    assert sharding.gathered(full, "last layer's backward", "fsdp") == 4 * layer
    assert sharding.gathered(full, "last layer's backward", "zero3") == 3 * layer
    assert sharding.gathered(lora, "last layer's backward", "fsdp") == 2 * (layer + adapters)
    assert sharding.gathered(full, "loss", "fsdp") == 4 * 256 * 1000
    assert sharding.gathered(full, "optimizer step", "fsdp") == 0
    assert sharding.reduce_bucket(full) == 4 * optimizer.elements(full.tensors)
    assert sharding.share(10, 4) == 3


def test_more_gpus_hold_less_each(llama_7b: Architecture) -> None:
    asked: Any = recipe(Stage.SFT, **FULL)
    alone = estimate(asked, llama_7b, on_gpu=True).allocated
    for kind in ("zero2", "zero3", "fsdp"):
        two, eight = (
            estimate_sharded(asked, llama_7b, Sharding(kind=kind, ranks=ranks)).allocated  # type: ignore[arg-type]
            for ranks in (2, 8)
        )
        assert eight < two < alone, kind
    found = estimate_sharded(asked, llama_7b, Sharding(kind="fsdp", ranks=8))
    assert sum(part.bytes for part in found.components) == found.allocated


def test_int8_weights_cannot_be_sharded(llama_7b: Architecture) -> None:
    asked: Any = recipe(Stage.SFT, load_in_8bit=True)
    with pytest.raises(UsageError, match="`base_precision: bf16`"):
        estimate_sharded(asked, llama_7b, Sharding(kind="fsdp", ranks=2))
    assert estimate_sharded(asked, llama_7b, Sharding(kind="zero2", ranks=2))


@pytest.fixture
def mesh() -> Iterator[Any]:
    """Four ranks of which one is here; what the others would send is never looked at."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)  # type: ignore[no-untyped-call]
    try:
        yield init_device_mesh("cpu", (RANKS,))
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(("lora", "checkpointing"), [(True, "plain"), (False, "none")])
def test_fsdp2_takes_what_the_formula_says(mesh: Any, lora: bool, checkpointing: str) -> None:
    work = workload(lora, checkpointing)
    shard = Sharding(kind="fsdp", ranks=RANKS)
    predicted = max(sharding.sharded(one, work, shard).bytes for one in training.phases(work))
    assert predicted == pytest.approx(_measured(mesh, lora, checkpointing), rel=0.06)


def _measured(mesh: Any, lora: bool, checkpointing: str) -> int:
    """Most bytes alive in the second step of one rank, layers and embeddings sharded as accelerate does it."""
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SMALL, use_cache=False), dtype=torch.float32)
    if lora:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"))
    inner = model.get_base_model() if lora else model
    if checkpointing == "plain":
        inner.gradient_checkpointing_enable({"use_reentrant": False})
        inner.enable_input_require_grads()
    for module in (*inner.model.layers, inner.model.embed_tokens):
        fully_shard(module, mesh=mesh)
    fully_shard([inner.model.norm, inner.lm_head], mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh)
    ids = torch.zeros(1, LENGTH, dtype=torch.int64)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    stepped = torch.optim.AdamW(trained, lr=1e-4, foreach=False, fused=False)
    alive = _Alive(model)
    with alive:
        for _ in range(2):
            alive.peak = 0
            logits = model(input_ids=ids).logits.float()[:, :-1]
            loss = nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
            del logits
            loss.backward()
            stepped.step()
            stepped.zero_grad(set_to_none=True)
    return alive.peak


class _Alive(TorchDispatchMode):
    """Bytes of all storages as they are now: FSDP empties and refills those of gathered parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, Any] = {}
        for parameter in model.parameters():
            self._follow(parameter.to_local() if isinstance(parameter, DTensor) else parameter)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # first what it becomes on this rank
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((out, args)):
            if isinstance(leaf, torch.Tensor):
                self._follow(leaf)
        alive = [found for reference in list(self._storages.values()) if (found := reference()) is not None]
        self.peak = max(self.peak, sum(storage.nbytes() for storage in alive))
        return out

    def _follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata

        def gone(_: Any) -> None:
            self._storages.pop(key, None)

        self._storages.setdefault(key, weakref.ref(storage, gone))
