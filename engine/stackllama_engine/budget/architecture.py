"""Sizes of a model: its matrices, layers, vocabulary and precision."""

from msgspec import Struct

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


class Linear(Struct, frozen=True):
    """One kind of matrix in every layer; bitsandbytes quantises it, LoRA may adapt it."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False
    count: int = 1
    """Experts that each hold one."""
    source: str = ""
    """Which tensor it reads, so that matrices that share one are known: ``attn``, ``out``, ``mlp``, ``down``."""


class Architecture(Struct, frozen=True, kw_only=True):
    """A model's sizes. Counts are of elements, ``bytes_on_disk`` of bytes."""

    name: str
    model_type: str
    parameters: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    """Embedding and language-model head are one matrix."""
    experts: int | None = None
    experts_used: int = 1
    """Experts that one token visits."""
    dtypes: tuple[str, ...] = ()
    """Of the checkpoint, as ``config.json`` or the files name them; the most frequent first."""
    bytes_on_disk: int = 0
    rough: str | None = None
    """Why the numbers are rough: what was missing. None: nothing was."""
    unknown: str | None = None
    """Why `parameters` is but the least that there are: something of the model is not counted. None: all of it is."""
    packed: float | None = None
    """Of a checkpoint that is quantised already: least bytes of an element. None: it is not."""
    linears: tuple[Linear, ...] = ()
    norms: int = 0
    """Elements of the norms of one layer."""
    extra: int = 0
    """Elements outside layers, embedding and head: learned positions, final norm, biases of the head."""
    family: str = "llama"
    """How a layer computes: ``llama``, ``gemma``, ``phi``, ``neox``, ``gpt2``."""
    qk_norm: bool = False
    gated: bool = True
    activation: str = "silu"
    default_targets: tuple[str, ...] | None = None
    """LoRA targets when the recipe names none; None: PEFT knows none for this model."""

    @property
    def q(self) -> int:
        """Width of the queries of all heads."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of the keys, or the values, of all heads."""
        return self.kv_heads * self.head_dim

    @property
    def embedding(self) -> int:
        """Elements of the embedding."""
        return self.vocab * self.hidden

    @property
    def layer_linear(self) -> int:
        """Elements of one layer's matrices."""
        return sum(linear.inputs * linear.outputs * linear.count for linear in self.linears)

    @property
    def adaptable(self) -> tuple[Linear, ...]:
        """The matrices that are modules of their own: LoRA may adapt and bitsandbytes quantise them. The experts of a
        mixture are one parameter of three dimensions in transformers 5, which both leave alone."""
        return tuple(linear for linear in self.linears if linear.count == 1)

    @property
    def layer_rows(self) -> int:
        """Output rows of one layer's matrices that are quantised: int8 has a scale for each."""
        return sum(linear.outputs for linear in self.adaptable)

    @property
    def expert(self) -> int:
        """Elements of the experts of all layers."""
        return self.layers * sum(one.inputs * one.outputs * one.count for one in self.linears if one.count > 1)

    @property
    def linear(self) -> int:
        """Elements of all matrices inside layers."""
        return self.layers * self.layer_linear

    @property
    def other(self) -> int:
        """Elements of everything that is never quantised: embedding, head, norms, biases. Tied ones count once."""
        return max(0, self.parameters - self.linear)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of one element with ``dtype: auto``; float32 where the files do not say, as transformers has it."""
        known = [DTYPE_BYTES[name] for name in self.dtypes if name in DTYPE_BYTES]
        return known[0] if known else 4
